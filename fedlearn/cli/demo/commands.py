"""``fedlearn demo``: train a model across attested sites on this machine, and show it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import click

from fedlearn import extras
from fedlearn.demo.data import DATA_SETS, DEFAULT_SEED, DEFAULT_SITES, MAX_SITES
from fedlearn.errors import ConfigError
from fedlearn.terminal.console import ERROR, colours, line, print_json

if TYPE_CHECKING:
    from fedlearn.cli.demo.stage import MakeFederation, Options
    from fedlearn.demo.outcome import DemoOutcome
    from fedlearn.local.machines import TeeChoice
    from fedlearn.terminal.progress import Show

__all__ = ["command", "run"]

_TEES: Final = ("auto", "tpm", "sample")
_MAX_ROUNDS: Final = 1000
_RUN: Final = "run"
_LOGS: Final = "logs"


@click.command("demo")
@click.option(
    "--data",
    "name",
    type=click.Choice(list(DATA_SETS)),
    default="medpar",
    show_default=True,
    help="medpar: hospital stays; digits and fashion: images.",
)
@click.option(
    "--sites",
    type=click.IntRange(2, MAX_SITES),
    default=DEFAULT_SITES,
    show_default=True,
    help="Sites, each a process with state of its own.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, _MAX_ROUNDS),
    default=None,
    help="Rounds; those of the app by default.",
)
@click.option(
    "--tee",
    type=click.Choice(_TEES),
    default="auto",
    show_default=True,
    help="tpm: software TPMs; sample: development keys; auto: tpm where swtpm is installed.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("fedlearn-demo"),
    show_default=True,
    help="Folder of the report.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=DEFAULT_SEED,
    show_default=True,
    help="The same seed gives the same split and the same model.",
)
@click.option("--keep", is_flag=True, help="Keep the state of all parties in OUTPUT/run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines for programs.")
def command(
    name: str,
    sites: int,
    rounds: int | None,
    tee: str,
    output: Path,
    seed: int,
    keep: bool,
    as_json: bool,
) -> None:
    """Train a model across attested sites on this machine.

    A coordinator and the sites run as separate processes with separate state. Each site is
    admitted only after its evidence verified; an altered client is refused; the model stays
    sealed; a report is written to OUTPUT.
    """
    from fedlearn.cli.demo.stage import Options

    options = Options(
        data=name,
        sites=sites,
        rounds=rounds,
        tee=cast("TeeChoice", tee),
        seed=seed,
        output=output,
    )
    run(options, keep=keep, as_json=as_json)


def run(
    options: Options, *, keep: bool, as_json: bool, federation: MakeFederation | None = None
) -> None:
    """Run the demo, show it, and write its report; return an error status if it has faults.

    :param federation: makes the federation; by default its sites are processes.
    :raises FedlearnError: when a step fails. All processes have ended then.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    from fedlearn.cli.demo.stage import perform
    from fedlearn.demo.report import write_report
    from fedlearn.local.children import terminate_as_interrupt
    from fedlearn.local.federation import Federation

    _writable(options.output)
    # What would fail at the end is checked first.
    extras.require("demo", needed_for="the demo")
    if options.data in ("digits", "fashion"):
        extras.require("torch", needed_for=f"the demo on {options.data}")
    narrator = _Json() if as_json else _Person()
    with terminate_as_interrupt(), _folder(options.output, keep=keep) as folder:
        outcome = perform(options, folder, narrator, federation or Federation)
        written = write_report(outcome, options.output)
    narrator.end(outcome, written)
    if outcome.faults:
        sys.exit(ERROR)


@contextlib.contextmanager
def _folder(output: Path, *, keep: bool) -> Iterator[Path]:
    """A private folder for the run, which is removed afterwards, or moved if it is kept.

    The logs of a run that failed are kept in any case.
    """
    folder = Path(tempfile.mkdtemp(prefix="fedlearn-demo-"))
    try:
        yield folder
    except Exception:
        if not keep and (folder / _LOGS).is_dir():
            shutil.copytree(folder / _LOGS, output / _LOGS, dirs_exist_ok=True)
            click.echo(f"what the processes wrote is in {output / _LOGS}", err=True)
        raise
    finally:
        if keep:
            kept = output / _RUN
            output.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(kept, ignore_errors=True)
            shutil.move(folder, kept)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _writable(output: Path) -> None:
    """Check that a report can be written to ``output``.

    :raises ConfigError: stating what prevents it.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError("is a file", where=f"--output {output}", hint="name a folder")
    above = output
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(
            f"{above} cannot be written", where=f"--output {output}", hint="name another folder"
        )


class _Person:
    """Narrates as text: headings, sentences, the live board of the job, a table at the end."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def act(self, title: str) -> None:
        """A heading, with the seconds since the start."""
        seconds = time.monotonic() - self._started
        line(f"\n{title}  [{seconds:.1f} s]", style="cyan", bold=True)

    def note(self, text: str, *, warning: bool = False) -> None:
        """One indented line."""
        line(f"  {'insecure: ' if warning else ''}{text}", style="yellow" if warning else "")

    def ran(self, command: str, answer: str) -> None:
        """A command line and its answer."""
        line(f"  $ {command}", bold=True)
        line(f"    {answer}")

    @contextlib.contextmanager
    def job(self, metric: str) -> Iterator[Show]:
        """The live board, or lines if stdout is not a terminal."""
        from fedlearn.terminal.progress import show_for

        with show_for(as_json=False, metric=metric) as show:
            yield show

    def end(self, outcome: DemoOutcome, written: dict[str, Path]) -> None:
        """The closing table, and where the report is."""
        from rich.console import Console

        from fedlearn.demo.terminal import findings_table, summary

        console = Console(no_color=not colours(), width=None if sys.stdout.isatty() else 110)
        console.print()
        for refused in outcome.refused:
            line(f"{refused.name} was refused in round {refused.round}:", bold=True)
            console.print(findings_table(refused))
        console.print(summary(outcome))
        console.print()
        line(f"report: {written['report.html']}  ({outcome.seconds:.1f} s in all)", bold=True)


class _Json:
    """Narrates as JSON: one object a line, with the outcome of the run in the last one."""

    def act(self, title: str) -> None:
        """``{"kind": "demo.act"}``."""
        self._put("act", title=title)

    def note(self, text: str, *, warning: bool = False) -> None:
        """``{"kind": "demo.note"}``."""
        self._put("note", text=text, warning=warning)

    def ran(self, command: str, answer: str) -> None:
        """``{"kind": "demo.command"}``."""
        self._put("command", command=command, answer=answer)

    @contextlib.contextmanager
    def job(self, metric: str) -> Iterator[Show]:
        """The events of the job as they are."""
        from fedlearn.terminal.progress import show_for

        with show_for(as_json=True, metric=metric) as show:
            yield show

    def end(self, outcome: DemoOutcome, written: dict[str, Path]) -> None:
        """``{"kind": "demo.outcome"}``."""
        files = {name: str(path) for name, path in written.items()}
        self._put("outcome", files=files, **outcome.to_json())

    def _put(self, kind: str, **fields: Any) -> None:
        print_json({"kind": f"demo.{kind}", **fields}, schema="fedlearn demo/1")
        sys.stdout.flush()
