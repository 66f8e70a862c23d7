"""The target of model commands: a name in a coordinator's state, or a sealed file."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from fedlearn.api.owned import open_owned
from fedlearn.cli.state.origin import Origin, Sealer
from fedlearn.cli.state.unlock import Unlock, ask_passphrase
from fedlearn.errors import ConfigError
from fedlearn.sealing import SealedReader

__all__ = [
    "CATALOGUE",
    "check_release",
    "key_option",
    "needed",
    "opened",
    "refuse_key",
    "refuse_origin",
    "sealer_of",
]

key_option = click.option(
    "--key", type=click.Path(path_type=Path), help="The owner's private key (PEM), for a FILE."
)
CATALOGUE: Final = Sealer(by="catalogue", text="as in the coordinator's sealed catalogue")


@contextmanager
def opened(
    target: str,
    unlock: Unlock | None,
    key: Path | None,
    version: int | None,
    origin: Origin,
) -> Iterator[SealedReader]:
    """Open a model in a coordinator's state, or a sealed file with its owner's key.

    :raises ConfigError: when neither was given, or both.
    :raises KeyReleaseDenied: when the file is not sealed for the key.
    :raises StoreError: when it was altered.
    """
    if unlock is not None:
        refuse_key(key)
        refuse_origin(origin)
        with unlock.reading() as store, store.open_model(target, version) as reader:
            yield reader
        return
    if key is None:
        raise ConfigError(
            "is needed to open a sealed file, or --state to open a coordinator's model",
            where="--key",
        )
    ask = functools.partial(ask_passphrase, "Passphrase of the owner's key")
    with open_owned(Path(target), key, ask=ask) as reader:
        if version is not None and reader.header.version != version:
            raise ConfigError(
                f"the file contains version {reader.header.version}", where=f"--version {version}"
            )
        yield reader


def sealer_of(target: str, unlock: Unlock | None, origin: Origin, reader: SealedReader) -> Sealer:
    """Return who sealed it; a model in a coordinator's state is in its catalogue."""
    return origin.check(reader, target) if unlock is None else CATALOGUE


def needed(unlock: Unlock | None) -> Unlock:
    """Return what opens a state; raise ConfigError when nothing was given."""
    if unlock is None:
        raise ConfigError("is needed: the coordinator's state directory", where="--state")
    return unlock


def check_release(unlock: Unlock, out: Path, key: Path | None, origin: Origin) -> None:
    """Check the options of a command that writes what a coordinator has, in the clear.

    :raises ConfigError: when an option is for a sealed file, or ``out`` is in the state.
    """
    refuse_key(key)
    refuse_origin(origin)
    if out.resolve().is_relative_to(unlock.state.resolve()):
        raise ConfigError(
            "is in the coordinator's state, which contains no plaintext",
            where=f"--out {out}",
        )


def refuse_key(key: Path | None) -> None:
    """Check that no owner's key was given."""
    if key is not None:
        raise ConfigError("opens a sealed file; leave out --state, or --key", where="--key")


def refuse_origin(origin: Origin) -> None:
    """Check that no option states who sealed a file."""
    if origin.given:
        raise ConfigError(
            "is for a FILE; for a model in --state, the coordinator's catalogue is used",
            where="--ca-pin, --operator, --ledger or --insecure-unknown-origin",
        )
