"""Seals tensors into one file, with one chunk of extra memory.

The page is docs/reference/api/sealing.md.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from attestation.durable import DurableFile
from fedlearn.sealing.header import (
    CHUNK_BYTES,
    FILE_ID_BYTES,
    MAC_BYTES,
    MAGIC,
    MAX_HEADER_BYTES,
    PREFIX,
    TAG_BYTES,
    Header,
    Scalar,
    TensorSpec,
    Wrap,
)
from fedlearn.sealing.keys import SealingKey, derive, hpke_seal, nonce, wrap_info
from fedlearn.sealing.signature import SIGNATURE_BYTES, FileSigner

__all__ = ["DIGEST_DOMAIN", "SIGNED_DOMAIN", "Sealed", "SealedWriter", "Tensor", "seal"]

DIGEST_DOMAIN: Final = b"fedlearn/flsw1/digest\0"
SIGNED_DOMAIN: Final = b"fedlearn/flsw2/digest\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor to seal: its spec's fields, and a C-contiguous buffer of its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A file that was written.

    ``digest``  32 bytes. For a signed file: SHA-256 of all of it except the signature. Otherwise:
                SHA-256 of header, its MAC and all chunk tags. That identifies the content only
                among parties without the content key: AES-GCM does not commit to a plaintext,
                so with the key, other contents with the same tags can be made
    ``size``    bytes of the file
    """

    path: Path
    header: Header
    digest: bytes
    size: int


class SealedWriter:
    """Write one sealed file, tensor after tensor, in the order of ``tensors``.

    For tensors that do not exist at the same time; otherwise :func:`seal` is simpler. A context
    manager: without :meth:`commit`, ``path`` is not changed.

    :param recipients: raw X25519 public keys (32 bytes) that may open the file.
    :param signer: signs the file; without one it is of version 1.
    :raises ValueError: for a header that the format does not have, or when neither a key
        service nor a recipient could open the file.
    :raises OSError: when the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        model: str,
        version: int,
        round: int,  # noqa: A002
        tensors: Sequence[TensorSpec],
        key: SealingKey,
        recipients: Sequence[bytes] = (),
        meta: Mapping[str, Scalar] | None = None,
        chunk: int = CHUNK_BYTES,
        signer: FileSigner | None = None,
    ) -> None:
        if not key.key_id and not recipients:
            raise ValueError(
                "a file without recipients and without a key service could never be opened"
            )
        core = Header(
            model=model,
            version=version,
            round=round,
            tensors=tuple(tensors),
            file_id=secrets.token_bytes(FILE_ID_BYTES),
            key=key.key_id,
            meta=meta or {},
            chunk=chunk,
            signer=signer.public_key if signer is not None else b"",
        )
        content_key = key.content_key(core.file_id)
        info = wrap_info(core.core)
        self.header = replace(
            core,
            wraps=tuple(
                Wrap(recipient=raw, sealed=hpke_seal(content_key, raw, info=info))
                for raw in recipients
            ),
        )
        encoded = self.header.to_bytes()
        if len(encoded) > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {len(encoded)} bytes; at most {MAX_HEADER_BYTES}")
        self._keys = derive(content_key, self.header)
        self._index = 0
        self._done = 0
        self._buffer = memoryview(bytearray(chunk + TAG_BYTES))
        head = PREFIX.pack(MAGIC, self.header.version_of_format, len(encoded)) + encoded
        mac = hmac.digest(self._keys.mac, head, "sha256")
        self._signer = signer
        self._digest = hashlib.sha256(
            DIGEST_DOMAIN + mac if signer is None else SIGNED_DOMAIN + head + mac
        )
        self._size = len(head) + MAC_BYTES
        self._file = DurableFile(path)
        try:
            self._file.write(head + mac)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Seal the values of the next tensor.

        :raises ValueError: when there is no next tensor, or the length is not its own.
        :raises OSError: when the file cannot be written.
        """
        spec = self._next()
        view = _bytes_view(data)
        if len(view) != spec.nbytes:
            raise ValueError(f"{spec.name}: {len(view)} bytes, its shape needs {spec.nbytes}")
        start = 0
        for length in self.header.lengths(spec):
            self._write_chunk(view[start : start + length])
            start += length
        self._done += 1

    def write_chunks(self, chunks: Iterable[memoryview]) -> None:
        """Seal the next tensor from its chunks, as ``SealedReader.chunks`` yields them.

        :raises ValueError: when there is no next tensor, or the chunks are not its own.
        :raises OSError: when the file cannot be written.
        """
        spec = self._next()
        pieces = iter(chunks)
        for length in self.header.lengths(spec):
            piece = next(pieces, None)
            if piece is None or len(piece) != length:
                raise ValueError(f"{spec.name}: a chunk of {length} bytes is needed")
            self._write_chunk(piece)
        if next(pieces, None) is not None:
            raise ValueError(f"{spec.name}: more chunks than its shape needs")
        self._done += 1

    def _next(self) -> TensorSpec:
        if self._done == len(self.header.tensors):
            raise ValueError("all tensors of the header were written")
        return self.header.tensors[self._done]

    def _write_chunk(self, plain: memoryview) -> None:
        last = self._index == self.header.chunks - 1
        sealed = self._buffer[: len(plain) + TAG_BYTES]
        self._keys.aead.encrypt_into(
            nonce(self._keys.prefix, self._index, last=last), plain, self.header.core, sealed
        )
        self._file.write(sealed)
        self._digest.update(sealed[len(plain) :] if self._signer is None else sealed)
        self._index += 1
        self._size += len(sealed)

    def commit(self) -> Sealed:
        """Make the file durable under its name.

        :raises ValueError: when a tensor is missing.
        :raises OSError: when that is not possible; the previous file is unchanged then.
        """
        if self._done != len(self.header.tensors):
            raise ValueError(f"{self.header.tensors[self._done].name}: was not written")
        digest = self._digest.digest()
        if self._signer is not None:
            self._file.write(self._signer.sign(digest))
            self._size += SIGNATURE_BYTES
        self._file.commit()
        return Sealed(path=self._file.path, header=self.header, digest=digest, size=self._size)


