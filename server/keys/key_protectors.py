"""What keeps the root key of the key service while the coordinator is not running.

A protector turns the root key into a *record* that may be on a disk that can be copied, and
back again with something that is not on that disk: a TPM in its right state, the private
key of an operator, a passphrase. :class:`InsecurePlainKeyFile` is the exception: it is
named insecure and must be requested by name.

Every record is bound to the id of its root key. Numbers in a record are bounded before they
are used, because they can be chosen by an attacker who can write to the disk.
"""

from __future__ import annotations

import os
import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from attestation.durable import write_durably
from attestation.errors import UnsealError
from fedlearn.errors import ConfigError
from fedlearn.sealing import hpke_open, hpke_seal

__all__ = [
    "PLAIN_KEY_FILE",
    "InsecurePlainKeyFile",
    "Passphrase",
    "Protector",
    "Record",
    "RecoveryKey",
    "TpmPolicy",
    "TpmSealing",
]

Record = Mapping[str, object]
"""What a protector keeps: JSON-ready, with its ``kind``."""

ROOT_BYTES: Final = 32
PLAIN_KEY_FILE: Final = "INSECURE-plain-root-key"
_RECOVERY: Final = b"fedlearn/root-key/recovery/1\0"
_PASSPHRASE: Final = b"fedlearn/root-key/passphrase/1\0"
_NONCE: Final = bytes(12)
_SALT_BYTES: Final = 16
_MIN_PASSPHRASE: Final = 12
_MAX_PASSPHRASE: Final = 1024
_MIN_COST: Final = 2**15
_MAX_COST: Final = 2**18
_BLOCK: Final = 8
_MAX_FIELD: Final = 8192


class Protector(Protocol):
    """Protects a root key, and recovers it."""

    @property
    def kind(self) -> str:
        """Its name in records and in the configuration."""
        ...

    @property
    def insecure(self) -> bool:
        """True when a copied disk is enough to recover the key."""
        ...

    def protect(self, root: bytes, *, root_id: str) -> dict[str, object]:
        """Return a record from which :meth:`recover` gets ``root`` (32 bytes) back.

        :raises AttestationError: when this protector cannot be used now.
        """
        ...

    def recover(self, record: Record, *, root_id: str) -> bytes:
        """Return the root key.

        :raises AttestationError: with the reason why this protector does not open this record.
        """
        ...


@dataclass(frozen=True, slots=True)
class RecoveryKey:
    """An operator's X25519 key pair, of which the private half is kept offline.

    The public half is enough to protect; recovering needs ``private``.
    """

    kind: ClassVar[str] = "recovery-key"
    insecure: ClassVar[bool] = False

    public: bytes
    private: X25519PrivateKey | None = field(default=None, repr=False)

    @classmethod
    def of(cls, private: X25519PrivateKey) -> RecoveryKey:
        """Return the pair of a private key."""
        return cls(private.public_key().public_bytes_raw(), private)

    def protect(self, root: bytes, *, root_id: str) -> dict[str, object]:
        """Wrap the root key to the public key (HPKE)."""
        sealed = hpke_seal(root, self.public, info=_RECOVERY + root_id.encode())
        return {"kind": self.kind, "recipient": self.public.hex(), "sealed": sealed.hex()}

    def recover(self, record: Record, *, root_id: str) -> bytes:
        """Unwrap with the private key."""
        recipient = _hex(record, "recipient")
        if recipient != self.public:
            raise UnsealError(
                f"protected by the recovery key {recipient.hex()[:16]}, "
                f"not by {self.public.hex()[:16]}"
            )
        if self.private is None:
            raise UnsealError("the private half of the recovery key is not here")
        info = _RECOVERY + root_id.encode()
        return hpke_open(_hex(record, "sealed"), self.private, info=info)


