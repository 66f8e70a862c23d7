"""A report has what the results allow, states what it lacks, and escapes every text."""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest

from fedlearn.errors import ConfigError
from fedlearn.experiment.cells import grid_cells
from fedlearn.experiment.experiment import Experiment
from fedlearn.experiment.report import Report, make_report
from fedlearn.experiment.spec import ExperimentSpec
from fedlearn.experiment.statistics import arms
from fedlearn.experiment.text_tables import TextTable, comparison_tables
from tests.fedlearn.experiment.conftest import HEAD as CONFTEST_HEAD
from tests.fedlearn.experiment.synthetic_cell import result

HEAD = """
name = "e"
job = "job.toml"
setup = "simulation.toml"
metric = "accuracy"
seeds = [1, 2, 3]
"""
NO_THREADS = """\
import os, sys
from pathlib import Path
from fedlearn.experiment.parquet import damaged_files
import pyarrow.parquet
before = len(os.listdir("/proc/self/task"))
assert damaged_files(Path(sys.argv[1])) == []
print(len(os.listdir("/proc/self/task")) - before)
"""
METHODS = """
[[grid]]
name = "method"
[[grid.points]]
label = "FedAvg"
set = { "config.rate" = 0.1 }
[[grid.points]]
label = "<b>Fed & Co_1"
set = { "config.rate" = 0.9 }
"""


@functools.cache
def reported(text: str, *, sparse: bool = False, head: str = HEAD) -> Report:
    spec = ExperimentSpec.from_toml(head + text)
    return make_report(spec, [result(cell, sparse=sparse) for cell in grid_cells(spec)])


def compared(text: str) -> TextTable:
    spec = ExperimentSpec.from_toml(HEAD + text)
    (table, _) = comparison_tables(spec, arms([result(cell) for cell in grid_cells(spec)]))
    return table


def names(report: Report) -> list[str]:
    return [figure.name for figure in report.figures.drawn]


def test_curves_and_fairness_and_what_is_left_out() -> None:
    report = reported(METHODS)
    assert names(report) == [
        "accuracy-by-round",
        "accuracy-by-bytes",
        "accuracy-by-virtual-time",
        "accuracy-over-clients",
    ]
    assert report.missing == (
        "accuracy against epsilon: fewer than two arms spent different privacy budgets",
        "accuracy against the attackers' share: no axis varies the share of attackers (a key such "
        "as hook.share)",
    )
    for figure in report.figures.drawn:
        assert figure.png.startswith(b"\x89PNG")
        assert figure.pdf.startswith(b"%PDF")


def test_each_panel_has_the_arms_that_differ_in_the_compared_axis() -> None:
    second = '[[grid]]\nname = "alpha"\nzip = { "simulation.data.alpha" = [0.1, 1.0] }\n'
    report = reported(METHODS + second, sparse=True)
    assert names(report) == ["accuracy-by-round-0-1", "accuracy-by-round-1"]
    (table,) = [each for each in report.tables if each.name == "comparisons-last"]
    assert [row[:2] for row in table.rows] == [
        ("FedAvg/0.1", "<b>Fed & Co_1/0.1"),
        ("FedAvg/1", "<b>Fed & Co_1/1"),
    ]


def test_privacy_against_utility() -> None:
    grid = '[[grid]]\nname = "epsilon"\nzip = { "privacy.epsilon" = [1.0, 3.0, 8.0] }\n'
    report = reported(grid, sparse=True)
    assert names(report) == ["accuracy-by-round", "accuracy-against-epsilon"]
    table = report.tables[0]
    assert [row[table.head.index("epsilon spent")] for row in table.rows[:3]] == [
        "1.000",
        "3.000",
        "8.000",
    ]


def test_robustness_against_the_attackers_share() -> None:
    shares = '[[grid]]\nname = "attackers"\nzip = { "hook.share" = [0.0, 0.2, 0.4] }\n'
    head = HEAD.replace('metric = "', 'hooks = "attack.py:make"\nmetric = "')
    report = reported(shares, sparse=True, head=head)
    assert names(report) == ["accuracy-by-round", "accuracy-against-attackers"]


