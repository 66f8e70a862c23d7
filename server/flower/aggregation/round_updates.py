"""The updates of one round: whose are in its result, and what is reported of each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from attestation.length_prefixed import pack
from fedlearn.compression.spec import CompressionSpec
from fedlearn.errors import FedlearnError, QuorumNotReached
from server.flower.exchange.coordinator import Coordinator
from server.flower.exchange.receipts import ledger_digest
from server.flower.job_plan import Reply

__all__ = ["ContributorRevoked", "RoundUpdates", "Rules"]

_MAX_REASON: Final = 500
_REFUSED: Final = "the answer of this site does not count; under privacy no reason is given"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The job's rules for an exchange; see :class:`server.flower.job_plan.JobPlan`."""

    sites: tuple[str, ...]
    quorum: int
    seconds: float
    stragglers: str
    max_update_bytes: int
    visible: bool = False
    site_filters: bool = True
    secure: bool = False
    exact_metrics: bool = False
    adaptive_clip: bool = False
    blind: bytes = field(default=b"", repr=False)
    compression: CompressionSpec = field(default_factory=CompressionSpec)

    @property
    def private(self) -> bool:
        """Whether the job has privacy; ``blind`` is then the key of the ledger's digests."""
        return bool(self.blind)


class ContributorRevoked(FedlearnError):
    """A site whose update is already in the result lost its admission: run the round again."""

    code = "tainted"

    def __init__(self, sites: frozenset[str]) -> None:
        super().__init__(f"{', '.join(sorted(sites))} lost its admission in this round")
        self.sites = sites


class RoundUpdates:
    """The updates of the present round. Not thread-safe.

    ``round``   the number of the round; 0 between rounds
    ``driven``  whether rounds run here, and not in the application
    ``saved``   by how many bytes compression made the updates of the round smaller
    """

    def __init__(self, coordinator: Coordinator, rules: Rules) -> None:
        self._coordinator = coordinator
        self._rules = rules
        self._contributors: set[str] = set()
        self._inputs: dict[str, str] = {}
        self.round = 0
        self.driven = False
        self.saved = 0

    def begin(self, round_: int) -> None:
        """Begin a round."""
        self.round = round_
        self.driven = True
        self._contributors = set()
        self._inputs = {}
        self.saved = 0

    def end(self) -> None:
        """End the rounds, until the next one begins."""
        self.round = 0
        self.driven = False

    @property
    def contributors(self) -> frozenset[str]:
        """The sites whose updates were handed to the strategy in this round."""
        return frozenset(self._contributors)

    def uses(self, site: str) -> bool:
        """Return whether the update of a site is in the result of this round so far."""
        return site in self._contributors

    def add(self, site: str) -> None:
        """Note that the update of a site is handed to the strategy."""
        self._contributors.add(site)

    def remove(self, site: str) -> None:
        """Note that the update of a site is not in the result after all."""
        self._contributors.discard(site)

    def check_contributors(self) -> None:
        """Check that every site in the result of this round is still admitted.

        :raises ContributorRevoked: naming those that are not.
        """
        gone = self._contributors - self._coordinator.live_sites().keys()
        if gone:
            raise ContributorRevoked(frozenset(gone))

    def inputs(self) -> bytes:
        """Return a 32-byte digest of the updates that are in the result of this round."""
        pairs = ((site, self._inputs.get(site, "")) for site in sorted(self._contributors))
        return hashlib.sha256(pack(*(part.encode() for pair in pairs for part in pair))).digest()

    def check_quorum(self, count: int, asked: int) -> None:
        """Check that enough of the updates that were asked for can be used.

        :raises QuorumNotReached: when not.
        """
        needed = min(self._rules.quorum, asked) if self.driven else 0
        if count < needed:
            raise QuorumNotReached(
                f"{count} of the {asked} updates that the round asked for can be used, "
                f"{needed} are needed",
                hint="see the events of this round for what happened to the others",
            )

    def check_asked(self, asked: int, intended: int) -> None:
        """Check that a round reached enough sites to be one, before it waits for them.

        :raises QuorumNotReached: when it did not.
        """
        needed = min(self._rules.quorum, intended) if self.driven else 0
        if asked < needed:
            raise QuorumNotReached(
                f"{asked} of {intended} sites could be asked, {needed} are needed",
                hint="the others are offline; look at `fedlearn site list`",
            )

    def received(
        self,
        reply: Reply,
        site: str,
        *,
        examples: int,
        metrics: dict[str, float],
        staleness: int = 0,
        filters: tuple[str, ...] = (),
    ) -> None:
        """Report an update that was accepted."""
        self._inputs[site] = ledger_digest(reply.digest, self._rules.blind)
        self._coordinator.note(
            "update.received",
            question=reply.question,
            round=self.round,
            site=site,
            examples=examples,
            staleness=staleness,
            metrics=metrics,
            filters=list(filters),
        )

    def drop(self, site: str, reason: str, *, train: bool) -> str:
        """Report that an answer does not count; return the reason that is shown.

        Only an answer to a question of training is an update.
        """
        shown = _REFUSED if self._rules.private else reason[:_MAX_REASON]
        if train:
            self._coordinator.note("update.rejected", round=self.round, site=site, reason=shown)
        else:
            line = f"round {self.round}: no answer of this site: {shown}"
            self._coordinator.note("log", line=line, site=site, level="warning")
        return shown
