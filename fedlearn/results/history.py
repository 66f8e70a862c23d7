"""The history of a run: what its events state about rounds, sites, refusals, privacy and times.

:class:`RunHistory` is the one reading of a job's events. The live view, the tables, the report,
the Python API and tracking use it. It is fed one event at a time, so that it shows a job that runs
as well as one that has ended.

Times are milliseconds since 1970, 0 when not known; seconds are wall clock; bytes are those of
updates as they crossed the wire. Events come from another party: names, reasons, metrics and
findings are bounded by :mod:`fedlearn.job.events` and not escaped, which is left to what shows
them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from fedlearn.job import events
from fedlearn.results.refusals import Refusal

__all__ = ["Round", "RunHistory", "Site", "Update"]

_MOST_REFUSALS: Final = 1000
_NO_WAIT: Final = (
    events.JobStarted,
    events.RoundStarted,
    events.UpdateReceived,
    events.RoundFinished,
    events.JobFinished,
    events.JobFailed,
    events.JobCancelled,
    events.JobInterrupted,
)
"""After one of these the job does not wait any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One update that was received, with the metrics that its site reports."""

    site: str
    bytes: int
    examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    unix_ms: int = 0


@dataclass(slots=True, kw_only=True)
class Round:
    """One round; ``stage`` is the strategy that ran it, 1 for the first.

    ``asked``     sites to which the model was sent
    ``updates``   by site, what may enter the sum
    ``rejected``  by site, why its update may not
    ``skip``      why the strategy made no model in it; empty when it made one
    ``privacy``   the budget spent after this round
    ``bytes``     all that crossed the wire; ``bytes_received``: what sites sent;
                  ``bytes_saved``: by how much compression made that smaller
    """

    number: int
    stage: int = 1
    asked: tuple[str, ...] = ()
    updates: dict[str, Update] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    started_unix_ms: int = 0
    finished_unix_ms: int = 0
    finished: bool = False
    seconds: float = 0.0
    sites: int = 0
    bytes: int = 0
    bytes_received: int = 0
    bytes_saved: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    skip: str = ""
    privacy: events.PrivacySpent | None = None
    checkpoint: events.CheckpointSealed | None = None

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The sites that were asked and have not answered; empty once the round is finished."""
        if self.finished:
            return ()
        answered = self.updates.keys() | self.rejected.keys()
        return tuple(site for site in self.asked if site not in answered)

    @property
    def skipped(self) -> bool:
        """True for a finished round that made no model: its model is the one before."""
        return self.finished and (bool(self.skip) or self.sites == 0)


