"""Is the store as new as the ledger says? Finds an older copy where no counter does.

The two are separate files; whoever restores both together is found by a TPM's counter
(:class:`server.catalogue.MonotonicCounter`) or by a ledger head that was kept elsewhere.
"""

from __future__ import annotations

from fedlearn.errors import StoreError
from server.ledger import LedgerReader
from server.store import ModelStore

__all__ = ["check_not_older", "written_versions"]


def written_versions(ledger: LedgerReader) -> dict[str, int]:
    """Return the highest version of each model that a checkpoint entry names.

    :raises LedgerError: when there is no ledger, or it is damaged.
    """
    highest: dict[str, int] = {}
    for entry in ledger.entries(kind="checkpoint"):
        name, version = entry.body.get("model"), entry.body.get("version")
        if isinstance(name, str) and isinstance(version, int):
            highest[name] = max(version, highest.get(name, 0))
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
                f"rolled back: version {version} of {model} was written and is not there",
                hint="restore the newest backup of the store",
            )
        store.latest(model, expected_version=version)
