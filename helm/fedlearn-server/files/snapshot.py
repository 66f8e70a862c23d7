"""Creates a snapshot of the sealed state through the API server, and deletes the oldest ones.

    snapshot.py NAMESPACE CLAIM INSTANCE KEEP [CLASS]

Runs in a pod with a token for VolumeSnapshots of one namespace. A snapshot is the state of the
whole volume at one time, so its ledger and models are consistent.
"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LABEL = "fedlearn.io/backup-of"


def call(method, path, body=None):
    """Return the API server's answer to one request."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    account = Path(os.environ.get("FEDLEARN_ACCOUNT", ACCOUNT))
    host = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(
        f"https://{host}:{port}/apis/snapshot.storage.k8s.io/v1{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    context = ssl.create_default_context(cafile=str(account / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310 (https)
            return json.load(answer)
    except urllib.error.HTTPError as error:
        answer = error.read(4096).decode(errors="replace")
        raise SystemExit(f"{method} {path}: {error.code}: {answer}") from None


def main(namespace, claim, instance, keep, snapshot_class=""):
    """Create one snapshot; then delete the oldest ready ones beyond ``keep``."""
    made = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
    spec = {"source": {"persistentVolumeClaimName": claim}}
    if snapshot_class:
        spec["volumeSnapshotClassName"] = snapshot_class
    path = f"/namespaces/{namespace}/volumesnapshots"
    body = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": f"{claim}-{made}", "labels": {LABEL: instance}},
        "spec": spec,
    }
    print("made", call("POST", path, body)["metadata"]["name"])
    found = call("GET", f"{path}?labelSelector={LABEL.replace('/', '%2F')}%3D{instance}")["items"]
    ready = [one for one in found if (one.get("status") or {}).get("readyToUse")]
    ready.sort(key=lambda one: one["metadata"]["name"])
    for old in ready[: max(0, len(ready) - int(keep))]:
        call("DELETE", f"{path}/{old['metadata']['name']}")
        print("dropped", old["metadata"]["name"])


if __name__ == "__main__":
    main(*sys.argv[1:])
