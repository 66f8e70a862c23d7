"""A coordinator's ledger, read and verified over an operator's login.

The entries are verified here, with the code that verifies a ledger on a disk. The key under which
they verify is the one that the coordinator's CA signed, which the login pins
(:mod:`fedlearn.identity.ledger_key`): none is trusted on first use.

Each head that was verified is kept in the login's folder. A ledger that ends before it, or has
another entry in its place, is reported: the coordinator cannot show this operator a shorter or
another history later on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.durable import write_durably
from fedlearn.errors import LedgerError
from fedlearn.identity.ledger_key import certified_ledger_key
from fedlearn.identity.login import LEDGER_HEAD, OperatorLogin
from fedlearn.wire.operator import OperatorClient
from fedlearn.wire.results import LedgerState
from server.ledger import Contribution, Entry, LedgerHead, VerifiedLedger
from server.ledger.contributions import contributions
from server.ledger.entry import entry_of_row, verify_signature
from server.ledger.verification import verify_rows

__all__ = ["RemoteLedger"]

_MAX_HEAD_BYTES: Final = 4096
_HINT: Final = (
    "the ledger is damaged, an older copy of the coordinator's state was restored, or the "
    "coordinator shows another history than before: ask its administrator to run `fedlearn ledger "
    "verify --state`, and compare the heads of all operators"
)


class RemoteLedger:
    """The ledger of the coordinator that a login names.

    :param folder: the login's folder, where the last verified head is kept.
    :param key: the public key of the ledger, where another one than the CA's is trusted.
    """

    def __init__(
        self,
        client: OperatorClient,
        login: OperatorLogin,
        folder: Path,
        *,
        key: ec.EllipticCurvePublicKey | None = None,
    ) -> None:
        self._client = client
        self._ca = login.ca
        self._file = folder / LEDGER_HEAD
        self._key = key
        self.unkept = ""
        """Why the head that was verified last could not be kept; empty where it was."""

    def entries(
        self, after: int = 0, kind: str | None = None, limit: int | None = None
    ) -> Iterator[Entry]:
        """Yield the entries above sequence ``after``, oldest first; they are not verified.

        :raises LedgerError: at an entry that is malformed.
        """
        reached = after
        rows = self._client.read_ledger(after=after, kind=kind or "", limit=limit or 0)
        with closing(rows):
            for row in rows:
                entry = entry_of_row(row, expected=reached + 1)
                reached = entry.sequence
                yield entry

    def contributions(
        self,
        job: str,
        *,
        version: int | None = None,
        round: int | None = None,  # noqa: A002
    ) -> list[Contribution]:
        """List who made a model; see :func:`server.ledger.contributions.contributions`."""
        return contributions(self.entries, job, version=version, round=round)

    @cached_property
    def kept(self) -> LedgerHead | None:
        """The head that this login verified last; None before the first time.

        :raises LedgerError: when the file that keeps it is damaged.
        """
        try:
            with self._file.open("rb") as file:
                return LedgerHead.parse(file.read(_MAX_HEAD_BYTES + 1))
        except FileNotFoundError:
            return None
        except LedgerError as error:
            raise LedgerError(
                f"{self._file}: {error}",
                hint="restore the file, or remove it to begin with the ledger as it is now",
            ) from None

    def verify(self, *, expect_head: LedgerHead | None = None) -> VerifiedLedger:
        """Verify every entry, and that the ledger goes on from the head that was kept.

        The head that is found is kept.

        :param expect_head: a head that was kept elsewhere, with which the ledger is compared, too.
        :raises LedgerError: naming the first entry that is wrong or missing.
        """
        given = {} if expect_head is None else {"the given head": expect_head}
        found = self._verified(given, after=None)
        return replace(found, head_checked=bool(given) or self.kept is not None)

    def head(self) -> LedgerHead | None:
        """Return where the ledger ends now, after verifying what was added to the kept head.

        Where none was kept, only the signature of the head is verified. None when the ledger is
        empty. The head is kept.

        :raises LedgerError: as :meth:`verify`.
        """
        if self.kept is not None:
            return self._verified({}, after=self.kept).head
        state = self._client.ledger_state()
        if not state.sequence:
            return None
        head = _head(state)
        verify_signature(self._public_key(state), head.hash, head.signature)
        self._keep(head)
        return head

    def _verified(
        self, heads: Mapping[str, LedgerHead], *, after: LedgerHead | None
    ) -> VerifiedLedger:
        """Verify the entries behind ``after``, and compare with ``heads`` and the known ones."""
        state, kept = self._client.ledger_state(), self.kept
        known = dict(heads)
        if state.sequence:
            known["the head that the coordinator signed"] = _head(state)
        try:
            if kept is not None:
                what = f"the head that this login kept{_since(kept)}"
                known[what] = kept
                _check_follows(state, kept, what)
            rows = self._client.read_ledger(after=0 if after is None else after.sequence)
            with closing(rows):
                found = verify_rows(rows, self._public_key(state), heads=known, after=after)
        except LedgerError as error:
            raise LedgerError(str(error), entry=error.entry, hint=error.hint or _HINT) from error
        if found.head is not None:
            self._keep(found.head)
        return found

    def _public_key(self, state: LedgerState) -> ec.EllipticCurvePublicKey:
        if self._key is not None:
            return self._key
        return certified_ledger_key(self._ca, state.public_key, state.key_signature)

    def _keep(self, head: LedgerHead) -> None:
        try:
            write_durably(self._file, head.to_bytes())
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            self.unkept = f"the head could not be kept: {self._file}: {reason}"


def _check_follows(state: LedgerState, kept: LedgerHead, what: str) -> None:
    """Check that a ledger that ends at ``state`` may contain the head ``kept``."""
    if state.sequence < kept.sequence:
        missing = state.sequence + 1
        raise LedgerError(
            f"entry {missing}: missing; the ledger ends before entry {kept.sequence} of {what}",
            entry=missing,
        )
    if state.sequence == kept.sequence and state.hash != kept.hash:
        raise LedgerError(
            f"entry {kept.sequence}: not the one that {what} vouches for; it or an entry before "
            "it was rewritten",
            entry=kept.sequence,
        )


def _head(state: LedgerState) -> LedgerHead:
    return LedgerHead(
        sequence=state.sequence, hash=state.hash, signature=state.signature, time=state.time
    )


def _since(head: LedgerHead) -> str:
    try:
        moment = datetime.fromtimestamp(head.time / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return ""
    return f" ({moment:%Y-%m-%d %H:%M}Z)"
