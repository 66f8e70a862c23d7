"""What the page about attesters tells a stranger to write is written, and works."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.harness.worked_example import PAGES, branch_of, changes, differing, run


@pytest.fixture(scope="module")
def branch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("branch")
    branch_of("add-an-attester.md", root)
    return root


def test_only_the_listed_files_are_touched(branch: Path) -> None:
    page = (PAGES / "add-an-attester.md").read_text()
    table = page[page.index("| file |") : page.index("## ")]
    listed = [
        re.sub("NAME", "report_box", name)
        for name in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)
    ]
    patterns = [re.compile(re.escape(name).replace(r"\*", "[^/]+")) for name in listed]
    touched = differing(branch)
    assert touched
    for name in touched:
        assert any(pattern.fullmatch(name) for pattern in patterns), f"{name} is not listed"
    for pattern in patterns:
        assert any(pattern.fullmatch(name) for name in touched), f"{pattern.pattern} is idle"


def test_the_attester_passes_the_tests_that_the_page_names(branch: Path) -> None:
    reported = run(
        branch,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/attestation/attesters/test_report_box.py",
        "tests/conformance/test_attesters.py",
        "-k",
        "report_box or report-box",
    )
    passed = re.search(r"(\d+) passed", reported)
    assert passed, reported
    assert int(passed[1]) >= 20
    assert "skipped" not in reported


def test_the_command_line_and_the_charts_know_it(branch: Path) -> None:
    code = "from fedlearn.cli import main; main(['evidence', 'collect', '--help'])"
    assert "report-box" in run(branch, "-c", code)
    run(branch, "tools/chart_schema.py", "--check")
    assert "report-box" in (branch / "helm/fedlearn-edge/values.schema.json").read_text()


def test_it_is_written_as_the_checks_want_it(branch: Path) -> None:
    new = [change.path for change in changes("add-an-attester.md")]
    run(branch, "-m", "ruff", "check", "--no-cache", *new)
    run(branch, "-m", "ruff", "format", "--no-cache", "--check", *new)


@pytest.mark.long
def test_its_types_and_imports_are_right(branch: Path) -> None:
    new = [change.path for change in changes("add-an-attester.md")]
    run(branch, "-m", "mypy", "--cache-dir", os.devnull, *sorted(set(new)))
    run(branch, "-c", "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])")
