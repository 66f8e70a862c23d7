"""Every benchmark takes `--json` and stands in the table of its page, as that page states."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("[a-z]*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_takes_json_and_is_listed(name: str) -> None:
    source = (FOLDER / name).read_text()
    assert 'add_argument("--json"' in source
    assert "json.dumps(" in source
    assert f"| `{name}` |" in (FOLDER / "README.md").read_text()
