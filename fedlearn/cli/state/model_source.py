"""From whom a command gets sealed models: over an operator's login, or as their owner."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import click

from fedlearn.api.downloads import ModelSource
from fedlearn.cli.operator import connect, login_or, operator_option
from fedlearn.cli.state.origin import parse_pin
from fedlearn.cli.state.unlock import ask_passphrase
from fedlearn.errors import ConfigError
from fedlearn.identity.keyfile import read_private_key
from fedlearn.identity.login import ca_pin
from fedlearn.wire.results import SealedModel

__all__ = ["ModelClient", "Remote", "remote_options"]

_OTHERWISE: Final = (
    "as the owner of models, --key, --coordinator and --ca-pin; --state DIR lists a coordinator's "
    "state on this machine"
)

Command = TypeVar("Command", bound=Callable[..., Any])


class ModelClient(ModelSource, Protocol):
    """A client that lists and sends sealed models."""

    def list_models(self, job: str = "") -> tuple[SealedModel, ...]:
        """Return the versions that are kept, of one job or of all."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """The options that name a coordinator, and whom it is asked as."""

    operator: Path | None = None
    key: Path | None = None
    coordinator: str = ""
    pin: bytes = b""

    @property
    def given(self) -> bool:
        """True when any of the options was used."""
        return self != Remote()

    @contextmanager
    def opened(self) -> Iterator[tuple[ModelClient, bytes]]:
        """Connect; yield a client, and the pin of the coordinator's CA.

        :raises ConfigError: when an option is missing or wrong, or there is no login.
        :raises FedlearnError: when the coordinator is not reached, or is not the pinned one.
        """
        if self.key is None:
            if self.coordinator or self.pin:
                raise ConfigError(
                    "--coordinator and --ca-pin are for the owner of models; name the private key "
                    "with --key, or leave them out to use your operator's login"
                )
            folder, login = login_or(self.operator, _OTHERWISE)
            with connect(folder) as client:
                yield client, bytes.fromhex(ca_pin(login.ca))
            return
        if self.operator is not None:
            raise ConfigError("--operator asks as an operator, --key as an owner; name one")
        if not self.coordinator or not self.pin:
            raise ConfigError(
                "--coordinator HOST:PORT (of its gate) and --ca-pin SHA256 are needed with --key",
                hint="ask an operator for both; `fedlearn operator login` printed the pin",
            )
        from fedlearn.wire.owner import OwnerClient

        ask = functools.partial(ask_passphrase, "Passphrase of the owner's key")
        key = read_private_key(self.key, what="the owner's key", ask=ask)
        with OwnerClient.connect(
            self.coordinator, ca_pin=self.pin, key=key, now=datetime.now(UTC)
        ) as owner:
            yield owner, self.pin


def remote_options(command: Command) -> Command:
    """Add the options of :class:`Remote`, as one argument ``remote``."""

    @functools.wraps(command)
    def run(
        *args: Any,
        operator: Path | None,
        key: Path | None,
        coordinator: str | None,
        ca_pin_text: str | None,
        **rest: Any,
    ) -> Any:
        remote = Remote(
            operator=operator,
            key=key,
            coordinator=coordinator or "",
            pin=parse_pin(ca_pin_text) if ca_pin_text else b"",
        )
        return command(*args, remote=remote, **rest)

    options = [
        operator_option,
        click.option(
            "--key",
            type=click.Path(path_type=Path),
            help="As the owner of models: your private key (PEM), in place of a login.",
        ),
        click.option(
            "--coordinator",
            metavar="HOST:PORT",
            help="With --key: the coordinator's gate.",
        ),
        click.option(
            "--ca-pin",
            "ca_pin_text",
            metavar="HEX",
            help="With --key: SHA-256 of the key of the coordinator's CA.",
        ),
    ]
    wrapped: Any = run
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]
