"""Docstrings as Markdown, for the pages about the Python API; ``mkdocs.yml`` names this file.

Docstrings of the sources are reStructuredText of a few forms. A field list (``:raises ...:``) is
read by mkdocstrings; this extension rewrites the rest: roles, literals, blocks after ``::``,
examples, and lists of names such as ``name``  what it means.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import griffe

__all__ = ["Docstrings", "inline", "markdown"]

_ENTRY: Final = re.compile(r"^((?:``[\w., -]+``(?:, )?)+)(?:  +(.*))?$")
"""A line of a list of names: one or several literals, two spaces, and their meaning."""

_PAGES: Final = re.compile(r"\n\nThe (?:page is|pages are) docs/[^\0]*\Z")
"""The sentence of a module that names its pages, which readers of the page do not need."""

_ROLE: Final = re.compile(r":\w+:`[~!.]*([^`]+)`")


class Docstrings(griffe.Extension):
    """Rewrites every docstring before mkdocstrings reads it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Return a docstring as Markdown; its fields stay as they are."""
    return "\n".join(_lines(_PAGES.sub("", text).splitlines()))


def _lines(lines: list[str]) -> Iterator[str]:
    example = listed = False
    for number, line in enumerate(lines):
        indented = line.startswith(" ")
        if example:
            if not line.strip():
                example = False
                yield from ("```", "")
            else:
                yield re.sub(r" +# doctest:.*$", "", line)
            continue
        if line.startswith(">>> "):
            example = True
            yield from ("```pycon", line)
            continue
        entry = _ENTRY.match(line)
        if entry:
            if not listed and number:
                yield ""
            listed = True
            yield f"- {inline(entry[1])}: {inline(entry[2] or '')}".rstrip()
        elif listed and indented:
            yield f"    {inline(line.strip())}"
        elif indented:
            yield line  # a literal block
        else:
            listed = listed and not line.strip()
            plain = inline(line)
            yield "" if plain == "::" else re.sub(r"::$", ":", plain)
    if example:
        yield "```"


def inline(text: str) -> str:
    """Return one line of reStructuredText as Markdown."""
    return _ROLE.sub(r"`\1`", text).replace("``", "`")
