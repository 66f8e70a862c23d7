"""The header of a sealed file: its types, its canonical encoding, and its strict parser."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, NoReturn

from attestation.errors import UnsealError
from fedlearn.sealing.signature import signer_digest

__all__ = [
    "CHUNK_BYTES",
    "ITEM_BYTES",
    "MAC_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "PREFIX",
    "TAG_BYTES",
    "Header",
    "Scalar",
    "TensorSpec",
    "Wrap",
    "read_prefix",
]

Scalar = str | int | bool

MAGIC: Final = b"FLSW"
UNSIGNED: Final = 1
SIGNED: Final = 2
"""The versions of the format: without a signature at the end, and with one."""

PREFIX: Final = struct.Struct(">4sBI")
"""Magic, version, length of the header."""

MAX_HEADER_BYTES: Final = 8 * 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024
TAG_BYTES: Final = 16
MAC_BYTES: Final = 32
FILE_ID_BYTES: Final = 16

MAX_TENSORS: Final = 65_536
MAX_NAME_BYTES: Final = 512
MAX_DIMENSIONS: Final = 16
MAX_CHUNKS: Final = 2**32 - 1
MAX_WRAPS: Final = 64
MAX_META: Final = 64
MAX_META_TEXT: Final = 4096
MAX_INTEGER: Final = 2**63 - 1
_SMALLEST_CHUNK: Final = 4096
_LARGEST_CHUNK: Final = 16 * 1024 * 1024
_WRAP_BYTES: Final = 80

ITEM_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 1,
        "U8": 1,
        "I8": 1,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "U16": 2,
        "I16": 2,
        "F16": 2,
        "BF16": 2,
        "U32": 4,
        "I32": 4,
        "F32": 4,
        "U64": 8,
        "I64": 8,
        "F64": 8,
        "C64": 8,
    }
)
"""Bytes of one element, by safetensors type name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, safetensors type and shape of one tensor.

    :raises ValueError: for a name, type or shape that the format does not have.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= MAX_NAME_BYTES:
            raise ValueError(f"a tensor's name has 1 to {MAX_NAME_BYTES} bytes")
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"{self.name}: {self.dtype!r} is not a type of safetensors")
        if len(self.shape) > MAX_DIMENSIONS:
            raise ValueError(f"{self.name}: more than {MAX_DIMENSIONS} dimensions")
        if not all(_is_natural(size) for size in self.shape):
            raise ValueError(f"{self.name}: a shape is made of integers from 0")

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's values."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrap:
    """The content key, wrapped to one X25519 public key.

    ``recipient``  the raw public key (32 bytes)
    ``sealed``     HPKE encapsulation and ciphertext (80 bytes)
    """

    recipient: bytes
    sealed: bytes

    def __post_init__(self) -> None:
        if len(self.recipient) != 32 or len(self.sealed) != _WRAP_BYTES:
            raise ValueError("a wrap has a recipient of 32 bytes and a ciphertext of 80 bytes")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The description of a sealed file, without the values.

    ``model``    the name of the model
    ``version``  increases with every sealing of this model
    ``round``    the round after which the weights were sealed
    ``file_id``  16 random bytes
    ``key``      names the key service's key; empty when only ``wraps`` hold the content key
    ``meta``     short facts that are authenticated but not secret
    ``chunk``    plaintext bytes of a full chunk, a power of two from 4 KiB to 16 MiB
    ``signer``   public key (DER SubjectPublicKeyInfo, P-256) of the signer; empty in a file of
                 version 1, which is not signed

    :raises ValueError: for anything that the format does not have.
    """

    model: str
    version: int
    round: int
    tensors: tuple[TensorSpec, ...]
    file_id: bytes
    key: str = ""
    wraps: tuple[Wrap, ...] = ()
    meta: Mapping[str, Scalar] = field(default_factory=dict)
    chunk: int = CHUNK_BYTES
    signer: bytes = b""

    def __post_init__(self) -> None:
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))
        if not 0 < len(self.model.encode()) <= 256 or len(self.key.encode()) > 256:
            raise ValueError("model has 1 to 256 bytes, key at most 256")
        if not _is_natural(self.version) or not _is_natural(self.round):
            raise ValueError("version and round are integers from 0")
        if len(self.file_id) != FILE_ID_BYTES:
            raise ValueError(f"a file id has {FILE_ID_BYTES} bytes")
        in_range = _SMALLEST_CHUNK <= self.chunk <= _LARGEST_CHUNK
        if not in_range or self.chunk & (self.chunk - 1):
            raise ValueError("a chunk is a power of two from 4 KiB to 16 MiB")
        if len(self.tensors) > MAX_TENSORS or len(self.wraps) > MAX_WRAPS:
            raise ValueError(f"at most {MAX_TENSORS} tensors and {MAX_WRAPS} wraps")
        if len(self.spans) != len(self.tensors):
            raise ValueError("two tensors have the same name")
        if self.chunks > MAX_CHUNKS:
            raise ValueError(f"more than {MAX_CHUNKS} chunks")
        _check_meta(self.meta)
        if self.signer:
            signer_digest(self.signer)

    @property
    def version_of_format(self) -> int:
        """:data:`SIGNED` or :data:`UNSIGNED`."""
        return SIGNED if self.signer else UNSIGNED

    @cached_property
    def spans(self) -> Mapping[str, tuple[TensorSpec, int, int]]:
        """For each tensor: its spec, its first chunk, its offset among the ciphertexts."""
        spans: dict[str, tuple[TensorSpec, int, int]] = {}
        first = offset = 0
        for spec in self.tensors:
            spans[spec.name] = (spec, first, offset)
            count = -(-spec.nbytes // self.chunk)
            first += count
            offset += spec.nbytes + count * TAG_BYTES
        return MappingProxyType(spans)

    @cached_property
    def chunks(self) -> int:
        """Number of chunks in the file."""
        return sum(-(-spec.nbytes // self.chunk) for spec in self.tensors)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all values together."""
        return sum(spec.nbytes for spec in self.tensors)

    @cached_property
    def core(self) -> bytes:
        """SHA-256 of the canonical header without its wraps (32 bytes)."""
        document = self._document()
        del document["wraps"]
        return hashlib.sha256(_canonical(document)).digest()

    def to_bytes(self) -> bytes:
        """Return the canonical JSON."""
        return _canonical(self._document())

    def lengths(self, spec: TensorSpec) -> Iterator[int]:
        """Yield the plaintext length of each chunk of one tensor."""
        for start in range(0, spec.nbytes, self.chunk):
            yield min(self.chunk, spec.nbytes - start)

    @classmethod
    def from_bytes(cls, data: bytes) -> Header:
        """Parse canonical JSON; another encoding of the same values is refused.

        :raises UnsealError: naming what is wrong.
        """
        if len(data) > MAX_HEADER_BYTES:
            raise UnsealError(f"the header has {len(data)} bytes, at most {MAX_HEADER_BYTES}")
        try:
            document = json.loads(data, parse_float=_no_number, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise UnsealError("the header is not the JSON that a sealed file has") from error
        if not isinstance(document, dict):
            raise UnsealError("the header is not a JSON object")
        header = _parse(document)
        if header.to_bytes() != data:
            raise UnsealError("the header is not in its canonical form")
        return header

    def _document(self) -> dict[str, Any]:
        signer = {"signer": self.signer.hex()} if self.signer else {}
        return {
            **signer,
            "aead": "AES-256-GCM",
            "chunk": self.chunk,
            "file": self.file_id.hex(),
            "key": self.key,
            "meta": dict(self.meta),
            "model": self.model,
            "round": self.round,
            "tensors": [[spec.name, spec.dtype, list(spec.shape)] for spec in self.tensors],
            "version": self.version,
            "wraps": [
                {"kem": "x25519", "recipient": wrap.recipient.hex(), "sealed": wrap.sealed.hex()}
                for wrap in self.wraps
            ],
        }


def read_prefix(prefix: bytes) -> tuple[int, int]:
    """Return version of the format and length of the header, from the first 9 bytes of a file.

    :raises UnsealError: when they are not those of a sealed file, for an unknown version, or when
        the length exceeds :data:`MAX_HEADER_BYTES`.
    """
    if len(prefix) != PREFIX.size:
        raise UnsealError("the file is truncated: it has fewer than 9 bytes")
    magic, version, length = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise UnsealError("not a sealed file: it does not start with FLSW")
    if version not in (UNSIGNED, SIGNED):
        raise UnsealError(
            f"a sealed file of version {version}; this release reads versions {UNSIGNED} "
            f"and {SIGNED}"
        )
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise UnsealError(f"a header of {length} bytes; 2 to {MAX_HEADER_BYTES} are read")
    return version, int(length)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not an integer")


def _is_natural(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _check_meta(meta: Mapping[str, Scalar]) -> None:
    if len(meta) > MAX_META:
        raise ValueError(f"at most {MAX_META} entries in meta")
    for key, value in meta.items():
        if not isinstance(key, str) or not 0 < len(key) <= 64:
            raise ValueError("a key of meta has 1 to 64 characters")
        if isinstance(value, str):
            if len(value) > MAX_META_TEXT:
                raise ValueError(f"meta.{key}: at most {MAX_META_TEXT} characters")
        elif not isinstance(value, bool) and (
            type(value) is not int or not -MAX_INTEGER <= value <= MAX_INTEGER
        ):
            raise ValueError(f"meta.{key}: text, an integer or a boolean")


def _parse(document: dict[str, Any]) -> Header:
    keys = {"aead", "chunk", "file", "key", "meta", "model", "round", "tensors", "version", "wraps"}
    if document.keys() - {"signer"} != keys:
        odd = sorted((document.keys() - {"signer"}) ^ keys)[0]
        raise UnsealError(f"header: {odd!r} is {'unknown' if odd in document else 'missing'}")
    if document["aead"] != "AES-256-GCM":
        raise UnsealError("header: aead is not AES-256-GCM")
    kinds = {"chunk": int, "file": str, "key": str, "meta": dict, "model": str, "tensors": list}
    for key, kind in {**kinds, "wraps": list}.items():
        if type(document[key]) is not kind:
            raise UnsealError(f"header: {key} has the wrong type")
    signer = document.get("signer", "")
    if type(signer) is not str or ("signer" in document and not signer):
        raise UnsealError("header: signer is not a key in hexadecimal")
    if len(document["tensors"]) > MAX_TENSORS or len(document["wraps"]) > MAX_WRAPS:
        raise UnsealError("header: too many tensors or wraps")
    try:
        return Header(
            model=document["model"],
            version=document["version"],
            round=document["round"],
            tensors=tuple(map(_parse_tensor, document["tensors"])),
            file_id=bytes.fromhex(document["file"]),
            key=document["key"],
            wraps=tuple(map(_parse_wrap, document["wraps"])),
            meta=document["meta"],
            chunk=document["chunk"],
            signer=bytes.fromhex(signer),
        )
    except ValueError as error:
        raise UnsealError(f"header: {error}") from None


def _parse_tensor(entry: object) -> TensorSpec:
    match entry:
        case [str(name), str(dtype), list(shape)]:
            return TensorSpec(name=name, dtype=dtype, shape=tuple(shape))
    raise ValueError("a tensor must be [name, type, shape]")


def _parse_wrap(entry: object) -> Wrap:
    match entry:
        case {"kem": "x25519", "recipient": str(recipient), "sealed": str(sealed), **rest}:
            if not rest:
                return Wrap(recipient=bytes.fromhex(recipient), sealed=bytes.fromhex(sealed))
    raise ValueError("a wrap must be {kem, recipient, sealed} with kem x25519")
