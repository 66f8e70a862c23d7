"""Checks that store and ledger are of one state, and neither is older than the other.

Each of them is authenticated. Two sealed files bind them: the catalogue of the store
states that there is a ledger and where it ended (:class:`server.store.catalogue.Catalogue`), and
the head file states the length of both (:mod:`server.store.head_file`). If all of them are put back
together, this is detected by a TPM's counter (:class:`server.store.catalogue.MonotonicCounter`) or
by a ledger head that was kept elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from fedlearn.errors import LedgerError, StoreError
from server.ledger import LedgerHead, LedgerReader
from server.store.catalogue import Catalogue
from server.store.head_file import HEAD_FILE, HeadFile
from server.store.models import ModelStore

__all__ = ["check_bound", "check_initialized", "check_not_older", "written_versions"]

_BACKUP: Final = (
    "restore ledger and store from the same, newest backup; if an older one is all that is left, "
    "`fedlearn-server adopt --config server.toml` continues with it and records this in the ledger"
)


def check_initialized(catalogue: Catalogue) -> None:
    """Check that the store is one of a coordinator that was initialized.

    :raises StoreError: when it is not, or is of a version whose state was not bound together.
    """
    if not catalogue.established:
        raise StoreError(
            "the store is not marked as that of an initialized coordinator",
            hint="either `fedlearn-server init` was interrupted: remove the directory and run it "
            "again; or the directory is of a version that did not bind store and ledger: export "
            "its models with that version, and initialize a coordinator in another directory",
        )


def check_bound(
    catalogue: Catalogue,
    sealed: HeadFile,
    *,
    length: int,
    burst: int,
    hash_of: Callable[[int], bytes | None],
    later: HeadFile | None = None,
) -> None:
    """Compare the store's catalogue, the head file and the ledger, each with the others.

    Beside a running coordinator they are read in this order, and the head file once more: each is
    then at least as new as the one read before it, and not newer than the one read after it.

    :param length: how many entries the ledger has.
    :param burst: how many of the last of them may have been written together, of which the head
        is sealed once (:mod:`server.ledger.log`).
    :param hash_of: returns the hash of one of them, ``None`` where there is no such entry.
    :param sealed: the head file as it was read before the catalogue.
    :param later: the head file as it was read after the ledger, where another process may write.
    :raises StoreError: when the store was never initialized, or catalogue or head file is older
        than the other, or than the ledger.
    :raises LedgerError: when the ledger is shorter than what is sealed, or another one.
    """
    check_initialized(catalogue)
    if not sealed.found:
        raise StoreError(f"{HEAD_FILE} of the store is missing", hint=_BACKUP)
    position, latest = sealed.position, (later or sealed).position
    if catalogue.generation < position.generation:
        raise StoreError(
            f"rolled back: the catalogue of the store was written {position.generation} times, "
            f"and this is the one of time {catalogue.generation}",
            hint=_BACKUP,
        )
    noted = LedgerHead.parse(catalogue.head.encode()) if catalogue.head else None
    newest = position.head
    known = 0 if latest.head is None else latest.head.sequence
    behind = noted is not None and known < noted.sequence
    if behind or catalogue.generation > latest.generation + 1:
        raise StoreError(
            f"rolled back: {HEAD_FILE} of the store is older than its catalogue", hint=_BACKUP
        )
    for head in (noted, newest):
        if head is not None:
            _check_head(head, length, hash_of)
    if length > known + burst:
        raise StoreError(
            f"rolled back: {HEAD_FILE} of the store is of entry {known}, and the ledger has "
            f"{length}",
            hint=_BACKUP,
        )


def _check_head(head: LedgerHead, length: int, hash_of: Callable[[int], bytes | None]) -> None:
    found = hash_of(head.sequence)
    if found is None:
        raise LedgerError(
            f"entry {length + 1}: missing; the store was sealed when the ledger had "
            f"{head.sequence} entries",
            entry=length + 1,
            hint=_BACKUP,
        )
    if found != head.hash:
        raise LedgerError(
            f"entry {head.sequence}: not the one that was sealed with the store; this is another "
            "ledger",
            entry=head.sequence,
            hint=_BACKUP,
        )


def written_versions(ledger: LedgerReader) -> dict[str, int]:
    """Return the highest version of each model that an entry names.

    Where an operator adopted an older store, what was written before counts as it was adopted.
    Models that were deleted with their job are left out.

    :raises LedgerError: when there is no ledger, or it is damaged.
    """
    highest: dict[str, int] = {}
    adopted = 0
    for entry in ledger.entries(kind="state"):
        versions = entry.body.get("versions")
        if isinstance(versions, dict):
            adopted = entry.sequence
            highest = {str(k): v for k, v in versions.items() if isinstance(v, int)}
    for kind in ("checkpoint", "files"):
        for entry in ledger.entries(after=adopted, kind=kind):
            name, version = entry.body.get("model"), entry.body.get("version")
            if isinstance(name, str) and isinstance(version, int):
                highest[name] = max(version, highest.get(name, 0))
    for entry in ledger.entries(kind="job"):
        if entry.body.get("change") == "deleted":
            # The id of a run is never used again, so nothing of that name is written later.
            models = entry.body.get("models")
            for model in models if isinstance(models, list) else ():
                highest.pop(str(model), None)
    return highest


def check_not_older(store: ModelStore, ledger: LedgerReader) -> None:
    """Check that the store holds every model at the version that was written last.

    :raises StoreError: naming the first model that was rolled back or is gone.
    :raises LedgerError: when there is no ledger, or it is damaged.
    """
    present = store.models()
    for model, version in sorted(written_versions(ledger).items()):
        if model not in present:
            raise StoreError(
                f"rolled back: version {version} of {model} was written and is missing",
                hint="restore the newest backup of the store",
            )
        store.latest(model, expected_version=version)
