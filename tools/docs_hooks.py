"""What MkDocs calls while it builds the site; ``mkdocs.yml`` names this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import docs_reference


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


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what a page takes from the code."""
    return docs_reference.fill(markdown)
