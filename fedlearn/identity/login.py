"""An operator's login: one folder with an address, a certificate and a key.

::

    coordinator.toml   address = "host:port" of the coordinator's control listener
    ca.pem             the coordinator's CA; nothing else is trusted
    operator.pem       the operator's certificate chain, leaf first
    operator.key       the operator's private key (PKCS#8, PEM), readable by its owner only
    ledger-head.json   the end of the coordinator's ledger as it was verified last, if it was

The key is made on the operator's machine and stays there. :func:`request_login` makes it, with a
certification request (RFC 2986) that names the operator. The administrator of the coordinator, or
another operator, has the request signed and returns a :class:`LoginGrant`, which contains no
secret; :func:`accept_grant` completes the folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from attestation.config import dumps, option, text
from attestation.durable import rename_durably, write_durably
from attestation.errors import UNREADABLE
from fedlearn import config
from fedlearn.config import address
from fedlearn.errors import ConfigError, TransportError
from fedlearn.identity import spiffe
from fedlearn.identity.keyfile import check_private

__all__ = [
    "ENVIRONMENT",
    "LEDGER_HEAD",
    "LoginGrant",
    "OperatorLogin",
    "accept_grant",
    "ca_pin",
    "csr_der",
    "default_folder",
    "new_request",
    "request_login",
]

ENVIRONMENT: Final = "FEDLEARN_OPERATOR"
"""The environment variable that names the folder."""

_MAX_PEM_BYTES: Final = 256 * 1024
_MAX_CSR_BYTES: Final = 16 * 1024
_SETTINGS: Final = "coordinator.toml"
_KEY: Final = "operator.key"
_REQUEST: Final = "operator.csr"

LEDGER_HEAD: Final = "ledger-head.json"
"""The file of a login's folder with the last head of the ledger that was verified over it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    address: str = option(address())


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorLogin:
    """What a command needs to connect to a coordinator; PEM bytes."""

    address: str
    ca: bytes
    chain: bytes
    key: bytes = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the login in ``folder``.

        :raises ConfigError: when a file is missing or wrong, or other users may read the key.
        """
        if not folder.is_dir():
            raise ConfigError(
                "no operator login here",
                where=str(folder),
                hint="name the folder that the coordinator wrote: --operator DIR, "
                f"or {ENVIRONMENT} in the environment",
            )
        if (folder / _REQUEST).exists():
            raise ConfigError(
                "this login waits for its certificate",
                where=str(folder),
                hint="have operator.csr signed, then `fedlearn operator login FILE`",
            )
        settings = config.read_file(_Settings, folder / _SETTINGS)
        key_file = folder / _KEY
        key = _pem(key_file, "PRIVATE KEY")
        check_private(key_file)
        return cls(
            address=settings.address,
            ca=_pem(folder / "ca.pem", "CERTIFICATE"),
            chain=_pem(folder / "operator.pem", "CERTIFICATE"),
            key=key,
        )

    def save(self, folder: Path) -> None:
        """Write a new folder atomically, with access for its owner only.

        :raises ConfigError: when the folder exists.
        """
        _write_folder(folder, self._files())

    def replace_folder(self, folder: Path) -> None:
        """Replace the folder atomically."""
        aside = folder.with_name(f".{folder.name}.former")
        shutil.rmtree(aside, ignore_errors=True)
        scratch = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(scratch, ignore_errors=True)
        files = self._files()
        if (folder / LEDGER_HEAD).is_file():
            files[LEDGER_HEAD] = config.file_bytes(folder / LEDGER_HEAD, limit=_MAX_CSR_BYTES)
        _write_folder(scratch, files)
        rename_durably(folder, aside)
        try:
            rename_durably(scratch, folder)
        except OSError:
            rename_durably(aside, folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def _files(self) -> dict[str, bytes]:
        return {
            _SETTINGS: dumps({"address": self.address}).encode(),
            "ca.pem": self.ca,
            "operator.pem": self.chain,
            _KEY: self.key,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginGrant:
    """A coordinator's answer to an operator's request, as one TOML file without secrets.

    ``certificates`` is PEM: the operator's certificate, then the coordinator's CA.
    """

    address: str = option(address())
    certificates: str = option(text(most=64 * 1024))

    def to_toml(self) -> str:
        """Return the file."""
        return dumps({"address": self.address, "certificates": self.certificates})


def new_request(name: str) -> tuple[bytes, bytes]:
    """Return a new key (PKCS#8, PEM) and a request (PKCS#10, PEM) for operator ``name``.

    :raises ConfigError: when ``name`` is not a name.
    """
    spiffe.checked_name(name, "operator")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    csr = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), csr


def request_login(folder: Path, name: str) -> Path:
    """Make a key and a request for operator ``name`` in a new folder; return the request.

    The key never leaves the folder.

    :raises ConfigError: when the folder exists, or ``name`` is not a name.
    """
    key, csr = new_request(name)
    _write_folder(folder, {_KEY: key, _REQUEST: csr})
    return folder / _REQUEST


def csr_der(path: Path) -> bytes:
    """Return the certification request in a PEM file, as DER. Its content is not checked.

    :raises ConfigError: when the file contains none.
    """
    data = config.file_bytes(path, limit=_MAX_CSR_BYTES, what="the certification request")
    hint = "make one with `fedlearn operator request NAME`"
    if b"PRIVATE KEY" in data:
        raise ConfigError("contains a private key; name the file with the request", where=str(path))
    try:
        return x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)
    except UNREADABLE:
        raise ConfigError(
            "is not a certification request in PEM", where=str(path), hint=hint
        ) from None


def ca_pin(ca_pem: bytes) -> str:
    """Return the SHA-256 of a CA's SPKI, in hexadecimal, as join tokens hold it."""
    return hashlib.sha256(_spki(x509.load_pem_x509_certificate(ca_pem))).hexdigest()


def accept_grant(
    folder: Path, grant: Path, *, now: datetime, pin: str, control: str = ""
) -> OperatorLogin:
    """Complete the folder of :func:`request_login` with the coordinator's answer.

    :param pin: the expected :func:`ca_pin` of the coordinator's CA, received by another channel
        than the answer. There is no trust on first use: without a pin the error states the one
        to compare.
    :param control: address that replaces the granted one.
    :raises ConfigError: when the folder has no request, or the answer is not a valid certificate
        of the requested operator for this key, signed by the CA whose pin is ``pin``. The folder
        is unchanged then.
    """
    where = str(grant)
    if not (folder / _REQUEST).is_file() or not (folder / _KEY).is_file():
        raise ConfigError(
            "no request was made here",
            where=str(folder),
            hint="make one: `fedlearn operator request NAME`; the answer is valid for its key only",
        )
    answer = config.read_file(LoginGrant, grant)
    key = _pem(folder / _KEY, "PRIVATE KEY")
    request = x509.load_der_x509_csr(csr_der(folder / _REQUEST))
    leaf, root = _chain(answer.certificates, where)
    found = hashlib.sha256(_spki(root)).hexdigest()
    if not pin:
        raise ConfigError(
            f"the CA in it is {found}: compare that with the coordinator's administrator",
            where=where,
            hint=f"if it is the same: --ca-pin {found}",
        )
    if pin != found:
        raise ConfigError(
            f"the CA is {found}, not {pin}",
            where=where,
            hint="the answer may have been replaced; ask the coordinator's administrator",
        )
    if _spki(leaf) != load_pem_private_key(key, None).public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    ):
        raise ConfigError(
            "the certificate is for another key than the one in this folder",
            where=where,
            hint="send operator.csr of this folder, and use the answer to it",
        )
    name = _operator_of(leaf, where)
    asked = [str(part.value) for part in request.subject]
    if asked != [name]:
        raise ConfigError(
            f"the certificate is for operator {name}, the request was for {', '.join(asked)}",
            where=where,
        )
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        raise ConfigError(
            f"the certificate is valid from {leaf.not_valid_before_utc.isoformat()} "
            f"to {leaf.not_valid_after_utc.isoformat()}, and not now",
            where=where,
            hint="set the clock, or make a new request",
        )
    login = OperatorLogin(
        address=control or answer.address,
        ca=root.public_bytes(Encoding.PEM),
        chain=answer.certificates.encode(),
        key=key,
    )
    login.replace_folder(folder)
    return login


