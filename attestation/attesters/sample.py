"""An attester without a TEE, for development. What it signs proves nothing about hardware."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation import ecdsa
from attestation.binding import Bound
from attestation.errors import AttesterError
from attestation.evidence import Evidence, Tee
from attestation.quotes.sample import SampleQuote, SampleStatement

__all__ = ["SampleAttester"]

_DIGEST_BYTES = hashlib.sha256().digest_size


class SampleAttester:
    """Signs a statement about this process with a development key (ECDSA P-256).

    Verifiers accept it only when the key is a trusted development key, and policies only when
    they have ``insecure_sample = true``.

    ``hardware_id`` takes the place of a chip's identity, ``measurements`` of what firmware
    measures before a process starts.
    """

    def __init__(
        self,
        private_key: ec.EllipticCurvePrivateKey,
        hardware_id: bytes,
        measurements: Mapping[str, bytes] | None = None,
        *,
        debug: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(private_key.curve, ec.SECP256R1):
            raise AttesterError(f"a development key is on P-256, not on {private_key.curve.name}")
        if not hardware_id:
            raise AttesterError("a sample attester needs a hardware id of at least one byte")
        self._key = private_key
        self._hardware_id = hardware_id
        self._measurements = dict(measurements or {})
        self._debug = debug
        self._clock = clock

    @property
    def tee(self) -> Tee:
        """Always :attr:`Tee.SAMPLE`."""
        return Tee.SAMPLE

    def extend(self, claim: str, digest: bytes) -> None:
        """Declare ``digest`` (32 bytes) under ``claim``, once.

        :raises AttesterError: for another size, or a claim that already has a value: with a
            second event of the same name a process could hide what it measured first.
        """
        if len(digest) != _DIGEST_BYTES:
            raise AttesterError(f"a digest has {_DIGEST_BYTES} bytes, not {len(digest)}")
        if claim in self._measurements:
            raise AttesterError(
                f"{claim} was already measured in this process",
                hint="start a new process for another workload",
            )
        self._measurements[claim] = digest

    def collect(self, binding: Bound) -> Evidence:
        """Return evidence over ``binding`` and everything declared so far."""
        statement = SampleStatement(
            report_data=binding.report_data(),
            measurements=self._measurements,
            hardware_id=self._hardware_id,
            time=int(self._clock()),
            debug=self._debug,
        )
        signed = statement.signed_bytes()
        quote = SampleQuote(
            statement=statement,
            key=self._key.public_key().public_bytes(
                Encoding.DER, PublicFormat.SubjectPublicKeyInfo
            ),
            signature=ecdsa.sign(self._key, signed),
            signed=signed,
        )
        return Evidence(tee=Tee.SAMPLE, quote=quote.to_bytes())
