"""What a page for contributors tells a stranger to write, written into a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


def branch_of(page: str, root: Path) -> None:
    """Make a copy of the tree with what a page tells its reader to write, and nothing else."""
    for name in TREE:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    for change in changes(page):
        change.apply(root)
    for script in COMMAND.findall((PAGES / page).read_text()):
        for line in script.splitlines():
            assert line.startswith("python ")
            run(root, *line.split()[1:])


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
