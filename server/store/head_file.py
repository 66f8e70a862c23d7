"""The ledger's newest head and the store's generation, sealed in one small file.

``STORE/ledger-head.sealed`` binds the two authenticated parts of the state to each other. It is
written after each burst of entries of the ledger and after each write of the catalogue, before the
caller continues, and is therefore behind either of them by at most what one crash explains: the
last burst of the ledger, one write of the catalogue. It is never ahead of them.
:func:`server.store.rollback.check_bound` compares the three.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.errors import StoreError
from server.keys.root_key import RootKey
from server.ledger import LedgerHead

__all__ = ["HEAD_FILE", "HeadFile", "Position"]

HEAD_FILE: Final = "ledger-head.sealed"
_LABEL: Final = "ledger-head"
_LIMIT: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The state of ledger and store: the ledger's head, and how often the catalogue was written."""

    head: LedgerHead | None = None
    generation: int = 0


class HeadFile:
    """The file and its content. Safe to use from several threads of the one writer."""

    def __init__(self, path: Path, root: RootKey) -> None:
        """Read the file.

        :raises StoreError: when it cannot be read or does not open.
        """
        self._path = path
        self._root = root
        self._lock = threading.Lock()
        data = root.read(path, _LABEL, limit=_LIMIT)
        self._found = data is not None
        self._position = Position() if data is None else _position(data, path)

    @property
    def found(self) -> bool:
        """Whether the file existed."""
        return self._found

    @property
    def position(self) -> Position:
        """The content that is sealed now."""
        return self._position

    def seal_head(self, head: LedgerHead) -> None:
        """Seal the head of the ledger; durable when this returns.

        :raises StoreError: when it cannot be written; what was sealed before is unchanged.
        """
        with self._lock:
            self._write(Position(head=head, generation=self._position.generation))

    def seal_generation(self, generation: int) -> None:
        """Seal how often the catalogue was written; as :meth:`seal_head`."""
        with self._lock:
            self._write(Position(head=self._position.head, generation=generation))

    def _write(self, position: Position) -> None:
        if position == self._position and self._found:
            return
        head = position.head
        document = {
            "sequence": 0 if head is None else head.sequence,
            "hash": "" if head is None else head.hash.hex(),
            "generation": position.generation,
        }
        self._root.write(self._path, _LABEL, json.dumps(document, sort_keys=True).encode())
        self._position, self._found = position, True


def _position(data: bytes, path: Path) -> Position:
    match json.loads(data):
        case {"sequence": int(sequence), "hash": str(digest), "generation": int(generation)}:
            head = LedgerHead(sequence=sequence, hash=bytes.fromhex(digest)) if sequence else None
            return Position(head=head, generation=generation)
    raise StoreError(f"{path}: not a ledger's head", hint="use the version that wrote it")
