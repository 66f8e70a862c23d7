"""Flower's records of arrays, as views of the documents in which they travel.

A record that was decoded from a document (:class:`DocumentRecord`) keeps it, and is passed on as
that document until it is changed: nothing is encoded twice, and what lies in a file stays there.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlearn.app.flower_pin import settle_log
from fedlearn.errors import UpdateRejected
from fedlearn.sandbox.memory_file import Part
from fedlearn.update import arrays as update

__all__ = [
    "NUMPY",
    "ArrayRecord",
    "ArrayView",
    "DocumentRecord",
    "arrays_of",
    "document_of",
    "documented",
    "record_of",
    "record_of_document",
    "records_of",
]

NUMPY: Final = "numpy.ndarray"
"""How Flower calls numpy's own format."""

_HEADERS: Final[Mapping[tuple[int, int], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

_R = TypeVar("_R", ArrayRecord, MetricRecord, ConfigRecord)

settle_log()


class ArrayView(Array):  # type: ignore[misc]
    """An array that is already decoded: its Flower bytes are made on demand."""

    def __init__(self, ndarray: update.Array) -> None:
        self.dtype = str(ndarray.dtype)
        self.shape = tuple(ndarray.shape)
        self.stype = NUMPY
        self.__dict__["view"] = ndarray

    @property
    def data(self) -> bytes:
        """The array as Flower stores it (numpy's own format)."""
        if "made" not in self.__dict__:
            self.__dict__["made"] = Array(self.view).data
        return cast("bytes", self.__dict__["made"])

    @property
    def view(self) -> update.Array:
        """The array itself, which must not be written to."""
        return cast("update.Array", self.__dict__["view"])

    def numpy(self) -> update.Array:
        """Return a copy that the caller may write to, as Flower's method does."""
        return self.view.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.view,)


# Flower writes the name of the class into an object's head and reads it back by name.
ArrayView.__qualname__ = Array.__qualname__


class DocumentRecord(ArrayRecord):  # type: ignore[misc]
    """A record whose arrays are views of a document, which it keeps until it is changed."""

    def __init__(self, arrays: Mapping[str, update.Array], document: Part) -> None:
        super().__init__()
        for name, array in arrays.items():
            self[name] = ArrayView(array)
        self.__dict__["document"] = document

    @property
    def document(self) -> Part | None:
        """The canonical encoding of the arrays; None when the record was changed."""
        return cast("Part | None", self.__dict__["document"])

    def __setitem__(self, key: str, value: Array) -> None:
        self.__dict__["document"] = None
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self.__dict__["document"] = None
        super().__delitem__(key)

    def copy(self) -> ArrayRecord:
        """Return a record with the same arrays, as Flower's method does."""
        found = ArrayRecord()
        for name, array in self.items():
            found[name] = array
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrayRecord, (dict(self.items()),)


DocumentRecord.__qualname__ = ArrayRecord.__qualname__


def arrays_of(record: ArrayRecord) -> dict[str, update.Array]:
    """Return the arrays of a record, in its order, without a copy where there is a view.

    :raises UpdateRejected: for an array that is not numpy's, or whose header is wrong.
    """
    found: dict[str, update.Array] = {}
    for name, array in record.items():
        if isinstance(array, ArrayView):
            found[name] = array.view
            continue
        found[name] = _ndarray(name, array)
    return found


def _ndarray(name: str, array: Array) -> update.Array:
    """Return an array in numpy's own format as a view of its bytes.

    ``numpy.load`` allocates the shape in the header before it checks how many bytes follow; the
    bytes may come from a peer.
    """
    if array.stype != NUMPY:
        raise UpdateRejected(f"{name}: is of the type {array.stype[:64]!r}, not a numpy array")
    try:
        stream = io.BytesIO(array.data)
        read = _HEADERS[np.lib.format.read_magic(stream)]
        shape, fortran, dtype = read(stream)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"an array of {dtype} with the shape {shape}")
        flat = np.frombuffer(memoryview(array.data)[stream.tell() :], dtype)
        return flat.reshape(shape, order="F" if fortran else "C")
    except Exception as error:
        raise UpdateRejected(f"{name}: is not a numpy array ({type(error).__name__})") from error


def records_of(content: RecordDict, kind: type[_R]) -> dict[str, _R]:
    """Return the records of one kind, by name.

    What Flower's properties (``array_records`` and the others) return refers to itself and to the
    content, so that its arrays would stay in memory until the garbage collector runs.
    """
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def record_of(arrays: Mapping[str, update.Array]) -> ArrayRecord:
    """Return a record of views of ``arrays``."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = ArrayView(array)  # the constructor would make an Array of each, by a copy
    return record


def record_of_document(document: Part, *, max_bytes: int, finite: bool = False) -> DocumentRecord:
    """Return the record of a document; its arrays are views of it.

    :param finite: refuse NaN and infinity.
    :raises UpdateRejected: for a document that is not one.
    """
    return DocumentRecord(update.decode(document, max_bytes=max_bytes, finite=finite), document)


def document_of(record: ArrayRecord) -> Part:
    """Return the document of a record: the one that it was decoded from, else a new one.

    :raises UpdateRejected: for arrays that safetensors cannot hold.
    """
    known = record.document if isinstance(record, DocumentRecord) else None
    return update.document(arrays_of(record)) if known is None else known


def documented(record: ArrayRecord) -> ArrayRecord:
    """Return a record whose arrays are views of its document, which is made if there is none.

    Arrays that safetensors cannot hold are left as they are.
    """
    if isinstance(record, DocumentRecord) and record.document is not None:
        return record
    try:
        document = document_of(record)
    except UpdateRejected:
        return record
    return record_of_document(document, max_bytes=len(document))
