"""Every benchmark runs and stands in the table of its page; the page has the kept numbers."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
RUNNER = "run.py"
SCRIPTS = sorted({path.name for path in FOLDER.glob("[a-z]*.py")} - {RUNNER})
SLOW = {
    "admissions.py",
    "agents.py",
    "compression.py",
    "confidentiality.py",
    "long_run.py",
    "mean.py",
    "memory.py",
    "renewals.py",
    "robust.py",
    "round_overhead.py",
    "scale.py",
    "simulators.py",
    "tpm.py",
}
"""Those that start processes, train, or import torch."""

OPTIONAL = {"confidentiality.py", "gpu.py", "simulators.py"}
"""Those that measure nothing where a device or a data set is missing, and state so."""


class Modules:
    """The modules of ``benchmarks/``, which is no package."""

    report: Any
    page: Any
    run: Any


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Modules:
    monkeypatch.syspath_prepend(FOLDER)
    modules = Modules()
    modules.report = importlib.import_module("_report")
    modules.page = importlib.import_module("_page")
    modules.run = importlib.import_module("run")
    return modules


def row(report: Any, **changes: Any) -> dict[str, Any]:
    found = report.measured(
        "a sum",
        unit="s",
        ours=[2.0, 1.0, 3.0],
        peers={"another": [8.0, 9.0, 7.0]},
        floor={"memcpy": 0.5},
        target=[report.at_most(2.5), report.at_most(0.3, "another")],
        how="three times",
    )
    return {**found.to_json(), **changes}


@pytest.mark.parametrize("name", [*SCRIPTS, RUNNER])
def test_a_benchmark_is_listed(name: str) -> None:
    assert f"| `{name}` |" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name in SLOW else []) for name in SCRIPTS],
)
def test_a_benchmark_gives_rows(bench: Modules, name: str) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / name, "--quick", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = [
        bench.report.Row.from_json(each)
        for each in json.loads(done.stdout.splitlines()[-1])["rows"]
    ]
    assert rows or name in OPTIONAL, done.stderr
    assert len({each.row for each in rows}) == len(rows)


def test_the_page_has_the_kept_numbers(bench: Modules) -> None:
    document = bench.page.read()
    assert set(document["scripts"]) <= set(SCRIPTS)
    assert bench.page.PAGE.read_text(encoding="utf-8") == bench.page.render(document)


def test_a_row_is_rendered_with_its_ratios_and_its_verdict(bench: Modules) -> None:
    section = {"title": "Sums", "date": "2026-01-02", "commit": "0123abc", "seconds": 4.2}
    document = {"machine": {}, "scripts": {"sums.py": {**section, "rows": [row(bench.report)]}}}
    page = bench.page.render(document)
    assert (
        "| a sum | 2 s (1 to 3) | another: 8 s (7 to 9) | memcpy: 0.5 s | 0.25 | 4 "
        "| ≤ 2.5 s; ≤ 0.3 of another | yes |"
    ) in page
    assert "Of 1 measures, 1 have a target; 1 meet it." in page
    missed = {**section, "rows": [row(bench.report, target=[bench.report.at_most(1.5)])]}
    assert "| **no** |" in bench.page.render({"machine": {}, "scripts": {"sums.py": missed}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ours": "fast"}, "not a number"),
        ({"ours": float("nan")}, "not a number"),
        ({"ours": 9.0}, "is not in"),
        ({"target": [{"at_most": 1.0, "of": "nobody"}]}, "names none of"),
        ({"target": [{"of": "another"}]}, "at_most or at_least"),
        ({"how": ""}, "must state"),
        ({"more": 1}, "a row has"),
    ],
)
def test_a_row_of_another_form_is_refused(
    bench: Modules, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bench.report.Row.from_json(row(bench.report, **changes))


def test_a_script_that_fails_is_named(
    bench: Modules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("print('{\"rows\": []}')\nraise SystemExit(3)\n")
    (tmp_path / "silent.py").write_text("")
    monkeypatch.setattr(bench.run, "FOLDER", tmp_path)
    with pytest.raises(bench.run.Failed, match="status 3"):
        bench.run.rows_of("broken.py", quick=True)
    with pytest.raises(bench.run.Failed, match="no rows"):
        bench.run.rows_of("silent.py", quick=True)
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(bench.run, "_BOUND", 0.5)
    with pytest.raises(bench.run.Failed, match="did not end within"):
        bench.run.rows_of("endless.py", quick=True)