@dataclass(slots=True, kw_only=True)
class Site:
    """One site of the run.

    ``state``     ``waiting``, ``starting``, ``admitted``, ``training``, ``done``, ``rejected``,
                  ``refused``, ``quarantined`` or ``lost``
    ``admissions``  how often a client of it was admitted, the first time at ``admitted_unix_ms``
    ``examples``  those of its last update; ``metrics`` likewise
    ``note``      why, for a state that needs an explanation
    """

    name: str
    state: str = "waiting"
    tee: str = ""
    client: str = ""
    admissions: int = 0
    admitted_unix_ms: int = 0
    updates: int = 0
    rejected: int = 0
    bytes: int = 0
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(slots=True, kw_only=True)
class RunHistory:
    """The state of a run after the events so far.

    ``status``   ``waiting``, ``running``, ``finished``, ``failed``, ``cancelled`` or
                 ``interrupted``
    ``planned``  rounds of the stage that runs; 0 when not known
    ``rounds``   in their order. A round that is run again, because the job was resumed or lost a
                 site, replaces the earlier attempt.
    ``waiting``  for which sites the next round waits before it begins, and why each is away
    ``resumed``  how often the job was continued after an end
    ``compression``  that of updates in a few words, empty for none

    >>> history = RunHistory()
    >>> history.add(events.JobStarted(job="ecg", rounds=2, sites=("north",)), unix_ms=1000)
    >>> history.add(events.RoundStarted(round=1, rounds=2, sites=("north",)), unix_ms=2000)
    >>> history.current.waits_for, history.elapsed(now_unix_ms=5000)
    (('north',), 4.0)
    """

    job: str = ""
    status: str = "waiting"
    detail: str = ""
    hint: str = ""
    model: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    planned: int = 0
    stage: int = 1
    resumed: int = 0
    compression: str = ""
    waiting: events.RoundWaiting | None = None
    sites: dict[str, Site] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    refusals_left_out: int = 0
    privacy: list[events.PrivacySpent] = field(default_factory=list)
    checkpoints: list[events.CheckpointSealed] = field(default_factory=list)
    started_unix_ms: int = 0
    ended_unix_ms: int = 0
    last_unix_ms: int = 0

    @classmethod
    def of(cls, timed: Iterable[tuple[events.Event, int]]) -> Self:
        """Return the history of events, each with its time in milliseconds since 1970."""
        history = cls()
        for event, unix_ms in timed:
            history.add(event, unix_ms=unix_ms)
        return history

    @property
    def current(self) -> Round | None:
        """The round that runs, or None."""
        last = self.rounds[-1] if self.rounds else None
        return last if last is not None and not last.finished else None

    @property
    def finished(self) -> list[Round]:
        """The rounds that have a model."""
        return [each for each in self.rounds if each.finished]

    @property
    def skipped(self) -> list[Round]:
        """The finished rounds without a single update."""
        return [each for each in self.rounds if each.skipped]

    @property
    def round(self) -> int:
        """The number of the newest round, 0 before the first."""
        return self.rounds[-1].number if self.rounds else 0

    @property
    def bytes(self) -> int:
        """The bytes of all finished rounds."""
        return sum(each.bytes for each in self.rounds)

    @property
    def bytes_received(self) -> int:
        """The bytes that sites sent in all finished rounds."""
        return sum(each.bytes_received for each in self.rounds)

    @property
    def bytes_saved(self) -> int:
        """By how much compression of updates made :attr:`bytes_received` smaller."""
        return sum(each.bytes_saved for each in self.rounds)

    @property
    def ended(self) -> bool:
        """True after a final event that no resumption followed."""
        return self.status not in ("waiting", "running")

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The sites for which the run waits: to answer a round, or to be admitted before one."""
        if self.ended:
            return ()
        if self.waiting is not None:
            return self.waiting.sites
        if self.current is not None:
            return self.current.waits_for
        before = ("waiting", "starting", "lost", "quarantined")
        return tuple(site.name for site in self.sites.values() if site.state in before)

    def elapsed(self, *, now_unix_ms: int = 0) -> float:
        """Return the seconds from the first event to the end, to now, or to the last event."""
        if not self.started_unix_ms:
            return 0.0
        end = self.ended_unix_ms or max(now_unix_ms, self.last_unix_ms)
        return max(0, end - self.started_unix_ms) / 1000

    def remaining(self, *, now_unix_ms: int = 0) -> float | None:
        """Return an estimate of the seconds left: the median of recent rounds, for each left.

        None when the job does not run, or before its first round is finished.
        """
        mine = [each for each in self.finished if each.stage == self.stage]
        if self.status != "running" or not mine or self.planned < mine[-1].number:
            return None
        usual = statistics.median(each.seconds for each in mine[-9:])
        left = usual * (self.planned - mine[-1].number)
        if self.current is not None and self.current.started_unix_ms:
            spent = (max(now_unix_ms, self.last_unix_ms) - self.current.started_unix_ms) / 1000
            left -= min(usual, max(0.0, spent))
        return left

    def add(self, event: events.Event, *, unix_ms: int = 0) -> None:
        """Update the history by one event."""
        self.last_unix_ms = max(self.last_unix_ms, unix_ms)
        if not self.started_unix_ms:
            self.started_unix_ms = unix_ms
        if isinstance(event, _NO_WAIT):
            self.waiting = None
        match event:
            case events.JobSubmitted():
                self._begin(event.job, event.rounds, event.sites)
            case events.JobStarted():
                self._start(event)
            case (
                events.ClientStarting()
                | events.ClientAdmitted()
                | events.ClientRenewed()
                | events.ClientRefused()
                | events.ClientQuarantined()
                | events.ClientLost()
            ):
                self._client(event, unix_ms)
            case events.RoundStarted():
                self.planned = event.rounds
                self._open(event.round, asked=event.sites, unix_ms=unix_ms)
                for name in event.sites:
                    self._site(name).state = "training"
            case events.UpdateReceived():
                self._received(event, unix_ms)
            case events.UpdateRejected():
                self._rejected(event)
            case events.RoundFinished():
                self._finish(event, unix_ms)
            case events.RoundWaiting():
                self.waiting = event
            case events.RoundSkipped():
                if self.current is not None and self.current.number == event.round:
                    self.current.skip = event.reason
            case events.CheckpointSealed():
                self.checkpoints.append(event)
                # It may be sealed while the next round trains.
                for each in self.rounds[-2:]:
                    if (each.stage, each.number) == (self.stage, event.round):
                        each.checkpoint = event
            case events.PrivacySpent():
                self.privacy.append(event)
                if self.rounds and self.round == event.round:
                    self.rounds[-1].privacy = event
            case _ if event.final:
                self._end(event, unix_ms)
            case _:
                pass

    # --- the job ----------------------------------------------------------------------

    def _begin(self, job: str, rounds: int, sites: Iterable[str]) -> None:
        self.job, self.planned = job, rounds
        for name in sites:
            self._site(name)

    def _start(self, event: events.JobStarted) -> None:
        """A stage begins, or the job goes on after ``resumed_from``."""
        self._begin(event.job, event.rounds, event.sites)
        self.resumed += self.ended
        self.compression = event.compression
        self.status, self.detail, self.hint, self.ended_unix_ms = "running", "", "", 0
        if self.current is not None:
            self.rounds.pop()
        mine = [each for each in self.rounds if each.stage == self.stage]
        if mine and not event.resumed_from:
            self.stage += 1
        elif mine:
            later = [each for each in mine if each.number > event.resumed_from]
            self.rounds = [each for each in self.rounds if each not in later]

    def _end(self, event: events.Event, unix_ms: int) -> None:
        self.status = event.kind.removeprefix("job.")
        self.ended_unix_ms = unix_ms
        match event:
            case events.JobFinished():
                self.detail, self.model = event.detail, event.model
                self.metrics = event.metrics
            case events.JobFailed():
                self.detail, self.hint = event.detail, event.hint
            case events.JobCancelled() | events.JobInterrupted():
                self.detail = event.detail
            case _:
                pass

    # --- sites ------------------------------------------------------------------------

    def _site(self, name: str) -> Site:
        return self.sites.setdefault(name, Site(name=name))

    def _client(
        self,
        event: events.ClientStarting
        | events.ClientAdmitted
        | events.ClientRenewed
        | events.ClientRefused
        | events.ClientQuarantined
        | events.ClientLost,
        unix_ms: int,
    ) -> None:
        # A refused client may be of no known site.
        site = self._site(event.site) if event.site else Site(name="")
        match event:
            case events.ClientStarting():
                site.state, site.note = "starting", ""
            case events.ClientAdmitted():
                site.state, site.note = "admitted", ""
                site.tee, site.client = event.tee, event.client
                site.admissions += 1
                site.admitted_unix_ms = site.admitted_unix_ms or unix_ms
            case events.ClientRenewed():
                pass
            case events.ClientRefused():
                site.state, site.note, site.tee = "refused", event.reason, event.tee or site.tee
                self._refuse(event, tee=event.tee, unix_ms=unix_ms)
            case events.ClientQuarantined():
                site.state, site.note = "quarantined", event.reason
                self._refuse(event, tee=site.tee, unix_ms=unix_ms)
            case events.ClientLost():
                site.state, site.note = "lost", event.reason

    def _refuse(
        self, event: events.ClientRefused | events.ClientQuarantined, *, tee: str, unix_ms: int
    ) -> None:
        refusal = Refusal(
            site=event.site,
            reason=event.reason,
            quarantined=isinstance(event, events.ClientQuarantined),
            tee=tee,
            findings=event.findings,
            round=self.round,
            unix_ms=unix_ms,
        )
        for known in self.refusals:
            pair = (known.site, known.reason, known.quarantined)
            if pair == (refusal.site, refusal.reason, refusal.quarantined):
                known.count += 1
                return
        if len(self.refusals) < _MOST_REFUSALS:
            self.refusals.append(refusal)
        else:
            self.refusals_left_out += 1

    # --- rounds -----------------------------------------------------------------------

    def _open(self, number: int, *, asked: tuple[str, ...], unix_ms: int) -> Round:
        """Begin a round; an earlier attempt at it, and what followed, is replaced."""
        while self.rounds and self.rounds[-1].stage == self.stage:
            if self.rounds[-1].number < number and self.rounds[-1].finished:
                break
            self.rounds.pop()
        fresh = Round(number=number, stage=self.stage, asked=asked, started_unix_ms=unix_ms)
        self.rounds.append(fresh)
        return fresh

    def _received(self, event: events.UpdateReceived, unix_ms: int) -> None:
        site = self._site(event.site)
        site.state, site.note = "done", ""
        site.updates += 1
        site.bytes += event.bytes
        site.examples, site.metrics = event.examples, event.metrics
        if self.current is not None and self.current.number == event.round:
            self.current.updates[event.site] = Update(
                site=event.site,
                bytes=event.bytes,
                examples=event.examples,
                metrics=event.metrics,
                unix_ms=unix_ms,
            )

    def _rejected(self, event: events.UpdateRejected) -> None:
        site = self._site(event.site)
        site.state, site.note = "rejected", event.reason
        site.rejected += 1
        if self.current is not None and self.current.number == event.round:
            # A strategy may reject what was received.
            if self.current.updates.pop(event.site, None) is not None:
                site.updates -= 1
            self.current.rejected[event.site] = event.reason

    def _finish(self, event: events.RoundFinished, unix_ms: int) -> None:
        done = self.current
        if done is None or done.number != event.round:
            done = self._open(event.round, asked=(), unix_ms=0)
        self.planned = event.rounds or self.planned
        done.finished, done.finished_unix_ms = True, unix_ms
        done.seconds, done.sites, done.bytes = event.seconds, event.sites, event.bytes
        done.bytes_received, done.bytes_saved = event.bytes_received, event.bytes_saved
        done.metrics = event.metrics
