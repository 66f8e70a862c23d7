"""Writes files atomically and durably.

A temporary file in the same directory is written, synchronized and renamed, and the directory is
synchronized. After a crash the old content is still there, and at most a temporary file whose name
:func:`is_temporary` recognizes.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path
from types import TracebackType
from typing import Final, Self

__all__ = [
    "DurableFile",
    "is_temporary",
    "rename_durably",
    "sync_directory",
    "write_durably",
    "write_once",
]

_TEMPORARY: Final = re.compile(r"\.[^/]+\.[0-9a-f]{16}\.tmp")


def is_temporary(name: str) -> bool:
    """Return whether ``name`` is that of a temporary file that a crash left."""
    return _TEMPORARY.fullmatch(name) is not None


class DurableFile:
    """Write ``path`` anew. Without :meth:`commit` the previous content stays.

    A context manager: leaving it without a commit, for whatever reason, removes the
    temporary file. Only the owner can read the file, unless ``mode`` is given.

    :raises OSError: when the disk is full or the directory cannot be written.
    """

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        self._fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        self._committed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append all of ``data``."""
        view = memoryview(data)
        while len(view):
            view = view[os.write(self._fd, view) :]

    def commit(self) -> None:
        """Make what was written durable and put it in the place of ``path``."""
        os.fsync(self._fd)
        self._temporary.replace(self.path)
        self._committed = True
        sync_directory(self.path.parent)

    def link(self) -> None:
        """Make what was written durable as ``path``, unless that exists already."""
        os.fsync(self._fd)
        with contextlib.suppress(FileExistsError):
            os.link(self._temporary, self.path)
        # The process that made the file may not have synchronized the directory yet.
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Close the file; remove it unless it was committed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if not self._committed:
                with contextlib.suppress(FileNotFoundError):
                    self._temporary.unlink()


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write ``path`` atomically, with ``mode`` less the umask.

    :raises OSError: when that is not possible; the previous content is then unchanged.
    """
    with DurableFile(path, mode=mode) as file:
        file.write(data)
        file.commit()


def write_once(path: Path, data: bytes) -> bytes:
    """Write ``path`` with mode 0600 unless it exists; return what is in it, durably.

    When several processes write at the same time, one sets the content, and all return it.

    :raises OSError: when that is not possible.
    """
    with DurableFile(path) as file:
        file.write(data)
        file.link()
    return path.read_bytes()


def rename_durably(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target`` in the same directory; on disk when it returns."""
    source.rename(target)
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Make the creation and the removal of names in ``directory`` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
