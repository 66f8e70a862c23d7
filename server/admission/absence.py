"""What keeps a site away from a job, in words, and whether it can come back by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from fedlearn.errors import QuorumNotReached
from fedlearn.job.events import RoundWaiting
from fedlearn.job.spec import JobSpec
from fedlearn.results.text import event_text

__all__ = ["Absence", "SiteWaits"]

_MOST_NAMED: Final = 100
"""The sites whose absence a text explains; it counts the others."""


@dataclass(frozen=True, slots=True)
class Absence:
    """What keeps one site away.

    ``final``    it does not come back unless an operator acts
    ``seconds``  for how long so far; None: not known
    """

    reason: str
    final: bool = False
    seconds: int | None = None

    def __str__(self) -> str:
        """Return the reason, as in ``removed 12 s ago``."""
        return self.reason if self.seconds is None else f"{self.reason} {self.seconds} s ago"


class SiteWaits:
    """For which sites one job waits.

    :param absence: returns what keeps a site of the job away.
    :param live: returns the sites that are admitted now.
    """

    def __init__(
        self,
        spec: JobSpec,
        *,
        absence: Callable[[str], Absence],
        live: Callable[[], Collection[str]],
    ) -> None:
        self._spec = spec
        self._absence = absence
        self._live = live
        self._waiting: RoundWaiting | None = None
        self._reported: tuple[int, dict[str, str]] | None = None

    def begin(self, event: RoundWaiting) -> RoundWaiting | None:
        """Note that a round waits, or still waits.

        :returns: the event with what keeps each site away; None when that was reported already.
        :raises QuorumNotReached: when none of the sites comes back by itself.
        """
        known = self._known(event.sites)
        if known and all(absence.final for absence in known.values()):
            raise QuorumNotReached(
                f"round {event.round} needs sites that cannot take part: {_text(known)}",
                hint="readmit, approve or invite them, then `fedlearn job resume "
                f"{self._spec.name}`; or submit the job with fewer sites or a lower `quorum`",
            )
        # How long it lasted so far is no news.
        news = (event.round, {site: absence.reason for site, absence in known.items()})
        reported, self._reported = self._reported, news
        self._waiting = dataclasses.replace(event, rounds=self._spec.rounds, detail=_text(known))
        return None if news == reported else self._waiting

    def end(self) -> None:
        """Note that the round goes on."""
        self._waiting = self._reported = None

    def text(self) -> str:
        """Return in words for what the round waits now, and until when; ``""`` for nothing."""
        event = self._waiting
        if event is None:
            return ""
        live = self._live()
        absent = [site for site in event.sites if site not in live]
        if not absent:
            return ""
        now = dataclasses.replace(event, detail=_text(self._known(absent)))
        return event_text(now)

    def away(self) -> str:
        """Return the sites that are not admitted now, each with what keeps it away."""
        live = self._live()
        return _text(self._known([site for site in self._spec.sites if site not in live]))

    def _known(self, sites: Collection[str]) -> dict[str, Absence]:
        return {site: self._absence(site) for site in sites}


def _text(known: Mapping[str, Absence]) -> str:
    named = [f"{site} ({absence})" for site, absence in islice(known.items(), _MOST_NAMED)]
    left_out = len(known) - len(named)
    return ", ".join([*named, *([f"and {left_out} more"] if left_out else [])])
