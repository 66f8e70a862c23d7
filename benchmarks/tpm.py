"""Compares the cost of making, verifying and sealing TPM evidence with the bare signature check.

Times are those of this process's CPU for verification, and wall time for operations of the TPM.
Needs swtpm and tpm2-tools.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from _report import Row, interleave, measured, options, show
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

_CHECK = "key and signature"


def cpu(work: Callable[[], object], batch: int) -> Callable[[], float]:
    """Return a task that measures the CPU microseconds of one call."""

    def task() -> float:
        start = time.process_time()
        for _ in range(batch):
            work()
        return 1e6 * (time.process_time() - start) / batch

    return task


def wall(name: str, work: Callable[[], object], times: int) -> Row:
    """Return a row with the milliseconds of an operation of the TPM."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - start))
    return measured(name, unit="ms", ours=taken, how=f"wall time on swtpm; median of {times}")


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
    """Run the benchmark."""
    arguments = options(__doc__).parse_args()
    show(measure(quick=arguments.quick), as_json=arguments.json)


def measure(*, quick: bool) -> list[Row]:
    """Return the rows of each kind of key, and of other operations of the TPM."""
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
    now, rows = datetime.now(UTC), []
    batch, times = (5, 1) if quick else (200, 9)
    with tempfile.TemporaryDirectory() as directory, SoftwareTpm(Path(directory) / "tpm") as tpm:
        for kind in ("ecdsa", "rsassa"):
            attester = TpmAttester(Path(directory) / "site", tcti=tpm.tcti, scope="job", ak=kind)
            attester.extend("app", b"a" * 32)
            attester.extend("job", b"j" * 32)
            evidence = attester.collect(binding)
            quote = TpmQuote.from_evidence(evidence)
            ak = hashlib.sha256(attester.attestation_key.spki).digest()
            trust = TrustAnchors(tpm_aks=frozenset([ak]))
            found = interleave(
                {
                    "ours": cpu(
                        lambda: verify(evidence, binding=binding, trust=trust, now=now),  # noqa: B023
                        batch,
                    ),
                    _CHECK: cpu(bare_check(quote), batch),
                },
                repeat=times,
            )
            rows.append(
                measured(
                    f"verification of a TPM quote, {kind}",
                    unit="µs",
                    ours=found["ours"],
                    floor={_CHECK: found[_CHECK]},
                    how="CPU time of one core; medians of batches in turns",
                )
            )
            rows.append(wall(f"quote, {kind}", lambda: attester.collect(binding), times))  # noqa: B023
        seal, counter = TpmSeal(tpm.tcti, Path(directory)), TpmCounter(tpm.tcti)
        blob = seal.seal(bytes(32))
        rows.append(wall("seal a key to the TPM", lambda: seal.seal(bytes(32)), times))
        rows.append(wall("open it", lambda: seal.unseal(blob), times))
        rows.append(wall("count once", counter.increment, times))
    return rows


if __name__ == "__main__":
    main()
