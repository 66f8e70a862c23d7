"""A state directory whose ledger and store are bound to each other, without a coordinator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedlearn.sealing import FileSigner
from server.keys.service import KeyService
from server.ledger import LEDGER_FILE, Ledger
from server.store.head_file import HEAD_FILE, HeadFile
from server.store.models import ModelStore


@contextmanager
def bound_state(
    state: Path, keys: KeyService, *, signer: FileSigner | None = None
) -> Iterator[tuple[Ledger, ModelStore]]:
    """Make ledger and store in ``state`` as `fedlearn-server init` does."""
    key = ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    keys.keep("ledger-key", secret)
    head = HeadFile(state / "store" / HEAD_FILE, keys.root)
    with Ledger.open(state / LEDGER_FILE, key, seal=head.seal_head) as ledger:
        ledger.append("policy", {"change": "established"})
        with ModelStore.open(
            state / "store", keys, record=ledger.append, signer=signer, head=head
        ) as store:
            store.initialize()
            yield ledger, store
