"""A site's identity on disk: its key, its certificate, and the coordinator whose orders it follows.

::

    site.key       PKCS#8, PEM, mode 0600; made here and never sent anywhere
    site.pem       certificate chain, leaf first
    ca.pem         the coordinator's CA, found by the pin in the join token
    token          the join token; the site's own key may present it again until it is removed
    site.json      names and addresses

The folder has mode 0700. Files are replaced atomically.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.durable import write_durably
from fedlearn.errors import ConfigError
from fedlearn.identity.join import JoinToken, checked_address
from fedlearn.identity.keyfile import check_private
from fedlearn.identity.spiffe import checked_name
from fedlearn.identity.voucher import sign_voucher

__all__ = ["SiteIdentity", "certification_request", "key_pem", "new_key"]

_MAX_FILE_BYTES: Final = 64 * 1024
_FILES: Final = ("site.json", "site.key", "site.pem", "ca.pem", "token")


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key in this process."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return ``key`` as PKCS#8 in PEM, unencrypted: for TLS, in memory."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def certification_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a PKCS#10 request in DER: nothing but the key and its own signature."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteIdentity:
    """An enrolled site, or one that waits for approval: ``chain`` is empty while it waits.

    ``order_key``  DER SPKI of the coordinator's key that signs assignments
    """

    site: str
    gate_address: str
    control_address: str
    ca_pin: bytes
    ca_pem: bytes
    chain: bytes
    order_key: bytes
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    token: str = field(repr=False)

    @property
    def pending(self) -> bool:
        """Whether the site waits for the approval of the coordinator's operator."""
        return not self.chain

    @property
    def expires(self) -> datetime | None:
        """When the certificate expires (aware, UTC); ``None`` while pending."""
        if not self.chain:
            return None
        return x509.load_pem_x509_certificates(self.chain)[0].not_valid_after_utc

    @property
    def renew_at(self) -> datetime | None:
        """When to renew: after half of the certificate's life."""
        if not self.chain:
            return None
        leaf = x509.load_pem_x509_certificates(self.chain)[0]
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        return leaf.not_valid_before_utc + life / 2

    def vouch(self, *, job: str, client: str, nonce: bytes, tls_key: bytes) -> bytes:
        """Sign for a client that this site started (see :mod:`fedlearn.identity.voucher`)."""
        return sign_voucher(
            self.key, job=job, site=self.site, client=client, nonce=nonce, tls_key=tls_key
        )

    def accepted(self, *, chain: bytes, order_key: bytes, control_address: str) -> Self:
        """Return the identity with a certificate."""
        return replace(self, chain=chain, order_key=order_key, control_address=control_address)

    def save(self, folder: Path) -> None:
        """Write the identity below ``folder``.

        :raises ConfigError: when the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            write_durably(folder / "site.key", key_pem(self.key))
            write_durably(folder / "ca.pem", self.ca_pem)
            write_durably(folder / "site.pem", self.chain)
            write_durably(folder / "token", self.token.encode())
            document = {
                "site": self.site,
                "gate_address": self.gate_address,
                "control_address": self.control_address,
                "ca_pin": self.ca_pin.hex(),
                "order_key": self.order_key.hex(),
            }
            write_durably(folder / "site.json", json.dumps(document, indent=2).encode())
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", where=str(folder)) from error

    @staticmethod
    def discard(folder: Path) -> None:
        """Delete what :meth:`save` wrote, and the folder if it is empty then."""
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote.

        :raises ConfigError: when it is missing, damaged, or its key can be read by others.
        """
        if not (folder / "site.json").is_file():
            raise ConfigError(
                "no site is enrolled here",
                where=str(folder),
                hint="enroll it: `fedlearn site enroll --token-file FILE --state DIR`",
            )
        key_file = folder / "site.key"
        if key_file.exists():
            check_private(key_file)
        try:
            document: dict[str, Any] = json.loads(_read(folder / "site.json"))
            key = serialization.load_pem_private_key(_read(key_file), password=None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise TypeError("site.key is not an EC key")
            identity = cls(
                site=checked_name(str(document["site"]), "site"),
                gate_address=checked_address(str(document["gate_address"])),
                control_address=str(document["control_address"]),
                ca_pin=bytes.fromhex(document["ca_pin"]),
                ca_pem=_read(folder / "ca.pem"),
                chain=_read(folder / "site.pem"),
                order_key=bytes.fromhex(document["order_key"]),
                key=key,
                token=_read(folder / "token").decode(),
            )
            JoinToken.parse(identity.token)
            if identity.chain:
                x509.load_pem_x509_certificates(identity.chain)
        except (ValueError, KeyError, TypeError, RecursionError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"the site's identity is damaged: {error}",
                where=str(folder),
                hint="remove the folder and enroll with a new join token",
            ) from error
        return identity


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"more than {_MAX_FILE_BYTES} bytes", where=str(path))
    return data
