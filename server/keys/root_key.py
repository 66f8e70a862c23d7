"""The root key: on disk only inside the records of its protectors.

``root.json`` in the key service's directory holds the records. A small value sealed under
the root key is ``FLSB``, 1, salt (32 bytes), AES-256-GCM with the key HKDF-SHA-256(root,
salt, "fedlearn/sealed-value/1\\0" | label), a zero nonce and the info as AAD.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.durable import write_durably
from attestation.errors import AttestationError, UnsealError
from fedlearn.errors import ConfigError, StoreError
from server.disk import store_error
from server.keys.key_protectors import ROOT_BYTES, Protector

__all__ = ["ROOT_FILE", "RootKey", "hkdf", "protector_kinds", "reason"]

ROOT_FILE: Final = "root.json"
_MAGIC: Final = b"FLSB\x01"
_SALT_BYTES: Final = 32
_TAG_BYTES: Final = 16
_NONCE: Final = bytes(12)
_VALUE: Final = b"fedlearn/sealed-value/1\0"
_DERIVED: Final = b"fedlearn/derived-key/1\0"
_IDENTITY: Final = b"fedlearn/root-id/1\0"
_MAX_ROOT_FILE: Final = 256 * 1024
_MAX_PROTECTORS: Final = 16


class RootKey:
    """32 random bytes in memory. Safe to use from several threads of one process.

    ``id`` names the key without revealing it; it can be pinned in configuration.
    """

    def __init__(self, directory: Path, key: bytes) -> None:
        self.directory = directory
        self.id = _root_id(key)
        self._key = bytearray(key)

    def __repr__(self) -> str:
        return f"RootKey({self.id})"

    @classmethod
    def create(
        cls,
        directory: Path,
        protectors: Sequence[Protector],
        *,
        allow_insecure_key_file: bool = False,
    ) -> RootKey:
        """Make a root key and protect it with each of ``protectors``.

        :raises ConfigError: without a protector, or with an insecure one that was not
            allowed by name.
        :raises StoreError: when there is a root key already, or it cannot be written.
        :raises AttestationError: when a protector cannot be used.
        """
        _check_protectors(protectors, allow_insecure_key_file)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (directory / ROOT_FILE).exists():
            raise StoreError(f"{directory} holds a root key already", hint="open it instead")
        if left := sorted(directory.rglob("*.sealed")):
            raise StoreError(
                f"{directory / ROOT_FILE} is missing, but {left[0].name} exists, which it protects",
                hint="restore the file from a backup",
            )
        root = cls(directory, secrets.token_bytes(ROOT_BYTES))
        root._write([item.protect(bytes(root._key), root_id=root.id) for item in protectors])
        return root

    @classmethod
    def open(
        cls,
        directory: Path,
        protectors: Sequence[Protector],
        *,
        allow_insecure_key_file: bool = False,
        expected_id: str | None = None,
    ) -> RootKey:
        """Recover the root key with the first of ``protectors`` that opens it.

        :param expected_id: the ``id`` that the key must have; refuses a directory that
            another party made for the same TPM or recovery key.
        :raises ConfigError: as :meth:`create`.
        :raises StoreError: with the reason why each protector does not open.
        """
        _check_protectors(protectors, allow_insecure_key_file)
        root_id, records = _read_root(directory / ROOT_FILE)
        if expected_id is not None and root_id != expected_id:
            raise StoreError(
                f"{directory} holds the root key {root_id}, {expected_id} is expected",
                hint="this is not the coordinator's own state; restore it",
            )
        reasons: list[str] = []
        for protector in protectors:
            matching = [item for item in records if item.get("kind") == protector.kind]
            if not matching:
                reasons.append(f"{protector.kind}: does not protect this root key")
            for item in matching:
                try:
                    key = protector.recover(item, root_id=root_id)
                except AttestationError as error:
                    reasons.append(f"{protector.kind}: {error}")
                    continue
                if len(key) == ROOT_BYTES and _root_id(key) == root_id:
                    return cls(directory, key)
                reasons.append(f"{protector.kind}: opens, but gives another key")
        kinds = ", ".join(sorted({str(item.get("kind")) for item in records}))
        raise StoreError(
            f"the root key in {directory} does not open ({'; '.join(reasons)})",
            hint=f"it is protected by: {kinds}",
        )

    def close(self) -> None:
        """Overwrite the key. The object cannot be used afterwards."""
        self._key[:] = bytes(len(self._key))

    def protectors(self) -> tuple[str, ...]:
        """Return the kinds of the protectors that open the key."""
        return tuple(str(item.get("kind")) for item in self._records())

    def derive(self, label: str) -> bytes:
        """Return a key (32 bytes) for one purpose, the same whenever the root key is."""
        return hkdf(bytes(self._key), salt=b"", info=_DERIVED + label.encode())

    def seal(self, label: str, data: bytes) -> bytes:
        """Seal a value in memory; it opens under this root key and this label only."""
        salt = secrets.token_bytes(_SALT_BYTES)
        info = _VALUE + label.encode()
        return _MAGIC + salt + self._aead(salt, info).encrypt(_NONCE, data, info)

    def unseal(self, label: str, sealed: bytes) -> bytes:
        """Open what :meth:`seal` made.

        :raises UnsealError: for another root key, another label, or altered bytes.
        """
        start = len(_MAGIC) + _SALT_BYTES
        if not sealed.startswith(_MAGIC) or len(sealed) < start + _TAG_BYTES:
            raise UnsealError(f"{label}: not a sealed value")
        salt, info = sealed[len(_MAGIC) : start], _VALUE + label.encode()
        try:
            return self._aead(salt, info).decrypt(_NONCE, sealed[start:], info)
        except InvalidTag:
            raise UnsealError(
                f"{label}: was altered, or sealed under another root key or name"
            ) from None

    def read(self, path: Path, label: str, *, limit: int) -> bytes | None:
        """Return the sealed value in a file, or ``None`` when there is no file.

        :param limit: upper bound of its bytes.
        :raises StoreError: when it cannot be read or does not open.
        """
        try:
            with path.open("rb") as stream:
                sealed = stream.read(limit + 1)
            if len(sealed) > limit:
                raise UnsealError(f"larger than the {limit} bytes that are read")
            return self.unseal(label, sealed)
        except FileNotFoundError:
            return None
        except (OSError, UnsealError) as error:
            raise StoreError(f"{path}: {reason(error)}") from error

    def write(self, path: Path, label: str, value: bytes) -> None:
        """Seal a value into a file, whole and durable, or not at all.

        :raises StoreError: when it cannot be written; what was there is unchanged.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(path, self.seal(label, value))
        except OSError as error:
            raise store_error(f"{path}: {reason(error)}", error) from error

    def _aead(self, salt: bytes, info: bytes) -> AESGCM:
        return AESGCM(hkdf(bytes(self._key), salt=salt, info=info))

    def _records(self) -> list[dict[str, object]]:
        root_id, records = _read_root(self.directory / ROOT_FILE)
        if root_id != self.id:
            raise StoreError(f"{self.directory / ROOT_FILE} was replaced by that of another key")
        return records

    def _write(self, records: Iterable[Mapping[str, object]]) -> None:
        path = self.directory / ROOT_FILE
        document = {"version": 1, "root": self.id, "protectors": list(records)}
        try:
            write_durably(path, json.dumps(document, indent=2).encode() + b"\n")
        except OSError as error:
            raise store_error(f"{path}: {reason(error)}", error) from error


