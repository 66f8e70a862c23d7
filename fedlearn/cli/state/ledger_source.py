"""Where a ``ledger`` command reads: a coordinator's state directory, or an operator's login."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from fedlearn.cli.operator import connect, login_or, operator_option
from fedlearn.errors import ConfigError
from server.ledger import (
    LEDGER_FILE,
    PUBLIC_KEY_FILE,
    Contribution,
    Entry,
    LedgerHead,
    LedgerReader,
    VerifiedLedger,
    load_public_key,
)

if TYPE_CHECKING:
    from fedlearn.api.remote_ledger import RemoteLedger

__all__ = [
    "LedgerSource",
    "StateLedger",
    "opened_ledger",
    "refuse_both",
    "remote_ledger",
    "source_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])


class LedgerSource(Protocol):
    """A ledger, wherever it is."""

    def entries(
        self, after: int = 0, kind: str | None = None, limit: int | None = None
    ) -> Iterator[Entry]:
        """Yield entries above ``after``, oldest first; they are not verified."""
        ...

    def head(self) -> LedgerHead | None:
        """Return where it ends."""
        ...

    def verify(self, *, expect_head: LedgerHead | None = None) -> VerifiedLedger:
        """Verify every entry; raises LedgerError naming the first that is wrong."""
        ...

    def contributions(
        self,
        job: str,
        *,
        version: int | None = None,
        round: int | None = None,  # noqa: A002
    ) -> list[Contribution]:
        """List who made a model."""
        ...


class StateLedger:
    """The ledger in a state directory. ``key`` is the file of its public key, if not beside it."""

    def __init__(self, state: Path, key: Path | None = None) -> None:
        if not state.is_dir():
            raise ConfigError("no such directory", where="--state", key=str(state))
        self._key = key or state / PUBLIC_KEY_FILE
        reader = LedgerReader(state / LEDGER_FILE)
        self._reader = reader
        self.entries = reader.entries
        self.head = reader.head
        self.contributions = reader.contributions

    def verify(self, *, expect_head: LedgerHead | None = None) -> VerifiedLedger:
        """Verify every entry; see :func:`server.ledger.verification.verify`."""
        return self._reader.verify(load_public_key(self._key), expect_head=expect_head)


def source_options(command: Command) -> Command:
    """Add ``--state DIR`` and ``--operator DIR``; :func:`opened_ledger` takes both."""
    state = click.option(
        "--state",
        type=click.Path(path_type=Path, file_okay=False),
        help="State directory of a coordinator, in place of your login.",
    )
    return state(operator_option(command))  # type: ignore[return-value]


@contextmanager
def opened_ledger(state: Path | None, operator: Path | None) -> Iterator[LedgerSource]:
    """Open the ledger that the options name; by default that of your login.

    :raises ConfigError: when both were given, or the login is missing or wrong.
    """
    if state is not None:
        refuse_both(state, operator)
        yield StateLedger(state)
        return
    with remote_ledger(operator) as found:
        yield found


@contextmanager
def remote_ledger(operator: Path | None, key: Path | None = None) -> Iterator[RemoteLedger]:
    """Open the ledger of the coordinator that a login names.

    :param key: file of the public key to verify with, in place of the one that the CA signed.
    """
    from fedlearn.api.remote_ledger import RemoteLedger

    folder, login = login_or(operator, "--state DIR reads a coordinator's state on this machine")
    public_key = None if key is None else load_public_key(key)
    with connect(folder) as client:
        yield RemoteLedger(client, login, folder, key=public_key)


def refuse_both(state: Path | None, operator: Path | None) -> None:
    """Check that not both of a state directory and a login were named."""
    if state is not None and operator is not None:
        raise ConfigError(
            "--state reads a directory on this machine, --operator asks the coordinator; name one"
        )
