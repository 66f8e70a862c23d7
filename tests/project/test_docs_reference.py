# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)
"""The parts of the documentation that are made from the code are complete and well-formed."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from types import MappingProxyType

import click
import docs_docstrings
import docs_reference
import pytest

from attestation.config import option, table, text, whole
from fedlearn.job import events
from fedlearn.job.strategies import STRATEGIES
from fedlearn.wire import fedlearn_pb2
from server.metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A table.

    ``most``  how many there
              may be
    """

    most: int = option(whole(1, 9), default=4)


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A file.

    ``name``, ``other``  what it is called
    """

    name: str = option(text(most=5))
    other: str = option(text(), default="x|y")
    inner: Inner = option(table(Inner), factory=Inner)


def test_keys_come_with_what_may_stand_there_and_what_it_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(docs_reference, "MODELS", MappingProxyType({"outer": Outer}))
    assert docs_reference.fill("before\n<!-- generated: keys outer -->\nafter") == (
        "before\n"
        "| key | value | default | meaning |\n"
        "| --- | --- | --- | --- |\n"
        "| `name` | text of 1 to 5 characters | required | what it is called |\n"
        '| `other` | text of 1 to 4096 characters | `"x|y"` | what it is called |\n\n'
        "### `[inner]`\n\n"
        "A table.\n\n"
        "| key | value | default | meaning |\n"
        "| --- | --- | --- | --- |\n"
        "| `most` | a whole number from 1 to 9 | `4` | how many there may be |\n"
        "after"
    )


@pytest.mark.parametrize("mark", ["nothing", "keys nothing", "cli nothing"])
def test_a_mark_that_nothing_belongs_to_is_refused(mark: str) -> None:
    with pytest.raises(docs_reference.Unknown, match="nothing"):
        docs_reference.fill(f"<!-- generated: {mark} -->")


def test_a_mark_inside_of_a_line_is_left_alone() -> None:
    assert docs_reference.fill("`<!-- generated: x -->`") == "`<!-- generated: x -->`"


def test_every_command_and_option_is_listed() -> None:
    page = docs_reference.fill("<!-- generated: cli fedlearn -->")
    from fedlearn.cli import main

    for path, command in commands(main, "fedlearn"):
        assert re.search(rf"^#+ {re.escape(path)}$", page, re.MULTILINE), path
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.opts[-1] in page, (path, parameter.opts)


def commands(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            if not below.hidden:
                found += commands(below, f"{path} {name}")
    return found


def test_every_event_metric_and_strategy_is_listed() -> None:
    marks = (f"<!-- generated: {name} -->" for name in ("events", "metrics", "strategies"))
    page = docs_reference.fill("\n".join(marks))
    names = [*events.KINDS, *STRATEGIES, *(metric.name for metric in METRICS)]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_message_and_field_of_the_wire_is_listed() -> None:
    page = docs_reference.fill("<!-- generated: wire -->")
    file = fedlearn_pb2.DESCRIPTOR
    for name, message in file.message_types_by_name.items():
        assert f"\n### {name}\n" in page
        assert [field.name for field in message.fields if f"| `{field.name}` |" not in page] == []
    for name, service in file.services_by_name.items():
        assert f"\n### {name}\n" in page
        assert [call.name for call in service.methods if f"| `{call.name}` |" not in page] == []


def test_docstrings_become_markdown() -> None:
    text = """A sentence about :class:`~a.b.Thing` and ``code``.

    Literal::

        as it is

    ``one``, ``two``  what they
                      mean
    ``three``         more

    >>> 1 + 1
    2

    :raises ValueError: never
    """
    assert docs_docstrings.markdown(inspect.cleandoc(text)).splitlines() == [
        "A sentence about `a.b.Thing` and `code`.",
        "",
        "Literal:",
        "",
        "    as it is",
        "",
        "",
        "- `one`, `two`: what they",
        "    mean",
        "- `three`: more",
        "",
        "```pycon",
        ">>> 1 + 1",
        "2",
        "```",
        "",
        ":raises ValueError: never",
    ]
