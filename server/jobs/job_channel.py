"""The requests of one running job's aggregator, checked and answered by the coordinator.

:class:`JobChannelHandler` answers a job's aggregator, a process without user code
(:class:`server.flower.job_plan.JobChannel`). What it reports about rounds and updates is checked
against what the coordinator knows (which sites the job has, which round runs, who was asked, which
admission a site has) before it becomes an entry of the ledger; the model of every round becomes a
sealed version in the store, together with the state of the strategy, so that a crash never
separates the two: in the background of the next round where the job has no privacy. What the
application prints and measures becomes events, never entries of the ledger.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from fedlearn.errors import AdmissionDenied, JobError, StoreError
from fedlearn.job.asynchronous.options import ASYNCHRONOUS
from fedlearn.job.events import (
    CheckpointSealed,
    Event,
    Log,
    RoundFinished,
    RoundSkipped,
    RoundStarted,
    RoundWaiting,
    UpdateReceived,
    UpdateRejected,
)
from fedlearn.job.spec import JobSpec
from fedlearn.job.tables import MAX_ROUNDS
from server.admission.absence import Absence, SiteWaits
from server.admission.registry import Admission, AdmissionEvent, AdmissionRegistry
from server.flower.application.app_files import as_arrays, kept_as
from server.flower.job_plan import MAX_EVENTS, OF_ANSWERS, Checkpoint
from server.jobs.records.background import BackgroundWork
from server.jobs.records.checkpoint import pack_state, unpack_state
from server.jobs.records.releases import Releases
from server.ledger import Ledger
from server.store.models import ModelStore
from server.store.rollback import written_versions

__all__ = ["JobChannelHandler"]

_LOG = logging.getLogger(__name__)

_FROM_A_JOB: Final = frozenset(
    {
        "job.started",
        "log",
        "round.finished",
        "round.skipped",
        "round.started",
        "round.waiting",
        "update.received",
        "update.rejected",
    }
)
"""The events that a job may report. All others are reported by the coordinator itself."""
_COARSE: Final = 16
"""Under privacy the ledger gives the number of a site's records as a power of this."""


