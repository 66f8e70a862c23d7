"""The options of commands that connect to the coordinator, and the operator's client."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from fedlearn.errors import ConfigError
from fedlearn.identity.login import ENVIRONMENT, OperatorLogin, default_folder
from fedlearn.job.run import checked_reference

if TYPE_CHECKING:
    from fedlearn.wire.operator import OperatorClient

__all__ = ["connect", "duration", "job_argument", "login_or", "operator_option"]

Command = TypeVar("Command", bound=Callable[..., Any])

_DURATION: Final = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def job_argument(*, required: bool = True) -> Callable[[Command], Command]:
    """Add the argument NAME of a job; the command gets it as ``name``.

    ``NAME`` is the newest run of the job, ``NAME@N`` run N, and so is its id.
    """

    def check(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            try:
                checked_reference(value)
            except ConfigError:
                raise click.BadParameter(
                    f"{value[:80]!r} is not a name of a job: use 1 to 63 of a-z, 0-9 and '-', and "
                    "NAME@2 for the second run of NAME"
                ) from None
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


def duration(text: str) -> timedelta | None:
    """Return a span such as ``90s``, ``15m``, ``24h`` or ``7d``; ``None`` for other text."""
    match = _DURATION.fullmatch(text)
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]]) if match else None


def login_or(folder: Path | None, otherwise: str) -> tuple[Path, OperatorLogin]:
    """Return the folder of a login and the login, for a command that has another way, too.

    :param otherwise: the other way, for the hint where there is no login by default.
    :raises ConfigError: when the login is missing or wrong.
    """
    found = folder or default_folder()
    try:
        return found, OperatorLogin.load(found)
    except ConfigError as error:
        if folder is not None or found.is_dir():
            raise
        raise ConfigError(
            "no operator login here",
            where=str(found),
            hint=f"name its folder with --operator DIR or {ENVIRONMENT}; {otherwise}",
        ) from error


def connect(folder: Path | None) -> OperatorClient:
    """Return a client of the coordinator that the login names; use it as a context.

    :raises ConfigError: when the login is missing or wrong.
    """
    login = OperatorLogin.load(folder or default_folder())
    from fedlearn.wire.operator import OperatorClient

    return OperatorClient(address=login.address, ca=login.ca, chain=login.chain, key=login.key)
