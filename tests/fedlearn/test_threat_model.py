"""The pages on security name tests and files that are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("docs/threat-model.md", "docs/attestation.md")
TEST_ID = re.compile(r"\b(tests/[\w/]+\.py)::(\w+)")
SOURCE = re.compile(r"`((?:attestation|edge|fedlearn|server|helm)/[\w./-]*)`")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def functions(path: str) -> frozenset[str]:
    """Return the names of the test functions in a file, without importing it."""
    file = ROOT / path
    if not file.is_file():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    )


def missing(text: str) -> list[str]:
    return [
        f"{path}::{name}" for path, name in TEST_ID.findall(text) if name not in functions(path)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page: str) -> None:
    assert missing(text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    named = SOURCE.findall(text_of(page))
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_test_that_is_gone_would_be_noticed() -> None:
    here = "tests/fedlearn/test_threat_model.py"
    assert missing(f"`{here}::test_a_test_that_is_gone_would_be_noticed`") == []
    assert missing(f"`{here}::test_nothing`") == [f"{here}::test_nothing"]
    assert missing("`tests/nowhere.py::test_x`") == ["tests/nowhere.py::test_x"]


def test_every_attack_is_tried_or_said_to_be_open() -> None:
    """An attack without a test says why."""
    undefended = {"Traffic analysis", "The TEE itself"}
    attacks = text_of(PAGES[0]).split("\n## Attacks\n", 1)[1].split("\n### ")[1:]
    untried = {attack.split("\n", 1)[0] for attack in attacks if not TEST_ID.search(attack)}
    assert untried == undefended


def test_the_attacks_that_have_to_be_there_are() -> None:
    page = text_of(PAGES[0]).lower()
    for attack in (
        *("relay", "replay", "diversion", "rollback of a model", "rollback of a policy"),
        *("between the quote and the key", "truncation", "debug", "downgrade", "frozen"),
        *("stolen", "malicious coordinator", "malicious site", "malicious user code"),
        *("malicious control plane", "traffic analysis", "poisoning"),
    ):
        assert attack in page, attack