def test_without_the_values_nothing_is_drawn() -> None:
    spec = ExperimentSpec.from_toml(HEAD + METHODS)
    bare = [dataclasses.replace(result(c), rounds=(), clients={}) for c in grid_cells(spec)]
    report = make_report(spec, bare, missing=["x/seed-1"], faults=["results/a: was cut short"])
    assert names(report) == []
    assert "accuracy: no round of FedAvg/seed-1" in report.missing[0]
    assert "1 cell without a result: x/seed-1" in report.missing
    assert "accuracy by round: no round has a value of it" in report.missing
    assert "distribution of accuracy over clients: the clients did not report it" in "".join(
        report.missing
    )
    assert "results/a: was cut short" in report.page


def test_more_arms_than_can_be_distinguished_are_not_drawn_over_each_other() -> None:
    values = ", ".join(f"0.{i}" for i in range(1, 10))
    report = reported(
        f'[[grid]]\nname = "r"\nzip = {{ "config.rate" = [{values}] }}\n', sparse=True
    )
    assert names(report) == []
    assert "9 arms; at most 8 lines" in report.missing[0]


def test_the_page_loads_nothing_and_escapes_every_text() -> None:
    page = reported(METHODS).page
    assert "default-src 'none'" in page
    assert "<b>Fed" not in page
    assert "&lt;b&gt;Fed &amp; Co_1" in page
    assert "<script" not in page
    assert set(re.findall(r"src='([^;]*);", page)) == {"data:image/png"}
    assert "attestation, TLS and sealing were left out" in page
    body = page[page.index("<body") : page.index("</body>")]
    assert not re.findall(r"https?://", body)


def test_versions_that_are_mixed_are_reported() -> None:
    spec = ExperimentSpec.from_toml(HEAD + METHODS)
    results = [result(cell) for cell in grid_cells(spec)]
    results = [dataclasses.replace(each, rounds=(), clients={}) for each in results]
    results[0] = dataclasses.replace(results[0], content={"versions": {"torch": "1"}})
    report = make_report(spec, results)
    assert any("computed by 2 versions of torch" in text for text in report.missing)


def test_tables_as_markdown_csv_and_latex() -> None:
    report = reported(METHODS)
    table = report.tables[0]
    assert "| \\<b\\>Fed & Co\\_1 |" in table.markdown()
    assert r"Fed \& Co\_1" in table.latex()
    assert r"$\pm$" in table.latex()
    assert table.latex().count(r"\\") == len(table.rows) + 1
    lines = table.csv().split("\r\n")
    assert lines[0].startswith("method,seeds,")
    assert len(lines) == len(table.rows) + 2
    assert re.search(r"FedAvg,3,\d\d\.\d\d ± \d\.\d\d", lines[1])


def test_a_baseline_is_compared_with_each_other_arm() -> None:
    grid = '[[grid]]\nname = "r"\nzip = { "config.rate" = [0.1, 0.2, 0.3] }\n'
    table = compared(f'{grid}[report]\nbaseline = "0.2"\n')
    assert [row[:2] for row in table.rows] == [("0.1", "0.2"), ("0.3", "0.2")]
    assert "Holm" in table.note


def test_the_same_results_make_the_same_bytes() -> None:
    grid = '[[grid]]\nname = "r"\nzip = { "config.rate" = [0.1] }\n'
    assert reported(grid, sparse=True) == reported.__wrapped__(grid, sparse=True)


def test_files_of_a_run(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    one = experiment(head=CONFTEST_HEAD.replace("[1, 2, 3]", "[1]"))
    with pytest.raises(ConfigError, match="no cell has a result"):
        one.report()
    one.run(jobs=2)
    one.report(tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "report.html",
        "summary.md",
        "summary.csv",
        "summary.tex",
        "comparisons-last.md",
    } < files
    assert {"accuracy-by-round.png", "accuracy-by-round.pdf"} < files
    rounds = pyarrow.parquet.read_table(one.store.folder / "rounds.parquet").to_pylist()
    assert len(rounds) == 2 * 3
    assert rounds[0]["bytes_up"] == 500
    cells = pyarrow.parquet.read_table(one.store.folder / "cells.parquet").to_pylist()
    assert {len(cell["code_sha256"]) for cell in cells} == {64}
    assert {cell["axis.rate"] for cell in cells} == {"0.1", "0.9"}
    clients = pyarrow.parquet.read_table(one.store.folder / "clients.parquet").to_pylist()
    assert len(clients) == 2 * 4
    # A thread that Arrow is just starting when the program ends aborts the process.
    command = [sys.executable, "-c", NO_THREADS, str(one.store.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
