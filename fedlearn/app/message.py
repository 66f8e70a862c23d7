"""The format of one message of an application: a head, its content, and byte strings.

Flower's ``Message`` is metadata and a ``RecordDict``. Here the metadata is the *head*, the
records are the *content*, and whatever is large (arrays, bytes) is a *part* of its own. Head
and content are JSON, with NaN and infinities spelled as Python spells them. In a request the
head comes first, then the parts in the order of the head; the first part is the content. A
message that carries an error has no parts.

This module contains the format and its bounds, and does not import Flower: the coordinator reads
and checks messages of clients without Flower. :mod:`fedlearn.app.flower` makes Flower's objects.

The content is a list of records ``[name, kind, values]``:

``arrays``    ``values`` is a list of ``[name, dtype, shape, serialisation type, part]``
``metrics``   ``values`` maps names to numbers and lists of numbers
``config``    the same, with strings, booleans, and bytes as ``{"part": number}``

Parts are numbered from 0 after the content, in the order in which the content names them.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import Part

__all__ = [
    "CLIENT_APP_RAISED_EXCEPTION",
    "MAX_CONTENT_BYTES",
    "MAX_HEAD_BYTES",
    "MAX_PARTS",
    "MESSAGE_UNAVAILABLE",
    "NODE_UNAVAILABLE",
    "UNKNOWN",
    "Failure",
    "Flat",
    "Head",
    "Record",
    "read_content",
    "write_content",
]

MAX_HEAD_BYTES: Final = 4 * 1024 * 1024
"""The most bytes of a head; nearly all of them are the names of parts."""

MAX_CONTENT_BYTES: Final = 4 * 1024 * 1024
"""The most bytes of a content: names, numbers and strings, but no arrays and no bytes."""

MAX_PARTS: Final = 200_000

_MAX_TEXT: Final = 4096
_SMALL_HEAD_BYTES: Final = 2048
_NUMBER: Final = 2**64
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")

# Values of flwr.common.constant.ErrorCode, which applications see in ``Message.error.code``.
UNKNOWN: Final = 0
CLIENT_APP_RAISED_EXCEPTION: Final = 2
MESSAGE_UNAVAILABLE: Final = 3
NODE_UNAVAILABLE: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a message has no content: a code of Flower's ``ErrorCode``, and a text."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The metadata of one message.

    ``sender`` and ``receiver`` are node numbers, ``kind`` is Flower's message type,
    ``created`` and ``ttl`` are seconds. ``parts`` names the parts in order; a name
    refers only to the byte strings that were sent with it.
    """

    id: str
    run: int
    sender: int
    receiver: int
    reply_to: str = ""
    group: str = ""
    created: float
    ttl: float
    kind: str
    parts: tuple[str, ...] = ()
    failure: Failure | None = None

    def to_bytes(self) -> bytes:
        """Return the head as JSON."""
        found = {name: getattr(self, name) for name in self.__slots__}
        if self.failure is not None:
            found["failure"] = {"code": self.failure.code, "reason": self.failure.reason}
        return _json(found)

    def with_parts(self, count: int) -> Head:
        """Return the head with ``count`` parts, which are named by their numbers."""
        return replace(self, parts=tuple(map(str, range(count))))

    @classmethod
    def from_bytes(cls, data: Part) -> Head:
        """Read a head.

        :raises TransportError: for anything that :meth:`to_bytes` does not write.
        """
        if len(data) > MAX_HEAD_BYTES:
            raise TransportError(f"the head of a message has at most {MAX_HEAD_BYTES} bytes")
        # Every party that a message passes reads its head, and a simulation has all of them.
        return (_small_head if len(data) <= _SMALL_HEAD_BYTES else cls._read)(bytes(data))

    @classmethod
    def _read(cls, data: bytes) -> Head:
        found = _parsed(data, "head")
        if not isinstance(found, dict) or set(found) != set(cls.__slots__):
            raise TransportError("the head of a message has the wrong fields")
        texts = [found[name] for name in ("id", "reply_to", "group", "kind")]
        numbers = [found[name] for name in ("run", "sender", "receiver")]
        times = [found["created"], found["ttl"]]
        parts, failure = found.pop("parts"), found.pop("failure")
        valid = (
            all(type(text) is str and len(text) <= _MAX_TEXT for text in texts)
            and all(type(number) is int and 0 <= number < _NUMBER for number in numbers)
            and all(type(time) in (int, float) and abs(time) < _NUMBER for time in times)
            and type(parts) is list
            and len(parts) <= MAX_PARTS
            and all(type(part) is str for part in parts)
            and bool(found["id"])
        )
        if not valid:
            raise TransportError("the head of a message has a value of the wrong type or size")
        if (failure is None) != bool(parts):
            raise TransportError("a message has either a content or an error")
        return cls(**found, parts=tuple(parts), failure=_failure(failure))


