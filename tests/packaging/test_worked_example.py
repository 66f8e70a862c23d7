"""What the pages for contributors tell a stranger to write is written, and works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs/contributing"
BLOCK = re.compile(r'^```(python|diff) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TREE = ("attestation", "edge", "fedlearn", "server", "tests", "tools", "helm")


@dataclass(frozen=True)
class Change:
    """One block of a page: a new file, or lines that are added to one."""

    language: str
    path: str
    text: str

    def apply(self, root: Path) -> None:
        """Do what a reader does with it."""
        target = root / self.path
        if self.language == "python":
            assert not target.exists(), f"{self.path} is new and already there"
            target.write_text(self.text)
            return
        lines = self.text.splitlines()
        assert all(line[:1] in (" ", "+", "") for line in lines), "a diff that takes lines away"
        before = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
        after = "".join(f"{line[1:]}\n" for line in lines)
        found = target.read_text()
        assert found.count(before) == 1, f"{self.path} has these lines {found.count(before)} times"
        target.write_text(found.replace(before, after))


def changes(page: str) -> Iterator[Change]:
    """Yield the files that a page tells its reader to write."""
    for language, path, text in BLOCK.findall((PAGES / page).read_text()):
        yield Change(language, path, text)


@pytest.fixture(scope="module")
def branch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the files of the page about attesters, and nothing else."""
    root = tmp_path_factory.mktemp("branch")
    for name in TREE:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    for change in changes("add-an-attester.md"):
        change.apply(root)
    for script in COMMAND.findall((PAGES / "add-an-attester.md").read_text()):
        for line in script.splitlines():
            assert line.startswith("python ")
            run(root, *line.split()[1:])
    return root


def run(root: Path, *words: str) -> str:
    """Run Python in the copy, with the copy's packages, and return its output."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def differing(branch: Path) -> set[str]:
    """Return the files in which the copy differs from the tree."""
    return {
        path.relative_to(branch).as_posix()
        for name in TREE
        for path in (branch / name).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not (
            (ROOT / path.relative_to(branch)).is_file()
            and (ROOT / path.relative_to(branch)).read_bytes() == path.read_bytes()
        )
    }


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