class JobChannelHandler:
    """Answers one job's process. Safe to use from many threads.

    ``report``    writes events of this job, in their order
    ``model``     the name under which the model is sealed
    ``files``     the name under which the application's files are
    ``keep``      how many versions of the model are kept, the newest ones
    ``waits``     for which sites the job waits; ``absence`` returns what keeps one away
    """

    def __init__(
        self,
        spec: JobSpec,
        *,
        store: ModelStore,
        ledger: Ledger,
        registry: AdmissionRegistry,
        report: Callable[..., object],
        keep: int,
        absence: Callable[[str], Absence] = lambda _: Absence("not admitted"),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.spec = spec
        self.model = spec.name
        self.files = kept_as(spec.name)
        self._store = store
        self._ledger = ledger
        self._registry = registry
        self._report = report
        self._keep = keep
        self.waits = SiteWaits(spec, absence=absence, live=self.live_sites)
        self._clock = clock
        self._lock = threading.Lock()
        self._round = 0
        self._running = 0
        self._asked: frozenset[str] = frozenset()
        self._roots: dict[str, bytes] = {}
        self._most: dict[str, int] = {}
        self._entered: dict[str, int] = {}
        self._senders: dict[str, str] = {}
        self._dropped: set[str] = set()
        self._last_digest = ""
        self._metrics: Mapping[str, float] = {}
        self._sealing = BackgroundWork(f"seals {spec.name}")
        self._asynchronous = spec.strategy.name in ASYNCHRONOUS
        self._releases = Releases(spec.name, spec.privacy, ledger)
        self._remember()

    @property
    def round(self) -> int:
        """The last round that has a model."""
        return self._round

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics of that round."""
        return self._metrics

    # --- requests of the job's aggregator ----------------------------------------------

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take one event of :data:`_FROM_A_JOB`.

        :raises JobError: for another kind, or an event that contradicts what the coordinator knows.
        """
        if kind not in _FROM_A_JOB:
            raise JobError(f"a job may not report events of the kind {kind[:64]!r}")
        if kind in OF_ANSWERS:
            self.take_events([(kind, fields)])
            return
        self._sealing.check()
        event = _decoded(kind, fields)
        if isinstance(event, RoundWaiting):
            self._check_sites(event.round, event.sites, least=0)
            news = self.waits.begin(event)
            if news is not None:
                self._report(news)
            return
        self.waits.end()
        self._enter(event)
        self._report(event)

    def take_events(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Take events of :data:`server.flower.job_plan.OF_ANSWERS`; they are durable together.

        :raises JobError: for other kinds, for too many, and at the first event that contradicts
            what the coordinator knows; those before it are taken.
        """
        if len(events) > MAX_EVENTS:
            raise JobError(f"{len(events)} events at once; at most {MAX_EVENTS} are taken")
        self._sealing.check()
        if odd := [kind for kind, _ in events if kind not in OF_ANSWERS]:
            raise JobError(f"a job may not report events of the kind {odd[0][:64]!r} together")
        entries: list[tuple[str, dict[str, Any]]] = []
        news: list[Event] = []
        try:
            for kind, fields in events:
                event = _decoded(kind, fields)
                if not isinstance(event, Log):
                    self.waits.end()
                    entries.append(("update", self._of_update(event, fields)))
                news.append(event)
        finally:
            self._ledger.append_all(entries)
            self._report(*filter(_showable, news))

    def charge(self, stage: int, round_: int, inputs: bytes) -> None:
        """Charge the privacy budget for one release, before it happens; see :class:`Releases`.

        :raises PrivacyError: when the release would exceed the budget.
        """
        news = self._releases.charge(stage, round_, inputs)
        if news is not None:
            self._report(news)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Seal the model and the state of one round, after the checkpoint before it.

        Under privacy it is durable when this returns, because the model is disclosed then.
        Otherwise it is sealed in the background: whatever a crash interrupts is computed again
        from the checkpoint before it, with the same bits.

        :raises JobError: when it is not the checkpoint of the round that runs.
        :raises StoreError: when this checkpoint, or the one before it, could not be sealed.
        """
        if checkpoint.round != self._running or not self._running:
            raise JobError(f"a checkpoint of round {checkpoint.round}; round {self._running} runs")
        if self.spec.privacy is not None:
            self._seal(checkpoint)
        else:
            self._sealing.begin(lambda: self._seal(checkpoint))

    def settle(self) -> None:
        """Return when no checkpoint is being sealed any more.

        :raises StoreError: when the last one could not be sealed.
        """
        self._sealing.settle()

    def _seal(self, checkpoint: Checkpoint) -> None:
        owner = self.spec.owner_public_key()
        stored = self._store.write(
            self.model,
            checkpoint.model,
            job=self.spec.name,
            round=checkpoint.round,
            state=pack_state(checkpoint.state, checkpoint.tensors),
            meta={"rounds": self.spec.rounds},
            recipients=(owner,) if owner else (),
        )
        with self._lock:
            self._round = checkpoint.round
            self._last_digest = stored.digest.hex()
        self._releases.sealed()
        self._store.prune(self.model, keep=self._keep)
        self._report(
            CheckpointSealed(
                round=checkpoint.round,
                model=self.model,
                version=stored.version,
                bytes=stored.size,
            )
        )

    def keep_files(self, files: Mapping[str, memoryview]) -> None:
        """Seal what the application leaves, as a version of ``files``, for the job's owner.

        :raises StoreError: when it cannot be sealed.
        """
        self.settle()
        owner = self.spec.owner_public_key()
        self._store.write(
            self.files,
            as_arrays(files),
            job=self.spec.name,
            round=self._round,
            recipients=(owner,) if owner else (),
            entry="files",
        )
        self._store.prune(self.files, keep=1)

    def load_checkpoint(self) -> Checkpoint | None:
        """Return the last sealed checkpoint; never an older one than the ledger names.

        :raises StoreError: when the store was rolled back or damaged.
        """
        written = written_versions(self._ledger).get(self.model, 0)
        if self.model not in self._store.models():
            if written:
                raise StoreError(
                    f"version {written} of {self.model} was written and is missing",
                    hint="restore the state directory from its newest backup",
                )
            return None
        stored = self._store.latest(self.model, expected_version=written)
        model, packed = self._store.load_parts(self.model, stored.version)
        state, tensors = unpack_state(packed)
        with self._lock:
            self._round = stored.round
        return Checkpoint(round=stored.round, model=model, tensors=tensors, state=state)

    def live_sites(self) -> dict[str, int]:
        """Return the sites that are admitted now and have committed to their data.

        The value is how many examples the site may claim by that commitment; 0 when not known.

        A site whose admission ended after its update of this round is left out, even when it has
        a new admission: an update that was sent under the old one does not count.
        """
        live = self._registry.of_job(self.spec.name, now=self._clock())
        with self._lock:
            fit = self._roots.keys() - self._dropped
            return {a.site: self._most.get(a.site, 0) for a in live if a.site in fit}

    def admission_ended(self, event: AdmissionEvent) -> None:
        """Drop what a site has sent in this round, unless the same client was admitted again."""
        with self._lock:
            if not event.part_stays and event.admission.site in self._senders:
                self._dropped.add(event.admission.site)

    # --- what clients commit to -------------------------------------------------------

    def commit(self, admission: Admission, *, root: bytes, records: int, examples: int) -> int:
        """Enter a site's commitment to its data; return the number of the entry.

        A client that commits to the same data again, because it attested again, gets no further
        entry. Under privacy the number of records is private like the records, and the entry
        contains the power of 16 below it. ``examples`` bounds the number of examples that the
        site may claim to have trained on.

        :raises AdmissionDenied: when the site committed to other data before.
        """
        site = admission.site
        with self._lock:
            known = self._roots.get(site)
            if known is not None and known != root:
                raise AdmissionDenied(
                    f"the data of site {site} is not the data that it committed to before its "
                    "first round",
                    hint="restore the data, or submit a new job for the new data",
                )
            self._most[site] = examples
            if known is not None and site in self._entered:
                return self._entered[site]
            entry = self._ledger.append(
                "commitment",
                {
                    "job": self.spec.name,
                    "site": site,
                    "root": root.hex(),
                    **self._counts(records=records, examples=examples),
                    "key_thumbprint": admission.thumbprint.hex(),
                },
            )
            self._roots[site] = root
            self._entered[site] = entry.sequence
        return entry.sequence

    def _counts(self, **counts: int) -> dict[str, int]:
        if self.spec.privacy is None:
            return counts
        return {name: _coarse(count) for name, count in counts.items()}

    # --- inside -----------------------------------------------------------------------

    def _remember(self) -> None:
        """Read from the ledger what the coordinator entered before its restart."""
        name = self.spec.name
        for entry in self._ledger.entries(kind="commitment"):
            if entry.body.get("job") == name:
                site, examples = str(entry.body["site"]), entry.body.get("examples")
                self._roots[site] = bytes.fromhex(str(entry.body["root"]))
                self._entered[site] = entry.sequence
                if self.spec.privacy is None and isinstance(examples, int):
                    self._most[site] = examples

    def _check_sites(self, round_: int, sites: Sequence[str], *, least: int) -> None:
        unknown = set(sites) - set(self.spec.sites)
        if unknown or not least <= round_ <= MAX_ROUNDS:
            raise JobError(f"round {round_} with {sorted(unknown)}: not of this job")

    def _enter(self, event: Event) -> None:
        """Append an event to the ledger if it belongs there, after checking that it is possible."""
        job = self.spec.name
        if isinstance(event, RoundStarted):
            self._check_sites(event.round, event.sites, least=1)
            body: dict[str, Any] = {"phase": "started", "participants": list(event.sites)}
            self._ledger.append("round", {"job": job, "round": event.round, **body})
            with self._lock:
                self._running = event.round
                self._asked = frozenset(event.sites)
                self._senders.clear()
                self._dropped.clear()
        elif isinstance(event, RoundSkipped):
            self._check_round(event.round)
        elif isinstance(event, RoundFinished):
            self._check_round(event.round)
            self._metrics = event.metrics
            body = {
                "phase": "finished",
                "participants": event.sites,
                "model_digest": self._last_digest if self._round == event.round else "",
                "seconds": round(event.seconds, 3),
            }
            self._ledger.append("round", {"job": job, "round": event.round, **body})

    def _of_update(self, event: Event, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entry for what became of an update, after checking that it is possible."""
        assert isinstance(event, UpdateReceived | UpdateRejected)
        self._check_update(event.round, event.site)
        body: dict[str, Any] = {"job": self.spec.name, "round": event.round, "site": event.site}
        if isinstance(event, UpdateRejected):
            key = self._senders.get(event.site) or self._key_of(event.site)
            return body | {"key_thumbprint": key, "accepted": False, "reason": event.reason}
        key = self._note_sender(event.site, str(fields.get("key", "")), once=event.round > 0)
        return body | {
            "key_thumbprint": key,
            "digest": str(fields.get("digest", "")),
            "examples": event.examples,
            "accepted": True,
            **({"staleness": event.staleness} if self._asynchronous else {}),
            **({"filters": list(event.filters)} if event.filters else {}),
        }

    def _check_round(self, number: int) -> None:
        if number and number != self._running:
            raise JobError(f"something of round {number}; round {self._running} runs")

    def _check_update(self, number: int, site: str) -> None:
        """Check that an update is from a site that this round sent a message to.

        A message of an application outside of rounds has the number 0 and goes to the job's sites.
        While a version is made, each of the job's sites may be asked; of an update that is
        accepted the exchange knows that it was (:mod:`server.flower.exchange.receipts`).
        """
        self._check_round(number)
        anyone = not number or self._asynchronous
        known = frozenset(self.spec.sites) if anyone else self._asked
        if site not in known:
            raise JobError(f"an update of {site[:64]!r}, to which round {number} sent no question")

    def _note_sender(self, site: str, key: str, *, once: bool) -> str:
        """Record the admission with which a site sent its update; return its thumbprint."""
        key = key or self._key_of(site)
        with self._lock:
            if once and site in self._senders:
                raise JobError(f"a second update of {site} in round {self._running}")
            self._senders[site] = key
            ended = self._registry.ended(bytes.fromhex(key))
            if ended is not None and not ended.part_stays:
                self._dropped.add(site)
        return key

    def _key_of(self, site: str) -> str:
        live = self._registry.of_site(self.spec.name, site, now=self._clock())
        return live[0].thumbprint.hex() if live else ""


def _coarse(records: int) -> int:
    """Return the power of 16 at or below a count; 0 for none."""
    found = 1
    while found * _COARSE <= records:
        found *= _COARSE
    return found if records else 0


def _decoded(kind: str, fields: Mapping[str, Any]) -> Event:
    return Event.decode(kind, json.dumps(dict(fields), default=str))


def _showable(event: Event) -> bool:
    """Return whether an event can be written. It informs; one that cannot must not end a job."""
    try:
        event.encode().encode()
    except ValueError as error:
        _LOG.warning("an event was not passed on: %s", error)
        return False
    return True
