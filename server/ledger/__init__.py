"""The ledger: an append-only, hash-chained, signed log of every decision.

One :class:`Ledger` is open for writing in the coordinator. Anybody with the file and the
public key reads and verifies it with a :class:`LedgerReader`.

Guaranteed: whoever does not hold the coordinator's private key cannot edit, delete, insert
or reorder an entry without :meth:`LedgerReader.verify` naming it, nor cut off entries before
a :class:`LedgerHead` that was kept elsewhere. Not guaranteed: that the coordinator itself
wrote the truth; for that it is attested.

What the entries hold (digests, thumbprints and identifiers as lower-case hexadecimal)::

    admission    job site client thumbprint evidence policy measurements tee expires serial
    renewal      as admission
    refusal      job site reason findings
    challenge    site client
    quarantine   job site client thumbprint reason
    revocation   job site client thumbprint reason
    expiry       job site client thumbprint
    enrollment   site thumbprint
    site         site change
    job          job change digest bundle policy
    round        job round phase("started"|"finished") participants model_digest seconds metrics
    update       job round site thumbprint digest examples accepted(bool) reason
    checkpoint   job round version file_id digest
    model        job version change
    key-release  model version to allowed(bool)
    export       model version to
    commitment   job site root records
    privacy      job round epsilon delta unit accountant sampling adjacency
    policy       job old new

``job``, ``site`` and ``client`` are names; ``round``, ``version``, ``examples``, ``records``
and ``serial`` are whole numbers (``serial`` as a string where it exceeds 64 bits);
``seconds`` and ``epsilon`` are numbers; ``expires`` is RFC 3339 text; ``measurements`` maps
claim names to hexadecimal. More fields may stand beside these.
"""

from __future__ import annotations

from server.ledger.contributions import Contribution
from server.ledger.entry import KINDS, MAX_BODY_BYTES, Entry, Json, LedgerHead
from server.ledger.log import (
    LEDGER_FILE,
    PUBLIC_KEY_FILE,
    Ledger,
    LedgerReader,
    load_public_key,
)
from server.ledger.verification import VerifiedLedger

__all__ = [
    "KINDS",
    "LEDGER_FILE",
    "MAX_BODY_BYTES",
    "PUBLIC_KEY_FILE",
    "Contribution",
    "Entry",
    "Json",
    "Ledger",
    "LedgerHead",
    "LedgerReader",
    "VerifiedLedger",
    "load_public_key",
]