def protector_kinds(directory: Path) -> tuple[str, ...]:
    """Return the kinds of the protectors of the root key in ``directory``, without opening it.

    :raises StoreError: when there is no root key, or the file is damaged.
    """
    _, records = _read_root(directory / ROOT_FILE)
    return tuple(dict.fromkeys(str(item.get("kind")) for item in records))


def hkdf(key: bytes, *, salt: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA-256 (RFC 5869)."""
    return HKDF(hashes.SHA256(), ROOT_BYTES, salt=salt, info=info).derive(key)


def reason(error: Exception) -> str:
    """Return the reason of an error, without the path, which the caller names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


def _root_id(key: bytes) -> str:
    return hkdf(key, salt=b"", info=_IDENTITY)[:8].hex()


def _check_protectors(protectors: Sequence[Protector], allow_insecure: bool) -> None:
    if not protectors:
        raise ConfigError(
            "a root key needs a protector",
            hint="name a TPM, a recovery key or a passphrase",
        )
    if len(protectors) > _MAX_PROTECTORS:
        raise ConfigError(f"at most {_MAX_PROTECTORS} protectors")
    insecure = [item.kind for item in protectors if item.insecure]
    if insecure and not allow_insecure:
        raise ConfigError(
            f"{insecure[0]} leaves the root key readable on the disk and is refused",
            hint="for development only, allow it by name",
        )


def _read_root(path: Path) -> tuple[str, list[dict[str, object]]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as stream:
            data = stream.read(_MAX_ROOT_FILE + 1)
    except FileNotFoundError:
        raise StoreError(
            f"there is no root key in {path.parent}",
            hint="name the directory of the coordinator's keys",
        ) from None
    except OSError as error:
        raise StoreError(f"{path}: {reason(error)}") from error
    if len(data) > _MAX_ROOT_FILE:
        raise StoreError(f"{path}: larger than the {_MAX_ROOT_FILE} bytes that are read")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise StoreError(f"{path}: not JSON", hint="restore it from a backup") from None
    match document:
        case {"version": 1, "root": str(root_id), "protectors": list(records), **rest}:
            if (
                not rest
                and len(records) <= _MAX_PROTECTORS
                and all(isinstance(item, dict) for item in records)
            ):
                return root_id, records
    raise StoreError(f"{path}: not the protectors of a root key", hint="restore it from a backup")
