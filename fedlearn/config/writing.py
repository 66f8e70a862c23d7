"""Values back to TOML."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

__all__ = ["dumps"]


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
