"""Every benchmark takes `--json` and stands in the table of its page, as that page states."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_takes_json_and_is_listed(name: str) -> None:
    source = (FOLDER / name).read_text()
    own = 'add_argument("--json"' in source and "json.dumps(" in source
    shared = "options(__doc__)" in source and "show(" in source  # of _report.py
    assert own or shared
    assert f"| `{name}` |" in (FOLDER / "README.md").read_text()
