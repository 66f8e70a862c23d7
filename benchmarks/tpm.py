"""Compares the cost of making, verifying and sealing TPM evidence with the bare signature check.

    python benchmarks/tpm.py [--json]

Times are CPU seconds of this process for verification (the best of five batches) and wall
seconds for operations of the TPM (the median). Needs swtpm and tpm2-tools.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.attesters.tpm import TpmAttester
from attestation.binding import Binding, Role
from attestation.quotes.tpm import TpmQuote
from attestation.quotes.tpm_keys import spki
from attestation.tpm.seal import TpmCounter, TpmSeal
from attestation.trust import TrustAnchors
from attestation.verifiers import verify


def cpu(work: Callable[[], object], batch: int = 200) -> float:
    work()
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(batch):
            work()
        best = min(best, (time.process_time() - start) / batch)
    return best


def wall(work: Callable[[], object], times: int = 9) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def bare_check(quote: TpmQuote) -> Callable[[], object]:
    """Load the key and check the one signature, and nothing else."""
    key_bytes = spki(quote.ak)
    statement, signature = quote.statement.raw, quote.signature

    def check() -> None:
        key = load_der_public_key(key_bytes)
        if isinstance(key, ec.EllipticCurvePublicKey):
            encoded = encode_dss_signature(*signature.numbers)
            key.verify(encoded, statement, ec.ECDSA(hashes.SHA256()))
        else:
            key.verify(signature.value, statement, padding.PKCS1v15(), hashes.SHA256())  # type: ignore[union-attr, call-arg, arg-type]

    return check


def main() -> None:
    """Run the benchmark and print its ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    rows, device = measure()
    if arguments.json:
        print(json.dumps({"rows": rows, "seconds": device}, indent=1))
        return
    for row in rows:
        print(
            f"{row['key']}: {row['verifications_per_s']:,.0f} verifications/s on one core, "
            f"{row['multiple']:.1f} times the bare signature check "
            f"({row['signature_s'] * 1e6:.0f} us); collect {row['collect_s'] * 1e3:.0f} ms"
        )
    print(", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in device.items()))


def measure() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Return a row for each kind of key, and the seconds of other operations of the TPM."""
    if reason := SoftwareTpm.available():
        raise SystemExit(f"no software TPM: {reason}")
    binding = Binding(
        role=Role.CLIENT,
        nonce=bytes(32),
        verifier_id=bytes(32),
        tls_key=b"tls key",
        hpke_key=b"hpke key",
        node_id="site",
        workload=bytes(32),
    )
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory, SoftwareTpm(Path(directory) / "tpm") as tpm:
        for kind in ("ecdsa", "rsassa"):
            attester = TpmAttester(Path(directory) / "site", tcti=tpm.tcti, scope="job", ak=kind)
            attester.extend("app", b"a" * 32)
            attester.extend("job", b"j" * 32)
            evidence = attester.collect(binding)
            quote = TpmQuote.from_evidence(evidence)
            ak = hashlib.sha256(attester.attestation_key.spki).digest()
            trust = TrustAnchors(tpm_aks=frozenset([ak]))
            whole = cpu(lambda: verify(evidence, binding=binding, trust=trust, now=now))  # noqa: B023
            bare = cpu(bare_check(quote))
            rows.append(
                {
                    "key": kind,
                    "verifications_per_s": 1 / whole,
                    "multiple": whole / bare,
                    "signature_s": bare,
                    "collect_s": wall(lambda: attester.collect(binding)),  # noqa: B023
                }
            )
        seal, counter = TpmSeal(tpm.tcti, Path(directory)), TpmCounter(tpm.tcti)
        blob = seal.seal(bytes(32))
        device = {
            "seal": wall(lambda: seal.seal(bytes(32))),
            "unseal": wall(lambda: seal.unseal(blob)),
            "count": wall(counter.increment),
        }
    return rows, device


if __name__ == "__main__":
    main()
