"""The coordinator: jobs from submission to their sealed model, and the sites that run them.

It serves the requests of operators, sites and clients that come through the services of
:mod:`server.rpc` (:class:`server.rpc.ports.Coordinator`). Open jobs are in
:mod:`server.jobs.active_jobs`, their life in :mod:`server.jobs.supervisor`. It decides nothing
about evidence and reads no weights.

The pages are docs/explanation/architecture.md and docs/adr/0009-one-coordinator.md.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from attestation.policy.parse import parse_policy
from attestation.policy.sign import signer_of
from attestation.trust import TrustAnchors
from fedlearn.errors import FedlearnError, JobError
from fedlearn.job.app_log import SealedAppLog
from fedlearn.job.events import KINDS, ClientLost, ClientStarting, JobCancelled, JobSubmitted, Log
from fedlearn.job.phase import Phase
from fedlearn.job.run import RunName
from fedlearn.job.state import JobEvent, JobState, JobStatus
from fedlearn.terminal.logs import log_event
from server.admission.gate import AdmissionGate
from server.admission.registry import Admission, AdmissionRegistry
from server.health import Health
from server.identity.site_registry import SiteRegistry
from server.jobs.active_jobs import OpenJobs
from server.jobs.app_logs import AppLogs
from server.jobs.assignment_dispatcher import AssignmentDispatcher
from server.jobs.deletion import JobDeletion
from server.jobs.job_admission import JobAdmission
from server.jobs.job_events import JobEvents
from server.jobs.policy_registry import PolicyRegistry
from server.jobs.records.app_log_store import AppLogStore
from server.jobs.records.bundles import Bundle
from server.jobs.records.job_store import JobRecord, JobStore
from server.jobs.selection import Selection
from server.jobs.submission import JobIntake
from server.jobs.supervisor import JobSupervisor
from server.rpc.ports import Orders
from server.state_directory import StateDirectory

__all__ = ["Coordinator"]

_LOG = logging.getLogger(__name__)
_EVENT_PAGE: Final = 500
_LAST_EVENT_SECONDS: Final = 5.0
_LAST_EVENTS: Final = frozenset(kind for kind, event in KINDS.items() if event.final)


class Coordinator:
    """All jobs of one coordinator. Safe to use from many threads.

    ``jobs``        the open jobs
    ``events``      their events
    ``admission``   what the gate reads of them
    ``gate``        admits their clients
    ``supervisor``  opens and closes them
    ``deletion``    removes those that an operator deletes

    :param gate_of: makes the gate for the open jobs.
    :param runtime: a private directory for the processes of jobs, which holds the app's own files.
    """

    def __init__(
        self,
        directory: StateDirectory,
        *,
        job_store: JobStore,
        app_logs: AppLogStore,
        sites: SiteRegistry,
        registry: AdmissionRegistry,
        trust: Callable[[], TrustAnchors],
        gate_of: Callable[[JobAdmission], AdmissionGate],
        runtime: Path,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        health: Health | None = None,
    ) -> None:
        self._directory = directory
        self._job_store = job_store
        self._registry = registry
        self._clock = clock
        self._policies = PolicyRegistry(
            keys=frozenset(directory.config.trust.policy_keys),
            entries=lambda: (entry.body for entry in directory.ledger.entries(kind="policy")),
        )
        health = health or Health()
        self.jobs = OpenJobs()
        self._app_logs = AppLogs(app_logs, job_store=job_store, jobs=self.jobs)
        self.events = JobEvents(job_store, jobs=self.jobs, clock=clock, health=health)
        self._dispatcher = AssignmentDispatcher(
            jobs=self.jobs, order_key=directory.order_key, report=self.events.report, clock=clock
        )
        self.admission = JobAdmission(
            self.jobs,
            ledger=directory.ledger,
            registry=registry,
            dispatcher=self._dispatcher,
            report=self.events.report,
            trust=trust,
        )
        self.gate = gate_of(self.admission)
        self.supervisor = JobSupervisor(
            directory,
            job_store=job_store,
            jobs=self.jobs,
            events=self.events,
            dispatcher=self._dispatcher,
            gate=self.gate,
            registry=registry,
            policies=self._policies,
            trust=trust,
            absence=lambda name, site: self._selection.absence(
                name, site, excluded=self.gate.exclusions.of_job(name, now=clock()), now=clock()
            ),
            runtime=runtime,
            clock=clock,
            health=health,
        )
        self._selection = Selection(sites, self.jobs, self._dispatcher)
        self._intake = JobIntake(
            directory,
            job_store=job_store,
            jobs=self.jobs,
            policies=self._policies,
            selection=self._selection,
            clock=clock,
        )
        self.deletion = JobDeletion(directory, job_store, self._app_logs)

    # --- operators --------------------------------------------------------------------

    def submit_job(
        self,
        operator: str,
        *,
        job_toml: str,
        bundle: bytes,
        policy_toml: str,
        policy_signature: bytes = b"",
    ) -> JobState:
        """Accept a job and send its assignments to its sites.

        It becomes the next run of its name. Where the job leaves the choice of its sites to the
        coordinator, the accepted job names exactly those that were chosen. ``notes`` of the
        answer state what its sites report that they would refuse.

        :raises FedlearnError: naming everything that is wrong: a site that is unknown, too few
            that are able, a budget that cannot pay for its rounds, a run of its name that is not
            over, as many jobs as the coordinator may run.
        :raises AttestationError: when the only fault is its policy: it is not signed as required,
            or is older than one that was accepted before.
        """
        with self._policies.deciding(), self.jobs.lock:
            record, choice = self._intake.accept(
                operator,
                job_toml=job_toml,
                bundle=Bundle(bundle),
                policy_toml=policy_toml,
                policy_signature=policy_signature,
            )
            name, spec = record.name, record.spec
            self.events.report(name, JobSubmitted(job=name, rounds=spec.rounds, sites=spec.sites))
            for site, reason in choice.passed_over.items():
                self.events.report(name, Log(line=f"not chosen: {reason}", site=site))
            self.supervisor.begin(record)
        signer = signer_of(policy_signature) if policy_signature else b""
        notes = self._selection.notes(spec, bundle=record.bundle.digest, signer=signer)
        return dataclasses.replace(self.get_job(name), notes=notes)

    def resolve_job(self, reference: str, *, kept: bool = False) -> str:
        """Return the id of the run that an operator names; see :mod:`fedlearn.job.run`.

        :param kept: also runs that were deleted, and whose model was kept.
        :raises JobError: when there is no such run.
        """
        return self._job_store.history.resolve(reference, kept=kept)

    def list_jobs(self) -> Sequence[JobState]:
        """Return all jobs, oldest first."""
        models = self._directory.store.models()
        return [self._with_model(state, models) for state in self._job_store.states()]

    def get_job(self, name: str) -> JobState:
        """Return one job."""
        return self._with_model(self._job_store.state(name), self._directory.store.models())

    def follow_job(
        self, name: str, *, after: int, past_only: bool, stop: threading.Event
    ) -> Iterator[JobEvent]:
        """Yield events, and new ones as they come, until the job has ended.

        The last event states how the job ended. If it is not written yet, this waits some seconds
        for it.
        """
        deadline = time.monotonic() + _LAST_EVENT_SECONDS
        last = ""
        while not stop.is_set():
            # Read before the page: a job that has ended has no event after its last one.
            running = self._job_store.state(name).status.open
            page = self._job_store.events.page(name, after=after, most=_EVENT_PAGE)
            for event in page:
                after, last = event.sequence, event.kind
                yield JobEvent(
                    sequence=event.sequence,
                    unix_ms=int(event.at.timestamp() * 1000),
                    kind=event.kind,
                    json=event.body,
                )
            if len(page) >= _EVENT_PAGE:
                continue
            if running:
                deadline = time.monotonic() + _LAST_EVENT_SECONDS
            ended = not running and (last in _LAST_EVENTS or time.monotonic() > deadline)
            if past_only or ended:
                return
            self._job_store.events.wait(name, after=after, seconds=1.0)

    def cancel_job(self, operator: str, name: str) -> JobState:
        """Stop a job. Its sealed versions stay."""
        status = self._job_store.state(name).status
        if not status.open:
            raise JobError(
                f"job {name} is {status} already",
                hint=f"`fedlearn job delete {name}` removes it; its name can be submitted again",
            )
        self._note(name, "cancelled", operator)
        job = self.jobs.named(name)
        event = JobCancelled(detail=f"by operator {operator}")
        self.supervisor.close(name, JobStatus.CANCELLED, event)
        if job is not None:
            job.host.cancel(f"cancelled by operator {operator}")
            job.host.close()
        return self.get_job(name)

    def resume_job(self, operator: str, name: str) -> JobState:
        """Continue a run that was cancelled, failed or interrupted.

        :raises JobError: when it runs, has finished, or is not the newest run of its job.
        """
        record = self._job_store.get(name)
        run = RunName.of_id(name)
        with self.jobs.lock:
            if self.jobs.named(name) is not None:
                raise JobError(
                    f"job {name} runs already", hint=f"`fedlearn job logs {name} --follow` shows it"
                )
            if record.status is JobStatus.FINISHED:
                raise JobError(
                    f"job {name} has finished; there is nothing to resume",
                    hint=f"`fedlearn job submit` makes run {run.number + 1} of it",
                )
            newest = self._job_store.history.resolve(run.name)
            if newest != name:
                raise JobError(
                    f"run {run.number} of job {run.name} cannot be resumed after run "
                    f"{RunName.of_id(newest).number} was submitted",
                    hint=f"`fedlearn job clone {run.reference}` writes it to a folder, to be "
                    "submitted again",
                )
            self._intake.check_room()
            self._selection.require(record.spec, record.policy_in_force)
            self._note(name, "resumed", operator)
            self.supervisor.begin(record)
        return self.get_job(name)

    def replace_policy(
        self, operator: str, name: str, policy_toml: str, policy_signature: bytes = b""
    ) -> None:
        """Appraise the clients of a job by another policy from now on, or once it is resumed.

        :raises JobError: when the job has finished.
        :raises AttestationError: when the policy is not signed as required, or older than
            one that was accepted before.
        """
        policy = parse_policy(policy_toml.encode(), where="policy.toml")
        if self._job_store.state(name).status is JobStatus.FINISHED:
            raise JobError(
                f"job {name} has finished, and no client of it is appraised any more",
                hint="`fedlearn job submit` runs it again, with the policy in its folder",
            )
        with self._policies.deciding():
            signer = self._policies.check(policy, policy_signature)
            # Stored first, in force with its ledger entry, which names it by its digest.
            text = self._job_store.add_policy(name, policy_toml, policy_signature).hex()
            with self.jobs.lock:
                job = self.jobs.named(name)
                if job is None:
                    self._intake.enter_policy(name, policy, signer, operator=operator, text=text)
            if job is not None:
                noted = {"operator": operator, **self._policies.entry(policy, signer)}
                # Not with the lock of the jobs: the gate waits for admissions, which take it.
                self.gate.replace_policy(name, policy, noted={**noted, "text": text})
                with self.jobs.lock:
                    job.admittable = dataclasses.replace(job.admittable, policy=policy)
            self._note(name, "policy replaced", operator)

    def delete_job(self, operator: str, name: str, *, keep_model: bool = False) -> JobState:
        """Delete a run that is over, with its sealed model unless that is kept.

        Its entries in the ledger stay, and its id is not used again. A crash after the entry of
        the deletion leaves nothing of it after the next start. Of a run that was deleted, the
        model is deleted that was kept.

        :returns: its last state.
        :raises JobError: when it is open.
        """
        with self.jobs.lock:
            if self._job_store.history.facts(name) is None:
                return self.deletion.delete_kept(name, operator=operator)
            state = self.get_job(name)
            if state.status.open or self.jobs.named(name) is not None:
                raise JobError(
                    f"job {name} is {state.status}, and only a job that is over can be deleted",
                    hint=f"stop it first: `fedlearn job cancel {name}`",
                )
            self.deletion.delete(name, operator=operator, keep_model=keep_model)
        return state

    def submission(self, name: str) -> JobRecord:
        """Return what was submitted as a run, compared with the ledger.

        :raises StoreError: when something of it is missing or is not what the ledger names.
        """
        return self._job_store.get(name)

    # --- clients ----------------------------------------------------------------------

    def commit_data(self, admission: Admission, *, root: bytes, records: int, examples: int) -> int:
        """Enter a commitment; a client whose data changed is quarantined."""
        job = self.jobs.require(admission.job)
        try:
            return job.channel.commit(admission, root=root, records=records, examples=examples)
        except FedlearnError as error:
            self._registry.quarantine(admission.thumbprint, str(error), now=self._clock())
            raise

    def release_key(
        self, admission: Admission, *, model: str, version: int, file_id: bytes
    ) -> bytes:
        """Wrap the content key of one sealed version to an admitted client."""
        stored = self._directory.store.version(model, version)
        if stored.file_id != file_id:
            raise JobError(f"version {version} of {model} is another file")
        return self._directory.keys.release(
            admission, stored, registry=self._registry, now=self._clock()
        )

    def release_state_secret(self, admission: Admission) -> bytes:
        """Wrap the coordinator's part of the key of its states to an admitted client."""
        self.jobs.require(admission.job)
        return self._directory.keys.release_state(
            admission, registry=self._registry, now=self._clock()
        )

    def deliver_app_log(self, admission: Admission, log: SealedAppLog) -> None:
        """Keep a sealed log; see :meth:`server.jobs.app_logs.AppLogs.deliver`."""
        self._app_logs.deliver(admission, log)

    def app_logs(self, name: str, site: str) -> Iterator[SealedAppLog]:
        """Yield the logs of a job at one site; see :meth:`server.jobs.app_logs.AppLogs.of_site`."""
        return self._app_logs.of_site(name, site)

    def app_logs_of_owner(
        self, name: str, site: str, owner_key: bytes
    ) -> tuple[str, bytes, Iterator[SealedAppLog]]:
        """Return the id and the digest of a run, and its logs at one site, for its owner."""
        try:
            run = self.resolve_job(name)
        except FedlearnError:
            run = name  # refused like a run of another owner
        return run, *self._app_logs.of_owner(run, site, owner_key)

    # --- sites ------------------------------------------------------------------------

    def fetch_bundle(self, site: str, sha256: bytes) -> bytes:
        """Return the code of an open job that the site takes part in.

        :raises JobError: when there is none.
        """
        for job in self.jobs.of_site(site):
            if job.admittable.bundle_digest == sha256:
                return job.record.bundle.data
        raise JobError("no open job of this site has such a bundle")

    def site_connected(
        self, site: str, orders: Orders, *, version: str, running: tuple[str, ...]
    ) -> None:
        """Start at a site what it should run, and stop what it should not."""
        log_event(
            _LOG, "site.connected", f"site {site} is connected", site=site, version=version[:40]
        )
        self._dispatcher.connected(site, orders, running=running)

    def site_disconnected(self, site: str, orders: Orders) -> None:
        """Forget the connection of a site, unless it has a newer one."""
        log_event(_LOG, "site.disconnected", f"site {site} closed a connection", site=site)
        self._dispatcher.disconnected(site, orders)

    def workload_changed(self, site: str, *, assignment: str, phase: Phase, reason: str) -> None:
        """Report a change of a client, and start a client again that failed while its job runs."""
        job = self._dispatcher.job_of(site, assignment)
        if job is None:
            return
        name = job.record.name
        if phase in {Phase.ACCEPTED, Phase.STARTING}:
            self.events.report(name, ClientStarting(site=site, detail=reason))
        elif phase.final:
            self.events.report(name, ClientLost(site=site, reason=phase.ended(reason)))
            job.host.link.absent(site)
            if phase is Phase.FAILED:
                self._dispatcher.again(job, site, reason)
            elif phase is Phase.REFUSED:
                self.supervisor.client_refused(job, site, reason)

    def site_assignments(self, site: str) -> tuple[str, ...]:
        """Return the assignments that the site runs or is to run."""
        return self._dispatcher.assignments(site)

    def _with_model(self, state: JobState, models: Collection[str]) -> JobState:
        """Return the state of a job as operators see it, with its model."""
        if state.name in models:
            state = dataclasses.replace(state, model=state.name)
        reason = self.supervisor.interruption(state.name)
        if not reason:
            if state.status.open and (waits := self.supervisor.waiting(state.name)):
                state = dataclasses.replace(state, detail=waits)
            return state
        # The job store may not have it: its disk is what failed.
        return dataclasses.replace(state, status=JobStatus.INTERRUPTED, detail=reason)

    def _note(self, name: str, change: str, operator: str, **more: Any) -> None:
        body = {"job": name, "change": change, "operator": operator, **more}
        self._directory.ledger.append("job", body)
