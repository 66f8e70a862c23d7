#!/usr/bin/env bash
# Checks, on a cluster with TEEs and kata, what cannot be tested without them.
#
#   KUBECONFIG=... SERVER_VALUES=server.yaml EDGE_VALUES=edge.yaml JOB=job.toml tools/e2e-coco.sh
#
# Needs helm, kubectl and fedlearn, the images in a registry that the cluster reaches, and the
# data claims of the values in the clients' namespace. The job must take several rounds. Both
# releases are installed into NAMESPACE (fedlearn-e2e) and stay if a step fails; KEEP=1 keeps
# them in any case. Each check is printed with its result. Ends with 1 at the first that fails.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd)"
namespace="${NAMESPACE:-fedlearn-e2e}"
site="${SITE:-e2e}"
clients="${CLIENTS:-$namespace-clients}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

shown() { printf 'ok    %s: %s\n' "$1" "$2"; }
fail() { printf 'FAIL  %s\n      %s\n' "$1" "$2" >&2; exit 1; }
need() { command -v "$1" >/dev/null || fail "$1 is not installed" "install it"; }
k() { kubectl "$@"; }

for program in helm kubectl fedlearn; do need "$program"; done
for name in KUBECONFIG SERVER_VALUES EDGE_VALUES JOB; do
  [ -n "${!name:-}" ] || fail "$name is not set" "see the head of tools/e2e-coco.sh"
  [ -e "${!name%%:*}" ] || fail "$name: ${!name} does not exist" "name a file"
done

# refused WHAT COMMAND...: the command must fail, and not because there is no connection.
refused() {
  local what="$1" output
  shift
  if output="$("$@" 2>&1)"; then fail "$what was not refused" "$output"; fi
  case "$output" in
    *"connection refused"* | *"no such host"* | *"Unable to connect"*) fail "$what" "$output" ;;
  esac
  shown "$what" "refused: $(printf '%s' "$output" | tail -n 1 | cut -c -120)"
}

# --- install ------------------------------------------------------------------------------
k version >/dev/null || fail "the cluster does not answer" "try: kubectl version"
fedlearn operator request e2e --operator "$work/operator" >/dev/null
helm upgrade --install server "$here/helm/fedlearn-server" --namespace "$namespace" \
  --create-namespace --values "$SERVER_VALUES" --set-file operator.csr="$work/operator/operator.csr" \
  --wait --timeout 10m >/dev/null
helm test server --namespace "$namespace" --logs
shown "TLS ends in the coordinator's pod" "helm test"

# The answer to the operator's request is public: in the log, or on the volume of the pod.
k -n "$namespace" logs server-0 -c establish >"$work/operator.toml" 2>/dev/null || true
[ -s "$work/operator.toml" ] ||
  k -n "$namespace" exec server-0 -c coordinator -- cat /var/lib/fedlearn/state/operator.toml \
    >"$work/operator.toml" || fail "the answer to the operator's request cannot be read" \
    "allow ReadStreamRequest or exec in the coordinator's guest policy, or read it from its volume"
# This script trusts the cluster for the CA; an operator compares its pin.
pin="$(fedlearn operator login "$work/operator.toml" --operator "$work/operator" 2>&1 |
  sed -n 's/.*--ca-pin \([0-9a-f]\{64\}\).*/\1/p')"
fedlearn operator login "$work/operator.toml" --operator "$work/operator" --ca-pin "$pin" \
  --address 127.0.0.1:19444 ||
  fail "the coordinator answered another request" "start with a fresh claim"
k -n "$namespace" port-forward service/server 19444:9444 >/dev/null 2>&1 &
forward=$!
trap 'kill "$forward" 2>/dev/null || true; rm -rf "$work"' EXIT
export FEDLEARN_OPERATOR="$work/operator"
for _ in $(seq 30); do fedlearn site list >/dev/null 2>&1 && break; sleep 1; done

fedlearn site token "$site" --no-approval >"$work/token.txt"
helm upgrade --install edge "$here/helm/fedlearn-edge" --namespace "$namespace" \
  --values "$EDGE_VALUES" --set site.name="$site" --set workloads.namespace="$clients" \
  --set-file enrollment.token="$work/token.txt" --wait --timeout 10m >/dev/null
helm test edge --namespace "$namespace" --logs

# --- the clients' namespace ---------------------------------------------------------------
cat >"$work/privileged.yaml" <<YAML
apiVersion: v1
kind: Pod
metadata: {name: privileged, namespace: $clients}
spec:
  containers:
    - {name: c, image: busybox, securityContext: {privileged: true}}
YAML
refused "a privileged pod" k create --dry-run=server -f "$work/privileged.yaml"

