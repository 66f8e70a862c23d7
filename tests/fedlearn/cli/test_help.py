"""Each command shows an example in its help that it would accept, and shells complete commands."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator

import check_readme
import click
import pytest
from click.testing import CliRunner

from fedlearn.local.federation import program
from fedlearn.terminal.examples import EXAMPLES

PROGRAMS = {
    name: getattr(importlib.import_module(module), attribute)
    for name, (module, attribute) in check_readme.COMMANDS.items()
}


def _walk(command: click.Command, ctx: click.Context, path: str) -> Iterator[tuple[str, str]]:
    yield path, command.get_help(ctx)
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            below = command.get_command(ctx, name)
            assert below is not None
            yield from _walk(
                below, click.Context(below, info_name=name, parent=ctx), f"{path} {name}"
            )


HELP = {
    path: text
    for name, root in PROGRAMS.items()
    for path, text in _walk(root, click.Context(root, info_name=name), name)
}


def test_each_help_has_an_example() -> None:
    missing = [path for path, text in HELP.items() if "\n  Example:\n" not in text]
    assert not missing, "add a line for each to fedlearn/terminal/examples.py"


def test_each_example_is_of_a_command_that_accepts_it() -> None:
    assert set(EXAMPLES) <= set(HELP), "an example of a command that does not exist"
    for path, example in EXAMPLES.items():
        assert path in example
        assert HELP[path].endswith(f"  Example:\n    {example}"), path
        for found in check_readme.commands(example, path):
            check_readme.check(found, set())


def test_a_command_without_an_example_is_found() -> None:
    @click.command()
    def bare() -> None:
        """Do nothing."""

    assert "Example" not in bare.get_help(click.Context(bare))


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(name: str, shell: str) -> None:
    done = CliRunner().invoke(PROGRAMS[name], ["completion", shell])
    assert done.exit_code == 0, done.output
    assert f"_{name.replace('-', '_').upper()}_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.stdout, text=True, check=True)


def test_another_shell_is_refused_with_those_that_there_are() -> None:
    done = CliRunner().invoke(PROGRAMS["fedlearn"], ["completion", "tcsh"])
    assert done.exit_code != 0
    assert "'bash', 'zsh', 'fish'" in done.output


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fedlearn mod", "model"),
        ("fedlearn job val", "validate"),
        ("fedlearn job init --si", "--sites"),
    ],
)
def test_a_shell_completes_commands_and_options(words: str, expected: str) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    environment = {**os.environ, "_FEDLEARN_COMPLETE": "bash_complete", **asked}
    done = subprocess.run(
        [program("fedlearn")], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"plain,{expected}\n"
