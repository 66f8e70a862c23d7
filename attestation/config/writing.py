"""Values as TOML."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

__all__ = ["default_text", "dumps", "value_text"]


def dumps(values: Mapping[str, object]) -> str:
    """Return TOML that :func:`attestation.config.read` turns into the same values.

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
            lines.append(f"{_key_text(key)} = {value_text(value)}")
    return lines + below


def _key_text(key: str) -> str:
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


def default_text(value: object) -> str:
    """Return a field's default as it is written in TOML; empty for None and what is empty."""
    if value in (None, "", b"", ()):
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bytes):
        value = value.hex()
    elif isinstance(value, timedelta):
        value = int(value.total_seconds())
    elif isinstance(value, Path):
        value = str(value)
    return value_text(value)
