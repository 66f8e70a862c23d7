"""The ledger on the wire: its entries as they were written, and where it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedlearn.errors import ConfigError
from fedlearn.wire import fedlearn_pb2 as pb
from server.identity.pki import CertificateAuthority
from server.ledger import Entry, Ledger
from server.ledger.entry import MAX_SEQUENCE, canonical_body, valid_kind

__all__ = ["LedgerSender"]

_PAGE_BYTES: Final = 256 * 1024
_ENTRY_BYTES: Final = 256
"""About what an entry has besides its body."""


class LedgerSender:
    """Sends the entries of a ledger, with its key as the CA signed it."""

    def __init__(self, ledger: Ledger, ca: CertificateAuthority) -> None:
        self._ledger = ledger
        self._public_key = ledger.public_key.public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        self._key_signature = ca.sign_ledger_key(self._public_key)

    def pages(
        self, request: pb.ReadLedgerRequest, stop: threading.Event
    ) -> Iterator[pb.LedgerEntries]:
        """Yield the entries that the ledger has now, in pages of some hundred KiB.

        :raises ConfigError: for a kind or a number that no entry has.
        :raises LedgerError: at an entry that is damaged on the disk.
        """
        if request.kind and not valid_kind(request.kind):
            raise ConfigError("is not a kind of entry", key="kind")
        if request.after > MAX_SEQUENCE or request.limit > MAX_SEQUENCE:
            raise ConfigError("is not a sequence number", key="after")
        page, size = pb.LedgerEntries(), 0
        for entry in self._ledger.entries(
            request.after, request.kind or None, request.limit or None
        ):
            if stop.is_set():
                return
            sent = _entry(entry)
            page.entries.append(sent)
            size += len(sent.body) + _ENTRY_BYTES
            if size >= _PAGE_BYTES:
                yield page
                page, size = pb.LedgerEntries(), 0
        if page.entries:
            yield page

    def head(self) -> pb.SignedLedgerHead:
        """Return where the ledger ends now."""
        found = pb.SignedLedgerHead(public_key=self._public_key, key_signature=self._key_signature)
        end = self._ledger.head()
        if end is not None:
            (last,) = self._ledger.entries(end.sequence - 1, limit=1)
            found.sequence, found.unix_ms = last.sequence, last.time
            found.hash, found.signature = last.hash, last.signature
        return found


def _entry(entry: Entry) -> pb.LedgerEntry:
    return pb.LedgerEntry(
        sequence=entry.sequence,
        unix_ms=entry.time,
        kind=entry.kind,
        body=canonical_body(entry.body),
        previous=entry.previous,
        hash=entry.hash,
        signature=entry.signature,
    )
