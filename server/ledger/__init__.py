"""The ledger: an append-only, hash-chained, signed log of every decision.

One :class:`Ledger` is open for writing in the coordinator. Anybody with the file and the
public key reads and verifies it with a :class:`LedgerReader`.

Guaranteed: without the coordinator's private key it is not possible to edit, delete, insert or
reorder an entry without :meth:`LedgerReader.verify` naming it, nor to cut off entries before a
:class:`LedgerHead` that was kept elsewhere. Not guaranteed: that the coordinator itself wrote
what is true; for that it is attested.

What the entries hold (digests, thumbprints and identifiers as lower-case hexadecimal)::

    challenge    job site peer nonce_sha256
    admission    job site client key_thumbprint serial node_id tee hardware_id measurements
                 evidence policy result expires
    renewal      as admission
    refusal      job site client peer step reason findings
    quarantine   job site client key_thumbprint node_id reason
    revocation   as quarantine
    expiry       as quarantine
    enrollment   site outcome key_thumbprint, or ek ak of a TPM that did not prove itself
    site         site status former key_thumbprint tpm(ek endorsement ak shown_ek certificate)
    job          job change digest bundle policy
    round        job round phase("started"|"finished") participants seconds model_digest (empty
                 where the checkpoint is sealed while the next round trains; its entry has it)
    update       job round site key_thumbprint digest examples accepted(bool) reason staleness
                 (of accepted updates of an asynchronous job, whose rounds are versions) filters
                 (of the site that it was sent through, by their kinds)
    checkpoint   job round model version file_id digest
    files        as checkpoint: the files that the job's application leaves
    model        job model version change, and digests by version where all were sealed again
    key-release  model version to allowed(bool)
    export       job model version digest to
    commitment   job site root records examples
    privacy      job round stage release inputs, and Spent.to_json(): epsilon delta rounds unit
                 adjacency sampling accountant noise_multiplier ...
    policy       job policy former name version signer operator
    state        change("adopted") ledger store versions: an operator went on with an older state

The join of :meth:`LedgerReader.contributions` reads ``job``, ``round``, ``phase``, ``site``,
``client``, ``key_thumbprint`` (or ``thumbprint``), ``digest``, ``examples``, ``accepted``,
``tee``, ``measurements``, ``policy`` and ``version`` of admissions, renewals, quarantines,
rounds, updates and checkpoints. Beginning a round takes back the job's rounds from it on.

``job``, ``site`` and ``client`` are names; ``round``, ``version``, ``examples`` and ``records``
are whole numbers, ``serial`` and ``node_id`` are text, as they may exceed 64 bits;
``seconds`` and ``epsilon`` are numbers; ``expires`` is RFC 3339 text; ``measurements`` maps
claim names to hexadecimal. More fields may stand beside these.

>>> import tempfile
>>> from pathlib import Path
>>> from cryptography.hazmat.primitives.asymmetric import ec
>>> key = ec.generate_private_key(ec.SECP256R1())
>>> folder = tempfile.TemporaryDirectory()
>>> with Ledger.open(Path(folder.name) / "ledger.sqlite", key) as ledger:
...     entry = ledger.append("export", {"job": "heart", "model": "heart", "version": 1, "to": "x"})
>>> verified = LedgerReader(Path(folder.name) / "ledger.sqlite").verify(key.public_key())
>>> verified.head.sequence
1
>>> folder.cleanup()

The page is docs/reference/api/ledger.md.
"""

from __future__ import annotations

from server.ledger.contributions import Contribution
from server.ledger.entry import KINDS, MAX_BODY_BYTES, Entry, Json, LedgerHead
from server.ledger.files import LEDGER_FILE, PUBLIC_KEY_FILE, load_public_key
from server.ledger.log import Ledger, LedgerReader
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
