"""All open jobs: begun, watched, closed, and the door through which admission reaches them.

A job is open from its start to its end, through crashes of its process. What is remembered of
it beyond that stands in :mod:`server.jobs`; what one open job consists of in
:mod:`server.openjob`; what its sites are told in :mod:`server.dispatch`.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from attestation.errors import AttestationError
from attestation.policy import AppraisalPolicy
from attestation.trust import TrustAnchors
from fedlearn.errors import FedlearnError, JobError
from fedlearn.events import (
    Event,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobInterrupted,
    Log,
)
from fedlearn.job import Resources
from server.admission import AdmissionGate, AdmittableJob
from server.dispatch import Dispatch
from server.exclusions import Exclusion
from server.flower.link import JobLink
from server.flower.plan import Outcome
from server.home import Home
from server.jobs import JobBook, JobRecord, JobStatus
from server.openjob import OpenJob, opened
from server.policies import PolicyDesk
from server.register import AdmissionEvent, AdmissionRegister, Change
from server.voice import spoken

__all__ = ["OpenJobs"]

_MAX_CRASHES: Final = 3


class OpenJobs:
    """The open jobs by name. Safe to use from many threads.

    It is the :class:`server.admission.NodeDoor` of admission. ``dispatch`` has the ways to the
    sites; ``lock`` guards what is open.

    :param runtime: a private directory for the processes of jobs; never holds weights.
    """

    def __init__(
        self,
        home: Home,
        *,
        book: JobBook,
        register: AdmissionRegister,
        policies: PolicyDesk,
        trust: Callable[[], TrustAnchors],
        runtime: Path,
        clock: Callable[[], datetime],
    ) -> None:
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
        self._stopping = False
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

    def link_of(self, name: str) -> JobLink | None:
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
        if job is None:
            return
        if event.change not in {Change.ADMITTED, Change.RENEWED}:
            job.desk.admission_ended(event)
        if said is not None:
            self.say(event.admission.job, said)

    # --- from beginning to end --------------------------------------------------------

    def go_on(self) -> None:
        """Open again what an earlier life left unfinished."""
        for record in self._book.all():
            if not record.status.open:
                continue
            if not self._home.config.jobs.resume:
                self._book.change(record.name, status=JobStatus.INTERRUPTED)
                continue
            try:
                self.begin(record)
            except (FedlearnError, AttestationError) as error:
                reason = str(error)
                self.close(record.name, JobStatus.FAILED, JobFailed(detail=reason), detail=reason)

    def begin(self, record: JobRecord) -> None:
        """Open a job, order it at its sites, and run it in a thread of its own.

        :raises AttestationError: when its policy is not signed as it has to be.
        """
        name = record.name
        policy = AppraisalPolicy.from_toml(record.policy_in_force.encode(), where="policy.toml")
        self._policies.check_again(policy, record.signature_in_force, job=name)
        job = opened(
            record,
            home=self._home,
            register=self._register,
            policy=policy,
            trust=self._trust(),
            runtime=self._runtime,
            say=lambda event: self.say(name, event),
            clock=self._clock,
        )
        with self.lock:
            self._open[name] = job
            self._book.change(name, status=JobStatus.RUNNING, detail="")
        self.dispatch.begin(job)
        threading.Thread(target=self._watch, args=(job,), name=f"watch {name}", daemon=True).start()

    def _watch(self, job: OpenJob) -> None:
        """Run one job to its end."""
        name = job.record.name
        try:
            while True:
                job.host.start()
                outcome = job.host.wait()
                if outcome is None or self._stopping:
                    return
                crashed = outcome.status == "failed" and outcome.code == "crashed"
                if not crashed or job.crashes >= _MAX_CRASHES:
                    break
                job.crashes += 1
                self.say(name, Log(line=f"{outcome.message}; starting it again", level="warning"))
        except FedlearnError as error:
            outcome = Outcome(status="failed", code=error.code, message=str(error), hint=error.hint)
        if self.named(name) is not job:
            return
        self._conclude(job, outcome)
        job.host.close()

    def client_refused(self, job: OpenJob, site: str, reason: str) -> None:
        """Note it; end the job at once when those that are left are too few for its quorum."""
        spec = job.record.spec
        with self.lock:
            job.refused[site] = reason
            hopeless = len(spec.sites) - len(job.refused) < spec.quorum
            if not hopeless or self._open.get(spec.name) is not job:
                return
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(job.refused.items()))
        self._conclude(
            job,
            Outcome(
                status="failed",
                code="quorum",
                message=f"too few sites can take part, {spec.quorum} are needed: {reasons}"[:4000],
                hint="`fedlearn ledger show --kind refusal` has the findings; correct the policy "
                "or the sites, then `fedlearn job resume`",
            ),
        )
        job.host.cancel("too few sites can take part")
        job.host.close()

    def _conclude(self, job: OpenJob, outcome: Outcome) -> None:
        name = job.record.name
        seconds = (self._clock() - job.started).total_seconds()
        if outcome.status == "finished":
            self._home.ledger.append(
                "job", {"job": name, "change": "finished", "rounds": job.desk.round}
            )
            model = job.desk.model if job.desk.model in self._home.store.models() else ""
            event: Event = JobFinished(model=model, seconds=seconds, metrics=job.desk.metrics)
            self.close(name, JobStatus.FINISHED, event)
        elif outcome.status == "cancelled":
            self.close(name, JobStatus.CANCELLED, JobCancelled(detail=outcome.message))
        else:
            self._home.ledger.append(
                "job", {"job": name, "change": "failed", "reason": outcome.message}
            )
            event = JobFailed(detail=outcome.message, hint=outcome.hint)
            self.close(name, JobStatus.FAILED, event, detail=outcome.message)

    def close(self, name: str, status: JobStatus, event: Event, *, detail: str = "") -> None:
        """Take a job out of service: its clients, its sites, its name among the open ones."""
        with self.lock:
            job = self._open.pop(name, None)
        self._book.change(
            name, status=status, detail=detail, round_=job.desk.round if job else None
        )
        self.say(name, event)
        if job is None:
            return
        self.gate.close_job(name, f"the job is {status}")
        self.dispatch.end(job, f"the job is {status}")

    def stop(self) -> None:
        """Interrupt every job; each goes on from its last checkpoint after a restart."""
        with self.lock:
            self._stopping = True
            running = list(self._open.values())
            self._open.clear()
        for job in running:
            job.host.cancel("the coordinator stopped")
        for job in running:
            job.host.close()
            self._book.change(job.record.name, status=JobStatus.INTERRUPTED)
            self.say(job.record.name, JobInterrupted(detail="the coordinator stopped"))

    def say(self, name: str, event: Event) -> None:
        """Tell whoever follows a job, and keep it."""
        self._book.say(name, event, at=self._clock())
        round_ = getattr(event, "round", None)
        if event.to_json()["kind"] == "round.finished" and isinstance(round_, int):
            self._book.change(name, round_=round_)
