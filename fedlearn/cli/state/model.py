"""``fedlearn model``: sealed models, in a coordinator's state or as files of their own.

Exit statuses: 0 success; 1 an error; 2 a refusal: a key that does not open the model, a sealed
file that none of the named parties sealed, or one that was altered.

The page is docs/how-to/get-a-model-back.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from attestation.errors import UnsealError
from fedlearn.cli.state.origin import Origin, origin_options
from fedlearn.cli.state.target import (
    CATALOGUE,
    check_release,
    key_option,
    needed,
    opened,
    sealer_of,
)
from fedlearn.cli.state.unlock import Unlock, unlock_options
from fedlearn.errors import LedgerError, StoreError
from fedlearn.sealing import Header
from fedlearn.terminal.console import (
    REFUSED,
    Commands,
    Noun,
    json_option,
    line,
    print_json,
    printable,
)
from fedlearn.update import sealed
from server.ledger import LEDGER_FILE, LedgerReader
from server.store.models import StoredModel
from server.store.rollback import written_versions

__all__ = ["group"]

_version = click.option("--version", type=click.IntRange(1), help="By default the latest.")


@click.group(
    cls=Commands,
    name="model",
    nouns={
        "list": Noun(
            module="fedlearn.cli.state.remote_models",
            attribute="list_models",
            summary="List the sealed versions of models.",
        ),
        "download": Noun(
            module="fedlearn.cli.state.remote_models",
            attribute="download",
            summary="Download a sealed model.",
        ),
        "keygen": Noun(
            module="fedlearn.cli.state.keygen",
            attribute="keygen",
            summary="Make the key pair of a model's owner.",
        ),
    },
)
def group() -> None:
    """List, download, open, export and verify sealed models.

    A TARGET is the name of a model in a coordinator's --state, or a sealed FILE that its
    owner opens with --key. Who sealed a FILE is checked: against the CA of your operator's
    login, or what --ca-pin, --operator or --ledger names.
    """


@group.command(name="open")
@click.argument("target")
@unlock_options
@key_option
@origin_options
@_version
@json_option
def open_model(
    target: str,
    unlock: Unlock | None,
    key: Path | None,
    origin: Origin,
    version: int | None,
    as_json: bool,
) -> None:
    """Open a sealed model, check every byte of it and who sealed it, and show its content."""
    with opened(target, unlock, key, version, origin) as reader:
        try:
            digest = reader.verify()
        except UnsealError as error:
            raise StoreError(f"{target}: {error}") from error
        sealer = sealer_of(target, unlock, origin, reader)
        header = reader.header
    if as_json:
        print_json({**_header_json(header), "digest": digest.hex(), **sealer.to_json()})
        return
    weights = [spec for spec in header.tensors if spec.name != sealed.STATE]
    line(f"{printable(header.model)}, version {header.version}, after round {header.round}")
    for name, value in sorted(header.meta.items()):
        line(f"  {printable(name)}: {printable(str(value))}")
    for spec in weights:
        shape = " x ".join(map(str, spec.shape)) or "scalar"
        line(f"  {printable(spec.name)}  {spec.dtype}  {shape}")
    size = f"{len(weights)} tensors, {sum(spec.nbytes for spec in weights)} bytes"
    if sealer.known:
        line(f"{size}, every chunk authentic: {sealer.text}", style="green")
    else:
        line(f"{size}: {sealer.text}", style="red")


@group.command()
@click.argument("target")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option("--replace", is_flag=True, help="Replace an existing file.")
@click.option(
    "--tensor",
    "names",
    multiple=True,
    metavar="NAME",
    help="Write this tensor alone; may be repeated. Example: --tensor head.weight",
)
@unlock_options
@key_option
@origin_options
@_version
@json_option
def export(
    target: str,
    out: Path,
    replace: bool,
    names: tuple[str, ...],
    unlock: Unlock | None,
    key: Path | None,
    origin: Origin,
    version: int | None,
    as_json: bool,
) -> None:
    """Write the weights in plaintext, as safetensors that only you can read (mode 0600).

    With --tensor only the tensors of these names are decrypted. Who sealed a FILE is checked over
    all of it, nevertheless: the signature covers every byte.

    An export from a coordinator's state is recorded in the ledger first; the coordinator may run.
    """
    if unlock is not None:
        check_release(unlock, out, key, origin)
        with unlock.recording() as store:
            stored = store.export(target, out, version=version, replace=replace, names=names)
        model, found, sealer = stored.model, stored.version, CATALOGUE
    else:
        with opened(target, None, key, version, origin) as reader:
            sealer = sealer_of(target, None, origin, reader)
            try:
                sealed.export(reader, out, replace=replace, names=names)
            except UnsealError as error:
                raise StoreError(f"{target}: {error}") from error
            model, found = reader.header.model, reader.header.version
    size = out.stat().st_size
    if as_json:
        document = {"model": model, "version": found, "out": str(out), "bytes": size}
        print_json({**document, **sealer.to_json()})
    else:
        line(f"{printable(model)}, version {found}: {size} bytes in plaintext in {out}")
        line(sealer.text, style="" if sealer.known else "red")


@group.command()
@click.argument("model", required=False)
@unlock_options
@json_option
def verify(model: str | None, unlock: Unlock | None, as_json: bool) -> int:
    """Read every byte of every version (of one MODEL), and compare store and ledger.

    Store and ledger each record the state of the other: an older one, or one of another
    coordinator, is detected.
    """
    from server.store.state_binding import compare_bound

    unlock = needed(unlock)
    with unlock.keys() as keys, unlock.opened(keys) as store:
        names = store.models() if model is None else (store.latest(model).model,)
        faults = {}
        checked: list[StoredModel] = []
        written: dict[str, int] = {}
        try:
            compare_bound(unlock.state, keys)
        except (StoreError, LedgerError) as error:
            faults["state"] = str(error)
        try:
            written = written_versions(LedgerReader(unlock.state / LEDGER_FILE))
        except LedgerError as error:
            faults.setdefault("state", str(error))
        for name in names:
            try:
                checked += store.verify(name)
                store.latest(name, expected_version=written.get(name, 0))
            except StoreError as error:
                faults[name] = str(error)
        if model is None:
            for name in sorted(set(written) - set(names)):
                faults[name] = f"{name}: version {written[name]} was written and is missing"
    if as_json:
        versions = [_stored_json(stored) for stored in checked]
        print_json({"intact": not faults, "faults": faults, "versions": versions})
        return REFUSED if faults else 0
    for text in faults.values():
        click.echo(f"damaged: {printable(text)}", err=True)
    if faults:
        return REFUSED
    line(f"intact: {len(checked)} versions of {len(names)} models, as in the ledger", style="green")
    return 0


@group.command()
@click.argument("model")
@unlock_options
@json_option
def rotate(model: str, unlock: Unlock | None, as_json: bool) -> None:
    """Seal all versions of MODEL under a new key, and destroy the old one.

    Afterwards only the owner of the job can open copies of the old files. A coordinator that runs
    does it while its jobs go on.
    """
    fresh = needed(unlock).rotate(model)
    if as_json:
        print_json({"models": [_stored_json(stored) for stored in fresh]})
    else:
        line(f"{model}: {len(fresh)} versions sealed under the key {fresh[-1].key}")


def _stored_json(stored: StoredModel) -> dict[str, Any]:
    return {
        "model": stored.model,
        "job": stored.job,
        "version": stored.version,
        "round": stored.round,
        "file": str(stored.path),
        "file_id": stored.file_id.hex(),
        "digest": stored.digest.hex(),
        "key": stored.key,
    }


def _header_json(header: Header) -> dict[str, Any]:
    return {
        "model": header.model,
        "version": header.version,
        "round": header.round,
        "meta": dict(header.meta),
        "recipients": [wrap.recipient.hex() for wrap in header.wraps],
        "tensors": [
            {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
            for spec in header.tensors
            if spec.name != sealed.STATE
        ],
    }
