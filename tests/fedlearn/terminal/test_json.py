"""``--json`` of every command: JSON objects from the first byte, each with its schema."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edge.main import main as edge
from fedlearn.cli import main as fedlearn
from fedlearn.terminal.console import ERROR_SCHEMA, Commands, print_json
from server.main import main as server

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/reference/json.md"

WITHOUT = {
    # Their output is a file, or a text that people or a shell read.
    "fedlearn completion",
    "fedlearn policy explain",
    "fedlearn policy init",
    "fedlearn policy reference event-log",
    "fedlearn policy reference image",
    "fedlearn policy reference initdata",
    "fedlearn policy reference snp",
    "fedlearn-edge completion",
    "fedlearn-server completion",
    "fedlearn-server establish",
    "fedlearn-server operator",
}


def commands(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    with click.Context(command) as context:
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


ALL = [
    (root, path, command)
    for root in (fedlearn, server, edge)
    for path, command in commands(root, (root.name or "",))
]


def has_json(command: click.Command) -> bool:
    return any("--json" in option.opts for option in command.params)


def test_every_command_has_json_but_those_that_are_known() -> None:
    assert {" ".join(path) for _, path, command in ALL if not has_json(command)} == WITHOUT


@pytest.mark.parametrize(
    ("root", "path"),
    [(root, path) for root, path, command in ALL if has_json(command)],
    ids=[" ".join(path) for _, path, command in ALL if has_json(command)],
)
def test_with_json_a_wrong_command_line_is_one_object(
    root: Commands, path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        root.main([*path[1:], "--no-such-option", "--json"])
    out = capsys.readouterr().out
    assert ended.value.code == 1
    assert [json.loads(text)["schema"] for text in out.splitlines()] == [ERROR_SCHEMA]
    assert json.loads(out)["error"]["code"] == "usage"


@pytest.mark.parametrize("nested", [False, True])
def test_the_schema_is_the_path_of_the_command(
    nested: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    group = Commands("fedlearn")
    inner = Commands("job")
    group.add_command(inner)

    @click.command("show-it")
    @click.argument("file", required=False)
    def show(file: str | None) -> None:
        print_json({"file": file})

    (inner if nested else group).add_command(show)
    with pytest.raises(SystemExit):
        group.main([*(["job"] if nested else []), "show-it"], prog_name="another-name")
    expected = "fedlearn job show-it/1" if nested else "fedlearn show-it/1"
    assert json.loads(capsys.readouterr().out) == {"file": None, "schema": expected}


def test_what_no_command_prints_must_name_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LookupError, match="name the schema"):
        print_json({"a": 1})
    print_json({"a": 1}, schema="fedlearn thing/1")
    assert json.loads(capsys.readouterr().out) == {"a": 1, "schema": "fedlearn thing/1"}


def test_the_page_names_every_schema_that_is_not_a_command() -> None:
    named = set()
    for folder in ("fedlearn", "server", "edge"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    named |= set(re.findall(r"\Afedlearn[a-z -]*/\d+\Z", node.value))
    formats = {name for name in named if " " in name}
    assert {"fedlearn event/1", ERROR_SCHEMA} <= formats
    page = PAGE.read_text(encoding="utf-8")
    assert sorted(name for name in formats if f"`{name}`" not in page) == []
