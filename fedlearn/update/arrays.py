"""Named arrays and their digest, which client and coordinator exchange.

The encoding is safetensors (https://github.com/huggingface/safetensors#format): a u64
little-endian header length, a JSON header, the data. It never runs code when it is read.
The encoding here is canonical in addition, so that one update has one digest:

* the header lists the arrays in the order of the mapping, without metadata, padded with
  spaces so that the data starts at a multiple of 8;
* the data is in the order of decreasing item size, then of the mapping, so that every array is
  aligned and can be read in place.

:func:`decode` reads any safetensors file; what it returns shares the memory of its input.

numpy has no bfloat16. An array of that type is kept as :data:`BF16`, a structured type
around the 16 bits: it is never mistaken for integers, and arithmetic on it fails instead
of averaging bit patterns. :func:`to_float32` and :func:`to_bfloat16` convert.

>>> import numpy as np
>>> sent = Update({"weight": np.ones((2, 3), np.float32)})
>>> received = Update.from_bytes(sent.to_bytes())
>>> received["weight"].shape, received.digest == sent.digest
((2, 3), True)

The page is docs/adr/0025-safetensors.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import UpdateRejected
from fedlearn.sandbox.memory_file import Part, gathered, slice_of, view_of
from fedlearn.sealing import ITEM_BYTES

__all__ = [
    "BF16",
    "DTYPES",
    "MAX_NAME_BYTES",
    "Array",
    "Extent",
    "Update",
    "check_like",
    "decode",
    "digest",
    "dtype_name",
    "document",
    "encode",
    "encoded_parts",
    "is_finite",
    "layout",
    "safetensors_header",
    "to_bfloat16",
    "to_float32",
]

Array = NDArray[Any]

BF16: Final[np.dtype[Any]] = np.dtype([("bfloat16", "<u2")])
"""The 16 bits of a bfloat16, as an opaque element type of numpy."""

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("bool"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": BF16,
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
"""Element types by their safetensors name."""

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_ALIGN: Final = 8
_BLOCK: Final = 1 << 16
"""Elements that are checked at a time, so that intermediate values stay in the cache."""
_LENGTH: Final = struct.Struct("<Q")
MAX_HEADER_BYTES: Final = 8 * 1024 * 1024
MAX_NAME_BYTES: Final = 512
MAX_DIMENSIONS: Final = 16
DEFAULT_MAX_BYTES: Final = 4 * 1024**3
DEFAULT_MAX_TENSORS: Final = 16_384


class Update(Mapping[str, Array]):
    """An immutable, ordered mapping from names to arrays.

    The arrays are not copied; the caller must not write to them afterwards.

    :raises UpdateRejected: for a name or an element type that cannot be encoded.
    """

    __slots__ = ("_arrays", "_digest")

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays: dict[str, Array] = {
            _checked_name(name): _storable(name, array) for name, array in arrays.items()
        }
        self._digest: bytes | None = None

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"Update({len(self)} arrays, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(array.nbytes for array in self._arrays.values())

    @property
    def digest(self) -> bytes:
        """SHA-256 of the encoding (32 bytes); computed once."""
        if self._digest is None:
            self._digest = digest(self._arrays)
        return self._digest

    def to_bytes(self) -> bytes:
        """Return the canonical encoding."""
        return encode(self._arrays)

    @classmethod
    def from_bytes(
        cls,
        data: bytes | bytearray | memoryview,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_tensors: int = DEFAULT_MAX_TENSORS,
        finite: bool = False,
    ) -> Update:
        """Decode; see :func:`decode`."""
        return cls(decode(data, max_bytes=max_bytes, max_tensors=max_tensors, finite=finite))


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the safetensors name of an element type, whatever its byte order.

    :raises UpdateRejected: when there is none (objects, strings, dates, complex numbers).
    """
    name = _NAMES.get(dtype) or _NAMES.get(dtype.newbyteorder("<"))
    if name is None:
        raise UpdateRejected(
            f"an array of {dtype} cannot be sent",
            hint=f"convert it to one of {', '.join(DTYPES)}",
        )
    return name


