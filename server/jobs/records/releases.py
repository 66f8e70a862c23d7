"""The releases of a job with [privacy]: each is charged, in the ledger, before it happens.

Releases are counted over all stages, repeats, restarts and resumptions. An attempt that was
charged and has no sealed checkpoint was not disclosed. It may be repeated at no cost with the
same bytes as inputs, because its noise is then the same.

The page is docs/adr/0017-aggregator.md.
"""

from __future__ import annotations

from fedlearn.errors import JobError, PrivacyError
from fedlearn.job.events import PrivacySpent
from fedlearn.privacy import Budget, PrivacySpec
from server.ledger import Entry, Ledger

__all__ = ["Releases"]


class Releases:
    """The releases of one job. Not thread-safe."""

    def __init__(self, job: str, privacy: PrivacySpec | None, ledger: Ledger) -> None:
        """Read from the ledger what was charged before."""
        self._job = job
        self._ledger = ledger
        self._unreleased: tuple[int, int, str] | None = None
        charged, last = dict[int, int](), None
        for last in ledger.entries(kind="privacy"):
            if last.body.get("job") == job:
                charged[len(charged) + 1] = int(str(last.body.get("round")))
                self._unreleased = _attempt(last)
        self._budget = None if privacy is None else Budget(privacy, charged)
        self._attempted = max(charged.values(), default=0)
        for entry in ledger.entries(kind="checkpoint"):
            if last is not None and entry.body.get("job") == job:
                self._unreleased = None if entry.sequence > last.sequence else self._unreleased

    def charge(self, stage: int, round_: int, inputs: bytes) -> PrivacySpent | None:
        """Charge one release, durably; return the event, None for a repetition that is free.

        :raises PrivacyError: when the release would exceed the budget, or repeats a round that
            was released while the noise is correlated.
        """
        if self._budget is None:
            raise JobError("a job without [privacy] has no budget to charge")
        attempt = (stage, round_, inputs.hex())
        if attempt == self._unreleased:
            return None
        self._check_order(stage, round_)
        release = self._budget.releases + 1
        spent = self._budget.charge(release, round_)
        # The entry precedes the release, so that a crash cannot spend budget without an entry.
        self._ledger.append(
            "privacy",
            {
                "job": self._job,
                "round": round_,
                "stage": stage,
                "release": release,
                "inputs": inputs.hex(),
                **spent.to_json(),
            },
        )
        self._unreleased = attempt
        return PrivacySpent(
            round=round_,
            epsilon=spent.epsilon,
            delta=spent.delta,
            unit=spent.spec.unit,
            sampling=spent.spec.sampling_text,
            accountant=spent.spec.accountant,
            limit=self._budget.spec.epsilon,
        )

    def _check_order(self, stage: int, round_: int) -> None:
        """Check that a round is released once where its noise is subtracted by later ones.

        Two continuations of the same rounds would have more of a site than is counted.
        """
        if self._budget is None or self._budget.spec.noise == "independent":
            return
        again = self._unreleased is not None and round_ == self._attempted
        if stage != 1 or not (round_ == self._attempted + 1 or again):
            raise PrivacyError(
                f"round {round_} of stage {stage} after {self._attempted} released rounds: with "
                "correlated noise each round is released once, in order",
                hint='a job that may begin again needs noise = "independent"',
            )
        self._attempted = round_

    def sealed(self) -> None:
        """Note that a checkpoint was sealed: what was charged may be disclosed from now on."""
        self._unreleased = None


def _attempt(entry: Entry) -> tuple[int, int, str] | None:
    stage, round_, inputs = (entry.body.get(name) for name in ("stage", "round", "inputs"))
    if isinstance(stage, int) and isinstance(round_, int) and isinstance(inputs, str):
        return stage, round_, inputs
    return None
