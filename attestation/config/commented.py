"""A TOML file for people: what was chosen, and every other key commented out with its meaning."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Final

from attestation.config.schema import KeyDescription, describe
from attestation.config.writing import key_text, value_text

__all__ = ["commented"]

_WIDTH: Final = 96
_ROLE: Final = re.compile(r":[a-z]+:`~?([^`]+)`")
_NAME: Final = ".NAME"


def commented(model: type, values: Mapping[str, object]) -> str:
    """Return a file of a schema with ``values``, and the other keys as comments.

    Each key stands below its meaning, its type and, where it is not in ``values``, with its
    default. The text reads as the same model as ``dumps(values)`` does.

    >>> from dataclasses import dataclass
    >>> from attestation.config import option, whole
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Limits:
    ...     '''Bounds.
    ...
    ...     ``rounds``  how many there are
    ...     ``sites``   how many take part
    ...     '''
    ...     rounds: int = option(whole(1, 9))
    ...     sites: int = option(whole(1, 9), default=2)
    >>> print(commented(Limits, {"rounds": 3}))
    # how many there are: a whole number from 1 to 9
    rounds = 3
    # how many take part: a whole number from 1 to 9
    # sites = 2
    <BLANKLINE>
    """
    tables: dict[str, list[KeyDescription]] = {}
    for item in describe(model):
        tables.setdefault(item.table, []).append(item)
    return "\n".join(_lines(tables, "", "", values)).lstrip("\n") + "\n"


def _lines(
    tables: Mapping[str, list[KeyDescription]],
    described: str,
    shown: str,
    values: Mapping[str, object] | None,
) -> Iterator[str]:
    """Yield the keys of one table, then the tables below it.

    ``described`` is its name in ``tables``, ``shown`` the one in the file; ``values`` is None for
    a table that is a comment as a whole.
    """
    items = tables.get(described, [])
    for item in items:
        if not item.contents:
            yield from _key(item, values)
    for item in items:
        if item.contents:
            yield from _below(tables, item, shown, values)


def _key(item: KeyDescription, values: Mapping[str, object] | None) -> Iterator[str]:
    yield from _comment(": ".join(filter(None, (_plain(item.meaning), item.type))))
    if values is not None and item.key in values:
        yield f"{key_text(item.key)} = {value_text(values[item.key])}"
    else:
        yield f"# {key_text(item.key)} = {item.default or '...'}"


def _below(
    tables: Mapping[str, list[KeyDescription]],
    item: KeyDescription,
    shown: str,
    values: Mapping[str, object] | None,
) -> Iterator[str]:
    """Yield the table or tables that a key stands for."""
    given = values.get(item.key) if values is not None else None
    name = ".".join(filter(None, (shown, key_text(item.key))))
    suffix = item.contents[-len(_NAME) :] if item.contents.endswith(_NAME) else ""
    parts: list[tuple[str, Mapping[str, object] | None]]
    if suffix and isinstance(given, Mapping) and given:
        parts = [(f"{name}.{key_text(key)}", _table(of)) for key, of in given.items()]
    elif suffix:
        parts = [(f"{name}{suffix}", None)]
    elif item.contents.endswith("[]"):
        parts = [(f"[{name}]", None)]
    else:
        empty = values is not None and not _requires(tables, item.contents)
        parts = [(name, _table(given) if given is not None else {} if empty else None)]
    for head, of in parts:
        yield ""
        yield from _comment(_plain(item.meaning))
        yield f"{'# ' if of is None else ''}[{head}]"
        yield from _lines(tables, item.contents, head.strip("[]"), of)


def _requires(tables: Mapping[str, list[KeyDescription]], name: str) -> bool:
    """Return whether a table has a key that has no default."""
    return any(item.default is None for item in tables.get(name, []))


def _table(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise TypeError(f"a table of the schema is given as {type(value).__name__}")
    return value


def _comment(text: str) -> Iterator[str]:
    for row in textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False):
        yield f"# {row}"


def _plain(text: str) -> str:
    """Return a docstring's text without its markup."""
    return _ROLE.sub(r"\1", text).replace("``", "`").rstrip(".")
