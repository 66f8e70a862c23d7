"""What a checkpoint seals beside the model: the strategy's state, as JSON and arrays.

``fedlearn-checkpoint/1 NUL | u64be length | JSON | safetensors``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, Final

from fedlearn.errors import StoreError
from fedlearn.update import arrays as update

__all__ = ["pack_state", "unpack_state"]

_MAGIC: Final = b"fedlearn-checkpoint/1\0"
_MAX_STATE: Final = 64 * 1024 * 1024


def pack_state(state: Mapping[str, Any], tensors: Mapping[str, update.Array]) -> bytes:
    """Encode the state of a strategy.

    :raises StoreError: when its JSON has more than 64 MiB.
    """
    text = json.dumps(dict(state), sort_keys=True).encode()
    if len(text) > _MAX_STATE:
        raise StoreError(f"the state of a strategy has at most {_MAX_STATE} bytes of JSON")
    return b"".join((_MAGIC, struct.pack(">Q", len(text)), text, update.encode(dict(tensors))))


def unpack_state(data: bytes) -> tuple[dict[str, Any], dict[str, update.Array]]:
    """Return what :func:`pack_state` encoded.

    :raises StoreError: when it is something else, or is cut short.
    """
    start = len(_MAGIC)
    if not data.startswith(_MAGIC) or len(data) < start + 8:
        raise StoreError("the sealed state is not that of a checkpoint")
    (length,) = struct.unpack_from(">Q", data, start)
    body = start + 8
    if length > _MAX_STATE or body + length > len(data):
        raise StoreError("the sealed state of a checkpoint is cut short")
    return json.loads(data[body : body + length]), update.decode(data[body + length :])
