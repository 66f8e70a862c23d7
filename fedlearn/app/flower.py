"""Flower's messages as they travel, with one packed document for each ArrayRecord.

``server`` and ``edge`` use this module. Only it, ``server.flower`` and ``edge.client.flower``
import Flower; this module imports Flower's public package only.

Flower cuts every array into objects of its own and moves each with a request. Here an
ArrayRecord becomes a record with a single array, whose bytes are the canonical safetensors
document of :mod:`fedlearn.update.arrays`. A record that was decoded from a document
keeps it (:mod:`fedlearn.app.array_records`) and is not encoded again, so the global model is
encoded once a round. A record that safetensors cannot hold travels as it is. The format of a
message is that of :mod:`fedlearn.app.message`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import flwr
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)

from fedlearn.app.array_records import NUMPY, document_of, record_of_document
from fedlearn.app.flower_pin import WANTED, FlowerMismatch
from fedlearn.app.message import Failure, Flat, Head, Record, read_content, write_content
from fedlearn.errors import TransportError, UpdateRejected
from fedlearn.sandbox.memory_file import Part

__all__ = [
    "CALL",
    "COMPRESSED",
    "FILTERED",
    "MASKED",
    "PACKED",
    "SECAGG",
    "STATE",
    "Flat",
    "FlowerMismatch",
    "Packer",
    "flatten",
    "has",
    "inflate",
    "metadata_of",
    "mismatch",
    "packed",
    "unpack",
]

PACKED: Final = "fedlearn.safetensors/1"
"""The serialisation type of an array that is a whole packed record."""

COMPRESSED: Final = "fedlearn.compressed/1"
"""The same for an encoded update (:mod:`fedlearn.compression.codec`)."""

CALL: Final = "fedlearn.call"
"""The name of the record with the number of the round, which apps do not receive."""

FILTERED: Final = "fedlearn.filters"
"""The name of the record in which a client states how its site has filtered an update."""

SECAGG: Final = "query.secagg"
"""The type of the messages of secure aggregation beside those to train, which have no type of their
own. Question and answer hold one ConfigRecord of this name: ``stage``, ``session`` and ``body``
(:mod:`fedlearn.secure_aggregation.messages`)."""

MASKED: Final = "masked"
"""The name of the one array of a masked update."""
STATE: Final = "fedlearn.state"
"""The name of the record in which a client states the digest of its sealed state."""

_NAME: Final = "packed"


def has(owner: Any, name: str) -> None:
    """Check that Flower still has what this module uses.

    :raises FlowerMismatch: naming the version of Flower and what is missing.
    """
    if not hasattr(owner, name):
        where = getattr(owner, "__name__", type(owner).__name__)
        raise mismatch(f"{where} has no {name}")


def mismatch(what: str) -> FlowerMismatch:
    """Return the error that states how Flower differs from the tested releases."""
    return FlowerMismatch(
        f"Flower {flwr.__version__} does not fit: {what}",
        hint=f"install flwr{WANTED}, with which this release was tested",
    )


class Packer:
    """Packs the records of messages; one that several messages share is packed once."""

    def __init__(self) -> None:
        self._records: dict[int, tuple[ArrayRecord, ArrayRecord]] = {}
        self._contents: dict[int, tuple[RecordDict, RecordDict]] = {}

    def content(self, content: RecordDict, **more: Any) -> RecordDict:
        """Return ``content`` with its ArrayRecords packed, and with ``more`` records.

        ``content`` itself is not changed.
        """
        known = self._contents.get(id(content))
        if known is None:
            packed = RecordDict(
                {
                    name: self._record(record) if isinstance(record, ArrayRecord) else record
                    for name, record in content.items()
                }
                | more
            )
            # The original is kept with it, so that its id is not given to another object.
            known = self._contents[id(content)] = (content, packed)
        return known[1]

    def _record(self, record: ArrayRecord) -> ArrayRecord:
        known = self._records.get(id(record))
        if known is None:
            known = self._records[id(record)] = (record, _packed(record))
        return known[1]


def unpack(content: RecordDict, *, max_bytes: int, finite: bool = False) -> RecordDict:
    """Return ``content`` with its packed records as arrays; they are views of the document.

    :param finite: refuse NaN and infinity.
    :raises UpdateRejected: for a document that is not one.
    """
    found = RecordDict()
    for name, record in content.items():
        only = record.get(_NAME) if isinstance(record, ArrayRecord) else None
        if only is not None and len(record) == 1 and only.stype == PACKED:
            record = record_of_document(only.data, max_bytes=max_bytes, finite=finite)
        found[name] = record
    return found


def packed(document: Part, stype: str) -> ArrayRecord:
    """Return a record that is one document; ``stype`` is :data:`PACKED` or :data:`COMPRESSED`."""
    record = ArrayRecord()
    record[_NAME] = Array("uint8", (len(document),), stype, b"")
    record[_NAME].data = document  # may be a part in a file; Flower's check wants bytes
    return record


def flatten(messages: Sequence[Message]) -> Flat:
    """Take messages apart, each with a new id. A record or an array that they share appears once.

    :raises TransportError: for a message that cannot travel.
    """
    parts = _Parts()
    heads = [_head(message, parts) for message in messages]
    return Flat(
        messages=tuple(head.to_bytes() for head in heads),
        ids=tuple(head.id for head in heads),
        objects=parts.found,
    )


def inflate(head: Part, objects: Mapping[str, Part]) -> Message:
    """Put a message together from its head and its parts, without a copy of an array.

    :raises TransportError: when they do not make up a message.
    """
    found = Head.from_bytes(head)
    metadata = _metadata(found)
    if found.failure is not None:
        error = Error(code=found.failure.code, reason=found.failure.reason)
        return Message(metadata=metadata, error=error)
    try:
        content, *parts = [objects[name] for name in found.parts]
    except KeyError:
        raise TransportError("a part of the message is missing") from None
    records = RecordDict()
    for record in read_content(content, len(parts)):
        try:
            records[record.name] = _record(record, parts)
        except (TypeError, ValueError) as error:
            raise TransportError(f"{record.name[:64]!r} is not a record: {error}") from error
    return Message(metadata=metadata, content=records)


def metadata_of(head: Part) -> Metadata:
    """Return the metadata of a message from its head.

    :raises TransportError: when it is not a head.
    """
    return _metadata(Head.from_bytes(head))


def _metadata(head: Head) -> Metadata:
    try:
        return Metadata(
            run_id=head.run,
            message_id=head.id,
            src_node_id=head.sender,
            dst_node_id=head.receiver,
            reply_to_message_id=head.reply_to,
            group_id=head.group,
            created_at=head.created,
            ttl=head.ttl,
            message_type=head.kind,
        )
    except ValueError as error:
        raise TransportError(f"{head.kind[:64]!r} is not a type of message") from error


@dataclass(slots=True)
class _Parts:
    """The parts of several messages. Shared parts are recognised by the identity of their owner."""

    found: dict[str, Part] = field(default_factory=dict)
    contents: dict[int, tuple[str, ...]] = field(default_factory=dict)
    arrays: dict[int, str] = field(default_factory=dict)

    def add(self, data: Part) -> str:
        name = str(len(self.found))
        self.found[name] = data
        return name

    def array(self, array: Array) -> str:
        name = self.arrays.get(id(array))
        if name is None:
            name = self.arrays[id(array)] = self.add(array.data)
        return name

    def content(self, content: RecordDict) -> tuple[str, ...]:
        known = self.contents.get(id(content))
        if known is None:
            names: list[str] = []
            records = [self._written(name, record, names) for name, record in content.items()]
            data = write_content(records)
            read_content(data, len(names))  # what the receiver would not read is not sent
            known = (self.add(data), *names)
            self.contents[id(content)] = known
        return known

    def _written(self, name: str, record: Any, names: list[str]) -> Record:
        """Return a record as a content holds it; append the names of its parts."""

        def part(found: str) -> int:
            names.append(found)
            return len(names) - 1

        if isinstance(record, ArrayRecord):
            arrays = [
                [key, each.dtype, list(each.shape), each.stype, part(self.array(each))]
                for key, each in record.items()
            ]
            return Record(name, "arrays", arrays)
        if isinstance(record, MetricRecord):
            return Record(name, "metrics", dict(record.items()))

        def written(value: Any) -> Any:
            if isinstance(value, list):
                return [written(item) for item in value]
            return {"part": part(self.add(value))} if isinstance(value, bytes) else value

        return Record(name, "config", {key: written(value) for key, value in record.items()})


def _head(message: Message, parts: _Parts) -> Head:
    metadata = message.metadata
    failure = None
    if message.has_error():
        failure = Failure(code=message.error.code, reason=message.error.reason or "")
    return Head(
        id=secrets.token_hex(16),
        run=metadata.run_id,
        sender=metadata.src_node_id,
        receiver=metadata.dst_node_id,
        reply_to=metadata.reply_to_message_id,
        group=metadata.group_id,
        created=metadata.created_at,
        ttl=metadata.ttl,
        kind=metadata.message_type,
        parts=() if failure is not None else parts.content(message.content),
        failure=failure,
    )


def _record(record: Record, parts: Sequence[Part]) -> ArrayRecord | MetricRecord | ConfigRecord:
    """Return Flower's record for one that :func:`read_content` has checked."""
    if record.kind == "arrays":
        arrays = ArrayRecord()
        for name, dtype, shape, stype, part in record.values:
            data = parts[part]
            document = stype in (PACKED, COMPRESSED)
            arrays[name] = Array(dtype, tuple(shape), stype, b"" if document else bytes(data))
            if document:  # a part in a file stays there; Flower's check wants bytes
                arrays[name].data = data
        return arrays
    if record.kind == "metrics":
        return MetricRecord(record.values)

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(item) for item in value]
        return bytes(parts[value["part"]]) if isinstance(value, dict) else value

    return ConfigRecord({name: read(value) for name, value in record.values.items()})


def _packed(record: ArrayRecord) -> ArrayRecord:
    if any(array.stype != NUMPY for array in record.values()):
        return record
    try:
        document = document_of(record)
    except UpdateRejected:
        return record
    return packed(document, PACKED)
