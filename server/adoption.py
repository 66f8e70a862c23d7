"""Continuing with an older ledger or store, by decision of an operator.

Where a backup is all that is left, ledger and store are not of one state, and the coordinator
refuses to start. Adopting binds what is there, after checking each part for itself, and enters
into the ledger what was adopted in place of what. What the lost part knew is lost: revocations
and removals, privacy that was spent, versions of models.

The page is docs/how-to/recover-a-lost-disk.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import ConfigError, LedgerError, StoreError
from server.config import ServerConfig
from server.keys.service import KeyService
from server.ledger import LEDGER_FILE, Ledger, LedgerReader
from server.state_directory import counter_of, opened_keys
from server.store.head_file import HEAD_FILE, HeadFile
from server.store.models import ModelStore
from server.store.rollback import check_initialized, check_not_older
from server.store.state_binding import STORE_FOLDER, compare_bound, ledger_key

__all__ = ["Adopted", "adopt"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What was adopted.

    ``disagreement``  what kept the coordinator from starting
    ``head``          the ledger's head that was sealed before, ``sequence:hash``
    ``ledger``        the head of the ledger that is there
    ``versions``      the newest version of each model in the store that is there
    """

    disagreement: str
    head: str
    ledger: str
    versions: dict[str, int]


def adopt(config: ServerConfig) -> Adopted:
    """Bind the ledger and the store that are there; the coordinator must not be running.

    :raises ConfigError: when they are of one state already.
    :raises StoreError: when a part of the store is damaged, or was never initialized.
    :raises LedgerError: when the ledger is missing or damaged.
    """
    state = config.state
    with opened_keys(config) as keys:
        disagreement = _disagreement(state, keys)
        if not disagreement:
            raise ConfigError(
                "ledger and store are of one state, so there is nothing to adopt",
                where=str(state),
                hint="start it with `fedlearn-server run`",
            )
        head = HeadFile(state / STORE_FOLDER / HEAD_FILE, keys.root)
        before = str(head.position.head or "")
        with (
            ModelStore.open(
                state / STORE_FOLDER,
                keys,
                counter=counter_of(config.keys),
                adopt_counter=True,
                head=head,
                create=False,
            ) as store,
        ):
            check_initialized(store.catalogue)
            versions = {model: store.verify(model)[-1].version for model in store.models()}
            with Ledger.open(
                state / LEDGER_FILE, ledger_key(keys), create=False, seal=head.seal_head
            ) as ledger:
                ledger.verify(ledger.public_key)
                found = str(ledger.head() or "")
                ledger.append(
                    "state",
                    {
                        "change": "adopted",
                        "disagreement": disagreement,
                        "head": before,
                        "ledger": found,
                        "versions": versions,
                    },
                )
                store.initialize()
    return Adopted(disagreement=disagreement, head=before, ledger=found, versions=versions)


def _disagreement(state: Path, keys: KeyService) -> str:
    """Return why the coordinator would not start, or nothing."""
    try:
        compare_bound(state, keys)
        with ModelStore.open(state / STORE_FOLDER, keys, read_only=True) as store:
            check_not_older(store, LedgerReader(state / LEDGER_FILE))
    except (StoreError, LedgerError) as error:
        return str(error)
    return ""
