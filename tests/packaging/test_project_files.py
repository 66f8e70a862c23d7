"""What people expect of a project that they join: it is there, and it leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedlearn

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob(".github/**/*.md"), *ROOT.glob("docs/contributing/*.md")]
)
TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def _yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_files_that_people_look_for_are_there() -> None:
    names = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert {
        "CHANGELOG.md",
        "CODE_OF_CONDUCT.md",
        "CONTRIBUTING.md",
        "README.md",
        "SECURITY.md",
        ".github/PULL_REQUEST_TEMPLATE.md",
        "docs/contributing/compatibility.md",
    } <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page.name == "CONTRIBUTING.md" or page.parent.name == "contributing"
    ],
    ids=lambda page: page.name,
)
def test_files_that_a_contributor_is_sent_to_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`([a-z_.]+/[\w./*-]*)`", text):
        if "NAME" not in name and not name.startswith("build/"):
            assert next(ROOT.glob(name.rstrip("/")), None), f"{page.name}: {name}"


def test_names_that_a_contributor_is_sent_to_stand_in_their_files() -> None:
    row = re.compile(r"^\| `([^`]+)` \| (.+) \|$", re.MULTILINE)
    looked = 0
    for page in sorted((ROOT / "docs/contributing").glob("add-*.md")):
        for path, text in row.findall(page.read_text()):
            if not (ROOT / path).is_file():
                continue
            for name in re.findall(r"`([A-Za-z_]+)`", text):
                looked += 1
                assert name in (ROOT / path).read_text(), f"{page.name}: {name} in {path}"
    assert looked >= 8


def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert set(versions[1:]) <= {fedlearn.__version__} | set(versions[2:])
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_ci_runs_what_everybody_can_run() -> None:
    workflow = _yaml(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert {"run": ".ci/run"} in job["steps"]
    assert "secrets." not in (ROOT / ".github/workflows/ci.yml").read_text()
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_hooks_are_targets_of_the_makefile() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (repo,) = _yaml(".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"].split() for hook in repo["hooks"]]
    assert [entry[0] for entry in entries] == ["make"] * 4
    assert {entry[1] for entry in entries} == {"format", "lint", "types", "contracts"} & TARGETS


def test_owners_own_what_exists() -> None:
    for line in (ROOT / ".github/CODEOWNERS").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern, *owners = line.split()
            assert owners
            assert all(owner.startswith("@") for owner in owners)
            assert pattern == "*" or (ROOT / pattern.strip("/")).exists(), pattern


def test_issue_forms_ask_for_what_is_needed() -> None:
    for name in ("bug", "feature"):
        form = _yaml(f".github/ISSUE_TEMPLATE/{name}.yml")
        assert {"name", "description", "body"} <= form.keys()
        identifiers = [field["id"] for field in form["body"]]
        assert len(identifiers) == len(set(identifiers))
        assert any(field["validations"]["required"] for field in form["body"])
    assert "advisories/new" in _yaml(".github/ISSUE_TEMPLATE/config.yml")["contact_links"][0]["url"]


def test_a_decision_starts_from_the_template() -> None:
    text = (ROOT / "docs/adr/0000-template.md").read_text()
    for part in ("Context", "Options considered", "Decision", "What it costs", "How it is tested"):
        assert f"**{part}.**" in text
