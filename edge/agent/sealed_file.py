"""A small file in a site's state that only this site can write; older copies are detected.

::

    file  = "fedlearn-site-file/1\\0" | nonce (12 bytes) | AES-256-GCM(key, nonce, text, aad = head)
    head  = "fedlearn-site-file/1\\0" | the file's name
    text  = bound (1 byte) | u64be count | content
    key   = HKDF-SHA-256(the site's private key, info = "fedlearn-site-state/1\\0"), 32 bytes

The seal detects every change by somebody without the site's key. A TPM's monotonic counter detects
an older file of the same site, where the site's clients attest with a TPM of this machine: the
file states the count at which it was written. Without a TPM an older copy is not detected, as the
key is on the same disk.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.durable import write_durably
from attestation.errors import AttestationError
from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError

__all__ = ["COUNTER_INDEX", "MonotonicCounter", "SealedFile", "file_key"]

COUNTER_INDEX: Final = 0x01500F1D
"""NV index of a site's counter; that of a coordinator on the same machine is another one."""

_DOMAIN: Final = b"fedlearn-site-file/1\0"
_KEY_INFO: Final = b"fedlearn-site-state/1\0"
_NONCE_BYTES: Final = 12
_TEXT_HEAD: Final = struct.Struct(">?Q")
_MAX_BYTES: Final = 16 * 1024 * 1024


class MonotonicCounter(Protocol):
    """What is needed of :class:`attestation.tpm.seal.TpmCounter`."""

    def exists(self) -> bool:
        """Return whether it was created."""
        ...

    def create(self) -> int:
        """Create it unless it is there; return its value."""
        ...

    def increment(self) -> int:
        """Add one and return the new value, which is then in non-volatile memory."""
        ...


def file_key(site_key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the key of a site's sealed files, 32 bytes (HKDF, RFC 5869)."""
    secret = site_key.private_numbers().private_value.to_bytes(32, "big")
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_KEY_INFO).derive(secret)


class SealedFile:
    """One file. It is read from disk only when it changed since it was last read or written.

    ``counter`` is the TPM's, or None. ``unbound`` reads a file that is bound to a counter without
    asking the counter, to show it; such a file cannot be written.

    Every method raises :class:`fedlearn.errors.ConfigError` when the file is damaged, sealed with
    another key, older than the counter states, or missing although the counter was used,
    and when the disk or the TPM cannot be used.
    """

    def __init__(
        self,
        path: Path,
        key: bytes,
        *,
        counter: MonotonicCounter | None = None,
        unbound: bool = False,
    ) -> None:
        self._path = path
        self._cipher = AESGCM(key)
        self._counter = counter
        self._unbound = unbound
        self._seen: tuple[int, int, int] | None = None
        self._content: bytes | None = None
        self._count: int | None = None

    def read(self) -> bytes | None:
        """Return the content; None when no file was ever written."""
        seen = self._stat()
        if seen is not None and seen == self._seen:
            return self._content
        self._seen = self._content = self._count = None
        with self._counting():
            if seen is None:
                self._check_never_written()
                return None
            count, content = self._open()
            self._compare(count)
        self._seen, self._content, self._count = seen, content, count
        return content

    def write(self, content: bytes) -> None:
        """Replace the content, durably. With a counter, older files are refused afterwards."""
        if self._unbound:
            raise ConfigError("was opened for reading only", where=str(self._path))
        self.read()
        with self._counting():
            if self._counter is None:
                self._put(content, None)
                return
            count = self._count if self._count is not None else self._counter.create()
            # The file is written first: the next read repairs a crash between the two.
            self._put(content, count + 1)
            self._expect(count + 1, self._counter.increment())

    def begin_anew(self, content: bytes) -> None:
        """Write a new file, bound to the counter as it is now, whatever was there."""
        with self._counting():
            count = None
            if self._counter is not None:
                self._counter.create()
                count = self._counter.increment()
            self._put(content, count)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except AttestationError as error:
            raise ConfigError(
                f"the TPM's counter cannot be used: {error}",
                where=str(self._path),
                hint=error.hint or "`fedlearn doctor --edge site.toml` checks the TPM",
            ) from error
        except OSError as error:
            raise ConfigError(
                f"cannot be read or written: {(error.strerror or str(error)).lower()}",
                where=str(self._path),
                hint="check that the disk works and has free space; no job starts before",
            ) from error

    def _put(self, content: bytes, count: int | None) -> None:
        head = _TEXT_HEAD.pack(count is not None, count or 0)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, head + content, self._aad())
        write_durably(self._path, _DOMAIN + nonce + sealed)
        self._seen, self._content, self._count = self._stat(), content, count

    def _open(self) -> tuple[int | None, bytes]:
        data = file_bytes(self._path, limit=_MAX_BYTES, what="the site's sealed file")
        start = len(_DOMAIN) + _NONCE_BYTES
        if not data.startswith(_DOMAIN) or len(data) < start:
            raise ConfigError(
                "is not a sealed file of a site", where=str(self._path), hint=_DAMAGED
            )
        try:
            text = self._cipher.decrypt(data[len(_DOMAIN) : start], data[start:], self._aad())
        except InvalidTag:
            raise ConfigError(
                "was altered, or was sealed with the key of another enrollment",
                where=str(self._path),
                hint=_DAMAGED,
            ) from None
        bound, count = _TEXT_HEAD.unpack_from(text)
        return (count if bound else None), text[_TEXT_HEAD.size :]

    def _compare(self, written: int | None) -> None:
        if self._counter is None:
            if written is not None and not self._unbound:
                raise ConfigError(
                    "is bound to a TPM's counter, and this configuration has no TPM",
                    where=str(self._path),
                    hint="start with the attester that it was written with",
                )
            return
        if written is None:
            # Written before this site had a TPM; the next write binds the file to it.
            if self._counter.exists():
                raise ConfigError(
                    "was written before this site's TPM counted: an older copy was restored",
                    where=str(self._path),
                    hint=_ANOTHER_TPM,
                )
            return
        value = self._counter.create()
        if written == value + 1:
            # The agent ended between writing the file and counting: count now.
            value = self._counter.increment()
        self._expect(written, value)

    def _expect(self, written: int, value: int) -> None:
        if written != value:
            older = "an older copy was restored" if written < value else "it is another counter"
            raise ConfigError(
                f"was written at count {written}, and the TPM's counter is at {value}: {older}",
                where=str(self._path),
                hint=_ANOTHER_TPM,
            )

    def _check_never_written(self) -> None:
        if self._counter is not None and self._counter.exists():
            raise ConfigError(
                f"is gone: this site's TPM counted {self._counter.create()} for it",
                where=str(self._path),
                hint=_ANOTHER_TPM,
            )

    def _aad(self) -> bytes:
        return _DOMAIN + self._path.name.encode()

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


_DAMAGED: Final = "restore the newest copy of the site's state"
_ANOTHER_TPM: Final = (
    "restore the newest copy of the site's state; if there is none, `fedlearn-edge budget reset` "
    "begins a new one and forgets what was spent"
)
