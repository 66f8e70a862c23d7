"""Strict TOML to frozen models: what is written in a file is understood, or refused.

A model is a frozen dataclass whose fields say what may stand there::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Limits:
        rounds: int = option(whole(1, 10_000))
        deadline_s: float = option(number(1, 86_400), default=600.0)

    limits = read_file(Limits, Path("limits.toml"))

Every fault of a file is reported, one line each, with file, line, key, what was found and what
would be right::

    job.toml:12: rounds: must be a whole number from 1 to 10000, not "ten"

Nothing is guessed and nothing is converted: ``"5"`` is not 5 and 1 is not ``true``.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from datetime import date, datetime, time
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar, cast

from attestation import toml
from fedlearn.errors import ConfigError

__all__ = [
    "NAME",
    "ConfigErrors",
    "Impossible",
    "Kind",
    "Place",
    "Wrong",
    "address",
    "choice",
    "dumps",
    "each",
    "file_bytes",
    "file_path",
    "flag",
    "hexadecimal",
    "matching",
    "name",
    "number",
    "option",
    "raw",
    "read",
    "read_file",
    "read_table",
    "scalar",
    "seq",
    "shown",
    "table",
    "tables",
    "text",
    "whole",
]

MAX_FILE_BYTES: Final = toml.MAX_TOML_BYTES
_MAX_PROBLEMS: Final = 20
_KIND: Final = "fedlearn.kind"
_REQUIRED: Final = object()

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label (RFC 1123): jobs, sites and data sets are named in certificates and manifests."""

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

    ``base`` is the folder that relative paths in the file start from.
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
    with open(handle, "rb") as stream:  # noqa: PTH123 (a descriptor, not a path)
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise ConfigError(f"{shown}is a directory, not a file", where=str(path))
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{shown}is not a regular file", where=str(path))
        data = stream.read(limit + 1)
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

    Relative paths start from ``base``, or else from the working directory.

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
    place = Place(source, where, base)
    try:
        found = _model(model, source.table, (), place)
    except RecursionError:
        raise ConfigError("nests too deeply", where=where) from None
    place.raise_if_wrong()
    return cast("M", found)


def _model(model: type[M], value: object, path: toml.Path, place: Place) -> M | None:
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
            values[item.name] = _convert(kind, value[key], (*path, key), place)
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


def _convert(kind: Kind[Any], value: object, path: toml.Path, place: Place) -> Any:
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


# --- kinds ----------------------------------------------------------------------------


def _simple(expected: str, accept: Callable[[object], T]) -> Kind[T]:
    def convert(value: object, path: toml.Path, place: Place) -> T:
        return accept(value)

    return Kind(expected, convert)


def text(*, least: int = 1, most: int = 4096, expected: str = "") -> Kind[str]:
    """One line or several of text, counted in characters."""

    def accept(value: object) -> str:
        if not isinstance(value, str) or not least <= len(value) <= most or "\0" in value:
            raise Wrong
        return value

    return _simple(expected or f"text of {least} to {most} characters", accept)


