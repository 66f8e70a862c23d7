"""What the page about strategies tells a stranger to write is written, and works."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.harness.worked_example import PAGES, branch_of, changes, differing, run

PAGE = "add-a-strategy.md"
TESTS = "tests/server/flower/aggregation"


@pytest.fixture(scope="module")
def branch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("branch")
    branch_of(PAGE, root)
    return root


def test_only_listed_files_are_touched(branch: Path) -> None:
    page = (PAGES / PAGE).read_text()
    table = page[page.index("| file |") : page.index("## ")]
    listed = {name.replace("NAME", "lion") for name in re.findall(r"^\| `([^`]+)`", table, re.M)}
    touched = differing(branch)
    assert touched
    assert touched <= listed


def test_the_strategy_passes_its_tests_and_those_of_every_strategy(branch: Path) -> None:
    options = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "lion")
    reported = run(branch, *options, f"{TESTS}/test_lion.py", f"{TESTS}/test_builtin.py")
    passed = re.search(r"(\d+) passed", reported)
    assert passed, reported
    assert int(passed[1]) >= 7


def test_a_job_may_name_it_and_its_options_are_typed(branch: Path) -> None:
    code = (
        "from fedlearn.job.spec import JobSpec; from fedlearn.errors import ConfigError\n"
        'job = \'name = "a"\\napp = "a"\\nrounds = 1\\nsites = ["s"]\\npolicy = "p"\\n\'\n'
        'job += f\'policy_digest = "{bytes(32).hex()}"\\n[strategy]\\nname = "fedlion"\\n\'\n'
        "print(JobSpec.from_toml(job).strategy.name)\n"
        "try: JobSpec.from_toml(job + 'options = { eta = 0 }')\n"
        "except ConfigError as error: print(error)\n"
    )
    taken, refused = run(branch, "-c", code).splitlines()
    assert taken == "fedlion"
    assert "eta" in refused


def test_it_is_written_as_the_checks_want_it(branch: Path) -> None:
    new = [change.path for change in changes(PAGE)]
    run(branch, "-m", "ruff", "check", "--no-cache", *new)
    run(branch, "-m", "ruff", "format", "--no-cache", "--check", *new)


@pytest.mark.long
def test_its_types_and_imports_are_right(branch: Path) -> None:
    new = sorted({change.path for change in changes(PAGE)})
    run(branch, "-m", "mypy", "--cache-dir", os.devnull, *new)
    run(branch, "-c", "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])")
