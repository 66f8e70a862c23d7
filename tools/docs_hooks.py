"""Hooks that MkDocs calls while it builds the site; ``mkdocs.yml`` names this file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import docs_reference
from mkdocs.exceptions import PluginError

_DIAGRAM: Final = re.compile(r"^!\[[^]]*\]\((?:\.\./)*(assets/[a-z]+\.svg)\)$", re.MULTILINE)

_FOREIGN: Final = re.compile(
    r"""<(?:script|img|iframe)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'> ]*"""
    r"""|<link\b(?=[^>]*\brel=["']?stylesheet)[^>]*\bhref=["']?(?:https?:)?//[^"'> ]*"""
    r"""|class=["']?mermaid\b"""
)
"""References that a browser would fetch from another host. Material loads Mermaid from one."""

_PLAIN_FENCE: Final = re.compile(r"<p>((?:```|~~~)[^\n<]*)")
"""A fence that MkDocs treated as text, as it does when it cannot read its options."""


def on_config(config: Any) -> Any:
    """List every decision below "Decisions", in the order of their numbers."""
    folder = Path(config["docs_dir"])
    decisions = sorted(folder.glob("adr/[0-9]*.md"))
    pages = ["adr/README.md", *(path.relative_to(folder).as_posix() for path in decisions)]
    for section in config["nav"]:
        for entry in section.get("Explanation", []):
            if isinstance(entry, dict) and "Decisions" in entry:
                entry["Decisions"] = pages
    return config


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Insert the generated parts of a page, and its diagrams.

    A diagram is inserted as SVG elements, so that it has the colours that the reader chose.
    """
    folder = Path(config["docs_dir"])

    def drawn(match: re.Match[str]) -> str:
        image = (folder / match[1]).read_text(encoding="utf-8")
        return f'<figure class="diagram">\n{image}</figure>'

    return _DIAGRAM.sub(drawn, docs_reference.fill(markdown))


def on_post_page(output: str, page: Any, **_: Any) -> None:
    """Refuse a page that a browser could not show without a network, or with code as prose."""
    if found := _FOREIGN.search(output):
        raise PluginError(f"{page.file.src_uri}: {found[0]!r} needs another host")
    if found := _PLAIN_FENCE.search(output):
        raise PluginError(f"{page.file.src_uri}: {found[1]!r} does not begin a block of code")
