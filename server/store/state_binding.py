"""Ledger and sealed store of one state directory, opened together or compared.

The page is docs/adr/0019-authenticated-state.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.config import file_bytes
from fedlearn.errors import StoreError
from server.identity.pki import CertificateAuthority
from server.keys.service import KeyService
from server.ledger import LEDGER_FILE, Ledger, LedgerReader
from server.store.catalogue import MonotonicCounter
from server.store.head_file import HEAD_FILE, HeadFile
from server.store.models import ModelStore
from server.store.rollback import check_bound, check_initialized, check_not_older

__all__ = [
    "CA_FILE",
    "CA_KEY",
    "LEDGER_KEY",
    "STORE_FOLDER",
    "authority",
    "compare_bound",
    "ledger_key",
    "open_bound",
    "secret_key",
]

STORE_FOLDER: Final = "store"
CA_FILE: Final = "ca.pem"
CA_KEY: Final = "ca-key"
LEDGER_KEY: Final = "ledger-key"


@contextmanager
def open_bound(
    state: Path, keys: KeyService, *, counter: MonotonicCounter | None = None, writing: bool = True
) -> Iterator[tuple[Ledger, ModelStore]]:
    """Open ledger and store, after comparing each with the other.

    :param writing: whether the store is to be written; the ledger always is.
    :raises StoreError: when the store does not open, or is older than the ledger.
    :raises LedgerError: when the ledger does not open, is older than the store, or another one.
    """
    with ExitStack() as stack:
        head = HeadFile(state / STORE_FOLDER / HEAD_FILE, keys.root)
        store = stack.enter_context(
            ModelStore.open(
                state / STORE_FOLDER,
                keys,
                counter=counter,
                signer=authority(state, keys).file_signer if writing else None,
                read_only=not writing,
                head=head,
                create=False,
            )
        )
        check_initialized(store.catalogue)
        ledger = stack.enter_context(
            Ledger.open(
                state / LEDGER_FILE, secret_key(keys, LEDGER_KEY), create=False, seal=head.seal_head
            )
        )
        end = ledger.head()
        check_bound(
            store.catalogue,
            head,
            length=0 if end is None else end.sequence,
            burst=ledger.last_burst,
            hash_of=ledger.hash_of,
        )
        check_not_older(store, ledger)
        # Seal what a crash left unsealed.
        if end is not None:
            head.seal_head(end)
        head.seal_generation(store.catalogue.generation)
        if writing:
            store.sweep()
        store.record_with(ledger.append)
        yield ledger, store
        end = ledger.head()
        if counter is not None and writing and store.catalogue.head != str(end or ""):
            # The counter confirms the catalogue, and the catalogue confirms the ledger up to here.
            store.initialize()


def compare_bound(state: Path, keys: KeyService) -> None:
    """Compare ledger and store with each other, without writing; a coordinator may be running.

    :raises StoreError: when the store does not open, or is older than the ledger.
    :raises LedgerError: when the ledger is damaged, older than the store, or another one.
    """
    path = state / STORE_FOLDER / HEAD_FILE
    before = HeadFile(path, keys.root)
    with ModelStore.open(state / STORE_FOLDER, keys, read_only=True) as store:
        catalogue = store.catalogue
    check_initialized(catalogue)
    chain = LedgerReader(state / LEDGER_FILE).chain(ledger_key(keys).public_key())
    check_bound(
        catalogue,
        before,
        length=len(chain),
        burst=chain.burst,
        hash_of=chain.hash_of,
        later=HeadFile(path, keys.root),
    )


def authority(state: Path, keys: KeyService) -> CertificateAuthority:
    """Return the CA of a state directory whose key service is open.

    :raises ConfigError: when its certificate cannot be read.
    :raises StoreError: when its key is missing, or is not that of the certificate.
    """
    ca_key = keys.secret(CA_KEY)
    if ca_key is None:
        raise _incomplete(CA_KEY)
    if not (state / CA_FILE).is_file():
        raise StoreError(
            f"{state / CA_FILE} is missing", hint="restore it from a backup; it is public"
        )
    return CertificateAuthority.load(file_bytes(state / CA_FILE), ca_key)


def ledger_key(keys: KeyService) -> ec.EllipticCurvePrivateKey:
    """Return the key that signs the ledger.

    :raises StoreError: when the state directory lacks it.
    """
    return secret_key(keys, LEDGER_KEY)


def secret_key(keys: KeyService, name: str) -> ec.EllipticCurvePrivateKey:
    """Return a signing key that is kept in the key service.

    :raises StoreError: when the state directory lacks it.
    """
    data = keys.secret(name)
    if data is None:
        raise _incomplete(name)
    key = serialization.load_der_private_key(data, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _incomplete(name)
    return key


def _incomplete(name: str) -> StoreError:
    return StoreError(
        f"the state directory lacks the secret {name!r}",
        hint="restore it from a backup, or initialize a new coordinator in another folder",
    )
