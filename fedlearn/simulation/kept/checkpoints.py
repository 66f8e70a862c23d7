"""The last checkpoint of a simulation: one file, in plaintext, replaced as a whole.

``fedlearn-simulation/1 NUL | u64be length | JSON | model | tensors``. Model and tensors are
safetensors documents; the JSON has their lengths, the state of the strategy, and where the memories
of the clients were (:mod:`fedlearn.simulation.kept.memories`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from attestation.durable import DurableFile
from fedlearn.errors import StoreError
from fedlearn.sandbox.memory_file import FilePart, Part
from server.flower.job_plan import Checkpoint

__all__ = ["Kept", "read", "write"]

_MAGIC: Final = b"fedlearn-simulation/1\0"
_LENGTH: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A checkpoint, and what the simulation adds to it.

    ``memories``  the log of the clients' memories, and its length
    ``releases``  how many noised aggregates were charged
    ``clock``     the state of the virtual time, empty without
    """

    checkpoint: Checkpoint
    memories: tuple[str, int]
    releases: int = 0
    clock: Mapping[str, Any] | None = None


def write(path: Path, kept: Kept) -> None:
    """Write a checkpoint; when this returns it survives a crash.

    :raises OSError: when the disk is full or cannot be written; the one before it is there then.
    """
    found = kept.checkpoint
    text = json.dumps(
        {
            "round": found.round,
            "state": dict(found.state),
            "model": len(found.model),
            "tensors": len(found.tensors),
            "memories": list(kept.memories),
            "releases": kept.releases,
            "clock": None if kept.clock is None else dict(kept.clock),
        }
    ).encode()
    with DurableFile(path) as file:
        file.write(_MAGIC + _LENGTH.pack(len(text)) + text)
        for part in (found.model, found.tensors):
            for piece in _pieces(part):
                file.write(piece)
        file.commit()


def read(path: Path) -> Kept | None:
    """Return the checkpoint in a file; None when there is none.

    :raises StoreError: when the file is not one.
    """
    if not path.exists():
        return None
    data = memoryview(path.read_bytes())
    start = len(_MAGIC) + _LENGTH.size
    try:
        if bytes(data[: len(_MAGIC)]) != _MAGIC:
            raise ValueError("it begins with other bytes")
        (length,) = _LENGTH.unpack(data[len(_MAGIC) : start])
        found = json.loads(bytes(data[start : start + length]))
        middle = start + length + found["model"]
        if len(data) != middle + found["tensors"]:
            raise ValueError("it is cut short")
        name, size = found["memories"]
        return Kept(
            checkpoint=Checkpoint(
                round=found["round"],
                model=data[start + length : middle],
                tensors=data[middle:],
                state=found["state"],
            ),
            memories=(str(name), int(size)),
            releases=int(found["releases"]),
            clock=found["clock"],
        )
    except (ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise StoreError(
            f"{path}: is not a checkpoint of a simulation: {error}", hint="begin the run anew"
        ) from None


def _pieces(part: Part) -> Any:
    return part.pieces() if isinstance(part, FilePart) else (part,)
