"""The files that an application leaves in its folder: collected in its process, kept by the job.

The application's process reads them with its own rights, and sends them when the application
has ended. A process that is killed leaves none.

They are sealed as a model is, for the owner of the job, under a name of their own: every file
is a tensor of bytes whose name is the file's with a prefix.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import TransportError

__all__ = [
    "MAX_FILES",
    "as_arrays",
    "as_files",
    "checked",
    "collect",
    "kept_as",
    "most_bytes",
]

MAX_FILES: Final = 1_000
"""The largest number of files that are kept of one application."""

_MAX_NAME_BYTES: Final = 500  # with the prefix, less than a tensor's name may have
_PREFIX: Final = "files/"
_LEAST_BYTES: Final = 16 * 1024 * 1024
_MOST_BYTES: Final = 1024**3
_PASSED_OVER: Final = frozenset({"__pycache__"})


def most_bytes(max_update_bytes: int) -> int:
    """Return the largest total size of the files: that of an update, within 16 MiB and 1 GiB."""
    return min(max(max_update_bytes, _LEAST_BYTES), _MOST_BYTES)


def collect(
    folder: Path, *, most: int, without: Sequence[str] = ()
) -> tuple[dict[str, bytes], list[str]]:
    """Return the regular files below ``folder`` by name, and what was left out and why.

    Names are relative, with ``/``. Hidden files and folders, ``__pycache__`` and links are not
    files of the application.

    :param most: the bytes of all files; those beyond it, or beyond :data:`MAX_FILES`, in the
        order of their names, are left out.
    :param without: entries of ``folder`` itself that are left out without a report.
    """
    kept: dict[str, bytes] = {}
    left_out: list[str] = []
    size = 0
    for name in sorted(_names(folder, without)):
        try:
            data = _read(folder / name, most - size)
        except OSError as error:
            left_out.append(f"{name}: {error.strerror or error}")
            continue
        if data is None:
            left_out.append(f"{name}: more than {most} bytes in all")
        elif len(kept) == MAX_FILES:
            left_out.append(f"{name}: more than {MAX_FILES} files")
        else:
            try:
                _check(name)
            except TransportError as error:
                left_out.append(str(error))
                continue
            kept[name] = data
            size += len(data)
    return kept, left_out


def checked(names: object, blobs: Sequence[memoryview], *, most: int) -> dict[str, memoryview]:
    """Return the files that an application's process sent, checked against the bounds.

    :raises TransportError: naming what is wrong with them.
    """
    if not isinstance(names, list) or len(names) != len(blobs) or len(names) > MAX_FILES:
        raise TransportError(f"files are a list of at most {MAX_FILES} names, and their contents")
    found: dict[str, memoryview] = {}
    for name, blob in zip(names, blobs, strict=True):
        _check(name)
        if name in found:
            raise TransportError(f"two files have the name {name!r}")
        found[name] = blob
    _check_places(found)
    if sum(map(len, blobs)) > most:
        raise TransportError(f"files have at most {most} bytes in all")
    return found


def kept_as(job: str) -> str:
    """Return the name under which the files of a job's application are sealed."""
    return f"{job}.files"  # no job has a dot in its name


def as_arrays(files: Mapping[str, bytes | memoryview]) -> dict[str, NDArray[Any]]:
    """Return files as arrays of bytes, without a copy."""
    return {_PREFIX + name: np.frombuffer(data, np.uint8) for name, data in files.items()}


def as_files(arrays: Mapping[str, NDArray[Any]]) -> dict[str, memoryview]:
    """Return the files that :func:`as_arrays` was given.

    :raises TransportError: when these arrays are not files, or a name leads out of a folder.
    """
    if odd := [n for n, a in arrays.items() if not n.startswith(_PREFIX) or a.dtype != np.uint8]:
        raise TransportError(f"{odd[0]!r} is an array of a model, not a file of an application")
    files = {name.removeprefix(_PREFIX): array.data for name, array in arrays.items()}
    return checked(list(files), list(files.values()), most=sum(map(len, files.values())))


def _check(name: object) -> None:
    """Check that a name is that of a file below a folder, at any depth."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name:
        raise TransportError(f"{str(name)[:80]!r} is not a file's name")
    if len(name.encode(errors="surrogatepass")) > _MAX_NAME_BYTES:
        raise TransportError(f"{name[:80]!r}: a file's name has at most {_MAX_NAME_BYTES} bytes")
    if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in name.split("/")):
        raise TransportError(f"{name[:80]!r} is not a file's name below its folder")


def _check_places(files: Mapping[str, object]) -> None:
    for name in files:
        parts = name.split("/")
        for count in range(1, len(parts)):
            if (folder := "/".join(parts[:count])) in files:
                raise TransportError(f"{folder!r} is a file and a folder")


def _names(folder: Path, without: Sequence[str]) -> Iterator[str]:
    for where, folders, files in os.walk(folder):
        top = Path(where) == folder
        skipped = _PASSED_OVER | set(without if top else ())
        folders[:] = [name for name in folders if name not in skipped and name[0] != "."]
        for name in files:
            path = Path(where, name)
            if name[0] != "." and name not in skipped and not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def _read(path: Path, most: int) -> bytes | None:
    """Return a regular file's bytes; None when it has more than ``most``."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as source:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a regular file")
        data = source.read(most + 1)
    return data if len(data) <= most else None
