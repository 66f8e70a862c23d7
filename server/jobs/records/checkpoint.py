"""What a checkpoint seals beside the model: the strategy's state, as JSON and arrays.

``fedlearn-checkpoint/1 NUL | u64be length | JSON | safetensors``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

from fedlearn.errors import StoreError
from fedlearn.sandbox.memory_file import Part, slice_of

__all__ = ["pack_state", "unpack_state"]

_MAGIC: Final = b"fedlearn-checkpoint/1\0"
_MAX_STATE: Final = 64 * 1024 * 1024


def pack_state(state: Mapping[str, Any], tensors: Part) -> list[Part]:
    """Encode the state of a strategy, in parts; ``tensors`` is a document, which is not copied.

    :raises StoreError: when its JSON has more than 64 MiB.
    """
    text = json.dumps(dict(state), sort_keys=True).encode()
    if len(text) > _MAX_STATE:
        raise StoreError(f"the state of a strategy has at most {_MAX_STATE} bytes of JSON")
    return [b"".join((_MAGIC, struct.pack(">Q", len(text)), text)), tensors]


def unpack_state(data: Part) -> tuple[dict[str, Any], Part]:
    """Return what :func:`pack_state` encoded.

    :raises StoreError: when it is something else, or is cut short.
    """
    start = len(_MAGIC)
    body = start + 8
    head = bytes(slice_of(data, 0, min(body, len(data))))
    if not head.startswith(_MAGIC) or len(head) < body:
        raise StoreError("the sealed state is not that of a checkpoint")
    (length,) = struct.unpack_from(">Q", head, start)
    if length > _MAX_STATE or body + length > len(data):
        raise StoreError("the sealed state of a checkpoint is cut short")
    tensors = slice_of(data, body + length, len(data) - body - length)
    return json.loads(bytes(slice_of(data, body, length))), tensors
