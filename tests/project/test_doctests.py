"""The examples in docstrings and pages are true, and every module of the API has one."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("attestation", "edge", "fedlearn", "server")
EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
)
SNIPPETS = [
    (path.stem, code, output)
    for path in sorted((ROOT / "docs").rglob("*.md"))
    for code, output in re.findall(
        r"```python\n((?:(?!```).)*?fedlearn(?:(?!```).)*)```\n\n```text\n(.*?)```",
        path.read_text(encoding="utf-8"),
        re.DOTALL,
    )
]
PAGES = sorted((ROOT / "docs/reference/api").glob("[!i]*.md"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_give_what_they_state(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert found.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_of_the_api_has_an_example(page: Path) -> None:
    modules = re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert modules
    assert set(modules) & set(EXAMPLES)


@pytest.mark.parametrize(("page", "code", "output"), SNIPPETS, ids=lambda value: value[:20])
def test_code_on_a_page_prints_what_stands_below_it(page: str, code: str, output: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec"), {})
    assert printed.getvalue() == output


def test_there_is_code_on_pages() -> None:
    assert {"choose-epsilon-and-clip", "study-privacy", "use-from-python"} <= {
        page for page, _, _ in SNIPPETS
    }
