"""Parts of a page as HTML: tables, sections, tags. A page loads nothing from the network.

A text is escaped wherever it stands, unless it is :class:`Html`, which only this module and
:mod:`fedlearn.results.charts` make. So names, reasons and findings of sites cannot be markup. The
policy of a page (``Content-Security-Policy``) lets a browser load nothing but the style in it.
"""

from __future__ import annotations

import base64
import importlib.resources
import math
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, TypeAlias

from fedlearn.terminal.plaintext import printable

__all__ = [
    "NOT_KNOWN",
    "Cell",
    "Head",
    "Html",
    "banner",
    "code",
    "counted",
    "definitions",
    "details",
    "document",
    "footer",
    "header",
    "image",
    "items",
    "joined",
    "note",
    "number_text",
    "paragraph",
    "preformatted",
    "section",
    "shortened",
    "side_by_side",
    "table",
    "tag",
    "tiles",
]

NOT_KNOWN: Final = "n/a"
"""A cell without a value. A column of such cells is left out."""

_MOST_ROWS: Final = 500
_MOST_TEXT: Final = 2000
_DIGEST: Final = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{16,}([0-9a-f]{4})\b")


class Html(str):
    """Markup, as it is."""

    __slots__ = ()


Content: TypeAlias = str | Html


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a column; numbers are aligned to the right."""

    name: str
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table; ``style`` is ``gain`` or ``loss`` for a coloured one."""

    content: Content
    style: str = ""


def document(title: str, *parts: Html) -> str:
    """Return the whole page."""
    frame = importlib.resources.files("fedlearn.results").joinpath("frame.html").read_text()
    body = "\n".join(part for part in parts if part)
    return string.Template(frame).substitute(title=markup(title), body=body)


def markup(content: Content) -> Html:
    """Return ``content`` as markup; a text is escaped, on one line, and cut at 2000 characters."""
    if isinstance(content, Html):
        return content
    text = content if len(content) <= _MOST_TEXT else content[: _MOST_TEXT - 1] + "…"
    return Html(escape(printable(text)))


def joined(*parts: Content) -> Html:
    """Return parts one after the other."""
    return Html("".join(map(markup, parts)))


def header(title: Content, lead: Content) -> Html:
    """Return the title of a page and a sentence below it."""
    return Html(
        "<header><p class='kicker'>Federated confidential learning</p>"
        f"<h1>{markup(title)}</h1><p class='lead'>{markup(lead)}</p></header>"
    )


def image(png: bytes, description: str, caption: Content = "") -> Html:
    """Return a PNG image within the page, with a description for screen readers."""
    data = base64.b64encode(png).decode()
    below = f"<figcaption>{markup(caption)}</figcaption>" if caption else ""
    return Html(
        f"<figure><img alt='{markup(description)}' src='data:image/png;base64,{data}'>"
        f"{below}</figure>"
    )


def footer(text: Content) -> Html:
    """Return the last line of a page."""
    return Html(f"<footer>{markup(text)}</footer>")


def section(title: Content, *parts: Content, style: str = "") -> Html:
    """Return a section with a heading; empty when it has no parts."""
    if not any(parts):
        return Html()
    opening = f'<section class="{style}">' if style else "<section>"
    return Html(f"{opening}<h2>{markup(title)}</h2>{joined(*parts)}</section>")


def paragraph(*parts: Content) -> Html:
    """Return a paragraph."""
    return Html(f"<p>{joined(*parts)}</p>")


def note(*parts: Content) -> Html:
    """Return a paragraph in small print."""
    return Html(f"<p class='note'>{joined(*parts)}</p>")


def banner(title: Content, *parts: Content) -> Html:
    """Return a warning for the top of a page."""
    return Html(
        f"<div class='banner' role='note'><strong>{markup(title)}</strong> {joined(*parts)}</div>"
    )


def items(texts: Iterable[Content]) -> Html:
    """Return a list."""
    return Html("<ul>" + "".join(f"<li>{markup(text)}</li>" for text in texts) + "</ul>")


def code(text: str) -> Html:
    """Return a text in a fixed-width font."""
    return Html(f"<code>{markup(text)}</code>")


def tag(text: str, kind: str) -> Html:
    """Return a short text in a frame; ``kind`` is ``good``, ``warn`` or ``bad``."""
    return Html(f"<span class='tag {kind}'>{markup(text)}</span>")


