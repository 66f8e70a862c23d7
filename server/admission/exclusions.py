"""The sites and clients that an operator excludes from a job, whatever their evidence.

An exclusion names a site, or one client of it, and lasts until an operator lifts it or its
time is over. The memory of it is the ledger (entries of kind ``exclusion``), so that it holds
after a restart of the coordinator.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from attestation.policy.result import Finding, Tier
from fedlearn.errors import AdmissionDenied, ConfigError, LedgerError

__all__ = ["Exclusion", "ExclusionList"]

MAX_EXCLUSIONS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A site, or one of its clients, that is excluded from a job.

    ``client``    empty: every client of the site
    ``until``     when it ends by itself; ``None``: when an operator lifts it
    ``operator``  who decided it
    """

    job: str
    site: str
    client: str = ""
    until: datetime | None = None
    reason: str = ""
    operator: str = ""

    def over(self, now: datetime) -> bool:
        """Return whether its time has passed."""
        return self.until is not None and now >= self.until

    def entry(self, change: str) -> dict[str, Any]:
        """Return its ledger entry; ``change`` is ``laid``, ``lifted`` or ``over``."""
        return {
            "job": self.job,
            "site": self.site,
            "client": self.client,
            "change": change,
            "until": None if self.until is None else self.until.isoformat(),
            "reason": self.reason,
            "operator": self.operator,
        }


class ExclusionList:
    """The exclusions in force. Safe to use from many threads; it records nothing itself.

    :param entries: the bodies of the ledger's ``exclusion`` entries, oldest first.
    :raises LedgerError: when one is none that this version can read.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]] = ()) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], Exclusion] = {}
        for body in entries:
            found = _exclusion(body)
            if body.get("change") == "laid":
                self._known[_key(found)] = found
            else:
                self._known.pop(_key(found), None)

    def check_room(self, exclusion: Exclusion) -> None:
        """Return when one more can be kept.

        :raises ConfigError: when there are too many.
        """
        with self._lock:
            if len(self._known) >= MAX_EXCLUSIONS and _key(exclusion) not in self._known:
                raise ConfigError(
                    f"there are {MAX_EXCLUSIONS} exclusions already",
                    hint="lift some with `fedlearn job readmit JOB --site SITE`",
                )

    def lay(self, exclusion: Exclusion) -> None:
        """Put an exclusion in force, in the place of one of the same job, site and client."""
        with self._lock:
            self._known[_key(exclusion)] = exclusion

    def find(self, job: str, site: str, client: str) -> Exclusion:
        """Return the exclusion of exactly these names.

        :raises ConfigError: when there is none.
        """
        with self._lock:
            found = self._known.get((job, site, client))
            others = [e.client for e in self._known.values() if (e.job, e.site) == (job, site)]
        if found is None:
            who = f"client {client} of site {site}" if client else f"site {site}"
            raise ConfigError(
                f"{who} is not excluded from job {job}",
                key="site",
                hint=f"`fedlearn job status {job}` shows who is"
                + (f": {', '.join(c or 'the whole site' for c in others)}" if others else ""),
            )
        return found

    def lift(self, exclusion: Exclusion) -> None:
        """End an exclusion."""
        with self._lock:
            self._known.pop(_key(exclusion), None)

    def of_job(self, job: str, *, now: datetime) -> tuple[Exclusion, ...]:
        """Return what is in force in ``job``, by site and client."""
        with self._lock:
            found = [e for e in self._known.values() if e.job == job and not e.over(now)]
        return tuple(sorted(found, key=_key))

    def over(self, *, now: datetime) -> tuple[Exclusion, ...]:
        """Return those whose time has passed, which are still kept."""
        with self._lock:
            return tuple(e for e in self._known.values() if e.over(now))

    def check(self, job: str, site: str, client: str, *, now: datetime) -> None:
        """Return when this client is not excluded.

        :raises AdmissionDenied: stating by whom, why, until when, and what to do.
        """
        with self._lock:
            kept = [self._known.get((job, site, "")), self._known.get((job, site, client))]
        for exclusion in kept:
            if exclusion is not None and not exclusion.over(now):
                raise _denied(exclusion)


def _key(exclusion: Exclusion) -> tuple[str, str, str]:
    return exclusion.job, exclusion.site, exclusion.client


def _denied(exclusion: Exclusion) -> AdmissionDenied:
    who = (
        f"client {exclusion.client} of site {exclusion.site}"
        if exclusion.client
        else (f"site {exclusion.site}")
    )
    until = "an operator readmits it"
    if exclusion.until is not None:
        until = exclusion.until.isoformat(timespec="seconds")
    text = (
        f"{who} is excluded from job {exclusion.job} by operator {exclusion.operator} "
        f"until {until}: {exclusion.reason}"
    )
    client = f" --client {exclusion.client}" if exclusion.client else ""
    remedy = (
        f"ask operator {exclusion.operator}; "
        f"`fedlearn job readmit {exclusion.job} --site {exclusion.site}{client}` lifts it"
    )
    finding = Finding(
        claim="exclusion",
        tier=Tier.CONTRAINDICATED,
        expected="not excluded",
        actual=f"excluded: {exclusion.reason}",
        category="instance-identity",
        remedy=remedy,
    )
    return AdmissionDenied(text, findings=(finding.to_json(),), hint=remedy)


def _exclusion(body: Mapping[str, Any]) -> Exclusion:
    try:
        until = body["until"]
        return Exclusion(
            job=str(body["job"]),
            site=str(body["site"]),
            client=str(body["client"]),
            until=None if until is None else datetime.fromisoformat(until).astimezone(UTC),
            reason=str(body["reason"]),
            operator=str(body["operator"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            "an entry about an exclusion is not one that this version can read",
            hint="use the version that wrote it, or a newer one",
        ) from error