# --- a round ------------------------------------------------------------------------------
name="$(fedlearn job submit "$JOB" --json | sed -n 's/.*"name": *"\([^"]*\)".*/\1/p' | head -n 1)"
[ -n "$name" ] || fail "the job was not accepted" "try: fedlearn job validate $JOB"
selector="app.kubernetes.io/managed-by=fedlearn-edge,fedlearn.io/job=$name"
for _ in $(seq 120); do
  pod="$(k -n "$clients" get pods -l "$selector" --field-selector=status.phase=Running \
    -o jsonpath='{.items[0].metadata.name}' 2>/dev/null || true)"
  [ -z "$pod" ] || break
  sleep 5
done
[ -n "$pod" ] || fail "no client runs" "$(k -n "$clients" get events --sort-by=.lastTimestamp | tail -n 5)"
shown "a client runs with the RuntimeClass" \
  "$(k -n "$clients" get pod "$pod" -o jsonpath='{.spec.runtimeClassName}')"
refused "entering the client" k -n "$clients" exec "$pod" -- true

# A pod without the clients' labels: curl must report a filtered port, not a closed one.
image="$(k -n "$namespace" get pod server-0 -o jsonpath='{.spec.containers[0].image}')"
cat >"$work/nobody.yaml" <<YAML
apiVersion: v1
kind: Pod
metadata: {name: nobody, namespace: $clients}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: c
      image: $image
      command: [python3, -c, "import socket; socket.create_connection(('server.$namespace.svc', 9443), 5)"]
      resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 100m, memory: 64Mi}}
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
YAML
k create -f "$work/nobody.yaml" >/dev/null
k -n "$clients" wait pod/nobody --for=jsonpath='{.status.phase}'=Failed --timeout=180s >/dev/null ||
  fail "a pod without the clients' labels reached the coordinator" "does the CNI enforce NetworkPolicies?"
shown "the network is closed" "a pod without the clients' labels does not reach the coordinator"

# The client writes its first line before it is admitted, and the other pod has written its trace.
for _ in $(seq 60); do
  fedlearn job logs "$name" --json | grep -q '"client.admitted"' && break
  sleep 5
done
fedlearn job logs "$name" --json | grep -q '"client.admitted"' ||
  fail "no client was admitted" "fedlearn job logs $name"
kept="$("$here/tools/kept-log.sh" "$clients" "$pod" nobody)" ||
  fail "the client's log is not hidden by its guest, or that cannot be determined" "$kept"
shown "the client's log is hidden" "$kept"
k -n "$clients" delete pod nobody --wait=false >/dev/null

# The same client with another guest policy: started, but not admitted.
k -n "$clients" get job -l "$selector" -o json >"$work/jobs.json"
python3 - "$work/jobs.json" >"$work/other.json" <<'PYTHON'
import base64, gzip, json, sys

job = json.load(open(sys.argv[1]))["items"][0]
template = job["spec"]["template"]
key = "io.katacontainers.config.hypervisor.cc_init_data"
text = gzip.decompress(base64.b64decode(template["metadata"]["annotations"][key]))
other = text.replace(b"default ExecProcessRequest := false", b"default ExecProcessRequest := true")
assert other != text, "the guest's policy is not as expected"
template["metadata"]["annotations"][key] = base64.b64encode(gzip.compress(other)).decode()
labels = {k: v for k, v in template["metadata"]["labels"].items() if "controller-uid" not in k and "job-name" not in k}
template["metadata"]["labels"] = labels
spec = {k: v for k, v in job["spec"].items() if k not in ("selector", "manualSelector")}
spec["backoffLimit"] = 0
json.dump({"apiVersion": "batch/v1", "kind": "Job", "spec": spec,
           "metadata": {"name": "other-initdata", "namespace": job["metadata"]["namespace"]}}, sys.stdout)
PYTHON
k create -f "$work/other.json" >/dev/null
k -n "$clients" wait job/other-initdata --for=condition=Failed --timeout=600s >/dev/null ||
  fail "a pod with another guest policy was admitted" "does the policy pin mrconfigid or host_data?"
k -n "$clients" delete job other-initdata --wait=false >/dev/null
shown "other initdata is refused" "the copy of the client with exec allowed was not admitted"

# --- an upgrade in the job ----------------------------------------------------------------
helm upgrade edge "$here/helm/fedlearn-edge" --namespace "$namespace" --reuse-values \
  --set podAnnotations.upgraded="$(date +%s)" --wait --timeout 10m >/dev/null
helm upgrade server "$here/helm/fedlearn-server" --namespace "$namespace" --reuse-values \
  --set podAnnotations.upgraded="$(date +%s)" --wait --timeout 10m >/dev/null
kill "$forward" 2>/dev/null || true
k -n "$namespace" port-forward service/server 19444:9444 >/dev/null 2>&1 &
forward=$!
for _ in $(seq 720); do
  status="$(fedlearn job status "$name" --json 2>/dev/null | sed -n 's/.*"status": *"\([^"]*\)".*/\1/p' | head -n 1)"
  case "$status" in finished) break ;; failed | cancelled) fail "the job ended as $status" "fedlearn job logs $name" ;; esac
  sleep 5
done
[ "$status" = finished ] || fail "the job did not end in an hour" "fedlearn job logs $name"
shown "an upgrade in the job" "both releases were upgraded, and the job finished"

k -n "$namespace" exec server-0 -c coordinator -- \
  fedlearn ledger show --state /var/lib/fedlearn/state --kind admission --json >"$work/ledger.json" ||
  fail "the ledger cannot be read" "does the coordinator's guest policy allow exec?"
tees="$(grep -o '"tee": *"[a-z]*"' "$work/ledger.json" | sort | uniq -c | tr -s ' ' | tr '\n' ';')"
case "$tees" in
  *'"tdx"'* | *'"snp"'*) shown "clients were admitted for their TEE" "$tees" ;;
  *) fail "no admission names tdx or snp" "$tees" ;;
esac

if [ -z "${KEEP:-}" ]; then
  helm uninstall edge --namespace "$namespace" --wait >/dev/null
  helm uninstall server --namespace "$namespace" --wait >/dev/null
fi
