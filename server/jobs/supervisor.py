"""The life of open jobs: opened, run, watched, concluded, and opened again after a restart."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from attestation.errors import AttestationError
from attestation.trust import TrustAnchors
from fedlearn.backoff import Backoff, retry
from fedlearn.errors import DiskError, FedlearnError, QuorumNotReached, StoreError
from fedlearn.job.events import (
    Event,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobInterrupted,
)
from fedlearn.job.state import JobState, JobStatus
from server.admission.absence import Absence
from server.admission.gate import AdmissionGate
from server.admission.registry import AdmissionRegistry
from server.disk import store_error
from server.flower.job_plan import Outcome
from server.health import Health
from server.jobs.active_job import OpenJob, opened
from server.jobs.active_jobs import OpenJobs
from server.jobs.assignment_dispatcher import AssignmentDispatcher
from server.jobs.job_events import JobEvents
from server.jobs.policy_registry import PolicyRegistry
from server.jobs.records.job_store import JobRecord, JobStore
from server.jobs.watch import JobWatch
from server.state_directory import StateDirectory

__all__ = ["JobSupervisor"]

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 5.0
_PROBE_BYTES: Final = 1024 * 1024


class JobSupervisor:
    """Opens and closes jobs. Safe to use from many threads.

    :param absence: ``absence(job, site)`` returns what keeps a site away from an open job.
    :param runtime: a private directory for the processes of jobs; never holds weights.
    :param health: gets a fault for each job that cannot be opened or concluded.
    """

    def __init__(
        self,
        directory: StateDirectory,
        *,
        job_store: JobStore,
        jobs: OpenJobs,
        events: JobEvents,
        dispatcher: AssignmentDispatcher,
        gate: AdmissionGate,
        registry: AdmissionRegistry,
        policies: PolicyRegistry,
        trust: Callable[[], TrustAnchors],
        absence: Callable[[str, str], Absence],
        runtime: Path,
        clock: Callable[[], datetime],
        health: Health,
    ) -> None:
        self._directory = directory
        self._job_store = job_store
        self._jobs = jobs
        self._events = events
        self._dispatcher = dispatcher
        self._gate = gate
        self._registry = registry
        self._policies = policies
        self._trust = trust
        self._absence = absence
        self._runtime = runtime
        self._clock = clock
        self._health = health
        self._over = threading.Event()
        self._unopened: list[str] = []

    def reopen_all(self) -> None:
        """Open the jobs again that were open when the coordinator stopped, by the ledger."""
        for state in self._job_store.states():
            name = state.name
            if not state.status.open:
                if not self._job_store.events.ended(name):
                    # The coordinator crashed after the ledger entry of its end, before the event.
                    self._events.report(name, self._end_of(state))
                continue
            if not self._directory.config.jobs.resume:
                self._job_store.change(name, status=JobStatus.INTERRUPTED)
                continue
            try:
                self._reopen(name)
            except DiskError as error:
                self._health.fault(f"job {name}", f"not opened yet: {error}")
                self._unopened.append(name)

    def _reopen(self, name: str) -> None:
        """Open a job again, or write to the ledger why it cannot continue.

        :raises DiskError: when neither can be written.
        """
        try:
            self.begin(self._job_store.get(name))
        except DiskError:
            raise
        except (FedlearnError, AttestationError) as error:
            reason = str(error)
            self._directory.ledger.append(
                "job", {"job": name, "change": "failed", "reason": reason}
            )
            self.close(name, JobStatus.FAILED, JobFailed(detail=reason), detail=reason)

    def _end_of(self, state: JobState) -> Event:
        """Return the event of a job that has ended."""
        if state.status is JobStatus.FINISHED:
            model = state.name if state.name in self._directory.store.models() else ""
            return JobFinished(model=model, seconds=0.0, metrics={})
        if state.status is JobStatus.CANCELLED:
            return JobCancelled(detail=state.detail)
        return JobFailed(detail=state.detail)

    def begin(self, record: JobRecord) -> None:
        """Open a job, send its assignments to its sites, and run it in a thread of its own.

        :raises AttestationError: when its policy is not signed as required.
        """
        name = record.name
        self._policies.check_again(record.policy_in_force, record.signature_in_force, job=name)
        job = opened(
            record,
            directory=self._directory,
            registry=self._registry,
            trust=self._trust(),
            runtime=self._runtime,
            report=lambda *events: self._events.report(name, *events),
            absence=lambda site: self._absence(name, site),
            clock=self._clock,
        )
        with self._jobs.lock:
            self._job_store.change(name, status=JobStatus.RUNNING, detail="")
            self._jobs.add(job)
        self._dispatcher.begin(job)
        threading.Thread(target=self._watch, args=(job,), name=f"watch {name}", daemon=True).start()

    def tend(self) -> None:
        """Write what could not be written before, and open what could not be opened.

        To be called about twice a second.
        """
        self._events.settle()
        with contextlib.suppress(DiskError):
            self._events.catch_up()
        with contextlib.suppress(DiskError):
            while self._unopened and not self._over.is_set():
                name = self._unopened[0]
                self._reopen(name)
                self._unopened.pop(0)
                self._health.clear(f"job {name}")

    def _watch(self, job: OpenJob) -> None:
        """Run one job to its end. Any error becomes its outcome."""
        name = job.record.name
        try:
            watch = JobWatch(
                job,
                report=lambda event: self._events.append(name, event),
                mark=lambda reason: self._mark(name, reason),
                probe=self._probe,
                current=lambda: self._jobs.named(name) is job,
                over=self._over,
                health=self._health,
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
        except Exception as error:  # noqa: BLE001 (it is reported as a fault)
            _LOG.exception("job %s could not be concluded", name)
            self._health.fault(f"job {name}", f"its end could not be recorded: {error}")
        job.host.close()

    def _mark(self, name: str, reason: str) -> None:
        status = JobStatus.INTERRUPTED if reason else JobStatus.RUNNING
        self._job_store.change(name, status=status, detail=reason)

    def _probe(self) -> None:
        """Write and remove a file in the state directory.

        :raises DiskError: when that fails.
        """
        path = self._directory.config.state / ".probe"
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
        """Retry ``act`` while the disk fails; return False when the coordinator stops first.

        A job that has ended must not stay open because its end could not be written.
        """
        try:
            retry(
                act,
                failures=(DiskError,),
                backoff=Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE),
                wait=self._over.wait,
                failed=lambda error: self._health.fault(what, str(error)),
            )
        except DiskError:
            return False
        self._health.clear(what)
        return True

    def client_refused(self, job: OpenJob, site: str, reason: str) -> None:
        """Record a refused client; end the job when too few sites are left for its quorum."""
        spec = job.record.spec
        with self._jobs.lock:
            job.refused[site] = reason
            hopeless = len(spec.sites) - len(job.refused) < spec.quorum
            if not hopeless or self._jobs.named(spec.name) is not job:
                return
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(job.refused.items()))
        # The thread that watches the job concludes it.
        job.ending = Outcome(
            status=JobStatus.FAILED,
            code="quorum",
            message=f"too few sites can take part, {spec.quorum} are needed: {reasons}"[:4000],
            hint="`fedlearn ledger show --kind refusal` has the findings; correct the sites, or "
            f"the policy with `fedlearn job policy {job.record.name} policy.toml`; then "
            f"`fedlearn job resume {job.record.name}`",
        )
        job.host.cancel("too few sites can take part")

    def _conclude(self, job: OpenJob, outcome: Outcome) -> None:
        """Write the end of a job, and retry while the disk fails."""
        name = job.record.name
        seconds = (self._clock() - job.started).total_seconds()
        detail = ""
        body: dict[str, str | int] = {"job": name, "change": outcome.status.value}
        event: Event
        if outcome.status is JobStatus.FINISHED:
            body["rounds"] = job.channel.round
            model = job.channel.model if job.channel.model in self._directory.store.models() else ""
            event = JobFinished(
                detail="" if model else "the app ran no round, so there is no model",
                model=model,
                seconds=seconds,
                metrics=job.channel.metrics,
            )
        elif outcome.status is JobStatus.CANCELLED:
            event = JobCancelled(detail=outcome.message)
        else:
            detail = outcome.message
            named = any(site in detail for site in job.record.spec.sites)
            if outcome.code == QuorumNotReached.code and not named:
                away = job.channel.waits.away()
                detail = f"{detail}; away: {away}" if away else detail
            body["reason"] = detail
            event = JobFailed(detail=detail, hint=outcome.hint)
        what = f"end of job {name}"
        if self._persist(what, lambda: self._directory.ledger.append("job", body)):
            self._persist(what, lambda: self.close(name, outcome.status, event, detail=detail))

    def close(self, name: str, status: JobStatus, event: Event, *, detail: str = "") -> None:
        """Close a job: end its clients, stop it at its sites, and remove it from the open jobs.

        :raises DiskError: when it cannot be written; the job stays open.
        """
        job = self._jobs.named(name)
        self._job_store.change(
            name, status=status, detail=detail, round_=job.channel.round if job else None
        )
        self._jobs.remove(name)
        self._events.report(name, event)
        if job is None:
            return
        self._gate.close_job(name, f"the job is {status}")
        self._dispatcher.end(job, f"the job is {status}")

    def interruption(self, name: str) -> str:
        """Return why an open job is interrupted and waits to continue; ``""`` while it runs."""
        job = self._jobs.named(name)
        return "" if job is None else job.interrupted

    def waiting(self, name: str) -> str:
        """Return for what the present round of an open job waits; ``""`` for nothing."""
        job = self._jobs.named(name)
        return "" if job is None else job.channel.waits.text()

    def stop(self) -> None:
        """Interrupt every job; each continues from its last checkpoint after a restart."""
        with self._jobs.lock:
            self._over.set()
            running = self._jobs.remove_all()
        for job in running:
            job.host.cancel("the coordinator stopped")
        for job in running:
            job.host.close()
            # A job whose status is not written continues after a restart all the same.
            with contextlib.suppress(StoreError):
                self._job_store.change(job.record.name, status=JobStatus.INTERRUPTED)
            self._events.report(job.record.name, JobInterrupted(detail="the coordinator stopped"))