def seal(
    path: Path,
    tensors: Iterable[Tensor],
    *,
    model: str,
    version: int,
    round: int,  # noqa: A002
    key: SealingKey,
    recipients: Sequence[bytes] = (),
    meta: Mapping[str, Scalar] | None = None,
    chunk: int = CHUNK_BYTES,
    signer: FileSigner | None = None,
) -> Sealed:
    """Seal ``tensors`` into ``path``, atomically and durably.

    The buffers are referenced, never copied; extra memory is one chunk. Parameters and
    errors are those of :class:`SealedWriter`.

    >>> import tempfile
    >>> from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    >>> from fedlearn.sealing import PrivateKey, RandomKey, open_sealed
    >>> owner = X25519PrivateKey.generate()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "heart.flsw"
    ...     weight = Tensor(name="weight", dtype="F32", shape=(2,), data=bytes(8))
    ...     sealed = seal(path, [weight], model="heart", version=1, round=1, key=RandomKey(),
    ...                   recipients=[owner.public_key().public_bytes_raw()])
    ...     with open_sealed(path, PrivateKey(owner), model="heart") as reader:
    ...         bytes(reader.tensor("weight")) == bytes(8)
    True
    """
    listed = list(tensors)
    specs = [TensorSpec(name=t.name, dtype=t.dtype, shape=t.shape) for t in listed]
    with SealedWriter(
        path,
        model=model,
        version=version,
        round=round,
        tensors=specs,
        key=key,
        recipients=recipients,
        meta=meta,
        chunk=chunk,
        signer=signer,
    ) as writer:
        for tensor in listed:
            writer.write(tensor.data)
        return writer.commit()


def _bytes_view(data: bytes | bytearray | memoryview) -> memoryview:
    view = memoryview(data)
    if view.nbytes == 0:
        return memoryview(b"")
    return view.cast("B")
