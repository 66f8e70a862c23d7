"""An impostor in a process of its own, which requests admission while the demo's job runs.

It has a copy of a site's key and a genuine machine, and uses the protocol functions of honest
clients. It differs from them in two points: the machine is not the one that is listed for the site,
and it measured an altered bundle. Only the coordinator's appraisal can refuse it.

It reads one JSON document from stdin, prepares, prints ``ready``, and acts after another line; then
it writes one JSON document to stdout::

    {"identity", "tee", "state", "job", "policy", "job_digest", "bundle", "workload",
     "anchors"}                              digests and keys in hexadecimal
    {"admitted", "reason", "findings"}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attestation.evidence import Tee
from attestation.policy.parse import parse_policy
from attestation.trust import TrustAnchors
from edge.client.admission import AdmissionParams, ClientKeys, seek_admission
from edge.protocol.identity import SiteIdentity
from edge.protocol.rpc import GateClient
from fedlearn.config.attester import device, open_attester
from fedlearn.errors import AdmissionDenied
from fedlearn.identity.software import software_digest
from fedlearn.local.machines import settings_of

__all__ = ["try_to_join"]

_CLIENT = "impostor"


def try_to_join(order: Mapping[str, Any], wait: Callable[[], object]) -> dict[str, Any]:
    """Measure the altered bundle, ``wait``, request admission; return the result.

    :raises FedlearnError: when there was no decision.
    """
    identity = SiteIdentity.load(Path(order["identity"]))
    tee, state = Tee(order["tee"]), Path(order["state"])
    anchors = frozenset(map(bytes.fromhex, order["anchors"]))
    with (
        device(settings_of(tee), state=state) as settings,
        GateClient.connect(identity.gate_address, ca_pin=identity.ca_pin) as gate,
    ):
        attester = open_attester(settings, state=state, scope=order["job"])
        attester.extend("software", software_digest())
        attester.extend("app", bytes.fromhex(order["bundle"]))
        attester.extend("job", bytes.fromhex(order["job_digest"]))
        params = AdmissionParams(
            job=order["job"],
            site=identity.site,
            client=_CLIENT,
            workload=bytes.fromhex(order["workload"]),
            keys=ClientKeys.fresh(),
            policy=parse_policy(order["policy"].encode()),
            trust=TrustAnchors(
                tpm_aks=anchors if tee is Tee.TPM else frozenset(),
                sample_keys=anchors if tee is Tee.SAMPLE else frozenset(),
            ),
        )

        def voucher(nonce: bytes, tls_key: bytes) -> bytes:
            return identity.vouch(job=order["job"], client=_CLIENT, nonce=nonce, tls_key=tls_key)

        wait()
        try:
            seek_admission(gate, attester, params, voucher, now=lambda: datetime.now(UTC))
        except AdmissionDenied as denied:
            return {"admitted": False, "reason": str(denied), "findings": list(denied.findings)}
    return {"admitted": True, "reason": "", "findings": []}


def _main() -> None:
    order = json.loads(sys.stdin.readline())

    def wait() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    print(json.dumps(try_to_join(order, wait)), flush=True)


if __name__ == "__main__":
    _main()
