"""Verifies TPM 2.0 quotes: hardware TPMs, cloud vTPMs and ``swtpm`` alike.

Steps, in this order, each named in the error that it raises:

1. *quote signature*: the attestation key (AK) signed the statement;
2. *attestation key*: the AK was proven to be in a TPM, or was pinned, and it is of a kind that
   signs only structures that its TPM generated (restricted, fixed);
3. *binding*: ``extraData`` is the digest of this nonce, these keys and this role;
4. *pcr digest*: the PCR values sent with the quote are the ones that it covers;
5. *event log*: the log replays to those values, register by register;
6. *endorsement key*: its certificate, if one was sent, chains to a trusted root.

A TPM quote proves the state of the TPM's registers. That the code whose digest is in PCR 14 is the
code that attests is proven only as far as the software that measured it can be trusted: on a real
machine the firmware and boot chain in PCRs 0 to 9. A bare TPM does not isolate processes of one
machine from each other.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.binding import Bound
from attestation.errors import (
    BindingError,
    EndorsementError,
    EventLogError,
    EvidenceError,
    SignatureError,
)
from attestation.evidence import Claims, Evidence, Scalar, Tee
from attestation.logs.eventlog import MAX_REMEMBERED_BYTES, EventLog, check_replay, pcr_register
from attestation.logs.firmwarelog import boot_claims
from attestation.logs.runtime_events import measured_claims, measurements
from attestation.quotes.cursor import Cursor
from attestation.quotes.tpm import TpmQuote, split_values
from attestation.quotes.tpm_keys import ObjectAttribute, PublicArea, qualify, spki
from attestation.quotes.tpm_structures import (
    MAX_SIGNATURE_BYTES,
    PcrSelection,
    QuoteStatement,
    TpmSignature,
)
from attestation.tpm.endorsement import check_ek_certificate
from attestation.trust import TrustAnchors

__all__ = [
    "RUNTIME_PCR",
    "VERIFIER",
    "TpmVerifier",
    "check_attestation_key",
    "check_binding",
    "check_event_log",
    "check_pcr_values",
    "check_quote_signature",
    "pcr_claims",
    "statement_attributes",
]

RUNTIME_PCR: Final = 14
"""The register that software measures itself into. Not resettable without a restart."""

_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_BANKS: Final = ("sha256", "sha384", "sha512")
"""Banks whose values count, the one that policies name first. SHA-1 never does."""

_PERMANENT_HANDLES: Final = {
    "endorsement": 0x4000000B,
    "owner": 0x40000001,
    "platform": 0x4000000C,
}
_REQUIRED: Final = (
    ObjectAttribute.FIXED_TPM
    | ObjectAttribute.FIXED_PARENT
    | ObjectAttribute.SENSITIVE_DATA_ORIGIN
    | ObjectAttribute.RESTRICTED
    | ObjectAttribute.SIGN
)


class TpmVerifier:
    """Verifies TPM evidence; see the module for the steps.

    Claims: ``pcr.N`` for each quoted PCR of the SHA-256 bank (``pcr.N.sha384`` for other
    banks); every measurement of the quoted scope by its name (``app``, ``job``), those of
    other scopes as ``other/<scope>/<name>``. Attributes: ``tpm.clock`` (ms),
    ``tpm.reset_count``, ``tpm.restart_count``, ``tpm.safe``, ``tpm.firmware``, ``tpm.ak``
    (hex SHA-256 of its SPKI), ``tpm.scope``, ``tpm.hierarchy``, ``bound``. ``hardware_id``
    is the SHA-256 of the endorsement key's SPKI where enrollment proved it, else of the
    AK's.
    """

    def verify(
        self, evidence: Evidence, *, binding: Bound | None, trust: TrustAnchors, now: datetime
    ) -> Claims:
        """See :meth:`attestation.verifiers.Verifier.verify`."""
        if evidence.tee is not Tee.TPM:
            raise EvidenceError(f"not TPM but {evidence.tee.value} evidence", field="tee")
        quote = TpmQuote.from_evidence(evidence)
        check_quote_signature(quote)
        hierarchy = check_attestation_key(quote, trust)
        if binding is not None:
            check_binding(quote.statement, binding)
        check_pcr_values(quote)
        claims = {**check_event_log(quote, evidence.event_log, trust), **pcr_claims(quote)}
        endorsement_key = trust.tpm_ek_of.get(quote.ak_digest)
        unverified = _check_endorsement_key(quote, endorsement_key, trust, now)
        return Claims(
            tee=Tee.TPM,
            measurements=claims,
            debug=False,
            tcb=f"firmware {quote.statement.firmware:#018x}",
            hardware_id=endorsement_key or quote.ak_digest,
            bound=binding is not None,
            attributes={
                **statement_attributes(quote.statement),
                "tpm.ak": quote.ak_digest.hex(),
                "tpm.hierarchy": hierarchy,
                "tpm.scope": quote.scope,
            },
            unverified=unverified,
        )


VERIFIER: Final = TpmVerifier()


def check_quote_signature(quote: TpmQuote) -> None:
    """Check that the quote's own AK signed its statement with an accepted scheme.

    :raises SignatureError: when it did not.
    :raises EvidenceError: when the signature is not encoded as TPMs do.
    """
    step = "quote signature"
    signature = quote.signature
    algorithm = _HASHES.get(signature.hash)
    if algorithm is None:
        raise SignatureError(f"{signature.hash} is not accepted", step=step)
    expected = "ecdsa" if isinstance(quote.ak, ec.EllipticCurvePublicKey) else "rsa"
    if not signature.scheme.startswith(expected):
        raise SignatureError(f"{signature.scheme} by a key that is not for it", step=step)
    if isinstance(quote.ak, ec.EllipticCurvePublicKey):
        _check_spelling(quote.ak, signature)
    try:
        if isinstance(quote.ak, ec.EllipticCurvePublicKey):
            encoded = encode_dss_signature(*signature.numbers)
            quote.ak.verify(encoded, quote.statement.raw, ec.ECDSA(algorithm))
        else:
            _verify_rsa(quote.ak, quote, algorithm)
    except InvalidSignature:
        raise SignatureError("the attestation key did not sign this statement", step=step) from None


def _check_spelling(key: ec.EllipticCurvePublicKey, signature: TpmSignature) -> None:
    """Check that r and s have as many bytes as the curve, or no leading zero, as TPMs write them.

    :raises EvidenceError: for any other encoding of the same numbers.
    """
    size = (key.key_size + 7) // 8
    read = Cursor(signature.raw[4:], "signature", limit=MAX_SIGNATURE_BYTES)
    for field in ("signatureR", "signatureS"):
        at = read.offset
        value = read.sized(field, limit=MAX_SIGNATURE_BYTES)
        if len(value) > size or (len(value) < size and value[:1] in (b"", b"\0")):
            raise EvidenceError(
                f"{len(value)} bytes with leading zeros; a TPM writes {size}, or none of them",
                field=f"signature.{field}",
                offset=4 + at,
            )


def _verify_rsa(key: rsa.RSAPublicKey, quote: TpmQuote, algorithm: hashes.HashAlgorithm) -> None:
    if quote.signature.scheme == "rsassa":
        scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    else:
        # A TPM salts with as many bytes as fit or as the digest has (Part 1, annex B.7).
        scheme = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.AUTO)
    key.verify(quote.signature.value, quote.statement.raw, scheme, algorithm)


def check_attestation_key(quote: TpmQuote, trust: TrustAnchors) -> str:
    """Check that the AK is trusted and restricted; return the hierarchy to which it belongs.

    When the TPM's description of the AK was sent, its Name must give the qualified name that the
    TPM signed, for a primary key of a hierarchy: this proves the attributes of the key. Without it
    (a bare public key) the result is ``unknown``.

    :raises EndorsementError: when the key is not trusted or of another kind.
    """
    step = "attestation key"
    if quote.ak_digest not in trust.tpm_aks:
        raise EndorsementError(
            f"{quote.ak_digest.hex()} is neither proven to live in a TPM nor pinned",
            step=step,
            hint="enroll the site, or pin the key",
        )
    if quote.ak_area is None:
        return "unknown"
    restricted, names = _examined(quote.ak_area.raw)
    if not restricted:
        raise EndorsementError(
            "the key is not a restricted signing key that is fixed to its TPM", step=step
        )
    hierarchy = names.get(quote.statement.signer)
    if hierarchy is None:
        raise EndorsementError(
            "the signed qualified name is not that of this key in any hierarchy", step=step
        )
    return hierarchy


@lru_cache(maxsize=256)
def _examined(raw: bytes) -> tuple[bool, Mapping[bytes, str]]:
    """Return whether a key is of the right kind, and its qualified name in each hierarchy."""
    area = PublicArea.parse(raw)
    restricted = area.attributes & (_REQUIRED | ObjectAttribute.DECRYPT) == _REQUIRED
    return restricted, {
        _qualified(area, handle): name for name, handle in _PERMANENT_HANDLES.items()
    }


def _qualified(area: PublicArea, parent: int) -> bytes:
    """Return the qualified name of a primary key (TPM 2.0 Part 1, section 16.4)."""
    return qualify(area.name_hash, parent.to_bytes(4, "big") + area.name)


def check_binding(statement: QuoteStatement, binding: Bound) -> None:
    """Check that the TPM signed exactly this binding.

    :raises BindingError: when it was not.
    """
    if not hmac.compare_digest(statement.extra_data, binding.qualifying_data()):
        raise BindingError(
            "extraData is not the digest of this nonce, these keys and this role",
            step="binding",
        )


def check_pcr_values(quote: TpmQuote) -> None:
    """Check the PCR values against the digest in the statement.

    :raises SignatureError: when the statement covers other values, or none.
    """
    digest = hashlib.new(quote.signature.hash, quote.pcr_values).digest()
    if not hmac.compare_digest(digest, quote.statement.pcr_digest):
        raise SignatureError("the PCR values are not the ones that were signed", step="pcr digest")


def pcr_claims(quote: TpmQuote) -> Mapping[str, bytes]:
    """Return the quoted PCR values by the names that policies use: ``pcr.7``, ``pcr.7.sha384``.

    Values of a SHA-1 bank are left out.
    """
    return _named(quote.statement.selection, quote.pcr_values)


@lru_cache(maxsize=64)
def _named(selection: tuple[PcrSelection, ...], values: bytes) -> Mapping[str, bytes]:
    claims: dict[str, bytes] = {}
    for bank, registers in split_values(selection, values).items():
        if bank in _BANKS:
            suffix = "" if bank == "sha256" else f".{bank}"
            claims.update({f"{pcr_register(i)}{suffix}": v for i, v in registers.items()})
    return MappingProxyType(claims)


def check_event_log(quote: TpmQuote, data: bytes, trust: TrustAnchors) -> Mapping[str, bytes]:
    """Replay the log against the quoted PCRs; return the claims of the boot and of PCR 14.

    Without a log there are no such claims, only the PCR values. A log must explain a quoted PCR 14
    that is not at its initial value; see :func:`attestation.logs.runtime_events.measurements` for
    events that hide others.

    :raises EventLogError: naming the register.
    :raises EvidenceError: when the log is malformed.
    """
    if not data:
        return {}
    explain = _explain if len(data) <= MAX_REMEMBERED_BYTES else _explain.__wrapped__
    return explain(
        data,
        quote.statement.selection,
        quote.pcr_values,
        quote.scope,
        trust.known_events,
        trust.tpm_boot_values,
    )


@lru_cache(maxsize=64)
def _explain(
    data: bytes,
    selection: tuple[PcrSelection, ...],
    values: bytes,
    scope: str,
    known: frozenset[bytes],
    boot: frozenset[bytes],
) -> Mapping[str, bytes]:
    """Replay and read a log. Cached: a machine sends the same log and values each time."""
    pcrs = split_values(selection, values)
    bank = next((name for name in _BANKS if pcrs.get(name)), None)
    log = EventLog.parse(data)
    if bank is None:
        raise EventLogError("the quote covers no PCR that the log could replay to")
    quoted = pcrs[bank]
    for name, registers in pcrs.items():
        if name in _BANKS and (name == bank or name in log.sizes):
            check_replay(log, registers, bank=name, known=known)
    runtime = quoted.get(RUNTIME_PCR)
    if runtime is not None and not log.extending(RUNTIME_PCR) and any(runtime):
        register = pcr_register(RUNTIME_PCR)
        raise EventLogError(
            f"{register} was extended and the log has no event for it", register=register
        )
    found = measurements(log, RUNTIME_PCR, bank, boot=boot)
    booted = boot_claims(log, bank, ccel=False)
    return MappingProxyType({**measured_claims(found, scope), **booted})


def statement_attributes(statement: QuoteStatement) -> dict[str, Scalar]:
    """Return the attributes of the TPM itself in the statement."""
    return {
        "tpm.clock": statement.clock,
        "tpm.firmware": statement.firmware,
        "tpm.reset_count": statement.reset_count,
        "tpm.restart_count": statement.restart_count,
        "tpm.safe": statement.safe,
    }


def _check_endorsement_key(
    quote: TpmQuote, proven: bytes | None, trust: TrustAnchors, now: datetime
) -> tuple[str, ...]:
    """Check the EK certificate, if one was sent; return the names that stay unverified."""
    if not quote.ek_certificate:
        return ()
    if not trust.tpm_ek_roots or proven is None:
        return ("tpm.ek_certificate",)
    key = check_ek_certificate(
        quote.ek_certificate, trust.endorsements, roots=trust.tpm_ek_roots, now=now
    )
    if not hmac.compare_digest(hashlib.sha256(spki(key)).digest(), proven):
        raise EndorsementError(
            "the certificate is for another endorsement key than the one proven at enrollment",
            step="endorsement key",
        )
    return ()