def default_folder() -> Path:
    """Return the folder that ``FEDLEARN_OPERATOR`` names, or the one in the user's settings."""
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    settings = os.environ.get("XDG_CONFIG_HOME")
    base = Path(settings) if settings else Path.home() / ".config"
    return base / "fedlearn" / "operator"


def _pem(path: Path, label: str) -> bytes:
    data = config.file_bytes(path, limit=_MAX_PEM_BYTES)
    if label.encode() not in data or b"-----BEGIN " not in data:
        raise ConfigError(f"holds no {label.lower()} in PEM", where=str(path))
    return data


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    if folder.exists():
        raise ConfigError("exists", where=str(folder), hint="name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, data in files.items():
            write_durably(scratch / name, data)
        rename_durably(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _chain(pem: str, where: str) -> tuple[x509.Certificate, x509.Certificate]:
    """Return a leaf, and the self-signed root that signed it."""
    try:
        leaf, root = x509.load_pem_x509_certificates(pem.encode())
        root.verify_directly_issued_by(root)
        leaf.verify_directly_issued_by(root)
        basic = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (InvalidSignature, x509.ExtensionNotFound, *UNREADABLE) as error:
        raise ConfigError(
            "does not contain an operator's certificate and the CA that signed it", where=where
        ) from error
    if not basic.ca:
        raise ConfigError("the second certificate is not a CA's", where=where)
    return leaf, root


def _operator_of(leaf: x509.Certificate, where: str) -> str:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        identity = spiffe.parse(uris[0] if len(uris) == 1 else "")
    except (x509.ExtensionNotFound, TransportError, *UNREADABLE) as error:
        raise ConfigError("the certificate is not an operator's", where=where) from error
    if not isinstance(identity, spiffe.OperatorId) or list(usage) != [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]:
        raise ConfigError(f"the certificate is that of {identity}, not an operator's", where=where)
    return identity.name
