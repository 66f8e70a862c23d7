"""Check that every command in README.md, docs/ and the hints of errors exists, with its flags.

A command is a line of a fenced block, or a span of code in a line of prose or in a string of
the source, that starts with one of our commands or with ``make``. Subcommands, flags and the
number of arguments are compared with the command line itself, targets with the Makefile.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from fedlearn.errors import FedlearnError

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "fedlearn": ("fedlearn.cli", "main"),
    "fedlearn-server": ("server.main", "main"),
    "fedlearn-edge": ("edge.main", "main"),
}
PACKAGES = ("attestation", "edge", "fedlearn", "server")
NAMES = (*COMMANDS, "make")
SHELLS = {"", "bash", "console", "sh", "shell"}
FENCE = re.compile(r"^\s*(?:>\s*)*(```+|~~~+)\s*([A-Za-z0-9_-]*)")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SEPARATORS = {"&&", "||", ";", "|", "&"}


@dataclass(frozen=True)
class Found:
    """One command, as written, with its place."""

    where: str
    words: tuple[str, ...]


class Unknown(Exception):
    """A command line that would not work; the text is the reason."""


def in_markdown(path: Path, shown: str) -> Iterator[Found]:
    """Yield the commands of one page."""
    fence = ""
    shell = False
    pending, start = "", 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        mark = FENCE.match(line)
        if mark and (not fence or line.strip().startswith(fence)):
            fence, shell = ("", False) if fence else (mark[1], mark[2].lower() in SHELLS)
            pending = ""
        elif not fence:
            for span in SPAN.findall(line):
                if "<" not in span:  # a pattern, such as that of a log entry
                    yield from commands(span, f"{shown}:{number}")
        elif shell:
            text = line.strip().removeprefix("$ ").removeprefix("# ")
            start = start if pending else number
            pending += text.removesuffix("\\") + " "
            if not text.endswith("\\"):
                yield from commands(pending, f"{shown}:{start}")
                pending = ""


def in_source(path: Path, shown: str) -> Iterator[Found]:
    """Yield the commands that the texts of one module name."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for span in SPAN.findall(line):
            # An f-string fills in names.
            yield from commands(re.sub(r"\{[^{}]*\}", "NAME", span), f"{shown}:{number}")


def commands(text: str, where: str) -> Iterator[Found]:
    """Yield our commands in a line of shell."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return
    current: list[str] = []
    for word in [*words, ";"]:
        if word not in SEPARATORS:
            current.append(word)
            continue
        while current and (
            re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", current[0]) or current[0] in ("sudo", "time")
        ):
            current.pop(0)
        # The name of a form of JSON, as `fedlearn job status/1`, is no command.
        schema = bool(current) and re.fullmatch(r"[a-z-]+/\d+", current[-1])
        if current and not schema and Path(current[0]).name in NAMES:
            yield Found(where=where, words=(Path(current[0]).name, *current[1:]))
        current = []


def check(found: Found, targets: set[str]) -> None:
    """Raise :class:`Unknown` for what would not work."""
    name, *words = found.words
    if name == "make":
        _check_make(words, targets)
        return
    module, attribute = COMMANDS[name]
    try:
        command = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise Unknown(f"{name} cannot be looked at: {error}") from None
    if not isinstance(command, click.Command):
        raise Unknown(f"{name} is not made with click, so its flags cannot be compared")
    _check_click(command, name, words)


def _check_make(words: list[str], targets: set[str]) -> None:
    for word in words:
        if not word.startswith("-") and "=" not in word and word not in targets:
            raise Unknown(f"the Makefile has no target {word!r}")


def _check_click(command: click.Command, path: str, words: list[str]) -> None:
    context = click.Context(command, info_name=path)
    arguments = 0
    while words:
        word = words.pop(0)
        if word in ("...", "…", ">", "<") or word.startswith(("[", ">", "2>", "<")):
            # A synopsis ends in what is optional; a redirection is the shell's.
            return
        if word == "--":
            return
        if word.startswith("-") and word != "-":
            _check_flag(command, context, path, word, words)
        elif isinstance(command, click.Group):
            try:
                below = command.get_command(context, word)
            except (ImportError, AttributeError, FedlearnError) as error:
                raise Unknown(f"{path} {word} cannot be loaded: {error}") from None
            if below is None:
                raise Unknown(f"{path} has no command {word!r}")
            command, path = below, f"{path} {word}"
            context = click.Context(command, info_name=word, parent=context)
        else:
            arguments += 1
    room = 0
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            room += 10_000 if parameter.nargs == -1 else parameter.nargs
    if arguments > room:
        raise Unknown(f"{path} takes {room} arguments, not {arguments}")


def _check_flag(
    command: click.Command, context: click.Context, path: str, word: str, rest: list[str]
) -> None:
    flag, equals, _ = word.partition("=")
    for parameter in command.get_params(context):
        if not isinstance(parameter, click.Option):
            continue
        if flag in (*parameter.opts, *parameter.secondary_opts):
            if not (parameter.is_flag or parameter.count or equals):
                if len(rest) < parameter.nargs:
                    raise Unknown(f"{path} {flag} needs a value")
                del rest[: parameter.nargs]
            return
    raise Unknown(f"{path} has no flag {flag}")


def makefile_targets(path: Path) -> set[str]:
    """Return the targets of a Makefile."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return {
        name
        for line in text.splitlines()
        if (rule := re.match(r"^([A-Za-z0-9_.-]+(?: [A-Za-z0-9_.-]+)*):(?!=)", line))
        for name in rule[1].split()
    }


def find(root: Path) -> Iterator[Found]:
    """Yield the commands of all pages and modules below ``root``."""
    pages = [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]
    for path in pages:
        if path.is_file():
            yield from in_markdown(path, str(path.relative_to(root)))
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            yield from in_source(path, str(path.relative_to(root)))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="the repository")
    root = parser.parse_args().root
    targets = makefile_targets(root / "Makefile")
    seen = wrong = 0
    for found in find(root):
        seen += 1
        try:
            check(found, targets)
        except Unknown as error:
            wrong += 1
            print(f"{found.where}: {' '.join(found.words)}: {error}", file=sys.stderr)
    print(f"{seen} commands looked at, {wrong} that would not work")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
