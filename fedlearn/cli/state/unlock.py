"""Opens a coordinator's state directory for a command: by a recovery key, a passphrase, the
coordinator's own configuration (its TPM), or the insecure key file of a development set-up.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from fedlearn.config import file_bytes
from fedlearn.errors import ConfigError
from fedlearn.identity.keyfile import read_private_key
from server.keys.key_protectors import InsecurePlainKeyFile, Passphrase, Protector, RecoveryKey
from server.keys.root_key import protector_kinds
from server.keys.service import KeyService
from server.store.models import ModelStore, StoredModel

__all__ = ["Unlock", "ask_passphrase", "unlock_options"]

_FLAGS: Final = {
    Passphrase.kind: "--passphrase-file FILE",
    RecoveryKey.kind: "--recovery-key FILE (the private key)",
    InsecurePlainKeyFile.kind: "--insecure-plain-key-file",
}
KEYS_FOLDER: Final = "keys"
STORE_FOLDER: Final = "store"

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlock:
    """A state directory, and the options to open it."""

    state: Path
    recovery_key: Path | None
    passphrase_file: Path | None
    config: Path | None
    insecure: bool

    @contextmanager
    def keys(self) -> Iterator[KeyService]:
        """Open the key service.

        :raises ConfigError: when nothing was given that could open it.
        :raises StoreError: when what was given does not open it.
        """
        if not self.state.is_dir():
            raise ConfigError("no such directory", where=f"--state {self.state}")
        protectors, insecure = self._protectors()
        service = KeyService.open(
            self.state / KEYS_FOLDER, protectors, allow_insecure_key_file=insecure
        )
        try:
            yield service
        finally:
            service.close()

    @contextmanager
    def reading(self) -> Iterator[ModelStore]:
        """Open the store for reading; the coordinator may be running."""
        with self.keys() as keys, self.opened(keys) as store:
            yield store

    def opened(self, keys: KeyService) -> ModelStore:
        """Return the store, open for reading under keys that are open; to be closed."""
        return ModelStore.open(self.state / STORE_FOLDER, keys, read_only=True)

    @property
    def given(self) -> bool:
        """Whether an option to open the state was given, besides the prompt for a passphrase."""
        return bool(self.recovery_key or self.passphrase_file or self.config or self.insecure)

    @contextmanager
    def recording(self) -> Iterator[ModelStore]:
        """Open the store for reading, with the ledger, which records what is exported.

        A coordinator that runs enters it into its ledger; without one, this process does.

        :raises LedgerError: when the ledger is not that of the store.
        :raises StoreError: when the store is older than the ledger, or the coordinator refuses.
        """
        from server.maintenance.client import RunningCoordinator
        from server.store.state_binding import open_bound

        with self.keys() as keys:
            running = RunningCoordinator.find(self.state, keys.root)
            if running is None:
                with open_bound(self.state, keys, writing=False) as (_, store):
                    yield store
                return
            with self.opened(keys) as store:
                store.record_with(running.record)
                yield store

    def rotate(self, model: str) -> tuple[StoredModel, ...]:
        """Seal all versions of a model under a new key; return them.

        A coordinator that runs does it; without one, this process does.

        :raises LedgerError: as :meth:`recording`.
        :raises StoreError: when a version is not what was sealed, or cannot be written.
        """
        from server.maintenance.client import RunningCoordinator
        from server.store.state_binding import open_bound

        with self.keys() as keys:
            running = RunningCoordinator.find(self.state, keys.root)
            if running is None:
                with open_bound(self.state, keys) as (_, store):
                    return store.rotate(model)
            running.rotate(model)
            with self.opened(keys) as store:
                return store.versions(model)

    def _protectors(self) -> tuple[list[Protector], bool]:
        """Return what may open the root key, and whether an insecure option was given."""
        found: list[Protector] = []
        insecure = self.insecure
        if self.recovery_key is not None:
            ask = functools.partial(ask_passphrase, "Passphrase of the recovery key")
            key = read_private_key(self.recovery_key, what="the recovery key", ask=ask)
            found.append(RecoveryKey.of(key))
        if self.passphrase_file is not None:
            found.append(Passphrase(_passphrase(self.passphrase_file)))
        if self.insecure:
            found.append(InsecurePlainKeyFile(self.state / KEYS_FOLDER))
        if self.config is not None:
            from server.config import ServerConfig
            from server.state_directory import protectors_of

            keys = ServerConfig.load(self.config).keys
            found += protectors_of(keys, self.state)
            insecure = insecure or keys.insecure
        if not found:
            kinds = protector_kinds(self.state / KEYS_FOLDER)
            if Passphrase.kind not in kinds or not sys.stdin.isatty():
                raise ConfigError(
                    f"the state is sealed; its key is protected by {', '.join(kinds)}",
                    where=f"--state {self.state}",
                    hint=f"open it with {_ways(kinds, self.state)}",
                )
            found.append(Passphrase(ask_passphrase("Passphrase of the coordinator's state")))
        return found, insecure


def _ways(kinds: Sequence[str], state: Path) -> str:
    """Return the options that open a key with these protectors."""
    ways = [_FLAGS[kind] for kind in kinds if kind in _FLAGS]
    config = state.absolute().parent / "server.toml"
    return " or ".join([*ways, f"--config {config if config.is_file() else 'server.toml'}"])


def unlock_options(command: Command) -> Command:
    """Add the options that open a state directory, as one argument ``unlock``.

    Without ``--state`` the argument is ``None``, for commands with other options.
    """

    @functools.wraps(command)
    def run(
        *args: Any,
        state: Path | None,
        recovery_key: Path | None,
        passphrase_file: Path | None,
        config: Path | None,
        insecure_plain_key_file: bool,
        **rest: Any,
    ) -> Any:
        unlock = None
        if state is not None:
            unlock = Unlock(
                state=state,
                recovery_key=recovery_key,
                passphrase_file=passphrase_file,
                config=config,
                insecure=insecure_plain_key_file,
            )
        elif recovery_key or passphrase_file or config or insecure_plain_key_file:
            raise ConfigError("is needed to open a coordinator's state", where="--state")
        return command(*args, unlock=unlock, **rest)

    path = click.Path(path_type=Path)
    options = [
        click.option("--state", type=path, help="State directory of the coordinator."),
        click.option("--recovery-key", type=path, help="The operator's private key (PEM)."),
        click.option("--passphrase-file", type=path, help="File with the passphrase."),
        click.option("--config", type=path, help="server.toml: open as the coordinator does."),
        click.option(
            "--insecure-plain-key-file",
            is_flag=True,
            help="Use the key that a development set-up has on disk.",
        ),
    ]
    wrapped: Any = run
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def ask_passphrase(prompt: str) -> str:
    """Prompt for a passphrase without echo.

    :raises ConfigError: when there is no terminal.
    """
    if not sys.stdin.isatty():
        raise ConfigError("a passphrase is needed, and there is no terminal to ask for it")
    return str(click.prompt(prompt, hide_input=True, err=True))


def _passphrase(path: Path) -> str:
    data = file_bytes(path, limit=4096, what="the passphrase file")
    try:
        return data.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError("is not text in UTF-8", where=str(path)) from None
