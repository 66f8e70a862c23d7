"""Messages of a simulation as arrays, for hooks, and back in the form in which they travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict

from fedlearn.app.array_records import arrays_of, record_of, records_of
from fedlearn.app.flower import COMPRESSED, Packer, flatten, inflate, packed, unpack
from fedlearn.app.message import Head
from fedlearn.compression.codec import decode, encode
from fedlearn.compression.spec import CompressionSpec
from fedlearn.sandbox.memory_file import Part
from fedlearn.simulation.hooks import Arrays, Metrics
from fedlearn.update import arrays as update

__all__ = ["Answer", "Question", "as_answer"]

_LIMIT: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Question:
    """A question for one client: its head, and head and parts as they travel."""

    head: Head
    frames: Sequence[Part]

    def arrays(self) -> Arrays:
        """Return the model in it; empty without one."""
        return _first(_content(self.frames))

    def with_arrays(self, arrays: Arrays) -> Question:
        """Return the question with another model."""
        content = _content(self.frames)
        _replace(content, _record(arrays))
        frames = _frames(content)
        head = replace(self.head, parts=Head.from_bytes(frames[0]).parts)
        return Question(head, [head.to_bytes(), *frames[1:]])


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one client as it travels; ``failed`` where it states an error."""

    frames: Sequence[Part]

    @property
    def failed(self) -> bool:
        """Whether it states an error in place of records."""
        return len(self.frames) == 1

    def arrays(self, asked: Arrays, compression: CompressionSpec) -> Arrays:
        """Return its arrays as the aggregator decodes them; empty without any.

        :param asked: the model of the question.
        :raises UpdateRejected: when they are malformed.
        """
        content = _content(self.frames)
        for record in records_of(content, ArrayRecord).values():
            only = next(iter(record.values()), None)
            if only is not None and only.stype == COMPRESSED:
                parts = update.decode(only.data, max_bytes=_LIMIT, max_tensors=_LIMIT)
                return decode(parts, asked, compression)
        return _first(content)

    def metrics(self) -> Metrics:
        """Return its metrics; empty without any."""
        found: dict[str, Any] = {}
        for record in records_of(_content(self.frames), MetricRecord).values():
            found |= dict(record.items())
        return found

    def with_arrays(self, arrays: Arrays, asked: Arrays, compression: CompressionSpec) -> Answer:
        """Return the answer with other arrays, encoded as the job declares."""
        content = _content(self.frames)
        record = _record(arrays)
        known = next(iter(records_of(content, ArrayRecord).values()), None)
        only = None if known is None else next(iter(known.values()), None)
        if only is not None and only.stype == COMPRESSED:
            record = packed(
                update.document(encode(arrays_of(record), asked, compression).arrays), COMPRESSED
            )
        _replace(content, record)
        return Answer(_frames(content))


def as_answer(question: Head, answer: Answer) -> Head:
    """Return the head of a reply: its metadata are those of the question."""
    head = Head.from_bytes(answer.frames[0])
    return replace(
        head,
        run=question.run,
        sender=question.receiver,
        receiver=question.sender,
        reply_to=question.id,
        group=question.group,
        kind=question.kind,
    ).with_parts(len(answer.frames) - 1)


def _content(frames: Sequence[Part]) -> RecordDict:
    names = Head.from_bytes(frames[0]).parts
    content = inflate(frames[0], dict(zip(names, frames[1:], strict=True))).content
    return unpack(content, max_bytes=_LIMIT)


def _frames(content: RecordDict) -> list[Part]:
    message = Message(Packer().content(content), dst_node_id=0, message_type=MessageType.QUERY)
    return flatten([message]).frames(0)


def _first(content: RecordDict) -> Arrays:
    record = next(iter(records_of(content, ArrayRecord).values()), None)
    return {} if record is None else arrays_of(record)


def _record(arrays: Arrays) -> ArrayRecord:
    """Return arrays of a hook; arithmetic on an array without dimensions gives a number."""
    return record_of({name: np.asarray(array) for name, array in arrays.items()})


def _replace(content: RecordDict, record: ArrayRecord) -> None:
    name = next(iter(records_of(content, ArrayRecord)), "arrays")
    content[name] = record
