"""Flower's protobuf messages, read with bounds and written one way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from google.protobuf.message import DecodeError, Message

from fedlearn.errors import TransportError

__all__ = ["each_object", "encoded", "parsed"]

_MAX_OBJECTS: Final = 200_000


def parsed(kind: type[Any], data: bytes) -> Any:
    """Return ``data`` as a message of ``kind``.

    :raises TransportError: when it is none.
    """
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise TransportError(f"not a {kind.__name__}") from None
    return message


def encoded(message: Message) -> bytes:
    """Return the bytes of a message, the same for equal ones."""
    return bytes(message.SerializeToString(deterministic=True))


def each_object(tree: ObjectTree) -> Iterable[ObjectTree]:
    """Yield a tree's objects, the root among them.

    :raises TransportError: when there are more than 200,000.
    """
    for count, each in enumerate(iterate_object_tree(tree)):
        if count >= _MAX_OBJECTS:
            raise TransportError(f"a message of more than {_MAX_OBJECTS} objects")
        yield each
