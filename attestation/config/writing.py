"""Values as TOML."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

__all__ = ["default_text", "dumps", "key_text", "to_plain", "value_text"]


def dumps(values: Mapping[str, object]) -> str:
    """Return TOML that :func:`attestation.config.read` turns into the same values.

    Takes text, whole and finite numbers, truth values, lists of these, and tables.
    """
    return "\n".join(_table_lines((), values)).lstrip("\n") + "\n"


def _table_lines(path: tuple[str, ...], values: Mapping[str, object]) -> list[str]:
    lines = [f"\n[{'.'.join(map(key_text, path))}]"] if path else []
    below: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            below += _table_lines((*path, key), value)
        else:
            lines.append(f"{key_text(key)} = {value_text(value)}")
    return lines + below


def key_text(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else value_text(key)


def value_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_text, value))}]"
    raise TypeError(f"{type(value).__name__} is not written to TOML")


def to_plain(value: object) -> Any:
    """Return a value in the types of JSON; a model as a table of its fields.

    Bytes become hexadecimal digits, times POSIX seconds, durations whole seconds, and paths text;
    sets are sorted.
    """
    match value:
        case bytes():
            return value.hex()
        case datetime():
            return int(value.timestamp())
        case timedelta():
            return int(value.total_seconds())
        case Path():
            return str(value)
        case Enum():
            return value.value
        case Mapping():
            return {str(key): to_plain(item) for key, item in value.items()}
        case frozenset():
            return sorted(map(to_plain, value))
        case tuple():
            return list(map(to_plain, value))
        case _ if is_dataclass(value):
            return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
        case _:
            return value


def default_text(value: object) -> str:
    """Return a field's default as it is written in TOML; empty for None and what is empty."""
    if value in (None, "", b"", ()):
        return ""
    return f"{value:g}" if isinstance(value, float) else value_text(to_plain(value))
