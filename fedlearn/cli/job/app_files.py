"""``fedlearn job files``: writes the files of a job's application in plaintext."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from attestation.durable import rename_durably, write_durably
from attestation.errors import UnsealError
from fedlearn.api.downloads import download_model
from fedlearn.cli.state.model_source import Remote
from fedlearn.cli.state.origin import Origin, origin_options
from fedlearn.cli.state.target import (
    CATALOGUE,
    check_release,
    key_option,
    opened,
    sealer_of,
)
from fedlearn.cli.state.unlock import Unlock, unlock_options
from fedlearn.errors import ConfigError, StoreError, TransportError
from fedlearn.job.model_name import FILES
from fedlearn.job.run import checked_reference
from fedlearn.sealing import SealedReader
from fedlearn.terminal.console import json_option, line, print_json, printable
from fedlearn.update import sealed
from server.flower.application.app_files import as_files, kept_as

__all__ = ["files"]


@click.command("files")
@click.argument("target")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to create, which only you can access.",
)
@unlock_options
@key_option
@origin_options
@json_option
def files(
    target: str, out: Path, unlock: Unlock | None, key: Path | None, origin: Origin, as_json: bool
) -> None:
    """Write the files that a job's ServerApp made, in plaintext, into a new folder.

    TARGET is a job, whose sealed files are downloaded over your login and opened with the owner's
    --key; or the sealed FILE, if you have it; or a job in a coordinator's --state (the export is
    recorded in the ledger first). Who sealed the files is checked as in `fedlearn model open`.
    """
    if os.path.lexists(out):
        raise ConfigError("exists already; name a new folder", where=f"--out {out}")
    if unlock is not None:
        check_release(unlock, out, key, origin)
        sealer = CATALOGUE
        with unlock.recording() as store:
            name = kept_as(target)
            if name not in store.models():
                raise ConfigError(f"there are no files of a job {target!r}", where="TARGET")
            with store.released(name, out) as (_, reader):
                written = _write(_files(reader, target), out)
    else:
        with (
            _downloaded(target, key, origin) as file,
            opened(file, None, key, None, origin) as reader,
        ):
            sealer = sealer_of(target, None, origin, reader)
            written = _write(_files(reader, target), out)
    if as_json:
        print_json({"out": str(out), "files": written, **sealer.to_json()})
        return
    for path, size in written.items():
        line(f"  {printable(path)}  {size} bytes")
    line(f"{len(written)} files in plaintext in {out}")
    line(sealer.text, style="" if sealer.known else "red")


@contextmanager
def _downloaded(target: str, key: Path | None, origin: Origin) -> Iterator[str]:
    """Yield the sealed file that TARGET names, downloaded where it is a job."""
    login = not origin.given or origin.operator is not None
    if key is None or not login or Path(target).exists() or not _names_a_job(target):
        yield target
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sealed"
        with Remote(operator=origin.operator).opened() as (client, pin):
            download_model(client, f"{target}{FILES}", file, pin=pin)
        yield str(file)


def _names_a_job(target: str) -> bool:
    try:
        checked_reference(target)
    except ConfigError:
        return False
    return True


def _files(reader: SealedReader, target: str) -> dict[str, memoryview]:
    try:
        return as_files(sealed.load(reader))
    except UnsealError as error:
        raise StoreError(f"{target}: {error}") from error
    except TransportError as error:
        raise StoreError(
            f"{target}: {error}", hint="`fedlearn model export` writes a model"
        ) from error


def _write(found: Mapping[str, memoryview], out: Path) -> dict[str, int]:
    """Write all files, or none; return their sizes."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir(mode=0o700)
        for name, data in found.items():
            path = temporary / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(path, bytes(data))
        rename_durably(temporary, out)
    except OSError as error:
        raise StoreError(f"{out}: {(error.strerror or str(error)).lower()}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {name: len(data) for name, data in found.items()}