@functools.lru_cache(maxsize=256)
def _small_head(data: bytes) -> Head:
    return Head._read(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """Messages in parts: their heads in order, and each distinct part once.

    ``ids`` are the ids of the messages. A head names the parts of its message by their keys
    in ``objects``; see :class:`Head`.
    """

    messages: tuple[bytes, ...]
    ids: tuple[str, ...]
    objects: Mapping[str, Part]

    def frames(self, index: int) -> list[Part]:
        """Return one message as it travels: its head, and its parts in order."""
        head = self.messages[index]
        return [head, *(self.objects[name] for name in Head.from_bytes(head).parts)]


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a content; ``values`` depends on ``kind``, see the module."""

    name: str
    kind: str
    values: Any


def write_content(records: Sequence[Record]) -> bytes:
    """Return a content as JSON.

    :raises TransportError: when it is larger than :data:`MAX_CONTENT_BYTES`.
    """
    data = _json([[each.name, each.kind, each.values] for each in records])
    if len(data) > MAX_CONTENT_BYTES:
        raise TransportError(
            f"the metrics and settings of a message have {len(data)} bytes; "
            f"at most {MAX_CONTENT_BYTES} are sent",
            hint="send large values as arrays or bytes",
        )
    return data


def read_content(data: Part, count: int) -> list[Record]:
    """Read a content that comes with ``count`` further parts.

    Every part is named exactly once, in order. Integers have at most 64 bits.

    :raises TransportError: for anything that :func:`write_content` does not write.
    """
    if len(data) > MAX_CONTENT_BYTES:
        raise TransportError(f"the content of a message has at most {MAX_CONTENT_BYTES} bytes")
    found = _parsed(bytes(data), "content")
    if type(found) is not list:
        raise TransportError("the content of a message is not a list of records")
    records: list[Record] = []
    parts: list[Any] = []
    for each in found:
        if type(each) is not list or len(each) != 3 or not all(type(e) is str for e in each[:2]):
            raise TransportError("a record is not a name, a kind and values")
        record = Record(*each)
        parts.extend(_parts(record))
        records.append(record)
    if len({record.name for record in records}) != len(records):
        raise TransportError("two records of a message have the same name")
    if parts != list(range(count)) or not all(type(part) is int for part in parts):
        raise TransportError("the content does not name the parts of the message in order")
    return records


def _parts(record: Record) -> Iterator[Any]:
    """Check the values of a record; yield the parts that they name."""
    values = record.values
    if record.kind == "arrays":
        if type(values) is not list:
            raise TransportError(f"{record.name[:64]!r}: not a list of arrays")
        names = set()
        for array in values:
            yield _array(record.name, array)
            names.add(array[0])
        if len(names) != len(values):
            raise TransportError(f"{record.name[:64]!r}: two arrays have the same name")
    elif record.kind in ("metrics", "config"):
        if type(values) is not dict:
            raise TransportError(f"{record.name[:64]!r}: values are not named")
        for value in values.values():
            yield from _value(record, value)
    else:
        raise TransportError(f"{record.kind[:64]!r} is not a kind of record")


def _array(record: str, array: Any) -> Any:
    valid = (
        type(array) is list
        and len(array) == 5
        and all(type(array[index]) is str for index in (0, 1, 3))
        and type(array[2]) is list
        and all(type(size) is int and 0 <= size < _NUMBER for size in array[2])
    )
    if not valid:
        raise TransportError(f"{record[:64]!r}: not a name, dtype, shape, type and part")
    return array[4]


def _value(record: Record, value: Any) -> Iterator[Any]:
    for item in value if type(value) is list else [value]:
        if type(item) is int:
            if not -(2**63) <= item < _NUMBER:
                raise TransportError(f"{record.name[:64]!r}: an integer of more than 64 bits")
        elif type(item) is dict and set(item) == {"part"} and record.kind == "config":
            yield item["part"]
        elif type(item) is not float and (record.kind != "config" or type(item) not in (bool, str)):
            raise TransportError(f"{record.name[:64]!r}: a value of a type that no record holds")


def _failure(found: Any) -> Failure | None:
    if found is None:
        return None
    valid = (
        type(found) is dict
        and set(found) == {"code", "reason"}
        and type(found["code"]) is int
        and 0 <= found["code"] < 2**31
        and type(found["reason"]) is str
        and len(found["reason"]) <= _MAX_TEXT
    )
    if not valid:
        raise TransportError("the error of a message is not a code and a reason")
    return Failure(**found)


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise TransportError("a text of the message is not Unicode (a lone surrogate)") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _parsed(data: bytes, what: str) -> Any:
    try:
        found = json.loads(str(data, "utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise TransportError(f"the {what} of a message is not JSON") from None
    if _SURROGATE.search(data):
        _json(found)  # a value that cannot be written again is refused here, not where it is shown
    return found
