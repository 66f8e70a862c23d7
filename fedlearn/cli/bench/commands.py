"""``fedlearn bench``: the same job with and without each protection, and where its time goes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import click

from fedlearn import extras
from fedlearn.cli.bench.costs import EVERYTHING, PLAIN, STAGES, TARGET
from fedlearn.terminal.console import Commands, json_option, line, print_json

if TYPE_CHECKING:
    from attestation.evidence import Tee
    from fedlearn.cli.bench.costs import Comparison, Run, Stage
    from fedlearn.cli.bench.job import Job
    from fedlearn.local.machines import TeeChoice

__all__ = ["group"]

_APPS: Final = ("fashion", "digits", "medpar")


@click.group(cls=Commands, name="bench")
def group() -> None:
    """Measure on this machine what fedlearn costs."""


@group.command("confidentiality")
@click.option(
    "--app",
    type=click.Choice(_APPS),
    default="fashion",
    show_default=True,
    help="fashion: Fashion-MNIST and a convolutional network; digits, medpar: as in the demo.",
)
@click.option("--rounds", type=click.IntRange(2, 1000), default=5, show_default=True)
@click.option("--sites", type=click.IntRange(2, 8), default=2, show_default=True)
@click.option(
    "--images",
    type=click.IntRange(32, 30_000),
    default=6_000,
    show_default=True,
    help="Images of each site (--app fashion).",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 100),
    default=2,
    show_default=True,
    help="How often each stage runs; the stages take turns.",
)
@click.option(
    "--stage",
    "names",
    type=click.Choice(list(STAGES)),
    multiple=True,
    help="Only these stages, and the plain one.",
)
@click.option(
    "--tee",
    type=click.Choice(("auto", "tpm", "sample")),
    default="auto",
    show_default=True,
    help="tpm: software TPMs; sample: development keys; auto: tpm where swtpm is installed.",
)
@json_option
def confidentiality(
    app: str,
    rounds: int,
    sites: int,
    images: int,
    repeat: int,
    names: tuple[str, ...],
    tee: str,
    as_json: bool,
) -> None:
    """Run one job plain, with each protection alone, and with everything.

    Plain is insecure: Flower's own loop, with a process for each site and TCP between them. It
    runs here, on the demo's data, and nowhere else. Each protection is added to it by fedlearn's
    own code. Everything is fedlearn itself. The times of a round are compared.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    for extra in ("server", "demo", *(("torch",) if app != "medpar" else ())):
        extras.require(extra, needed_for=f"the comparison on {app}")
    from fedlearn.cli.bench.costs import Comparison, Stage
    from fedlearn.cli.bench.job import make_job
    from fedlearn.local.children import terminate_as_interrupt
    from fedlearn.local.machines import choose_tee

    kind, warning = choose_tee(cast("TeeChoice", tee))
    chosen = [name for name in STAGES if not names or name in (*names, PLAIN)]
    found: dict[str, list[Run]] = {name: [] for name in chosen}
    with terminate_as_interrupt(), tempfile.TemporaryDirectory(prefix="fedlearn-bench-") as made:
        folder = Path(made)
        job = make_job(app, folder, sites=sites, rounds=rounds, images=images)
        if not as_json:
            line(job.title, bold=True)
            line(f"insecure: {warning}", style="yellow")
        for turn in range(repeat):
            for name in chosen if turn % 2 == 0 else reversed(chosen):
                if not as_json:
                    click.echo(f"  {name} ...", err=True)
                found[name].append(
                    _run(name, job, folder / f"{turn}-{name}".replace(" ", "-"), kind)
                )
    stages = [Stage(name=name, runs=runs) for name, runs in found.items()]
    comparison = Comparison(job=job.title, stages=stages)
    if as_json:
        print_json(comparison.to_json())
    else:
        _show(comparison)


def _run(name: str, job: Job, folder: Path, tee: Tee) -> Run:
    from fedlearn.cli.bench.everything import run_everything
    from fedlearn.cli.bench.insecure_plain import Protections, run_plain
    from fedlearn.cli.bench.parties import machines, tls_file

    if name == EVERYTHING:
        return run_everything(job, folder, tee=tee)
    with contextlib.ExitStack() as stack:
        protections = Protections(
            tls=tls_file(folder.with_suffix(".pem")) if name == "mutual TLS" else None,
            machines=(
                stack.enter_context(machines(job, folder.with_suffix(".machines"), tee))
                if name == "attestation"
                else {}
            ),
            seal=name == "sealing",
            ledger=name == "ledger",
        )
        return run_plain(job, folder, protections)


def _show(comparison: Comparison) -> None:
    line(f"\n{'':14}{'start':>9}{'a round':>11}{'of plain':>10}{'whole job':>12}{'of plain':>10}")
    plain = comparison.stage(PLAIN)
    for stage in comparison.stages:
        line(
            f"{stage.name:14}{stage.start_s:7.2f} s{stage.round_s:9.3f} s"
            f"{comparison.ratio(stage):10.3f}{stage.job_s:10.2f} s{stage.job_s / plain.job_s:10.3f}"
        )
    line("")
    for stage in comparison.stages:
        line(f"{stage.name}: {STAGES[stage.name]}")
        for text in _details(stage):
            line(f"    {text}")
    if any(stage.name == EVERYTHING for stage in comparison.stages):
        ratio = comparison.ratio(comparison.stage(EVERYTHING))
        verdict = "met" if ratio <= TARGET else "missed"
        line(
            f"\nA round with everything takes {ratio:.3f} of a plain one; "
            f"the target of {TARGET} is {verdict}.",
            bold=True,
        )


def _details(stage: Stage) -> Iterator[str]:
    for name, seconds in stage.parts().items():
        yield f"{1000 * seconds:10.2f} ms of each round: {name}"
    for name, seconds in stage.once().items():
        yield f"{1000 * seconds:10.2f} ms once: {name}"
    cpu = sorted(stage.cpu().items(), key=lambda item: -item[1])
    yield "processor seconds: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in cpu)