def encoded_parts(arrays: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    """Yield the encoding piece by piece: the header, then each array's bytes in place.

    Only an array that is not contiguous or not little-endian is copied, one at a time.

    :raises UpdateRejected: for a name or an element type that cannot be encoded.
    """
    storable = {_checked_name(name): _storable(name, array) for name, array in arrays.items()}
    header, layout = safetensors_header(
        {name: (dtype_name(array.dtype), array.shape) for name, array in storable.items()}
    )
    yield header
    for name in layout:
        yield _flat(storable[name])


def safetensors_header(
    specs: Mapping[str, tuple[str, tuple[int, ...]]],
) -> tuple[bytes, list[str]]:
    """Return the header of a canonical document, and the order of the data after it.

    :param specs: type name and shape of every array.
    :raises UpdateRejected: when the header would be too large.
    """
    layout = sorted(specs, key=lambda name: -ITEM_BYTES[specs[name][0]])
    offsets: dict[str, list[int]] = {}
    end = 0
    for name in layout:
        dtype, shape = specs[name]
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        offsets[name] = [start, end]
    document = {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": offsets[name]}
        for name, (dtype, shape) in specs.items()
    }
    header = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _ALIGN)
    if len(header) > MAX_HEADER_BYTES:
        raise UpdateRejected(f"the header of an update has at most {MAX_HEADER_BYTES} bytes")
    return _LENGTH.pack(len(header)) + header, layout


def encode(arrays: Mapping[str, Array]) -> bytes:
    """Return the canonical encoding of ``arrays``, with one copy of the data.

    :raises UpdateRejected: for a name or an element type that cannot be encoded.
    """
    return b"".join(encoded_parts(arrays))


def document(arrays: Mapping[str, Array]) -> Part:
    """Return the canonical encoding as a part of a message: in a sealed file if it is large.

    :raises UpdateRejected: for a name or an element type that cannot be encoded.
    """
    return gathered(encoded_parts(arrays))


def digest(arrays: Mapping[str, Array]) -> bytes:
    """Return the SHA-256 of the canonical encoding (32 bytes) without building it.

    :raises UpdateRejected: for a name or an element type that cannot be encoded.
    """
    state = hashlib.sha256()
    for part in encoded_parts(arrays):
        state.update(part)
    return state.digest()


def decode(
    data: Part,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_tensors: int = DEFAULT_MAX_TENSORS,
    finite: bool = False,
) -> dict[str, Array]:
    """Return the arrays of a safetensors document, in the order of its header.

    The arrays are views of ``data`` (read-only where ``data`` is): nothing is copied. What lies in
    a file is mapped as long as there is one of its arrays.
    Every length is checked before it is used; the data must be covered exactly, with no
    gap, overlap or rest. With ``finite`` an array with NaN or infinity is refused.

    :param max_bytes: upper bound of the whole document.
    :param max_tensors: upper bound of the number of arrays.
    :raises UpdateRejected: for anything else; the message names the array.
    """
    view = view_of(data).cast("B")
    arrays: dict[str, Array] = {}
    for place in layout(view, max_bytes=max_bytes, max_tensors=max_tensors):
        values = view[place.start : place.end]
        if place.dtype.kind == "b" and (np.frombuffer(values, np.uint8) > 1).any():
            raise UpdateRejected(f"{place.name}: a BOOL is neither 0 nor 1")
        array = np.frombuffer(values, place.dtype).reshape(place.shape)
        if finite and not is_finite(array):
            raise UpdateRejected(f"{place.name}: contains NaN or infinity")
        arrays[place.name] = array
    return arrays


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the values of one array are in a document: bytes ``start`` to ``end``."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    end: int


def layout(
    data: Part, *, max_bytes: int = DEFAULT_MAX_BYTES, max_tensors: int = DEFAULT_MAX_TENSORS
) -> list[Extent]:
    """Return where the arrays of a safetensors document are, in the order of its header.

    Reads the header only. Parameters, checks and errors are those of :func:`decode`.
    """
    if len(data) > max_bytes:
        raise UpdateRejected(f"an update of {len(data)} bytes; at most {max_bytes} are accepted")
    header, begin = _header(data)
    if len(header) > max_tensors:
        raise UpdateRejected(
            f"an update of {len(header)} arrays; at most {max_tensors} are accepted"
        )
    size = len(data) - begin
    places: list[Extent] = []
    for name, entry in header.items():
        dtype, shape, start, end = _entry(_checked_name(name), entry, size)
        places.append(Extent(name, dtype, shape, begin + start, begin + end))
    position = begin
    for place in sorted(places, key=lambda each: (each.start, each.end, each.name)):
        if place.start != position:
            raise UpdateRejected(
                f"{place.name}: starts at {place.start - begin}, the array before it ends at "
                f"{position - begin}"
            )
        position = place.end
    if position != len(data):
        raise UpdateRejected(f"{len(data) - position} bytes belong to no array")
    return places


