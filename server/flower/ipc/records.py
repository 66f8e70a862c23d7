"""Flower's records as JSON and byte strings, between the processes of a job.

An ArrayRecord travels as one safetensors document (:mod:`fedlearn.update.arrays`) where its arrays
are numpy's, and array by array where they are not. A record that came as a document is passed on
as that document, by its descriptor. Metrics and configuration are JSON; bytes are
base64 text under ``b``. No pickle. The reader bounds names, counts and sizes before it uses
them, since the writer may be a process that runs user code.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any, Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedlearn.app.array_records import document_of, record_of_document
from fedlearn.errors import TransportError, UpdateRejected
from fedlearn.sandbox.memory_file import Part

__all__ = [
    "HISTORIES",
    "array_record",
    "content",
    "message_fields",
    "packed_arrays",
    "packed_content",
    "plain",
    "plain_record",
]

HISTORIES: Final = (
    "train_metrics_clientapp",
    "evaluate_metrics_clientapp",
    "evaluate_metrics_serverapp",
)
"""The attributes of Flower's ``Result`` that hold a record for each round."""
NUMPY: Final = "numpy.ndarray"
_MAX_RECORDS: Final = 1_000
_MAX_ITEMS: Final = 200_000
_MAX_NAME: Final = 1_024

Packed = tuple[list[Any], list[Part]]


def packed_content(found: RecordDict) -> Packed:
    """Return a content as a list of JSON and the byte strings that it refers to, in order."""
    described: list[Any] = []
    blobs: list[Part] = []
    for name, record in found.items():
        if isinstance(record, ArrayRecord):
            entry, parts = packed_arrays(record)
            described.append(["arrays", name, entry])
            blobs += parts
        elif isinstance(record, MetricRecord):
            described.append(["metrics", name, plain(record)])
        else:
            described.append(["config", name, plain(record)])
    return described, blobs


def content(described: Any, blobs: Iterator[Part], *, max_bytes: int) -> RecordDict:
    """Return what :func:`packed_content` packed, taking byte strings from ``blobs``.

    :raises TransportError: when it is malformed.
    :raises UpdateRejected: when an array is.
    """
    found = RecordDict()
    for entry in _listed(described, _MAX_RECORDS):
        kind, name, body = _triple(entry)
        if kind == "arrays":
            found[_name(name)] = array_record(body, blobs, max_bytes=max_bytes)
        elif kind in ("metrics", "config"):
            found[_name(name)] = plain_record(body, MetricRecord if kind == "metrics" else None)
        else:
            raise TransportError(f"{str(kind)[:40]!r} is not a kind of record")
    return found


def packed_arrays(record: ArrayRecord) -> Packed:
    """Return an ArrayRecord as JSON and byte strings."""
    if all(array.stype == NUMPY for array in record.values()):
        try:
            return ["safetensors"], [document_of(record)]
        except UpdateRejected:
            pass  # arrays that safetensors cannot hold travel as they are
    described = [[name, each.dtype, list(each.shape), each.stype] for name, each in record.items()]
    return ["raw", described], [each.data for each in record.values()]


def array_record(body: Any, blobs: Iterator[Part], *, max_bytes: int) -> ArrayRecord:
    """Return what :func:`packed_arrays` packed; the arrays are views of their document."""
    kind, *rest = _listed(body, 2)
    if kind == "safetensors":
        return record_of_document(_next(blobs), max_bytes=max_bytes)
    if kind != "raw" or len(rest) != 1:
        raise TransportError("arrays of an unknown form")
    found = ArrayRecord()
    for entry in _listed(rest[0], _MAX_ITEMS):
        name, dtype, shape, stype = _listed(entry, 4)
        sizes = tuple(_whole(size) for size in _listed(shape, 64))
        found[_name(name)] = Array(_name(dtype), sizes, _name(stype), bytes(_next(blobs)))
    return found


def plain(record: MetricRecord | ConfigRecord) -> list[Any]:
    """Return metrics or configuration as a JSON list of pairs."""
    return [[name, _value(value)] for name, value in record.items()]


def plain_record(body: Any, kind: type[MetricRecord] | None) -> MetricRecord | ConfigRecord:
    """Return the record that :func:`plain` wrote; ``kind`` None is a ConfigRecord.

    :raises TransportError: when it is malformed.
    """
    values = {}
    for pair in _listed(body, _MAX_ITEMS):
        name, value = _listed(pair, 2)
        values[_name(name)] = _read(value)
    try:
        return (kind or ConfigRecord)(values)
    except (TypeError, ValueError) as error:
        raise TransportError(f"a record that is not one: {str(error)[:200]}") from None


def message_fields(message: Message) -> dict[str, Any]:
    """Return the fields of a message to a node beside its content."""
    metadata = message.metadata
    return {
        "node": metadata.dst_node_id,
        "kind": metadata.message_type,
        "group": metadata.group_id,
        "ttl": metadata.ttl,
    }


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"b": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [_value(item) for item in value]
    return value


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        try:
            return base64.b64decode(value["b"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise TransportError("bytes that are not base64") from None
    if isinstance(value, list):
        return [_read(item) for item in _listed(value, _MAX_ITEMS)]
    return value


def _listed(value: Any, most: int) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise TransportError(f"expected a list of at most {most}")
    return value


def _triple(entry: Any) -> tuple[Any, Any, Any]:
    found = _listed(entry, 3)
    if len(found) != 3:
        raise TransportError("a record is a kind, a name and a body")
    return found[0], found[1], found[2]


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_NAME:
        raise TransportError(f"a name is text of at most {_MAX_NAME} characters")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**48:
        raise TransportError("a size is a whole number")
    return value


def _next(blobs: Iterator[Part]) -> Part:
    found = next(blobs, None)
    if found is None:
        raise TransportError("a byte string is missing")
    return found
