"""Every page of the documentation names the module that it is about, which names the page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = "docs/adr/0000-template.md"
PAGES = sorted(
    name
    for path in (ROOT / "docs").rglob("*.md")
    if (name := path.relative_to(ROOT).as_posix()) != TEMPLATE
)
PACKAGES = ("attestation", "edge", "fedlearn", "server")
OWNER = re.compile(r"\A---\nowner: ([\w.]+)\n---\n")


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


@pytest.mark.parametrize("page", PAGES)
def test_a_page_and_its_module_name_each_other(page: str) -> None:
    owner = OWNER.match((ROOT / page).read_text(encoding="utf-8"))
    assert owner, f"{page} begins with no lines '---', 'owner: MODULE', '---'"
    file = ROOT.joinpath(*owner[1].split("."))
    module = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    assert page in docstring(module), f"the docstring of {owner[1]} does not name {page}"


def test_every_page_that_a_docstring_names_is_there() -> None:
    named = {
        page
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for page in re.findall(r"docs/[\w/.-]+\.md", docstring(path))
    }
    assert named
    assert sorted(named - set(PAGES)) == []
