#!/usr/bin/env bash
# Checks that a guest hides its pod's log from everyone who may read logs in the cluster.
#
#   tools/kept-log.sh NAMESPACE POD CONTROL
#
# POD must have written to its log. CONTROL is another pod that has written to its log and does not
# hide it, which shows that logs can be read in this cluster. Ends with
#   0  hidden: the kubelet reports an error instead of a log, or an empty log
#   1  not hidden: the log can be read
#   2  undetermined: no log can be read, or POD has not started
set -euo pipefail
namespace="$1" pod="$2" control="$3"

end() { printf '%s\n' "$2"; exit "$1"; }
short() { printf '%s' "$1" | tr '\n' ' ' | cut -c -160; }
error="$(mktemp)"
trap 'rm -f "$error"' EXIT
logs() { kubectl --namespace "$namespace" logs "$1" --tail=20 2>"$error"; }

out="$(logs "$control")" || end 2 "the log of $control cannot be read either: $(short "$(cat "$error")")"
[ -n "$out" ] || end 2 "the log of $control is empty, too, so an empty log proves nothing"

state="$(kubectl --namespace "$namespace" get pod "$pod" \
  -o jsonpath='{.status.containerStatuses[0].state.running.startedAt}{.status.containerStatuses[0].state.terminated.startedAt}' \
  2>"$error")" || end 2 "the state of $pod cannot be read: $(short "$(cat "$error")")"
[ -n "$state" ] || end 2 "the container of $pod has not started, so it has written nothing"

if out="$(logs "$pod")"; then
  [ -z "$out" ] || end 1 "it can be read: $(short "$out")"
  end 0 "its log is empty, that of $control is not"
fi
out="$(cat "$error")"
case "$out" in
  *"connection refused"* | *"no such host"* | *"Unable to connect"* | *"i/o timeout"* | \
  *"Forbidden"* | *"NotFound"* | *"not found"* | *"waiting to start"* | *"no kind"*)
    end 2 "the guest is not the cause: $(short "$out")" ;;
esac
end 0 "the kubelet has none: $(short "$out")"
