"""The pages on security name tests and files that are there, and the threat model is complete."""

from __future__ import annotations

import ast
import re
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from server.config import ServerConfig
from server.jobs.supervisor import JobSupervisor
from server.state_directory import StateDirectory, initialize
from tests.harness.restarting_coordinator import restarting_coordinator, tiny_bundle

ROOT = Path(__file__).parents[2]
MODEL = "docs/explanation/threat-model.md"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
TEST_ID = re.compile(r"\b(tests/[\w/]+\.py)::(\w+)")
TEST_FILE = re.compile(r"`(tests/[\w/]+\.py)")
ANY_TEST = re.compile(r"::\w+|\btest_\w++(?!\.py)")
SOURCE = re.compile(r"`((?:attestation|edge|fedlearn|server|helm)/[\w./-]*)`")
PARTIES = (
    "The network",
    "A stranger at a listener",
    "The operator of a site's host or cloud",
    "The operator of the coordinator's host or cloud",
    "An editor of the coordinator's disk",
    "An editor of a site's disk",
    "A job's ServerApp",
    "A job's ClientApp",
    "An admitted client, or a malicious site",
    "An operator of the coordinator",
    "An owner of models",
    "The author of a job's apps",
    "A reader of the ledger or of the model",
    "The control plane of a cluster",
    "The supply chain",
)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def functions(path: str) -> frozenset[str]:
    """Return the names of the tests that pytest finds in a file, without importing it."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    )


def missing(text: str) -> list[str]:
    """Return what a page names of the tests and what is not there, or is named by halves.

    Code that a reader is to write does not count, nor a file whose name the reader chooses.
    """
    text = FENCED.sub("", text)
    absent = [
        f"{path}::{name}" for path, name in TEST_ID.findall(text) if name not in functions(path)
    ]
    files = [path for path in TEST_FILE.findall(text) if "NAME" not in path]
    absent += [path for path in files if not (ROOT / path).is_file()]
    return absent + ANY_TEST.findall(TEST_FILE.sub("", TEST_ID.sub("", text)))


def parties() -> dict[str, str]:
    page = text_of(MODEL).split("\n## Parties\n", 1)[1].split("\n## ", 1)[0]
    return {
        name: body for name, _, body in (part.partition("\n") for part in page.split("\n### ")[1:])
    }


def rows(text: str) -> list[list[str]]:
    """Return the cells of the rows of all tables, without their heads."""
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for table in tables
        for line in table.splitlines()[2:]
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page: str) -> None:
    assert missing(text_of(page)) == []


@pytest.mark.parametrize("page", [MODEL, "docs/explanation/attestation.md"])
def test_every_file_that_is_named_exists(page: str) -> None:
    named = SOURCE.findall(text_of(page))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_test_that_is_gone_would_be_noticed() -> None:
    here = "tests/project/test_threat_model.py"
    assert missing(f"`{here}::test_a_test_that_is_gone_would_be_noticed` and `{here}`") == []
    assert missing(f"`{here}::test_nothing`") == [f"{here}::test_nothing"]
    assert missing("`tests/nowhere.py::test_x`") == ["tests/nowhere.py::test_x", "tests/nowhere.py"]
    assert missing(f"`{here}::missing`") == [f"{here}::missing"]
    assert missing("`tests/nowhere.py`") == ["tests/nowhere.py"]
    assert missing(f"`{here}::test_a_test_that_is_gone_would_be_noticed`, `::test_x`") == [
        "::test_x"
    ]
    assert missing("`test_x`") == ["test_x"]


def test_every_party_is_there_with_what_it_can_and_cannot_do() -> None:
    found = parties()
    assert tuple(found) == PARTIES
    for name, body in found.items():
        assert rows(body), name
        assert "**Can**" in body or "| an editor gains |" in body, name


def test_whatever_a_party_cannot_do_has_a_test() -> None:
    untried = [row[0] for body in parties().values() for row in rows(body) if len(row) < 3]
    untried += [
        row[0] for body in parties().values() for row in rows(body) if not TEST_ID.search(row[-1])
    ]
    assert untried == []


def test_the_table_names_every_file_of_a_coordinators_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobSupervisor, "_watch", lambda *_: None)
    (tmp_path / "jobs").mkdir()
    with restarting_coordinator(tmp_path / "jobs") as start:
        coordinator = start()
        job = (
            'name = "a"\napp = "app"\nrounds = 1\nsites = ["site-a"]\npolicy = "policy.toml"\n'
            '[strategy]\nname = "fedavg"\n[privacy]\nmechanism = "central-gaussian"\nclip = 1.0\n'
            "noise_multiplier = 1.5\nepsilon = 8.0\ndelta = 1e-5\n"
        )
        policy = (
            'version = 1\nname = "p"\naccept = ["sample"]\ninsecure_sample = true\n'
            '[[reference]]\nclaim = "software"\nvalue = "ab"\n'
        )
        coordinator.submit_job(
            "alice", job_toml=job, bundle=tiny_bundle(tmp_path / "app"), policy_toml=policy
        )
        coordinator._directory.store.write("a", {"w": np.zeros(3, np.float32)}, round=1)
        made = files(tmp_path / "jobs" / "state")
    # One whose operator's key is made where it is.
    (tmp_path / "server.toml").write_text(
        'state = "state"\ntrust_domain = "test.example"\n[keys]\nprotect = ["passphrase"]\n'
        'passphrase_file = "passphrase"\n'
    )
    (tmp_path / "passphrase").write_text("a passphrase that is long enough")
    config = ServerConfig.load(tmp_path / "server.toml")
    initialize(config, now=datetime.now(UTC), control_address="127.0.0.1:1", operator_csr=None)
    StateDirectory.open(config).close()
    made |= files(config.state)
    body = parties()["An editor of the coordinator's disk"]
    named = {name for row in rows(body) for name in re.findall(r"`([^`]+)`", row[0])}
    assert {"ledger.sqlite", "jobs.sqlite", "keys/root.json", "operator/operator.key"} <= made
    assert [name for name in made if not any(fnmatchcase(name, each) for each in named)] == []


def files(state: Path) -> set[str]:
    return {path.relative_to(state).as_posix() for path in state.rglob("*") if path.is_file()}
