"""Who signed a statement: a client or a site that the coordinator's CA has certified."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import UNREADABLE
from fedlearn.errors import LaunchError
from fedlearn.identity.spiffe import SpiffeId, parse

__all__ = ["ECDSA", "check_signature", "identified"]

ECDSA: Final = ec.ECDSA(hashes.SHA256())
_MAX_CERTIFICATES: Final = 4


def identified(
    pem: bytes, ca_pem: bytes, now: datetime, what: str
) -> tuple[SpiffeId, ec.EllipticCurvePublicKey]:
    """Return the identity and key in a certificate that the CA itself has signed.

    :raises LaunchError: when it has not, or the certificate is not valid now.
    """
    try:
        leaf, *others = x509.load_pem_x509_certificates(pem)
        (authority, *_) = x509.load_pem_x509_certificates(ca_pem)
        leaf.verify_directly_issued_by(authority)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        key = leaf.public_key()
    except (
        InvalidSignature,
        x509.ExtensionNotFound,
        *UNREADABLE,
    ) as error:
        raise LaunchError(f"the certificate of {what} is not one of this coordinator") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or len(others) >= _MAX_CERTIFICATES:
        raise LaunchError(f"the certificate of {what} is not one of this coordinator")
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        raise LaunchError(
            f"the certificate of {what} is valid from {leaf.not_valid_before_utc} to "
            f"{leaf.not_valid_after_utc}",
            hint="set the clocks of the agent's node and of the client's node (NTP)",
        )
    return parse(uri), key


def check_signature(
    key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, what: str
) -> None:
    """Check a signature of ECDSA P-256 with SHA-256, DER.

    :raises LaunchError: when it is not one of this key over this message.
    """
    try:
        key.verify(signature, message, ECDSA)
    except InvalidSignature:
        raise LaunchError(f"{what} is not signed by the key of its certificate") from None
