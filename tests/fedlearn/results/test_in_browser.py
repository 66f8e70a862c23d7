"""The pages in a real browser, wide and narrow, light and dark: they fit, and can be read.

Chromium and axe-core come with ``make test`` (tools/install-system-packages.sh, tools/get-axe.sh).
Where they are missing the tests are skipped, but in CI (FEDLEARN_BROWSER=required) they fail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest

from fedlearn.demo.page import page as demo_page
from fedlearn.results.compare import compare
from fedlearn.results.history import RunHistory
from fedlearn.results.report import ReportFacts, report_page
from tests.fedlearn.demo.test_report import make_outcome
from tests.fedlearn.results.browser import Browser, browser_program, open_browser
from tests.fedlearn.results.busy_run import busy_run

AXE = Path(__file__).parents[3] / ".cache/axe/node_modules/axe-core/axe.min.js"
LEAST_PIXELS = 11

SMALL = """
(() => {
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const box = element.getBoundingClientRect();
    if (!text || box.width === 0 || box.width < 2 || element.tagName === "TITLE"
        || element.tagName === "DESC") continue;
    let size = parseFloat(getComputedStyle(element).fontSize);
    const svg = element.closest("svg");
    if (svg) size *= svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    if (size < LEAST) found.push([element.tagName, element.textContent.slice(0, 30), size]);
  }
  return found;
})()
""".replace("LEAST", str(LEAST_PIXELS))

OUTSIDE = """
[...document.querySelectorAll("svg text")].flatMap(text => {
  const svg = text.closest("svg").getBoundingClientRect(), box = text.getBoundingClientRect();
  return box.width && (box.left < svg.left - 1 || box.right > svg.right + 1)
    ? [[text.textContent, box.left - svg.left, box.right - svg.right]] : [];
})
"""

FAULTS = """
axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
  .then(found => found.violations.map(
    fault => [fault.id, fault.nodes.slice(0, 3).map(node => node.html.slice(0, 120))]))
"""


def missing(what: str) -> NoReturn:
    if os.environ.get("FEDLEARN_BROWSER") == "required":
        pytest.fail(f"{what} is not installed, and FEDLEARN_BROWSER=required")
    pytest.skip(f"{what} is not installed: tools/install-system-packages.sh, tools/get-axe.sh")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    one, other = RunHistory.of(busy_run("heart")), RunHistory.of(busy_run("heart-2", lift=0.02))
    facts = ReportFacts(
        metric="accuracy", source="coordinator.example:9444", about=[("Policy", "7f" * 32)]
    )
    texts = {
        "job": report_page(one, facts),
        "demo": demo_page(make_outcome()),
        "compare": compare([("heart", one), ("heart-2", other)]).page(),
    }
    written = {name: folder / f"{name}.html" for name in texts}
    for name, text in texts.items():
        written[name].write_text(text, encoding="utf-8")
    return written


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not browser_program():
        missing("a browser")
    with open_browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["job", "demo", "compare"])
def test_a_page_fits_and_can_be_read(
    browser: Browser,
    pages: dict[str, Path],
    name: str,
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    if not AXE.is_file():
        missing("axe-core")
    browser.load(pages[name], width=width, scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run(SMALL) == []
    assert browser.run(OUTSIDE) == []
    browser.run(AXE.read_text(encoding="utf-8") + "; true")
    faults: list[Any] = browser.run(FAULTS)
    assert faults == []


def test_a_page_that_does_not_fit_is_found(browser: Browser, tmp_path: Path) -> None:
    """The checks find what they look for: a wide table, small text, and pale text."""
    if not AXE.is_file():
        missing("axe-core")
    file = tmp_path / "bad.html"
    file.write_text(
        "<!DOCTYPE html><html lang=en><title>bad</title><body style='background:#fff'><main>"
        "<h1>Bad</h1><div style='width:900px;font-size:9px'>small</div>"
        "<p style='color:#bbb'>pale</p><svg viewBox='0 0 800 10' width=400 role=img "
        "aria-label=x><text x=790 y=9 style='font-size:13px'>outside</text></svg></main>"
    )
    browser.load(file, width=400, scheme="light")
    assert browser.run("document.documentElement.scrollWidth") > 400
    assert [row[1] for row in browser.run(SMALL)] == ["small", "outside"]
    assert [row[0] for row in browser.run(OUTSIDE)] == ["outside"]
    browser.run(AXE.read_text(encoding="utf-8") + "; true")
    assert "color-contrast" in [row[0] for row in browser.run(FAULTS)]


def test_a_page_fetches_nothing(browser: Browser, pages: dict[str, Path]) -> None:
    for path in pages.values():
        browser.load(path, width=1280, scheme="light")
        fetched = browser.run("performance.getEntriesByType('resource').map(each => each.name)")
        assert fetched == []
