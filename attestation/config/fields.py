"""Field types: each states which values a key may have."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, cast

from attestation.config import toml
from attestation.config.schema import (
    FieldType,
    InvalidValue,
    ReadContext,
    convert_at,
    model_at,
    shown,
    unknown_key,
)

__all__ = [
    "choice",
    "each",
    "file_path",
    "flag",
    "hexadecimal",
    "line",
    "mapped",
    "matching",
    "timestamp",
    "number",
    "octets",
    "plain",
    "scalar",
    "seq",
    "simple",
    "sorted_set",
    "table",
    "tables",
    "text",
    "whole",
]

_JSON_TYPES: Final[Mapping[type, str]] = {str: "string", int: "integer", bool: "boolean"}

T = TypeVar("T")
U = TypeVar("U")
M = TypeVar("M")


def simple(
    expected: str, accept: Callable[[object], T], json: Mapping[str, Any] = MappingProxyType({})
) -> FieldType[T]:
    """Return a type whose ``convert`` returns the value, or raises :class:`InvalidValue`."""

    def convert(value: object, path: toml.Path, context: ReadContext) -> T:
        return accept(value)

    return FieldType(expected, convert, json=json)


def plain(
    kind: type[T],
    holds: Callable[[T], object],
    expected: str,
    json: Mapping[str, Any] = MappingProxyType({}),
) -> FieldType[T]:
    """A value of exactly this Python type, of which ``holds`` is true."""

    def accept(value: object) -> T:
        if type(value) is not kind or not holds(value):
            raise InvalidValue
        return value

    found = {"type": _JSON_TYPES[kind]} if kind in _JSON_TYPES else {}
    return simple(expected, accept, {**found, **json})


def mapped(kind: FieldType[T], function: Callable[[T], U]) -> FieldType[U]:
    """The result of ``function`` for a value of ``kind``."""

    def convert(value: object, path: toml.Path, context: ReadContext) -> U:
        before = context.fault_count
        found = kind.convert(value, path, context)
        return function(found) if context.fault_count == before else cast("U", None)

    return cast("FieldType[U]", dataclasses.replace(cast("Any", kind), convert=convert))


def text(*, least: int = 1, most: int = 4096) -> FieldType[str]:
    """One line or several of text, counted in characters."""
    expected = f"text of {least} to {most} characters"
    return plain(
        str,
        lambda value: least <= len(value) <= most and "\0" not in value,
        expected,
        _lengths(least, most),
    )


def line(*, most: int) -> FieldType[str]:
    """At most so many printable characters, on one line."""
    expected = f"text of at most {most} characters on one line"
    return plain(
        str,
        lambda value: len(value) <= most and value.isprintable(),
        expected,
        {"maxLength": most, "pattern": r"^[^\x00-\x1f\x7f]*$"},
    )


def matching(pattern: re.Pattern[str], expected: str) -> FieldType[str]:
    """Text that the whole ``pattern`` matches."""
    return plain(str, pattern.fullmatch, expected, {"pattern": _whole(pattern)})


def whole(least: int, most: int) -> FieldType[int]:
    """A whole number, bounds included."""
    expected = f"a whole number from {least} to {most}"
    bounds = {"minimum": least, "maximum": most}
    return plain(int, lambda value: least <= value <= most, expected, bounds)


def flag() -> FieldType[bool]:
    """``true`` or ``false``."""
    return plain(bool, lambda _: True, "true or false")


def number(least: float, most: float, *, expected: str = "") -> FieldType[float]:
    """A finite number, whole or not, bounds included."""

    def accept(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidValue
        if not least <= value <= most or math.isnan(value):
            raise InvalidValue
        return float(value)

    bounds = {"type": "number", "minimum": least, "maximum": most}
    return simple(expected or f"a number from {least:g} to {most:g}", accept, bounds)


def choice(*values: str) -> FieldType[str]:
    """One of a few words."""
    listed = ", ".join(f'"{value}"' for value in values)

    def accept(value: object) -> str:
        if not isinstance(value, str):
            raise InvalidValue
        if value not in values:
            near = difflib.get_close_matches(value, values, n=1)
            near = near or [item for item in values if item.endswith(f"-{value}")]
            wish = f'; did you mean "{near[0]}"?' if near else ""
            raise InvalidValue(f"must be one of {listed}, not {shown(value)}{wish}")
        return value

    return simple(f"one of {listed}", accept, {"enum": list(values)})


def hexadecimal(*sizes: int) -> FieldType[bytes]:
    """Bytes as lower- or upper-case hexadecimal digits; ``sizes`` are how many there may be."""
    return _hexadecimal(sizes, " or ".join(str(2 * size) for size in sizes))


def octets(least: int, most: int) -> FieldType[bytes]:
    """From ``least`` to ``most`` bytes as hexadecimal digits."""
    return _hexadecimal(range(least, most + 1), f"an even number, {2 * least} to {2 * most}, of")


def _hexadecimal(sizes: range | tuple[int, ...], digits: str) -> FieldType[bytes]:
    expected = f"{digits} hexadecimal digits"

    def accept(value: object) -> bytes:
        if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]*", value):
            raise InvalidValue
        if len(value) % 2 or len(value) // 2 not in sizes:
            raise InvalidValue(f"must be {expected}, not {len(value)}")
        return bytes.fromhex(value)

    if isinstance(sizes, range):
        lengths = _lengths(2 * sizes[0], 2 * sizes[-1])
        return simple(
            expected, accept, {"type": "string", "pattern": "^([0-9a-fA-F]{2})*$", **lengths}
        )
    pattern = "|".join(f"[0-9a-fA-F]{{{2 * size}}}" for size in sizes)
    return simple(expected, accept, {"type": "string", "pattern": f"^(?:{pattern})$"})


def timestamp() -> FieldType[datetime]:
    """A time with its zone, as UTC: a TOML date-time, or the same as text (RFC 3339)."""

    def accept(value: object) -> datetime:
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise InvalidValue from None
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise InvalidValue
        try:
            return value.astimezone(UTC)
        except OverflowError:
            raise InvalidValue("is outside of the years 1 to 9999 in UTC") from None

    expected = "a time with its zone, such as 2026-07-01T00:00:00Z"
    return simple(expected, accept, {"type": "string"})


def scalar() -> FieldType[str | int | float | bool]:
    """Text, a finite number of 64 bits, or ``true``/``false``."""

    def accept(value: object) -> str | int | float | bool:
        if isinstance(value, bool) or (isinstance(value, str) and len(value) <= 4096):
            return value
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        raise InvalidValue

    json = {"type": ["string", "number", "boolean"], "maxLength": 4096}
    return simple("text, a finite number, true or false", accept, json)


def file_path() -> FieldType[Path]:
    """A path, made absolute; a relative one starts from the folder of its file."""

    def convert(value: object, path: toml.Path, context: ReadContext) -> Path:
        if not isinstance(value, str) or not 0 < len(value) <= 4096 or "\0" in value:
            raise InvalidValue
        return context.base / value

    return FieldType("a path", convert, json={"type": "string", **_lengths(1, 4096)})


def seq(
    kind: FieldType[T], *, least: int = 0, most: int = 1000, unique: bool = False
) -> FieldType[tuple[T, ...]]:
    """A list of ``kind``."""
    count = f"{least} to {most}" if least else f"at most {most}"

    def convert(value: object, path: toml.Path, context: ReadContext) -> tuple[T, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise InvalidValue
        before = context.fault_count
        found = [convert_at(kind, item, (*path, i), context) for i, item in enumerate(value)]
        if unique and context.fault_count == before:
            for i, item in enumerate(found):
                if item in found[:i]:
                    context.add((*path, i), f"{shown(value[i])} is listed twice")
        return tuple(found)

    json: dict[str, Any] = {"type": "array", "items": kind.json, "maxItems": most}
    if least:
        json["minItems"] = least
    if unique:
        json["uniqueItems"] = True
    return FieldType(f"a list of {count} items, each {kind.expected}", convert, json=json)


def sorted_set(kind: FieldType[T], *, most: int = 1000) -> FieldType[tuple[T, ...]]:
    """A list of ``kind``, whose order and repetitions do not count: sorted, each item once."""
    return mapped(seq(kind, most=most), lambda found: tuple(sorted(cast("Any", {*found}))))


def table(model: type[M]) -> FieldType[M]:
    """A table that is a ``model``."""

    def convert(value: object, path: toml.Path, context: ReadContext) -> M:
        return cast("M", model_at(model, value, path, context))

    return FieldType("a table", convert, model, json={"type": "object"})


def tables(model: type[M], *, least: int = 0, most: int = 1000) -> FieldType[tuple[M, ...]]:
    """An array of tables, each a ``model``."""
    inner = seq(table(model), least=least, most=most)

    def convert(value: object, path: toml.Path, context: ReadContext) -> tuple[M, ...]:
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise InvalidValue(f"must be tables, each written [[{toml.dotted(path)}]]")
        return inner.convert(value, path, context)

    return FieldType(inner.expected, convert, model, "[]", inner.json)


def each(
    kind: FieldType[T],
    *,
    key: re.Pattern[str] | tuple[str, ...],
    what: str = "",
    most: int = 1000,
) -> FieldType[Mapping[str, T]]:
    """A table with a value of ``kind`` at each key: one of a few, or any that match a pattern.

    ``what`` describes a key in messages, where the pattern would be hard to read.
    """

    def convert(value: object, path: toml.Path, context: ReadContext) -> Mapping[str, T]:
        if not isinstance(value, dict) or len(value) > most:
            raise InvalidValue
        found = {}
        for item, inner in value.items():
            if isinstance(key, tuple):
                if item not in key:
                    unknown_key(item, key, path, context)
                    continue
            elif not key.fullmatch(item):
                wish = what or f"a valid name: it must match {key.pattern}"
                context.add((*path, item), f"is not {wish}")
            found[item] = convert_at(kind, inner, (*path, item), context)
        return MappingProxyType(found)

    keys = f"the keys {', '.join(key)}" if isinstance(key, tuple) else f"at most {most} keys"
    names: Mapping[str, Any] = (
        {"enum": list(key)} if isinstance(key, tuple) else {"pattern": _whole(key)}
    )
    json = {"type": "object", "maxProperties": most, "propertyNames": names}
    return FieldType(
        f"a table of {keys}, each {kind.expected}",
        convert,
        kind.model,
        ".NAME",
        {**json, "additionalProperties": kind.json},
    )


def _whole(pattern: re.Pattern[str]) -> str:
    """Return a pattern of JSON Schema, which searches, for one that has to match the whole."""
    return f"^(?:{pattern.pattern})$"


def _lengths(least: int, most: int) -> dict[str, int]:
    return {"minLength": least, "maxLength": most}
