"""Common parts of the three commands: lazily loaded nouns, errors in one or two lines, colours.

Exit statuses: 0 success; 1 an error, with its cause and a hint on stderr; 2 a refusal, which is a
result and not an error (evidence that a policy does not affirm, a key that is not released, a model
that its coordinator did not seal); 130 stopped by Ctrl-C. With ``--json`` among the arguments
stdout has only JSON, one object a line, and messages for people go to stderr; each object has a
``schema``, and an error is one of them. ``FEDLEARN_TRACE=1`` adds Python's traceback on stderr, for
developers of fedlearn.

The page is docs/reference/json.md.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import click

from attestation.errors import AttestationError
from fedlearn.errors import (
    AdmissionDenied,
    FedlearnError,
    Interrupted,
    KeyReleaseDenied,
    ModelNotAuthentic,
)
from fedlearn.extras import missing_extra
from fedlearn.terminal.examples import epilog
from fedlearn.terminal.plaintext import json_text, printable

__all__ = [
    "ERROR",
    "ERROR_SCHEMA",
    "INTERRUPTED",
    "REFUSED",
    "COMPLETION",
    "Commands",
    "Failure",
    "Noun",
    "colours",
    "config_option",
    "describe",
    "json_document",
    "json_option",
    "line",
    "print_json",
    "printable",
]

ERROR: Final = 1
REFUSED: Final = 2
INTERRUPTED: Final = 130
ERROR_SCHEMA: Final = "fedlearn error/1"

_T = TypeVar("_T", bound=Callable[..., Any])

_for_programs = False
"""Whether ``--json`` was given."""

_OS_HINTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        errno.EACCES: "check the owner and the permissions, or run as the right user",
        errno.EADDRINUSE: "another process listens there; choose another port or stop it",
        errno.ENOSPC: "free some space; no incomplete file was left",
        errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
        errno.EROFS: "name a folder that can be written",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noun:
    """One subcommand: its module, and the line that ``--help`` shows without loading it."""

    module: str
    attribute: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as it is shown."""

    code: str
    message: str
    hint: str = ""
    status: int = ERROR
    findings: tuple[Mapping[str, object], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        body: dict[str, Any] = {"code": self.code, "message": self.message, "hint": self.hint}
        if self.findings:
            body["findings"] = [dict(finding) for finding in self.findings]
        return {"error": body}


class Commands(click.Group):
    """A group whose nouns are imported when they are used, and whose errors are short."""

    def __init__(
        self,
        name: str | None = None,
        commands: Mapping[str, click.Command] | None = None,
        *,
        nouns: Mapping[str, Noun] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        settings.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(name, dict(commands or {}), **settings)
        self._nouns = nouns

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return [*self._nouns, *(name for name in self.commands if name not in self._nouns)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        found = self._found(ctx, cmd_name)
        if found is not None and (example := epilog(f"{_full_name(ctx)} {cmd_name}")):
            found.epilog = example
        return found

    def _found(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        noun = self._nouns.get(cmd_name)
        if noun is None:
            return super().get_command(ctx, cmd_name)
        found = getattr(importlib.import_module(noun.module), noun.attribute)
        if not isinstance(found, click.Command):
            raise TypeError(f"{noun.module}.{noun.attribute} is not a command")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest the nearest name."""
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], names, n=1)
            wish = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise click.UsageError(f"no command {args[0]!r}; {wish}", ctx)
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example of the program, where this is its first group."""
        if self.epilog is None:
            self.epilog = epilog(_full_name(ctx))
        super().format_epilog(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing those in the table."""
        rows = []
        for name in self.list_commands(ctx):
            if name in self._nouns:
                rows.append((name, self._nouns[name].summary))
            elif (command := super().get_command(ctx, name)) and not command.hidden:
                rows.append((name, command.get_short_help_str(80)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit. Every error ends here, as one or two lines."""

        def run() -> Any:
            return click.Group.main(
                self, args, prog_name, complete_var, standalone_mode=False, **extra
            )

        if not standalone_mode:
            return run()
        given = sys.argv[1:] if args is None else args
        sys.exit(_guarded(run, as_json="--json" in given))


def describe(error: BaseException) -> Failure:
    """Return how ``error`` is shown, with its code and exit status."""
    if isinstance(error, FedlearnError):
        refused = isinstance(error, AdmissionDenied | KeyReleaseDenied | ModelNotAuthentic)
        findings = error.findings if isinstance(error, AdmissionDenied) else ()
        return Failure(
            code=error.code,
            message=str(error),
            hint=error.hint,
            status=REFUSED if refused else ERROR,
            findings=findings,
        )
    if isinstance(error, AttestationError):
        return Failure(code=_code(error), message=str(error), hint=error.hint)
    if isinstance(error, click.UsageError):
        hint = f"{error.ctx.command_path} --help" if error.ctx else ""
        return Failure(code="usage", message=_sentence(error.format_message()), hint=hint)
    if isinstance(error, click.ClickException):
        return Failure(code="usage", message=_sentence(error.format_message()))
    if isinstance(error, OSError):
        reason = (error.strerror or str(error) or type(error).__name__).lower()
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        hint = _OS_HINTS.get(error.errno or 0, "")
        return Failure(code="system", message=f"{where}{reason}", hint=hint)
    if isinstance(error, ModuleNotFoundError):
        return _missing(error)
    if isinstance(error, MemoryError):
        return Failure(code="system", message="out of memory")
    return Failure(
        code="internal",
        message=f"{type(error).__name__}: {error}",
        hint="this is a bug of fedlearn; FEDLEARN_TRACE=1 shows the traceback",
    )


def _full_name(ctx: click.Context) -> str:
    """Return a command's name as :mod:`fedlearn.terminal.examples` has it."""
    names = []
    while ctx.parent is not None:
        names.append(ctx.info_name or "")
        ctx = ctx.parent
    return " ".join([ctx.command.name or "", *reversed(names)])


COMPLETION: Final = Noun(
    module="fedlearn.terminal.completion",
    attribute="completion",
    summary="Print the script that completes commands in bash, zsh or fish.",
)

json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs."
)


def config_option(default: str, description: str) -> Callable[[_T], _T]:
    """Return the option ``--config`` of a program that has one file; it becomes ``path``."""
    return click.option(
        "--config",
        "path",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path(default),
        show_default=True,
        help=description,
    )


def colours() -> bool:
    """True when stdout is a terminal and NO_COLOR is not set (no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout.isatty()


def line(text: str, *, style: str = "", bold: bool = False) -> None:
    """Print one line on stdout, coloured only where colours are wanted.

    With ``--json`` it goes to stderr: stdout has only JSON.
    """
    plain = "\n".join(map(printable, text.split("\n")))
    shown = click.style(plain, fg=style or None, bold=bold or None) if colours() else plain
    click.echo(shown, color=colours(), err=_for_programs)


def print_json(value: Mapping[str, Any], *, schema: str = "") -> None:
    """Print one JSON object on one line of stdout, as ``plaintext.json_text`` writes it.

    Its member ``schema`` names its form, with a number that changes with its meaning: that of the
    command which runs, as in ``fedlearn job status/1``, or ``schema`` for a form that several
    commands print.

    :raises LookupError: without ``schema`` where no command runs.
    """
    click.echo(json_document(value, schema=schema))


def json_document(value: Mapping[str, Any], *, schema: str = "") -> str:
    """Return what :func:`print_json` prints, for a file."""
    return json_text({**value, "schema": schema or _command_schema()})


def _command_schema() -> str:
    """Return the schema of what the command prints, from its path below the program's name."""
    context = click.get_current_context(silent=True)
    if context is None:
        raise LookupError("no command runs: name the schema of what is printed")
    words: list[str] = []
    while context.parent is not None:
        words.append(context.info_name or "")
        context = context.parent
    return " ".join([context.command.name or "", *reversed(words)]) + "/1"


def _guarded(run: Callable[[], Any], *, as_json: bool) -> int:
    global _for_programs
    _for_programs = as_json
    try:
        with _broken_pipe_is_silent():
            result = run()
            sys.stdout.flush()
            return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.message, err=True)
        return ERROR
    except (click.Abort, KeyboardInterrupt) as stop:
        # click raises its Abort from the KeyboardInterrupt.
        cause = stop.__cause__ if isinstance(stop, click.Abort) else stop
        known = cause if isinstance(cause, Interrupted) else Interrupted("")
        click.echo(": ".join(filter(None, ("stopped", printable(known.message)))), err=True)
        if known.hint:
            click.echo(f"hint: {printable(known.hint)}", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        return ERROR
    except Exception as error:  # noqa: BLE001 (the last place that an error can come to)
        if os.environ.get("FEDLEARN_TRACE") == "1":
            traceback.print_exception(error)
        failure = describe(error)
        _show(failure, as_json=as_json)
        return failure.status


@contextlib.contextmanager
def _broken_pipe_is_silent() -> Iterator[None]:
    """End silently when the reader of stdout has ended, as in ``fedlearn ... | head``."""
    try:
        yield
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, into this device.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _show(failure: Failure, *, as_json: bool) -> None:
    if as_json:
        print_json(failure.to_json(), schema=ERROR_SCHEMA)
        return
    coloured = colours() and sys.stderr.isatty()
    error, hint = "error:", "hint:"
    if coloured:
        error, hint = click.style(error, fg="red", bold=True), click.style(hint, fg="cyan")
    for text in failure.message.splitlines() or [failure.code]:
        click.echo(f"{error} {printable(text)}", err=True, color=coloured)
    for finding in failure.findings:
        click.echo(f"  {printable(_finding(finding))}", err=True, color=coloured)
    if failure.hint:
        click.echo(f"{hint} {printable(failure.hint)}", err=True, color=coloured)


def _finding(finding: Mapping[str, object]) -> str:
    text = f"{finding.get('claim')}: expected {finding.get('expected')}, found "
    text += f"{finding.get('actual')}"
    remedy = finding.get("remedy")
    return f"{text} ({remedy})" if remedy else text


def _missing(error: ModuleNotFoundError) -> Failure:
    known = missing_extra(error, needed_for="this command")
    if known is not None:
        return describe(known)
    return Failure(
        code="config",
        message=f"the Python module {error.name} is not installed",
        hint="reinstall fedlearn: this installation is not complete",
    )


def _code(error: AttestationError) -> str:
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in type(error).__name__)
    return words.strip("-").removesuffix("-error")


def _sentence(text: str) -> str:
    text = text.rstrip(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
