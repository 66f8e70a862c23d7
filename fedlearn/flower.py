"""How arrays travel in Flower's messages: one packed document for each ArrayRecord.

Both wings speak this, so it stands on the ground; with ``server.flower`` and ``edge.flower``
it is all that imports Flower.

Flower cuts every array into objects of its own and moves each with a request. Here an
ArrayRecord becomes a record with a single array, whose bytes are the canonical safetensors
document of :mod:`fedlearn.update`. Messages that share a record share the packed one, so the
global model is encoded once a round. A record that safetensors cannot hold travels as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import flwr
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SType
from flwr.common.logger import FLOWER_LOGGER
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.message import Message as Proto

from fedlearn import update
from fedlearn.errors import TransportError, UpdateRejected
from fedlearn.flower_pin import KNOWN, FlowerMismatch

__all__ = [
    "CALL",
    "PACKED",
    "ArrayView",
    "Flat",
    "FlowerMismatch",
    "Packer",
    "arrays_of",
    "flatten",
    "has",
    "inflate",
    "mismatch",
    "record_of",
    "unpack",
]

PACKED: Final = "fedlearn.safetensors/1"
"""The serialisation type of an array that is a whole packed record."""

CALL: Final = "fedlearn.call"
"""The name of the record that tells a client which round this is; apps do not see it."""

_NAME: Final = "packed"

# What Flower says for its own sake would drown what an application and we say.
FLOWER_LOGGER.setLevel(logging.WARNING)


class ArrayView(Array):  # type: ignore[misc]
    """An array that is already decoded: its Flower bytes are made only if somebody asks."""

    def __init__(self, ndarray: update.Array) -> None:
        self.dtype = str(ndarray.dtype)
        self.shape = tuple(ndarray.shape)
        self.stype = SType.NUMPY
        self.__dict__["view"] = ndarray

    @property
    def data(self) -> bytes:
        """The array as Flower stores it (numpy's own format)."""
        if "made" not in self.__dict__:
            self.__dict__["made"] = Array(self.view).data
        return cast("bytes", self.__dict__["made"])

    @property
    def view(self) -> update.Array:
        """The array itself; nobody writes to it."""
        return cast("update.Array", self.__dict__["view"])

    def numpy(self) -> update.Array:
        """Return a copy that the caller may write to, as Flower does."""
        return self.view.copy()


# Flower writes the name of the class into an object's head and reads it back by name.
ArrayView.__qualname__ = Array.__qualname__


def has(owner: Any, name: str) -> None:
    """Check that Flower still has something that we rely on.

    :raises FlowerMismatch: naming the version of Flower and what is missing.
    """
    if not hasattr(owner, name):
        where = getattr(owner, "__name__", type(owner).__name__)
        raise mismatch(f"{where} has no {name}")


def mismatch(what: str) -> FlowerMismatch:
    """Return the error that says what is different from the Flower that we know."""
    return FlowerMismatch(
        f"Flower {flwr.__version__} does not fit: {what}",
        hint=f"install flwr=={' or '.join(sorted(KNOWN))}, with which this release was tested",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """Messages taken apart: protobufs and trees in order, and each distinct object once."""

    messages: tuple[bytes, ...]
    trees: tuple[bytes, ...]
    ids: tuple[str, ...]
    objects: Mapping[str, bytes]


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


def arrays_of(record: ArrayRecord) -> dict[str, update.Array]:
    """Return the arrays of a record, in its order, without a copy where there is a view.

    :raises UpdateRejected: for an array that is not numpy's, or lies about itself.
    """
    found: dict[str, update.Array] = {}
    for name, array in record.items():
        if isinstance(array, ArrayView):
            found[name] = array.view
            continue
        try:
            found[name] = array.numpy()
        except (TypeError, ValueError, EOFError) as error:
            raise UpdateRejected(f"{name}: is not a numpy array") from error
    return found


def record_of(arrays: Mapping[str, update.Array]) -> ArrayRecord:
    """Return a record of views of ``arrays``."""
    return ArrayRecord({name: ArrayView(array) for name, array in arrays.items()})


def unpack(content: RecordDict, *, max_bytes: int, finite: bool = False) -> RecordDict:
    """Return ``content`` with its packed records as arrays; they are views of the document.

    :param finite: refuse NaN and infinity.
    :raises UpdateRejected: for a document that is not one.
    """
    found = RecordDict()
    for name, record in content.items():
        packed = record.get(_NAME) if isinstance(record, ArrayRecord) else None
        if packed is not None and len(record) == 1 and packed.stype == PACKED:
            record = record_of(update.decode(packed.data, max_bytes=max_bytes, finite=finite))
        found[name] = record
    return found


def flatten(messages: Sequence[Message]) -> Flat:
    """Take messages apart; sets the id of each. An object that they share appears once."""
    protos: list[bytes] = []
    trees: list[bytes] = []
    ids: list[str] = []
    found: dict[str, InflatableObject] = {}
    with no_object_id_recompute():
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            ids.append(message.object_id)
            protos.append(_bytes(message_to_proto(remove_content_from_message(message))))
            trees.append(_bytes(get_object_tree(message)))
            found.update(get_all_nested_objects(message))
        objects = {id_: each.deflate() for id_, each in found.items()}
    return Flat(messages=tuple(protos), trees=tuple(trees), ids=tuple(ids), objects=objects)


def inflate(root: str, contents: dict[str, bytes]) -> Message:
    """Put a message together from its objects, by id. ``contents`` is emptied on the way.

    Whoever took the objects from a peer has checked that their names are their digests.

    :raises TransportError: when the objects do not make up a message, however they fail to.
    """
    try:
        message = inflate_object_from_contents(root, contents)
    except Exception as error:  # whatever Flower's parsers raise on bytes of a peer
        raise TransportError(
            f"the objects do not make up a message ({type(error).__name__})"
        ) from error
    if not isinstance(message, Message):
        raise TransportError("the objects make up something else than a message")
    message.metadata.__dict__["_message_id"] = root
    return message


def _packed(record: ArrayRecord) -> ArrayRecord:
    if any(array.stype != SType.NUMPY for array in record.values()):
        return record
    try:
        document = update.encode(arrays_of(record))
    except UpdateRejected:
        return record
    return ArrayRecord({_NAME: Array("uint8", (len(document),), PACKED, document)})


def _bytes(message: Proto) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))