def matching(pattern: re.Pattern[str], expected: str) -> Kind[str]:
    """Text that the whole ``pattern`` matches."""

    def accept(value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise Wrong
        return value

    return _simple(expected, accept)


def name() -> Kind[str]:
    """A name of a job, site or data set (:data:`NAME`)."""
    return matching(NAME, "1 to 63 of a-z, 0-9 and '-', not starting or ending with '-'")


def whole(least: int, most: int) -> Kind[int]:
    """A whole number, bounds included."""

    def accept(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise Wrong
        return value

    return _simple(f"a whole number from {least} to {most}", accept)


def number(least: float, most: float) -> Kind[float]:
    """A finite number, whole or not, bounds included."""

    def accept(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong
        if not least <= value <= most or math.isnan(value):
            raise Wrong
        return float(value)

    return _simple(f"a number from {least:g} to {most:g}", accept)


def flag() -> Kind[bool]:
    """``true`` or ``false``."""

    def accept(value: object) -> bool:
        if not isinstance(value, bool):
            raise Wrong
        return value

    return _simple("true or false", accept)


def choice(*values: str) -> Kind[str]:
    """One of a few words."""
    listed = ", ".join(f'"{value}"' for value in values)

    def accept(value: object) -> str:
        if not isinstance(value, str):
            raise Wrong
        if value not in values:
            near = difflib.get_close_matches(value, values, n=1)
            wish = f'; did you mean "{near[0]}"?' if near else ""
            raise Wrong(f"must be one of {listed}, not {shown(value)}{wish}")
        return value

    return _simple(f"one of {listed}", accept)


def hexadecimal(size: int) -> Kind[bytes]:
    """``size`` bytes as lower- or upper-case hexadecimal digits."""
    pattern = re.compile(rf"[0-9a-fA-F]{{{2 * size}}}")

    def accept(value: object) -> bytes:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise Wrong
        return bytes.fromhex(value)

    return _simple(f"{2 * size} hexadecimal digits", accept)


def scalar() -> Kind[str | int | float | bool]:
    """Text, a finite number of 64 bits, or ``true``/``false``."""

    def accept(value: object) -> str | int | float | bool:
        if isinstance(value, bool) or (isinstance(value, str) and len(value) <= 4096):
            return value
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise Wrong

    return _simple("text, a finite number, true or false", accept)


def address(*, port_zero: bool = False) -> Kind[str]:
    """``host:port``; an IPv6 host stands in brackets. Port 0 asks for any free one."""
    least = 0 if port_zero else 1

    def accept(value: object) -> str:
        if not isinstance(value, str) or len(value) > 300:
            raise Wrong
        found = re.fullmatch(r"(\[[0-9a-fA-F:.%a-z]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", value)
        if not found or not least <= int(found[2]) <= 65_535:
            raise Wrong
        return value

    return _simple(f'an address "host:port" with a port from {least} to 65535', accept)


def file_path() -> Kind[Path]:
    """A path; a relative one starts from the folder of the file that it stands in."""

    def convert(value: object, path: toml.Path, place: Place) -> Path:
        if not isinstance(value, str) or not 0 < len(value) <= 4096 or "\0" in value:
            raise Wrong
        return place.base / value

    return Kind("a path", convert)


def seq(
    kind: Kind[T], *, least: int = 0, most: int = 1000, unique: bool = False
) -> Kind[tuple[T, ...]]:
    """A list of ``kind``."""
    count = f"{least} to {most}" if least else f"at most {most}"

    def convert(value: object, path: toml.Path, place: Place) -> tuple[T, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise Wrong
        before = len(place.problems)
        found = [_convert(kind, item, (*path, i), place) for i, item in enumerate(value)]
        if unique and len(place.problems) == before:
            for i, item in enumerate(found):
                if item in found[:i]:
                    place.complain((*path, i), f"{shown(value[i])} stands there twice")
        return tuple(found)

    return Kind(f"a list of {count} items, each {kind.expected}", convert)


def table(model: type[M]) -> Kind[M]:
    """A table that is a ``model``."""

    def convert(value: object, path: toml.Path, place: Place) -> M:
        return cast("M", _model(model, value, path, place))

    return Kind("a table", convert)


def tables(model: type[M], *, least: int = 0, most: int = 1000) -> Kind[tuple[M, ...]]:
    """An array of tables, each a ``model``."""
    return seq(table(model), least=least, most=most)


def each(kind: Kind[T], *, key: re.Pattern[str] = NAME, most: int = 1000) -> Kind[Mapping[str, T]]:
    """A table of any keys that match ``key``, each with a value of ``kind``."""

    def convert(value: object, path: toml.Path, place: Place) -> Mapping[str, T]:
        if not isinstance(value, dict) or len(value) > most:
            raise Wrong
        found = {}
        for item, inner in value.items():
            if not key.fullmatch(item):
                place.complain((*path, item), f"is not a name that can stand here: {key.pattern}")
            found[item] = _convert(kind, inner, (*path, item), place)
        return MappingProxyType(found)

    return Kind(f"a table of at most {most} keys, each {kind.expected}", convert)


def raw() -> Kind[Mapping[str, Any]]:
    """A table that somebody else reads."""

    def convert(value: object, path: toml.Path, place: Place) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise Wrong
        return MappingProxyType(value)

    return Kind("a table", convert)


# --- writing --------------------------------------------------------------------------


def dumps(values: Mapping[str, object]) -> str:
    """Return TOML that :func:`read` turns into the same values.

    Takes text, whole and finite numbers, truth values, lists of these, and tables.
    """
    return "\n".join(_table_lines((), values)).lstrip("\n") + "\n"


def _table_lines(path: tuple[str, ...], values: Mapping[str, object]) -> list[str]:
    lines = [f"\n[{'.'.join(map(_key_text, path))}]"] if path else []
    below: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            below += _table_lines((*path, key), value)
        else:
            lines.append(f"{_key_text(key)} = {_value_text(value)}")
    return lines + below


def _key_text(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value_text(key)


def _value_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value_text, value))}]"
    raise TypeError(f"{type(value).__name__} is not written to TOML")