def details(summary: str, *parts: Content) -> Html:
    """Return what is shown on demand."""
    return Html(f"<details><summary>{markup(summary)}</summary>{joined(*parts)}</details>")


def preformatted(text: str) -> Html:
    """Return a text in a fixed-width font, in a box of its own."""
    return Html(f"<pre>{markup(text)}</pre>")


def side_by_side(*sections: Html) -> Html:
    """Return sections that stand beside each other where the page is wide."""
    return Html("<div class='pair'>" + "".join(sections) + "</div>")


def definitions(pairs: Iterable[tuple[str, Content]]) -> Html:
    """Return names with what they stand for; those without a text are left out."""
    rows = "".join(
        f"<dt>{markup(name)}</dt><dd>{markup(content)}</dd>" for name, content in pairs if content
    )
    return Html(f"<dl>{rows}</dl>") if rows else Html()


def tiles(values: Iterable[tuple[str, str]]) -> Html:
    """Return numbers in large print, each with what it is; the first stands out."""
    return Html(
        "<div class='tiles'>"
        + "".join(
            f"<div class='tile{'' if index else ' first'}'><span class='value'>{markup(value)}"
            f"</span><span class='what'>{markup(what)}</span></div>"
            for index, (value, what) in enumerate(values)
        )
        + "</div>"
    )


def table(
    heads: Sequence[Head],
    rows: Sequence[Sequence[Cell | Content]],
    *,
    caption: str = "",
    cards: bool = False,
) -> Html:
    """Return a table whose first column names its rows.

    Columns without any value are left out. Of more than 500 rows the last ones are shown, and the
    caption states how many are left out.

    :param cards: on a narrow page each row is a card, for tables that do not fit there.
    """
    left_out = max(0, len(rows) - _MOST_ROWS)
    cells = [
        [cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows[left_out:]
    ]
    kept = [
        index
        for index in range(len(heads))
        if index == 0 or any(row[index].content != NOT_KNOWN for row in cells)
    ]
    texts = [caption] if caption else []
    if left_out:
        texts.append(f"The first {left_out} of {len(rows)} rows are left out.")
    top = "".join(
        f"<th scope='col' role='columnheader'{' class=n' if heads[i].numeric else ''}>"
        f"{markup(heads[i].name)}</th>"
        for i in kept
    )
    body = "".join(f"<tr role='row'>{_row(heads, row, kept)}</tr>" for row in cells)
    heading = f"<caption>{markup(' '.join(texts))}</caption>" if texts else ""
    style = " class='cards'" if cards else ""
    return Html(
        f"<table role='table'{style}>{heading}<thead role='rowgroup'><tr role='row'>{top}</tr>"
        f"</thead><tbody role='rowgroup'>{body}</tbody></table>"
    )


def shortened(text: str) -> str:
    """Return a text with its digests shortened, for a sentence.

    >>> shortened("app is " + "c1d0" * 16)
    'app is c1d0c1d0…c1d0'
    """
    return _DIGEST.sub(r"\1…\2", text)


def counted(number: int, what: str) -> str:
    """Return a number with what it counts.

    >>> counted(1, "site"), counted(1200, "round")
    ('1 site', '1,200 rounds')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def number_text(value: float | None) -> str:
    """Return a metric with three decimals, or four digits where it is large or small."""
    if value is None or not math.isfinite(value):
        return NOT_KNOWN
    if value == 0 or 0.01 <= abs(value) < 10_000:
        return f"{value:.3f}"
    return f"{value:.4g}"


def _row(heads: Sequence[Head], row: Sequence[Cell], kept: Sequence[int]) -> str:
    parts = []
    for index in kept:
        head, cell = heads[index], row[index]
        unknown = "none" if cell.content == NOT_KNOWN else ""
        style = " ".join(filter(None, ("n" if head.numeric else "", cell.style, unknown)))
        shown = f' class="{style}"' if style else ""
        if index == 0:
            parts.append(f"<th scope='row' role='rowheader'{shown}>{markup(cell.content)}</th>")
        else:
            label = escape(printable(head.name))
            parts.append(f'<td role="cell" data-label="{label}"{shown}>{markup(cell.content)}</td>')
    return "".join(parts)
