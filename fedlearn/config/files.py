"""Files read within bounds, and documents read as models, with :class:`ConfigError`."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from attestation import config
from attestation.config import toml
from attestation.durable import write_once
from fedlearn.errors import ConfigError

__all__ = [
    "MAX_FILE_BYTES",
    "ConfigErrors",
    "errors",
    "file_bytes",
    "read",
    "read_document",
    "read_file",
    "relative",
    "write_new",
    "write_new_bytes",
]

MAX_FILE_BYTES: Final = toml.MAX_TOML_BYTES

M = TypeVar("M")


class ConfigErrors(ConfigError):
    """Several faults of one file. ``problems`` has one error for each, by line."""

    def __init__(self, problems: tuple[ConfigError, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
        self.where = problems[0].where
        self.key = problems[0].key


def read(
    model: type[M],
    document: bytes | str | toml.Source | Mapping[str, object],
    *,
    where: str,
    base: Path | None = None,
) -> M:
    """Return a document as a ``model``; see :func:`attestation.config.read`.

    :raises ConfigError: naming file, line and key of everything that is wrong.
    """
    with errors():
        return config.read(model, document, where=where, base=base)


def read_file(model: type[M], path: Path, *, made_by: str = "") -> M:
    """Return the file as a ``model``. Relative paths in it start from its folder.

    ``made_by`` is the command that writes such a file, for the hint where there is none.

    :raises ConfigError: naming file, line and key of everything that is wrong.
    """
    return read(model, file_bytes(path, made_by=made_by), where=str(path), base=path.parent)


def read_document(model: type[M], path: Path, *, made_by: str = "") -> tuple[M, Mapping[str, Any]]:
    """Return what :func:`read_file` returns, and the TOML document that it was read from.

    :raises ConfigError: naming file, line and key of everything that is wrong.
    """
    data = file_bytes(path, made_by=made_by)
    with errors():
        source = config.parse(data, where=str(path))
    return read(model, source, where=str(path), base=path.parent), source.table


def relative(path: Path, file: Path) -> str:
    """Return ``path`` as the configuration ``file`` states it: relative paths start there."""
    return str(path) if path.is_absolute() else os.path.relpath(path, file.parent)


def write_new(path: Path, text: str) -> None:
    """Write a file as a whole, where there is none.

    :raises ConfigError: when there is one, or the folder cannot be written.
    """
    write_new_bytes(path, text.encode())


def write_new_bytes(path: Path, content: bytes) -> None:
    """Write a file of any content; see :func:`write_new`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = write_once(path, content)
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise ConfigError(f"cannot be written: {reason}", where=str(path)) from None
    if written != content:
        raise ConfigError("exists", where=str(path), hint="name another file; nothing was written")


def file_bytes(
    path: Path, *, limit: int = MAX_FILE_BYTES, what: str = "", made_by: str = ""
) -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    ``made_by`` is the command that writes such a file, for the hint where there is none.

    :raises ConfigError: when it is missing, not a file, not readable or too large.
    """
    shown = f"{what} " if what else ""
    try:
        # O_NONBLOCK: opening a named pipe without a writer must not wait.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        hints = [f"did you mean {near}?"] if (near := _near(path)) is not None else []
        hints += [f"`{made_by}` writes one"] if made_by else []
        hint = "; ".join(hints)
        raise ConfigError(f"{shown}does not exist", where=str(path), hint=hint) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"{shown}cannot be read: {(reason or 'unknown reason').lower()}", where=str(path)
        ) from None
    try:
        kind = os.fstat(handle).st_mode
        if not stat.S_ISREG(kind):
            what_it_is = "a directory, not a file" if stat.S_ISDIR(kind) else "not a regular file"
            raise ConfigError(f"{shown}is {what_it_is}", where=str(path))
        with os.fdopen(handle, "rb", closefd=False) as stream:
            data = stream.read(limit + 1)
    finally:
        os.close(handle)
    if len(data) > limit:
        raise ConfigError(f"{shown}is larger than the {limit} bytes that are read", where=str(path))
    return data


@contextmanager
def errors() -> Iterator[None]:
    """Raise the faults of a document as :class:`ConfigError`."""
    try:
        yield
    except config.SchemaError as error:
        found = tuple(
            ConfigError(fault.message, where=fault.where, key=fault.key) for fault in error.faults
        )
        raise found[0] if len(found) == 1 else ConfigErrors(found) from None


def _near(path: Path) -> Path | None:
    """Return the file beside ``path`` whose name may have been meant: all but the suffix counts."""
    try:
        beside = [entry for _, entry in zip(range(1000), path.parent.iterdir(), strict=False)]
    except OSError:
        return None
    stems = [entry.stem for entry in beside if entry.suffix == path.suffix]
    near = difflib.get_close_matches(path.stem, stems, n=1)
    return path.with_name(near[0] + path.suffix) if near else None
