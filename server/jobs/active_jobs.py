"""All open jobs: begun, watched, closed, and the door through which admission reaches them.

A job is open from its start to its end, through crashes of its process. What is remembered of
it beyond that stands in :mod:`server.jobs.job_store`; what one open job consists of in
:mod:`server.jobs.active_job`; what its sites are told in :mod:`server.jobs.assignment_dispatcher`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from attestation.errors import AttestationError
from attestation.trust import TrustAnchors
from fedlearn.backoff import Backoff, retry
from fedlearn.errors import DiskError, FedlearnError, JobError, StoreError
from fedlearn.job.events import (
    Event,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobInterrupted,
    Log,
    RoundFinished,
)
from fedlearn.job.state import JobState, JobStatus
from fedlearn.job.tables import Resources
from server.admission.events import spoken, what_causes
from server.admission.exclusions import Exclusion
from server.admission.gate import AdmissionGate, AdmittableJob
from server.admission.registry import AdmissionEvent, AdmissionRegistry, Change
from server.disk import store_error
from server.flower.exchange.link import JobExchange
from server.flower.job_plan import Outcome
from server.health import Health
from server.jobs.active_job import OpenJob, opened
from server.jobs.assignment_dispatcher import Dispatch
from server.jobs.job_store import JobRecord, JobStore
from server.jobs.policy_registry import PolicyRegistry
from server.jobs.watch import PROGRESS, JobWatch
from server.quota import Quota
from server.state_directory import StateDirectory

__all__ = ["OpenJobs"]

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_MOST_LATER: Final = 10_000
"""Events that are kept in memory while the disk does not take them."""

_SITE_EVENTS: Final = 500
_SECONDS_FOR_EACH: Final = 2.0
"""What one site may cause in one job at once, and then one every so many seconds."""

_BYTES_OF_ONE: Final = 512
"""A longer event counts for several."""

_APP_LINES: Final = 2000
_SECONDS_FOR_EACH_LINE: Final = 0.1
"""What the code of a job may print."""

_PROBE_BYTES: Final = 1024 * 1024


class OpenJobs:
    """The open jobs by name. Safe to use from many threads.

    It is the :class:`server.admission.gate.JobNodes` of admission. ``dispatch`` has the ways to the
    sites; ``lock`` guards what is open.

    :param runtime: a private directory for the processes of jobs; never holds weights.
    :param health: is told what is wrong with them.
    """

    def __init__(
        self,
        home: StateDirectory,
        *,
        book: JobStore,
        register: AdmissionRegistry,
        policies: PolicyRegistry,
        trust: Callable[[], TrustAnchors],
        runtime: Path,
        clock: Callable[[], datetime],
        health: Health | None = None,
    ) -> None:
        self.health = health or Health()
        self._home = home
        self._book = book
        self._register = register
        self._policies = policies
        self._trust = trust
        self._runtime = runtime
        self._clock = clock
        self.lock = threading.RLock()
        self._open: dict[str, OpenJob] = {}
        self.dispatch = Dispatch(
            open_jobs=self._open,
            lock=self.lock,
            order_key=home.order_key,
            say=self.say,
            clock=clock,
        )
        self._gate: AdmissionGate | None = None
        self._over = threading.Event()
        self._later: deque[Callable[[], object]] = deque(maxlen=_MOST_LATER)
        self._saying = threading.RLock()
        self._unopened: list[str] = []
        self._quotas = {
            True: Quota(burst=_SITE_EVENTS, every=_SECONDS_FOR_EACH),
            False: Quota(burst=_APP_LINES, every=_SECONDS_FOR_EACH_LINE),
        }
        register.subscribe(self._admission_changed)

    def attach(self, gate: AdmissionGate) -> None:
        """Set the gate, which itself needs these jobs."""
        self._gate = gate

    @property
    def gate(self) -> AdmissionGate:
        """Who admits the clients of these jobs."""
        if self._gate is None:
            raise RuntimeError("the gate is not attached")
        return self._gate

    # --- what is open -----------------------------------------------------------------

    def __len__(self) -> int:
        with self.lock:
            return len(self._open)

    def named(self, name: str) -> OpenJob | None:
        """Return an open job, or ``None``."""
        with self.lock:
            return self._open.get(name)

    def require(self, name: str) -> OpenJob:
        """Return an open job.

        :raises JobError: when there is none of that name.
        """
        job = self.named(name)
        if job is None:
            raise JobError(f"job {name} is not open")
        return job

    def of_site(self, site: str) -> Sequence[OpenJob]:
        """Return the open jobs that a site takes part in."""
        with self.lock:
            return [job for job in self._open.values() if site in job.record.spec.sites]

    def busy(self, site: str) -> tuple[Resources, ...]:
        """Return what the clients of open jobs ask of a site, one entry each."""
        return tuple(job.record.spec.resources for job in self.of_site(site))

    # --- for admission and the front --------------------------------------------------

    def admittable(self, name: str) -> AdmittableJob | None:
        """Return what admission needs to know of an open job."""
        job = self.named(name)
        return None if job is None else dataclasses.replace(job.admittable, trust=self._trust())

    def link_of(self, name: str) -> JobExchange | None:
        """Return the link of an open job."""
        job = self.named(name)
        return None if job is None else job.host.link

    def create_node(self, job: str, site: str, tls_key: bytes) -> int:
        """Admit a site to an open job.

        :raises JobError: when the job is not open.
        """
        found = self.require(job)
        with found.nodes:
            number = found.host.create_node(site, tls_key)
            found.node_keys[site] = tls_key
        return number

    def delete_node(self, job: str, site: str, tls_key: bytes) -> None:
        """End the part in a job that a site has with this key, if it still has."""
        found = self.named(job)
        if found is None:
            return
        with found.nodes:
            if found.node_keys.get(site) == tls_key:
                del found.node_keys[site]
                found.host.delete_node(site)

    def readmitted(self, exclusion: Exclusion) -> None:
        """Have a site whose client was turned away start it again, now that it may."""
        with self.lock:
            job = self._open.get(exclusion.job)
            turned_away = job is not None and job.refused.pop(exclusion.site, None) is not None
        if job is not None and turned_away:
            self.dispatch.anew(job, exclusion.site)

    def record(self, kind: str, body: dict[str, object]) -> object:
        """Append to the ledger; tell people of a job what concerns them."""
        entry = self._home.ledger.append(kind, body)  # type: ignore[arg-type]
        event = spoken(kind, body)
        name = body.get("job")
        if event is not None and isinstance(name, str) and self.named(name) is not None:
            self.say(name, event)
        return entry

    def _admission_changed(self, event: AdmissionEvent) -> None:
        said = spoken(event.change.value, event)
        with self.lock:
            job = self._open.get(event.admission.job)
            if job is not None and event.change is Change.ADMITTED:
                job.refused.pop(event.admission.site, None)
                job.failed.pop(event.admission.site, None)
        if job is None:
            return
        if event.change not in {Change.ADMITTED, Change.RENEWED}:
            job.desk.admission_ended(event)
        if said is not None:
            self.say(event.admission.job, said)

    # --- from beginning to end --------------------------------------------------------

    def go_on(self) -> None:
        """Open again what an earlier life left unfinished, as the ledger says."""
        for state in self._book.states():
            name = state.name
            if not state.status.open:
                if not self._book.ended(name):
                    # A crash came between the entry of its end and the event.
                    self.say(name, self._end_of(state))
                continue
            if not self._home.config.jobs.resume:
                self._book.change(name, status=JobStatus.INTERRUPTED)
                continue
            try:
                self._reopen(name)
            except DiskError as error:
                self.health.fault(f"job {name}", f"not opened yet: {error}")
                self._unopened.append(name)

    def _reopen(self, name: str) -> None:
        """Open a job again, or enter why it cannot go on.

        :raises DiskError: when the disk takes neither.
        """
        try:
            self.begin(self._book.get(name))
        except DiskError:
            raise
        except (FedlearnError, AttestationError) as error:
            reason = str(error)
            self._home.ledger.append("job", {"job": name, "change": "failed", "reason": reason})
            self.close(name, JobStatus.FAILED, JobFailed(detail=reason), detail=reason)

    def _end_of(self, state: JobState) -> Event:
        """Return the event of a job that has ended."""
        if state.status is JobStatus.FINISHED:
            model = state.name if state.name in self._home.store.models() else ""
            return JobFinished(model=model, seconds=0.0, metrics={})
        if state.status is JobStatus.CANCELLED:
            return JobCancelled(detail=state.detail)
        return JobFailed(detail=state.detail)

    def begin(self, record: JobRecord) -> None:
        """Open a job, order it at its sites, and run it in a thread of its own.

        :raises AttestationError: when its policy is not signed as it has to be.
        """
        name = record.name
        self._policies.check_again(record.policy_in_force, record.signature_in_force, job=name)
        job = opened(
            record,
            home=self._home,
            register=self._register,
            trust=self._trust(),
            runtime=self._runtime,
            say=lambda event: self.say(name, event),
            clock=self._clock,
        )
        with self.lock:
            self._book.change(name, status=JobStatus.RUNNING, detail="")
            self._open[name] = job
        self.dispatch.begin(job)
        threading.Thread(target=self._watch, args=(job,), name=f"watch {name}", daemon=True).start()

    def tend(self) -> None:
        """Do what the disk did not take before, and tell what was left out.

        To be called about twice a second.
        """
        self._settle()
        with contextlib.suppress(DiskError):
            self._catch_up()
        with contextlib.suppress(DiskError):
            while self._unopened and not self._over.is_set():
                name = self._unopened[0]
                self._reopen(name)
                self._unopened.pop(0)
                self.health.clear(f"job {name}")

    def _watch(self, job: OpenJob) -> None:
        """Run one job to its end, whatever happens: nobody else would notice."""
        name = job.record.name
        try:
            watch = JobWatch(
                job,
                say=lambda event: self._keep(name, event),
                mark=lambda reason: self._mark(name, reason),
                probe=self._probe,
                current=lambda: self.named(name) is job,
                over=self._over,
                health=self.health,
            )
            outcome = watch.run()
        except Exception as error:  # noqa: BLE001 (it becomes the job's outcome)
            _LOG.exception("the watch of job %s failed", name)
            message = f"the coordinator failed: {type(error).__name__}: {error}"
            outcome = Outcome(status=JobStatus.FAILED, code="internal", message=message)
        if outcome is None:
            return
        try:
            self._conclude(job, outcome)
        except Exception as error:  # noqa: BLE001 (it is told as a fault)
            _LOG.exception("job %s could not be concluded", name)
            self.health.fault(f"job {name}", f"its end could not be recorded: {error}")
        job.host.close()

    def _mark(self, name: str, reason: str) -> None:
        status = JobStatus.INTERRUPTED if reason else JobStatus.RUNNING
        self._book.change(name, status=status, detail=reason)

    def _probe(self) -> None:
        """Write and remove a file in the state directory.

        :raises DiskError: when that fails.
        """
        path = self._home.config.state / ".probe"
        try:
            with path.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise store_error(f"{path}: {error.strerror}", error) from error

    def _persist(self, what: str, act: Callable[[], object]) -> bool:
        """Do what the disk may not take yet, again and again; False when we stop before.

        A job that has ended must not be open for ever because its end could not be written.
        """
        try:
            retry(
                act,
                failures=(DiskError,),
                backoff=Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE),
                wait=self._over.wait,
                failed=lambda error: self.health.fault(what, str(error)),
            )
        except DiskError:
            return False
        self.health.clear(what)
        return True

    def client_refused(self, job: OpenJob, site: str, reason: str) -> None:
        """Note it; end the job at once when those that are left are too few for its quorum."""
        spec = job.record.spec
        with self.lock:
            job.refused[site] = reason
            hopeless = len(spec.sites) - len(job.refused) < spec.quorum
            if not hopeless or self._open.get(spec.name) is not job:
                return
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(job.refused.items()))
        # Who waits for the job's process concludes it.
        job.ending = Outcome(
            status=JobStatus.FAILED,
            code="quorum",
            message=f"too few sites can take part, {spec.quorum} are needed: {reasons}"[:4000],
            hint="`fedlearn ledger show --kind refusal` has the findings; correct the policy "
            "or the sites, then `fedlearn job resume`",
        )
        job.host.cancel("too few sites can take part")

    def _conclude(self, job: OpenJob, outcome: Outcome) -> None:
        """Enter the end of a job, when the disk takes it."""
        name = job.record.name
        seconds = (self._clock() - job.started).total_seconds()
        detail = ""
        body: dict[str, str | int] = {"job": name, "change": outcome.status.value}
        event: Event
        if outcome.status is JobStatus.FINISHED:
            body["rounds"] = job.desk.round
            model = job.desk.model if job.desk.model in self._home.store.models() else ""
            event = JobFinished(model=model, seconds=seconds, metrics=job.desk.metrics)
        elif outcome.status is JobStatus.CANCELLED:
            event = JobCancelled(detail=outcome.message)
        else:
            detail = body["reason"] = outcome.message
            event = JobFailed(detail=outcome.message, hint=outcome.hint)
        what = f"end of job {name}"
        if self._persist(what, lambda: self._home.ledger.append("job", body)):
            self._persist(what, lambda: self.close(name, outcome.status, event, detail=detail))

    def close(self, name: str, status: JobStatus, event: Event, *, detail: str = "") -> None:
        """Take a job out of service: its clients, its sites, its name among the open ones.

        :raises DiskError: when the disk does not take it; the job is open as before.
        """
        job = self.named(name)
        self._book.change(
            name, status=status, detail=detail, round_=job.desk.round if job else None
        )
        with self.lock:
            self._open.pop(name, None)
        self.say(name, event)
        if job is None:
            return
        self.gate.close_job(name, f"the job is {status}")
        self.dispatch.end(job, f"the job is {status}")

    def interruption(self, name: str) -> str:
        """Return why an open job does not run now, though it will go on; or ``""``."""
        job = self.named(name)
        return "" if job is None else job.interrupted

    def stop(self) -> None:
        """Interrupt every job; each goes on from its last checkpoint after a restart."""
        with self.lock:
            self._over.set()
            running = list(self._open.values())
            self._open.clear()
        for job in running:
            job.host.cancel("the coordinator stopped")
        for job in running:
            job.host.close()
            # A job whose status is not written goes on after a restart all the same.
            with contextlib.suppress(StoreError):
                self._book.change(job.record.name, status=JobStatus.INTERRUPTED)
            self.say(job.record.name, JobInterrupted(detail="the coordinator stopped"))

    def say(self, name: str, event: Event) -> None:
        """Tell whoever follows a job, and keep it; later, while the disk does not take it.

        What one site, or the job's own code, causes beyond its quota is counted instead.
        """
        cause = what_causes(event)
        if cause is not None:
            weight = 1 + len(event.encode()) // _BYTES_OF_ONE
            left_out = self._quotas[bool(cause)].take(f"{name}/{cause}", weight=weight)
            if left_out is None:
                return
            if left_out:
                self._keep(name, _left_out(cause, left_out))
        self._keep(name, event)

    def _settle(self) -> None:
        """Tell how many events were left out, once their cause has stopped."""
        for quota in self._quotas.values():
            for source, left_out in quota.settle().items():
                name, _, site = source.partition("/")
                if self.named(name) is not None:
                    self._keep(name, _left_out(site, left_out))

    def _keep(self, name: str, event: Event) -> None:
        job = self.named(name)
        if job is not None and isinstance(event, PROGRESS):
            job.progress += 1
        at = self._clock()
        round_ = event.round if isinstance(event, RoundFinished) else None

        def keep() -> None:
            self._book.say(name, event, at=at)

        def note() -> None:
            self._book.change(name, round_=round_)

        with self._saying:
            self._later.append(keep)
            if round_ is not None:
                self._later.append(note)
            with contextlib.suppress(DiskError):
                self._catch_up()

    def _catch_up(self) -> None:
        """Write what has to be written, oldest first.

        :raises DiskError: when the disk does not take it; what is left is kept.
        """
        with self._saying:
            try:
                while self._later:
                    self._later[0]()
                    self._later.popleft()
            except DiskError as error:
                self.health.fault("events", f"{len(self._later)} are not written: {error}")
                raise
            except BaseException:
                self._later.popleft()
                raise
            self.health.clear("events")


def _left_out(site: str, count: int) -> Log:
    whose = "of this site" if site else "of the job's own code"
    return Log(line=f"{count} more events {whose} were left out", site=site, level="warning")
