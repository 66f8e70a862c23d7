"""How a command reaches the coordinator: the operator's login and the client made from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fedlearn.config import NAME
from fedlearn.identity.login import ENVIRONMENT, OperatorLogin, default_folder

if TYPE_CHECKING:
    from fedlearn.wire.operator import OperatorClient

__all__ = ["connect", "job_argument", "operator_option"]

Command = TypeVar("Command", bound=Callable[..., Any])


def job_argument(*, required: bool = True) -> Callable[[Command], Command]:
    """Add the argument NAME of a job; the command gets it as ``name``."""

    def check(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value is not None and not NAME.fullmatch(value):
            raise click.BadParameter(
                f"{value[:80]!r} is no name of a job: 1 to 63 of a-z, 0-9 and '-'"
            )
        return value

    return click.argument("name", required=required, callback=check)


def operator_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--operator DIR``; the command gets the folder as ``operator``."""
    return click.option(
        "--operator",
        type=click.Path(path_type=Path),
        default=None,
        metavar="DIR",
        help=f"Folder of the operator's login (or {ENVIRONMENT} in the environment).",
    )(command)


def connect(folder: Path | None) -> OperatorClient:
    """Return a client of the coordinator that the login names; use it as a context.

    :raises ConfigError: when the login is missing or wrong.
    """
    login = OperatorLogin.load(folder or default_folder())
    from fedlearn.wire.operator import OperatorClient

    return OperatorClient(address=login.address, ca=login.ca, chain=login.chain, key=login.key)
