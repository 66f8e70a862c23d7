"""Opens a sealed file and returns verified tensors, with one chunk of extra memory."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.exceptions import InvalidTag

from attestation.errors import UnsealError
from fedlearn.sealing.header import (
    MAC_BYTES,
    PREFIX,
    TAG_BYTES,
    Header,
    TensorSpec,
    read_prefix,
)
from fedlearn.sealing.keys import KeySource, derive, nonce
from fedlearn.sealing.signature import SIGNATURE_BYTES, check_signature, signer_digest
from fedlearn.sealing.writer import DIGEST_DOMAIN, SIGNED_DOMAIN

__all__ = ["SealedFile", "SealedReader", "open_sealed", "read_header"]


class SealedFile:
    """An open sealed file, without the key that opens it. A context manager; not thread-safe.

    The header is well-formed and states the size that the file has. :meth:`check_signer` checks
    who sealed the file, and with that every byte of it.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        :raises UnsealError: when it is not a well-formed sealed file, or has another size.
        :raises OSError: when the file cannot be read.
        """
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            self._head, self.header, self._mac = _read_head(self._fd)
            self._start = len(self._head) + MAC_BYTES
            self._check_size()
        except BaseException:
            self.close()
            raise
        self._buffer = memoryview(bytearray(self.header.chunk + TAG_BYTES))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def check_signer(self, pinned: Collection[bytes]) -> bytes:
        """Check that the holder of a pinned key sealed this file; return the pin.

        :param pinned: SHA-256 of public keys (DER SubjectPublicKeyInfo) that are trusted.
        :raises UnsealError: when the file is not signed, is signed by another key, or was altered.
        """
        if not self.header.signer:
            raise UnsealError(
                "it is not signed, so anybody with a recipient's public key may have made it"
            )
        found = signer_digest(self.header.signer)
        if found not in pinned:
            raise UnsealError(f"it names {found.hex()} as its signer, which is not pinned")
        signature = memoryview(bytearray(SIGNATURE_BYTES))
        self._read(signature, self._end, "the signature")
        check_signature(self.header.signer, self.digest(), bytes(signature))
        return found

    def digest(self) -> bytes:
        """Return the file's digest (32 bytes; see ``Sealed.digest``), without decrypting.

        All bytes of a signed file are read, and only the tags of another file.

        :raises UnsealError: when the file is truncated meanwhile.
        """
        if self.header.signer:
            return self._whole()
        state = hashlib.sha256(DIGEST_DOMAIN + self._mac)
        tag = memoryview(bytearray(TAG_BYTES))
        for spec in self.header.tensors:
            for _, length, at in self._chunks(spec.name):
                self._read(tag, at + length, f"tensor {spec.name!r}")
                state.update(tag)
        return state.digest()

    def _whole(self) -> bytes:
        state = hashlib.sha256(SIGNED_DOMAIN)
        for at in range(0, self._end, self.header.chunk):
            piece = self._buffer[: min(self.header.chunk, self._end - at)]
            self._read(piece, at, "the file")
            state.update(piece)
        return state.digest()

    def _check_size(self) -> None:
        self._end = self._start + self.header.nbytes + self.header.chunks * TAG_BYTES
        wanted = self._end + (SIGNATURE_BYTES if self.header.signer else 0)
        size = os.fstat(self._fd).st_size
        if size != wanted:
            what = "too short by" if size < wanted else "too long by"
            raise UnsealError(f"the file is {what} {abs(size - wanted)} bytes")

    def _span(self, name: str) -> tuple[TensorSpec, int, int]:
        try:
            return self.header.spans[name]
        except KeyError:
            raise UnsealError(f"the file has no tensor {name!r}") from None

    def _chunks(self, name: str) -> Iterator[tuple[int, int, int]]:
        """Yield index, plaintext length and place in the file of each chunk."""
        spec, index, offset = self._span(name)
        at = self._start + offset
        for length in self.header.lengths(spec):
            yield index, length, at
            index += 1
            at += length + TAG_BYTES

    def _read(self, into: memoryview, at: int, what: str) -> None:
        done = 0
        while done < len(into):
            count = os.preadv(self._fd, [into[done:]], at + done)
            if count == 0:
                raise UnsealError(f"{what}: the file was truncated")
            done += count


class SealedReader(SealedFile):
    """A sealed file that is open with its key: header and chunks have one maker.

    :meth:`check_signer` checks who that was; without it, it may be anybody who knows the public
    key of a recipient.

    Values are checked chunk by chunk as they are read: what is returned is what was sealed. Not
    thread-safe.
    """

    def __init__(self, path: Path, keys: KeySource) -> None:
        super().__init__(path)
        try:
            self._keys = derive(keys.content_key_of(self.header), self.header)
            if not hmac.compare_digest(
                hmac.digest(self._keys.mac, self._head, "sha256"), self._mac
            ):
                raise UnsealError(
                    "the header was altered, or this is not the key that the file was sealed with"
                )
        except BaseException:
            self.close()
            raise

    def tensor(self, name: str, *, into: bytearray | memoryview | None = None) -> memoryview:
        """Return the values of one tensor, without reading any other.

        :param into: a writable buffer of exactly the tensor's bytes to decrypt into; its
            content is undefined after an error.
        :raises UnsealError: when there is no such tensor, or naming the chunk that was altered.
        :raises ValueError: when ``into`` has another length.
        """
        spec, _, _ = self._span(name)
        if into is None:
            view = memoryview(bytearray(spec.nbytes))
        elif memoryview(into).nbytes != spec.nbytes:
            raise ValueError(f"{name}: {spec.nbytes} bytes are needed to read into")
        else:
            view = memoryview(into).cast("B") if spec.nbytes else memoryview(bytearray())
        start = 0
        for index, length, at in self._chunks(name):
            self._open_chunk(name, index, length, at, view[start : start + length])
            start += length
        return view

    def tensors(self) -> Iterator[tuple[TensorSpec, memoryview]]:
        """Yield all tensors in order, one at a time.

        :raises UnsealError: see :meth:`tensor`.
        """
        for spec in self.header.tensors:
            yield spec, self.tensor(spec.name)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """Yield one tensor piece by piece; a piece is valid until the next one is requested.

        :raises UnsealError: see :meth:`tensor`.
        """
        plain = memoryview(bytearray(self.header.chunk))
        for index, length, at in self._chunks(name):
            self._open_chunk(name, index, length, at, plain[:length])
            yield plain[:length]

    def verify(self) -> bytes:
        """Check every chunk and return the file's digest (see ``Sealed.digest``).

        :raises UnsealError: naming the first chunk that was altered.
        """
        for spec in self.header.tensors:
            for _ in self.chunks(spec.name):
                pass
        return self.digest()

    def _open_chunk(self, name: str, index: int, length: int, at: int, into: memoryview) -> None:
        sealed = self._buffer[: length + TAG_BYTES]
        self._read(sealed, at, f"tensor {name!r}")
        last = index == self.header.chunks - 1
        try:
            self._keys.aead.decrypt_into(
                nonce(self._keys.prefix, index, last=last), sealed, self.header.core, into
            )
        except InvalidTag:
            raise UnsealError(
                f"tensor {name!r}, chunk {index} of the file: was altered, "
                "or comes from another place or file"
            ) from None


def open_sealed(
    path: Path,
    keys: KeySource,
    *,
    model: str | None = None,
    at_least: int = 0,
) -> SealedReader:
    """Open a sealed file.

    :param model: the model that it must contain, if known.
    :param at_least: the lowest version that is acceptable.
    :raises UnsealError: when the key does not open it, the header was altered, the size differs
        from the header, or it contains another model or an older version.
    :raises OSError: when the file cannot be read.
    """
    reader = SealedReader(path, keys)
    try:
        if model is not None and reader.header.model != model:
            raise UnsealError(f"contains the model {reader.header.model!r}, not {model!r}")
        if reader.header.version < at_least:
            raise UnsealError(
                f"rolled back: contains version {reader.header.version}, "
                f"version {at_least} was sealed before"
            )
    except UnsealError:
        reader.close()
        raise
    return reader


def read_header(path: Path) -> Header:
    """Return the header of a file. Without a key nothing in it is proven.

    :raises UnsealError: when it is not a well-formed sealed file.
    :raises OSError: when the file cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return _read_head(fd)[1]
    finally:
        os.close(fd)


def _read_head(fd: int) -> tuple[bytes, Header, bytes]:
    prefix = os.pread(fd, PREFIX.size, 0)
    version, length = read_prefix(prefix)
    rest = os.pread(fd, length + MAC_BYTES, PREFIX.size)
    if len(rest) != length + MAC_BYTES:
        raise UnsealError("the file is truncated: its header is not complete")
    header = Header.from_bytes(rest[:length])
    if header.version_of_format != version:
        raise UnsealError(
            f"the file states version {version}, and its header is of version "
            f"{header.version_of_format}"
        )
    return prefix + rest[:length], header, rest[length:]