def check_like(arrays: Mapping[str, Array], reference: Mapping[str, Array]) -> None:
    """Check that two mappings have the same names, element types and shapes, in order.

    :raises UpdateRejected: naming the first difference.
    """
    if list(arrays) != list(reference):
        missing = [name for name in reference if name not in arrays]
        extra = [name for name in arrays if name not in reference]
        if missing:
            raise UpdateRejected(f"the array {missing[0]!r} is missing")
        if extra:
            raise UpdateRejected(f"the array {extra[0]!r} is not part of the model")
        raise UpdateRejected("the arrays are in another order than those of the model")
    for name, wanted in reference.items():
        array = arrays[name]
        if dtype_name(array.dtype) != dtype_name(wanted.dtype):
            raise UpdateRejected(
                f"{name}: is {dtype_name(array.dtype)}, the model has {dtype_name(wanted.dtype)}"
            )
        if array.shape != wanted.shape:
            raise UpdateRejected(f"{name}: has shape {array.shape}, the model has {wanted.shape}")


def to_float32(array: Array) -> NDArray[np.float32]:
    """Return an array of :data:`BF16` as float32; exact."""
    if array.dtype != BF16:
        raise TypeError(f"an array of BF16 is needed, not of {array.dtype}")
    return (array["bfloat16"].astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(array: NDArray[np.float32]) -> Array:
    """Return float32 rounded to :data:`BF16`, to nearest, ties to even; NaN stays NaN."""
    bits = np.asarray(array, dtype=np.float32, order="C").view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    rounded = np.where(np.isnan(array), np.uint16(0x7FC0), rounded)
    return np.asarray(rounded, dtype="<u2", order="C").view(BF16)


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not name or name == "__metadata__":
        raise UpdateRejected(f"{name!r} cannot name an array")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise UpdateRejected(f"{name!r} cannot name an array: not valid Unicode") from None
    if size > MAX_NAME_BYTES:
        raise UpdateRejected(f"a name of {size} bytes; at most {MAX_NAME_BYTES} are accepted")
    return name


def _storable(name: str, array: Array) -> Array:
    """Return ``array`` in C order and little-endian, copied only if it must be."""
    if not isinstance(array, np.ndarray):
        raise UpdateRejected(f"{name}: is a {type(array).__name__}, not a numpy array")
    return np.asarray(array, dtype=DTYPES[dtype_name(array.dtype)], order="C")


def _flat(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def is_finite(array: Array) -> bool:
    """Return whether an array has neither NaN nor infinity."""
    if array.dtype != BF16 and array.dtype.kind != "f":
        return True
    flat = array.reshape(-1)
    return all(_are_finite(flat[start : start + _BLOCK]) for start in range(0, flat.size, _BLOCK))


def _are_finite(block: Array) -> bool:
    if block.dtype == BF16:
        return not bool(((block["bfloat16"] & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(block).all())


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _header(data: Part) -> tuple[dict[str, Any], int]:
    """Return the header of a document, and where the data begins."""
    if len(data) < _LENGTH.size:
        raise UpdateRejected("an update is truncated: no header length")
    (size,) = _LENGTH.unpack(bytes(slice_of(data, 0, _LENGTH.size)))
    if size > MAX_HEADER_BYTES:
        raise UpdateRejected(f"a header of {size} bytes; at most {MAX_HEADER_BYTES} are read")
    if _LENGTH.size + size > len(data):
        raise UpdateRejected("an update is truncated: the header is not complete")
    try:
        header = json.loads(
            bytes(slice_of(data, _LENGTH.size, size)), object_pairs_hook=_no_duplicates
        )
    except (ValueError, RecursionError) as error:
        raise UpdateRejected("the header of an update is not a JSON object") from error
    if not isinstance(header, dict):
        raise UpdateRejected("the header of an update is not a JSON object")
    header.pop("__metadata__", None)
    return header, _LENGTH.size + size


def _entry(name: str, entry: object, limit: int) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UpdateRejected(f"{name}: needs exactly dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise UpdateRejected(f"{name}: element type {entry['dtype']!r} is not supported")
    shape = _integers(name, "shape", entry["shape"], limit=2**62)
    if len(shape) > MAX_DIMENSIONS:
        raise UpdateRejected(
            f"{name}: {len(shape)} dimensions; at most {MAX_DIMENSIONS} are accepted"
        )
    offsets = _integers(name, "data_offsets", entry["data_offsets"], limit=limit)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UpdateRejected(f"{name}: data_offsets are not a start and an end")
    start, end = offsets
    if math.prod(shape) * dtype.itemsize != end - start:
        raise UpdateRejected(f"{name}: shape and element type do not match {end - start} bytes")
    return dtype, shape, start, end


def _integers(name: str, key: str, value: object, *, limit: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise UpdateRejected(f"{name}: {key} is not a list of integers")
    if any(item < 0 or item > limit for item in value):
        raise UpdateRejected(f"{name}: {key} is out of range")
    return tuple(value)
