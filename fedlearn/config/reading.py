"""From TOML to models: every fault found, each with its line."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

from attestation.config import toml
from fedlearn.errors import ConfigError

__all__ = [
    "MAX_FILE_BYTES",
    "ConfigErrors",
    "Impossible",
    "Kind",
    "Place",
    "Wrong",
    "convert_at",
    "file_bytes",
    "model_at",
    "option",
    "read",
    "read_file",
    "read_table",
    "shown",
]

MAX_FILE_BYTES: Final = toml.MAX_TOML_BYTES
_MAX_PROBLEMS: Final = 20
_KIND: Final = "fedlearn.kind"
_REQUIRED: Final = object()

T = TypeVar("T")
M = TypeVar("M")


class ConfigErrors(ConfigError):
    """Several faults of one file. ``problems`` has one error for each, by line."""

    def __init__(self, problems: tuple[ConfigError, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems), hint=problems[0].hint)
        self.problems = problems
        self.where = problems[0].where
        self.key = problems[0].key


class Impossible(ConfigError):
    """Values that are right one by one and do not go together. Raised by ``__post_init__``.

    ``faults`` are pairs of a path below the model and what is wrong with it.
    """

    def __init__(self, *faults: tuple[toml.Path, str]) -> None:
        lines = (": ".join(filter(None, (toml.dotted(at), message))) for at, message in faults)
        super().__init__("\n".join(lines))
        self.faults = faults


class Wrong(ValueError):
    """A value is not what a kind expects. The text says what it must be, or what is wrong."""


class Place:
    """Where in which file a value stands, and the faults found so far.

    ``base`` is the folder that relative paths in the file start from, an absolute path.
    """

    def __init__(self, source: toml.Source, where: str, base: Path) -> None:
        self._source = source
        self._where = where
        self.base = base
        self.problems: list[tuple[int, ConfigError]] = []

    def complain(self, path: toml.Path, message: str, *, hint: str = "") -> None:
        """Record a fault at ``path``."""
        line = self._source.line(path)
        where = f"{self._where}:{line}" if line else self._where
        error = ConfigError(message, where=where, key=toml.dotted(path), hint=hint)
        self.problems.append((line, error))

    def raise_if_wrong(self) -> None:
        """Raise what was recorded, in the order of the file.

        :raises ConfigError: one fault as it is, several as :class:`ConfigErrors`.
        """
        found = [error for _, error in sorted(self.problems, key=lambda item: item[0])]
        if len(found) == 1:
            raise found[0]
        if found:
            raise ConfigErrors(tuple(found[:_MAX_PROBLEMS]))


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """What may stand at a key. ``expected`` completes the sentence "must be ...".

    ``convert`` returns the value at a path; it records faults below, and raises :class:`Wrong`.
    """

    expected: str
    convert: Callable[[object, toml.Path, Place], T]


def option(
    kind: Kind[T],
    *,
    default: object = _REQUIRED,
    factory: Callable[[], object] | None = None,
    key: str = "",
) -> T:
    """Declare a field of a model. Without a default or a factory, the key must be there.

    ``key`` is its name in the file, where that differs from the field's.
    """
    metadata = {_KIND: (kind, key)}
    if factory is not None:
        return cast("T", dataclasses.field(default_factory=factory, metadata=metadata))
    if default is _REQUIRED:
        return cast("T", dataclasses.field(metadata=metadata))
    return cast("T", dataclasses.field(default=default, metadata=metadata))


# --- reading --------------------------------------------------------------------------


def file_bytes(path: Path, *, limit: int = MAX_FILE_BYTES, what: str = "") -> bytes:
    """Return the content of a regular file of at most ``limit`` bytes.

    :raises ConfigError: when it is missing, not a file, not readable or too large.
    """
    shown = f"{what} " if what else ""
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to must not wait.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _names_beside(path), n=1)
        hint = f"did you mean {path.with_name(near[0])}?" if near else ""
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


def read_file(model: type[M], path: Path) -> M:
    """Return the file as a ``model``.

    :raises ConfigError: naming file, line and key of everything that is wrong.
    """
    return read(model, file_bytes(path), where=str(path), base=path.parent)


def read(model: type[M], data: bytes | str, *, where: str, base: Path | None = None) -> M:
    """Return the source as a ``model``; ``where`` is the file's name in messages.

    Relative paths start from ``base``, or else from the working directory; the paths of the model
    are absolute.

    :raises ConfigError: naming file, line and key of everything that is wrong.
    """
    try:
        source = toml.parse(data)
    except toml.TomlError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError(str(error), where=f"{where}{line}") from None
    return _read(model, source, where, base or Path())


def read_table(model: type[M], values: Mapping[str, object], *, where: str) -> M:
    """Return values that were not read from a file, JSON for example, as a ``model``.

    :raises ConfigError: naming the key of everything that is wrong.
    """
    return _read(model, toml.Source(table=dict(values), lines={}), where, Path())


def _read(model: type[M], source: toml.Source, where: str, base: Path) -> M:
    place = Place(source, where, base.absolute())
    try:
        found = model_at(model, source.table, (), place)
    except RecursionError:
        raise ConfigError("nests too deeply", where=where) from None
    place.raise_if_wrong()
    return cast("M", found)


def model_at(model: type[M], value: object, path: toml.Path, place: Place) -> M | None:
    """Return a table as a ``model``, or None after complaining about everything in it."""
    if not isinstance(value, dict):
        raise Wrong(f"must be a table, not {shown(value)}")
    before = len(place.problems)
    keys = _keys(cast("Any", model))
    missing = [
        key
        for key, (item, _) in keys.items()
        if key not in value and item.default is MISSING and item.default_factory is MISSING
    ]
    for key in value:
        if key not in keys:
            _unknown(key, keys, missing, path, place)
    values: dict[str, Any] = {}
    for key, (item, kind) in keys.items():
        if key in value:
            values[item.name] = convert_at(kind, value[key], (*path, key), place)
    for key in missing:
        place.complain(path, f"needs the key {key!r}: {keys[key][1].expected}")
    if len(place.problems) > before:
        return None
    try:
        return model(**values)
    except Impossible as error:
        for inner, message in error.faults:
            place.complain((*path, *inner), message)
        return None


def convert_at(kind: Kind[Any], value: object, path: toml.Path, place: Place) -> Any:
    """Return a value as its kind has it, or None after complaining."""
    try:
        return kind.convert(value, path, place)
    except Wrong as error:
        message = str(error) or f"must be {kind.expected}, not {shown(value)}"
        place.complain(path, message)
        return None


def _unknown(
    key: str,
    keys: Mapping[str, object],
    missing: list[str],
    path: toml.Path,
    place: Place,
) -> None:
    near = difflib.get_close_matches(key, keys, n=1)
    if near:
        hint = f"did you mean {near[0]!r}?"
        if near[0] in missing:
            missing.remove(near[0])
    else:
        hint = f"known here: {', '.join(sorted(keys))}"
    place.complain((*path, key), f"unknown key; {hint}")


@functools.cache
def _keys(model: Any) -> dict[str, tuple[dataclasses.Field[Any], Kind[Any]]]:
    found: dict[str, tuple[dataclasses.Field[Any], Kind[Any]]] = {}
    for item in dataclasses.fields(model):
        if _KIND in item.metadata:
            kind, key = item.metadata[_KIND]
            found[key or item.name] = (item, kind)
    return found


def _names_beside(path: Path) -> list[str]:
    try:
        return [entry.name for _, entry in zip(range(1000), path.parent.iterdir(), strict=False)]
    except OSError:
        return []


def shown(value: object) -> str:
    """Return a TOML value as it would be written, shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an empty list" if not value else "a list"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, str):
        short = value if len(value) <= 40 else value[:39] + "…"
        return '"' + short.encode("unicode_escape").decode().replace('"', '\\"') + '"'
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    return repr(value)
