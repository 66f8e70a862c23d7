"""What is done to pages while the site is built, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docs_hooks
import pytest
from mkdocs.exceptions import PluginError

DOCS = Path(__file__).parents[2] / "docs"
DIAGRAMS = sorted((DOCS / "assets").glob("*.svg"))


def test_every_decision_is_in_the_navigation() -> None:
    config: dict[str, Any] = {
        "docs_dir": str(DOCS),
        "nav": [{"Start": ["index.md"]}, {"Explanation": [{"Decisions": ["adr/README.md"]}]}],
    }
    pages = docs_hooks.on_config(config)["nav"][1]["Explanation"][0]["Decisions"]
    assert pages[0] == "adr/README.md"
    assert sorted(pages[1:]) == pages[1:]
    assert {f"adr/{path.name}" for path in (DOCS / "adr").glob("*.md")} == set(pages)


def test_a_diagram_becomes_part_of_its_page(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/a.svg").write_text("<svg></svg>\n")
    page = "before\n\n![what it shows](../assets/a.svg)\n\nafter ![x](../assets/a.svg)\n"
    assert docs_hooks.on_page_markdown(page, config={"docs_dir": str(tmp_path)}) == (
        'before\n\n<figure class="diagram">\n<svg></svg>\n</figure>\n\n'
        "after ![x](../assets/a.svg)\n"
    )


@pytest.mark.parametrize("path", DIAGRAMS, ids=lambda path: path.stem)
def test_a_diagram_can_be_read(path: Path) -> None:
    """Text of 12 px or more at the width at which it is shown, a title, and a dark variant."""
    text = path.read_text(encoding="utf-8")
    sizes = [int(size) for size in re.findall(r"([0-9]+)px (?:system-ui|sans)", text)]
    sizes += [int(size) for size in re.findall(r"font-size: ([0-9]+)px", text)]
    view = re.search(r'viewBox="0 0 ([0-9]+) ', text)
    style = (DOCS / "assets/site.css").read_text(encoding="utf-8")
    least = re.search(r"\.diagram svg \{[^}]*min-width: ([0-9]+)rem", style)
    assert sizes
    assert view
    assert least
    assert min(sizes) * min(int(least[1]) * 20, int(view[1])) / int(view[1]) >= 12
    assert "<title" in text
    assert "<desc" in text
    assert "prefers-color-scheme: dark" in text
    assert "\n\n" not in text, "a blank line would end the block in the page"


@pytest.mark.parametrize(
    "output",
    [
        '<script src="https://unpkg.com/x.js"></script>',
        "<script defer src=//cdn.example/x.js></script>",
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<img alt="a" src="https://example.org/a.png">',
        '<pre class="mermaid"><code>graph</code></pre>',
    ],
)
def test_a_page_that_needs_a_network_is_refused(output: str) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    with pytest.raises(PluginError, match=r"a\.md: .* needs another host"):
        docs_hooks.on_post_page(output, page=page)


def test_code_that_would_be_shown_as_prose_is_refused() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    with pytest.raises(PluginError, match="'```toml job' does not begin a block of code"):
        docs_hooks.on_post_page("<p>```toml job\nname = 1", page=page)


def test_a_link_to_another_host_needs_none() -> None:
    output = (
        '<a href="https://flower.ai">Flower</a><link rel="canonical" href="https://x.example/">'
        '<script src="../assets/x.js"></script><link rel="stylesheet" href="../assets/x.css">'
    )
    docs_hooks.on_post_page(output, page=SimpleNamespace())
