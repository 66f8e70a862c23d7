"""Verifies ``sample`` evidence: software only, signed by a trusted development key."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestation import ecdsa
from attestation.binding import Bound
from attestation.errors import (
    BindingError,
    EndorsementError,
    EvidenceError,
    FreshnessError,
    SignatureError,
)
from attestation.evidence import Claims, Evidence, Tee
from attestation.quotes.sample import SampleQuote
from attestation.trust import TrustAnchors

__all__ = ["VERIFIER", "SampleVerifier"]

_CLOCK_SKEW: Final = timedelta(minutes=5)


class SampleVerifier:
    """Checks the signature of a development key; sample evidence has nothing else to check.

    Claims: the declared measurements; ``issued`` (seconds since 1970) and ``bound``.
    """

    def verify(
        self, evidence: Evidence, *, binding: Bound | None, trust: TrustAnchors, now: datetime
    ) -> Claims:
        """See :meth:`attestation.verifiers.Verifier.verify`."""
        if evidence.tee is not Tee.SAMPLE:
            raise EvidenceError(f"not sample but {evidence.tee.value} evidence", field="tee")
        if evidence.event_log:
            raise EvidenceError("sample evidence has no event log", field="event_log")
        quote = SampleQuote.from_bytes(evidence.quote)
        self._check_signature(quote, trust)
        statement = quote.statement
        if statement.time > (now + _CLOCK_SKEW).timestamp():
            raise FreshnessError(
                "the statement was made in the future; a clock is wrong", step="sample time"
            )
        if binding is not None and not hmac.compare_digest(
            statement.report_data, binding.report_data()
        ):
            raise BindingError(
                "report data is not the digest of this nonce, these keys and this role",
                step="binding",
            )
        return Claims(
            tee=Tee.SAMPLE,
            measurements=statement.measurements,
            debug=statement.debug,
            tcb="insecure-software",
            hardware_id=statement.hardware_id,
            bound=binding is not None,
            attributes={"issued": statement.time},
        )

    def _check_signature(self, quote: SampleQuote, trust: TrustAnchors) -> None:
        digest = hashlib.sha256(quote.key).digest()
        if digest not in trust.sample_keys:
            raise EndorsementError(
                f"signed by a key that is not a trusted development key: {digest.hex()}",
                step="sample key",
                key=digest,
            )
        key = _load(quote.key)
        try:
            ecdsa.verify(key, quote.signature, quote.signed)
        except ValueError as error:
            raise EvidenceError(str(error), field="sample.signature") from error
        except InvalidSignature:
            raise SignatureError(
                "the statement was not signed by its key", step="sample signature"
            ) from None


VERIFIER = SampleVerifier()


@lru_cache(maxsize=64)
def _load(data: bytes) -> ec.EllipticCurvePublicKey:
    """Load a trusted key; the last ones are cached."""
    try:
        key = load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceError("is not a public key", field="sample.key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EvidenceError("is not a P-256 key", field="sample.key")
    return key
