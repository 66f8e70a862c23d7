"""Text of other parties on a terminal, in a log or in JSON, without control characters.

Control characters (C0, DEL and C1), which move a cursor or change colours, line separators, and
the characters that reorder a line (bidirectional formatting, Unicode Standard Annex 9) are shown
as U+FFFD, or escaped in JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

__all__ = ["json_text", "printable"]


def printable(text: str) -> str:
    """Return ``text`` on one line, without what could control a terminal or reorder the line."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def json_text(value: object) -> str:
    """Return one JSON document (RFC 8259) on one line, in printable ASCII.

    What is not ASCII is escaped. JSON has no numbers that are not finite: they become null.
    Values that JSON does not know become their text.
    """
    text = json.dumps(_finite(value), sort_keys=True, allow_nan=False, default=str)
    return text.replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
