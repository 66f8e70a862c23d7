"""What may stand at a key: each kind accepts a few values and says which ones."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from attestation.config import toml
from fedlearn.config.reading import Kind, Place, Wrong, convert_at, model_at, shown

__all__ = [
    "NAME",
    "address",
    "choice",
    "each",
    "file_path",
    "flag",
    "hexadecimal",
    "matching",
    "name",
    "number",
    "raw",
    "scalar",
    "seq",
    "table",
    "tables",
    "text",
    "whole",
]

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label (RFC 1123): jobs, sites and data sets are named in certificates and manifests."""

T = TypeVar("T")
M = TypeVar("M")


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
            near = near or [item for item in values if item.endswith(f"-{value}")]
            wish = f'; did you mean "{near[0]}"?' if near else ""
            raise Wrong(f"must be one of {listed}, not {shown(value)}{wish}")
        return value

    return _simple(f"one of {listed}", accept)


def hexadecimal(*sizes: int) -> Kind[bytes]:
    """Bytes as lower- or upper-case hexadecimal digits; ``sizes`` are how many there may be."""
    pattern = re.compile("|".join(rf"[0-9a-fA-F]{{{2 * size}}}" for size in sizes))

    def accept(value: object) -> bytes:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise Wrong
        return bytes.fromhex(value)

    counts = " or ".join(str(2 * size) for size in sizes)
    return _simple(f"{counts} hexadecimal digits", accept)


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
    """A path, made absolute; a relative one starts from the folder of its file."""

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
        found = [convert_at(kind, item, (*path, i), place) for i, item in enumerate(value)]
        if unique and len(place.problems) == before:
            for i, item in enumerate(found):
                if item in found[:i]:
                    place.complain((*path, i), f"{shown(value[i])} stands there twice")
        return tuple(found)

    return Kind(f"a list of {count} items, each {kind.expected}", convert)


def table(model: type[M]) -> Kind[M]:
    """A table that is a ``model``."""

    def convert(value: object, path: toml.Path, place: Place) -> M:
        return cast("M", model_at(model, value, path, place))

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
            found[item] = convert_at(kind, inner, (*path, item), place)
        return MappingProxyType(found)

    return Kind(f"a table of at most {most} keys, each {kind.expected}", convert)


def raw() -> Kind[Mapping[str, Any]]:
    """A table that somebody else reads."""

    def convert(value: object, path: toml.Path, place: Place) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise Wrong
        return MappingProxyType(value)

    return Kind("a table", convert)
