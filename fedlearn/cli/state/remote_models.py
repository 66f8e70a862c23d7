"""``fedlearn model list`` and ``fedlearn model download``: what a coordinator has sealed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from fedlearn.api.downloads import Progress, download_model
from fedlearn.cli.state.model_source import Remote, remote_options
from fedlearn.cli.state.unlock import Unlock, unlock_options
from fedlearn.errors import ConfigError
from fedlearn.job.model_name import is_of_job
from fedlearn.terminal.console import json_option, line, print_json, printable
from fedlearn.terminal.table import table_lines
from fedlearn.wire.results import SealedModel
from server.store.models import StoredModel

__all__ = ["download", "list_models"]

_SHOWN = 16


@click.command(name="list")
@click.argument("job", required=False, default="")
@unlock_options
@remote_options
@json_option
def list_models(job: str, unlock: Unlock | None, remote: Remote, as_json: bool) -> None:
    """List the sealed versions of models: of one JOB, or of all.

    Over your operator's login; as the owner of models with --key, --coordinator and --ca-pin; or
    from a coordinator's --state on this machine.
    """
    if unlock is not None:
        if remote.given:
            raise ConfigError(
                "--state reads a directory on this machine, the other options ask the coordinator; "
                "name one"
            )
        with unlock.reading() as store:
            kept = [one for one in store.kept() if not job or is_of_job(one.job, job)]
        found: Sequence[SealedModel] = [_of_store(one) for one in kept]
        more = [{"file": str(one.path), "key": one.key} for one in kept]
    else:
        with remote.opened() as (client, _):
            found = client.list_models(job)
        more = [{} for _ in found]
    if as_json:
        models = [{**model_json(one), **each} for one, each in zip(found, more, strict=True)]
        print_json({"models": models})
        return
    if not found:
        line(f"no models of {job}" if job else "no models")
        return
    rows = [
        (
            one.model,
            str(one.version),
            one.job,
            str(one.round),
            str(one.size),
            one.digest.hex()[:_SHOWN],
            ", ".join(owner.hex()[:_SHOWN] for owner in one.owners) or "-",
        )
        for one in found
    ]
    head = ("MODEL", "VERSION", "JOB", "ROUND", "BYTES", "DIGEST", "OWNER")
    for text in table_lines(head, rows, numbers=("VERSION", "ROUND", "BYTES")):
        line(text)


@click.command()
@click.argument("name")
@click.option("--version", type=click.IntRange(1), help="By default the latest.")
@click.option("--out", type=click.Path(path_type=Path), help="File to write; NAME.flsw by default.")
@click.option("--replace", is_flag=True, help="Replace an existing file.")
@remote_options
@json_option
def download(
    name: str,
    version: int | None,
    out: Path | None,
    replace: bool,
    remote: Remote,
    as_json: bool,
) -> None:
    """Download a sealed model; the owner's key opens it with `fedlearn model open`.

    NAME is a job (its newest run), NAME@2 its second run, and NAME.files the files that its app
    wrote. A download that was interrupted goes on with the same command: what arrived is in
    OUT.part. The file appears when it is whole and signed by the coordinator.
    """
    target = out or Path(f"{name.replace('/', '-')}.flsw")
    with remote.opened() as (client, pin), _progress() as progress:
        found = download_model(
            client,
            name,
            target,
            pin=pin,
            version=version or 0,
            replace=replace,
            progress=progress,
        )
    if as_json:
        print_json({**model_json(found), "out": str(target), "signed_by": pin.hex()})
        return
    line(f"{printable(found.model)}, version {found.version}, after round {found.round}")
    line(f"{found.size} bytes in {target}, signed by the coordinator whose CA is {pin.hex()}")
    line(f"next: fedlearn model open {target} --key owner.pem")


def model_json(model: SealedModel) -> dict[str, Any]:
    """Return what a program gets of a sealed model."""
    return {
        "model": model.model,
        "job": model.job,
        "version": model.version,
        "round": model.round,
        "bytes": model.size,
        "digest": model.digest.hex(),
        "file_id": model.file_id.hex(),
        "owners": [owner.hex() for owner in model.owners],
    }


def _of_store(stored: StoredModel) -> SealedModel:
    return SealedModel(
        model=stored.model,
        version=stored.version,
        job=stored.job,
        round=stored.round,
        size=stored.size,
        digest=stored.digest,
        file_id=stored.file_id,
        owners=stored.recipients,
    )


@contextlib.contextmanager
def _progress() -> Iterator[Progress | None]:
    """Show how much arrived, on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    bar = Progress(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True)
    )
    with bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)
