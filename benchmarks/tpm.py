"""TPM evidence: what making, verifying and sealing costs, against the bare signature check.

    python benchmarks/tpm.py

Times are CPU seconds of this process for verification (the best of five batches) and wall
seconds for what the TPM does (the median). Needs swtpm and tpm2-tools.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestation.attesters.software_tpm import SoftwareTpm
from attestation.attesters.tpm import TpmAttester
from attestation.binding import Binding, Role
from attestation.quotes.tpm import TpmQuote
from attestation.quotes.tpm_structures import spki
from attestation.tpm_seal import TpmCounter, TpmSeal
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
            print(
                f"{kind}: {1 / whole:,.0f} verifications/s on one core, "
                f"{whole / bare:.1f} times the bare signature check ({bare * 1e6:.0f} us); "
                f"collect {wall(lambda: attester.collect(binding)) * 1e3:.0f} ms"  # noqa: B023
            )
        seal, counter = TpmSeal(tpm.tcti, Path(directory)), TpmCounter(tpm.tcti)
        blob = seal.seal(bytes(32))
        print(
            f"seal {wall(lambda: seal.seal(bytes(32))) * 1e3:.0f} ms, "
            f"unseal {wall(lambda: seal.unseal(blob)) * 1e3:.0f} ms, "
            f"count {wall(counter.increment) * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