@dataclass(frozen=True, slots=True)
class Passphrase:
    """A passphrase, stretched by scrypt (RFC 7914; N = 2^15 or more, r = 8, p = 1).

    :raises ConfigError: for fewer than 12 characters.
    """

    kind: ClassVar[str] = "passphrase"
    insecure: ClassVar[bool] = False

    text: str = field(repr=False)
    cost: int = 2**16

    def __post_init__(self) -> None:
        if not _MIN_PASSPHRASE <= len(self.text) <= _MAX_PASSPHRASE:
            raise ConfigError(
                f"a passphrase has {_MIN_PASSPHRASE} to {_MAX_PASSPHRASE} characters, "
                f"this one has {len(self.text)}",
                hint="six words picked at random are easy to type and hard to guess",
            )
        if not _is_cost(self.cost):
            raise ValueError(f"cost is a power of two from {_MIN_COST} to {_MAX_COST}")

    def protect(self, root: bytes, *, root_id: str) -> dict[str, object]:
        """Encrypt the root key under the stretched passphrase."""
        salt = secrets.token_bytes(_SALT_BYTES)
        aead = AESGCM(self._stretched(salt, self.cost))
        sealed = aead.encrypt(_NONCE, root, _PASSPHRASE + root_id.encode())
        return {"kind": self.kind, "n": self.cost, "salt": salt.hex(), "sealed": sealed.hex()}

    def recover(self, record: Record, *, root_id: str) -> bytes:
        """Decrypt with the stretched passphrase."""
        cost, salt = record.get("n"), _hex(record, "salt")
        if not _is_cost(cost) or not isinstance(cost, int) or len(salt) != _SALT_BYTES:
            raise UnsealError(
                f"the record asks for scrypt with n={cost!r}; "
                f"powers of two from {_MIN_COST} to {_MAX_COST} are computed"
            )
        try:
            return AESGCM(self._stretched(salt, cost)).decrypt(
                _NONCE, _hex(record, "sealed"), _PASSPHRASE + root_id.encode()
            )
        except (InvalidTag, ValueError):
            raise UnsealError("the passphrase is wrong, or the record was altered") from None

    def _stretched(self, salt: bytes, cost: int) -> bytes:
        text = unicodedata.normalize("NFKC", self.text).encode()
        return Scrypt(salt=salt, length=ROOT_BYTES, n=cost, r=_BLOCK, p=1).derive(text)


class TpmSealing(Protocol):
    """Seals up to 128 bytes to the present state of this machine's TPM."""

    def seal(self, secret: bytes) -> bytes:
        """Return a blob; raises AttesterError when the TPM cannot be used."""
        ...

    def unseal(self, blob: bytes) -> bytes:
        """Return the secret; raises UnsealError in another state or on another machine."""
        ...


@dataclass(frozen=True, slots=True)
class TpmPolicy:
    """This machine's TPM, which opens the key while the selected PCRs keep their values.

    A TPM alone loses the key with the machine: protect with a recovery key as well.
    """

    kind: ClassVar[str] = "tpm-policy"
    insecure: ClassVar[bool] = False

    tpm: TpmSealing

    def protect(self, root: bytes, *, root_id: str) -> dict[str, object]:
        """Seal the root key in the TPM."""
        return {"kind": self.kind, "sealed": self.tpm.seal(root).hex()}

    def recover(self, record: Record, *, root_id: str) -> bytes:
        """Unseal it. The id is compared by the key service, as for every protector."""
        return self.tpm.unseal(_hex(record, "sealed"))


@dataclass(frozen=True, slots=True)
class InsecurePlainKeyFile:
    """The root key as it is, in a file next to what it protects. For development only."""

    kind: ClassVar[str] = "insecure-plain-key-file"
    insecure: ClassVar[bool] = True

    directory: Path

    def protect(self, root: bytes, *, root_id: str) -> dict[str, object]:
        """Write the key file with mode 0600."""
        write_durably(self.directory / PLAIN_KEY_FILE, root)
        return {"kind": self.kind, "file": PLAIN_KEY_FILE}

    def recover(self, record: Record, *, root_id: str) -> bytes:
        """Read the key file."""
        path = self.directory / PLAIN_KEY_FILE
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise UnsealError(f"{path}: {error.strerror}") from None
        try:
            return os.read(fd, ROOT_BYTES + 1)
        finally:
            os.close(fd)


def _hex(record: Record, name: str) -> bytes:
    value = record.get(name)
    if not isinstance(value, str) or len(value) > _MAX_FIELD:
        raise UnsealError(f"the record of this protector has no {name}")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise UnsealError(f"{name} of this protector is not hexadecimal") from None


def _is_cost(value: object) -> bool:
    return type(value) is int and _MIN_COST <= value <= _MAX_COST and value & (value - 1) == 0
