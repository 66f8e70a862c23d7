"""The coordinator: jobs from submission to their sealed model, and the sites that run them.

It stands behind the services of :mod:`server.rpc` (:class:`server.rpc.ports.Coordinator`),
gives admission its jobs and nodes (:class:`server.admission.NodeDoor`), and gives the Fleet
front its links. It decides nothing about evidence and touches no weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from attestation.errors import AttestationError
from attestation.policy import AppraisalPolicy
from attestation.trust import TrustAnchors
from fedlearn.application import check_bundle
from fedlearn.errors import FedlearnError, JobError
from fedlearn.events import (
    ClientLost,
    ClientStarting,
    Event,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobInterrupted,
    JobSubmitted,
    Log,
)
from fedlearn.job import JobSpec
from fedlearn.privacy import Budget
from server.admission import AdmissionGate, AdmittableJob
from server.dispatch import Dispatch
from server.enrollment import SiteRegister, SiteStatus
from server.exclusions import Exclusion
from server.flower.link import JobLink
from server.flower.plan import Outcome
from server.home import Home
from server.jobs import JobBook, JobRecord, JobStatus
from server.openjob import OpenJob, opened
from server.placement import Candidate, Choice, choose, obstacles
from server.policies import PolicyDesk
from server.register import Admission, AdmissionEvent, AdmissionRegister, Change
from server.rpc.ports import EventView, JobView, Orders
from server.voice import spoken

__all__ = ["Coordinator"]

_LOG = logging.getLogger(__name__)
_MAX_CRASHES: Final = 3
_EVENT_PAGE: Final = 500


class Coordinator:
    """All jobs of one coordinator. Safe to use from many threads.

    :param runtime: a private directory for the processes of jobs; never holds weights.
    """

    def __init__(
        self,
        home: Home,
        *,
        book: JobBook,
        sites: SiteRegister,
        register: AdmissionRegister,
        trust: Callable[[], TrustAnchors],
        runtime: Path,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._home = home
        self._book = book
        self._sites = sites
        self._register = register
        self._trust = trust
        self._runtime = runtime
        self._clock = clock
        self._policies = PolicyDesk(
            keys=frozenset(home.config.trust.policy_keys),
            entries=lambda: (entry.body for entry in home.ledger.entries(kind="policy")),
        )
        self._lock = threading.RLock()
        self._open: dict[str, OpenJob] = {}
        self._dispatch = Dispatch(
            open_jobs=self._open,
            lock=self._lock,
            order_key=home.order_key,
            say=self._say,
            clock=clock,
        )
        self._gate: AdmissionGate | None = None
        self._stopping = False
        register.subscribe(self._admission_changed)

    def attach(self, gate: AdmissionGate) -> None:
        """Set the gate, which itself needs this coordinator."""
        self._gate = gate

    def go_on(self) -> None:
        """Open again what an earlier life left unfinished."""
        for record in self._book.all():
            if not record.status.open:
                continue
            if not self._home.config.jobs.resume:
                self._book.change(record.name, status=JobStatus.INTERRUPTED)
                continue
            try:
                self._begin(record)
            except (FedlearnError, AttestationError) as error:
                self._close(record.name, JobStatus.FAILED, JobFailed(detail=str(error)))

    def stop(self) -> None:
        """Interrupt every job; each goes on from its last checkpoint after a restart."""
        with self._lock:
            self._stopping = True
            running = list(self._open.values())
            self._open.clear()
        for job in running:
            job.host.cancel("the coordinator stopped")
        for job in running:
            job.host.close()
            self._book.change(job.record.name, status=JobStatus.INTERRUPTED)
            self._say(job.record.name, JobInterrupted(detail="the coordinator stopped"))

    # --- for admission and the front --------------------------------------------------

    def admittable(self, name: str) -> AdmittableJob | None:
        """Return what admission needs to know of an open job."""
        with self._lock:
            job = self._open.get(name)
        if job is None:
            return None
        return dataclasses.replace(job.admittable, trust=self._trust())

    def link_of(self, name: str) -> JobLink | None:
        """Return the link of an open job."""
        with self._lock:
            job = self._open.get(name)
        return None if job is None else job.host.link

    def create_node(self, job: str, site: str, tls_key: bytes) -> int:
        """Admit a site to an open job.

        :raises JobError: when the job is not open.
        """
        with self._lock:
            found = self._open.get(job)
        if found is None:
            raise JobError(f"job {job} is not open")
        with found.nodes:
            number = found.host.create_node(site, tls_key)
            found.node_keys[site] = tls_key
        return number

    def delete_node(self, job: str, site: str, tls_key: bytes) -> None:
        """End the part in a job that a site has with this key, if it still has."""
        with self._lock:
            found = self._open.get(job)
        if found is None:
            return
        with found.nodes:
            if found.node_keys.get(site) == tls_key:
                del found.node_keys[site]
                found.host.delete_node(site)

    def readmitted(self, exclusion: Exclusion) -> None:
        """Have a site whose client was turned away start it again, now that it may."""
        with self._lock:
            job = self._open.get(exclusion.job)
            turned_away = job is not None and job.refused.pop(exclusion.site, None) is not None
        if job is not None and turned_away:
            self._dispatch.anew(job, exclusion.site)

    def record(self, kind: str, body: dict[str, object]) -> object:
        """Append to the ledger; tell people of a job what concerns them."""
        entry = self._home.ledger.append(kind, body)  # type: ignore[arg-type]
        event = spoken(kind, body)
        name = body.get("job")
        if event is not None and isinstance(name, str):
            with self._lock:
                known = name in self._open
            if known:
                self._say(name, event)
        return entry

    # --- operators --------------------------------------------------------------------

    def submit_job(
        self,
        operator: str,
        *,
        job_toml: str,
        bundle: bytes,
        policy_toml: str,
        policy_signature: bytes = b"",
    ) -> JobView:
        """Accept a job and order it at its sites.

        Where the job leaves the choice of its sites to us, the job that is accepted and in
        force names exactly those that were chosen.

        :raises JobError: when a site is unknown or too few are able, the budget cannot pay for
            its rounds, or the coordinator runs as many jobs as it may.
        :raises AttestationError: when its policy is not signed as it has to be, or older
            than one that was accepted before.
        """
        policy = AppraisalPolicy.from_toml(policy_toml.encode(), where="policy.toml")
        spec = JobSpec.from_toml(job_toml, where="job.toml", policy=policy_toml.encode())
        check_bundle(bundle, where="the app bundle")
        asked, choice = spec, None
        if asked.placement.choose:
            choice = self._chosen(asked, policy)
            spec = asked.at(choice.sites)
        else:
            self._require_sites(spec, policy)
        if spec.privacy is not None:
            Budget.require(spec.privacy, spec.rounds)
        record = JobRecord(
            name=spec.name,
            status=JobStatus.PENDING,
            spec=spec,
            policy=policy_toml,
            policy_in_force=policy_toml,
            bundle=bundle,
            created=self._clock(),
            policy_signature=policy_signature,
            signature_in_force=policy_signature,
        )
        with self._policies.deciding(), self._lock:
            signer = self._policies.check(policy, policy_signature)
            limit = self._home.config.limits.jobs
            if len(self._open) >= limit:
                raise JobError(
                    f"{limit} jobs run already",
                    hint="wait for one to end, or raise limits.jobs in server.toml",
                )
            self._book.add(record)
            self._home.ledger.append(
                "job",
                {
                    "job": spec.name,
                    "change": "submitted",
                    "operator": operator,
                    "digest": spec.digest().hex(),
                    "bundle": hashlib.sha256(bundle).hexdigest(),
                    "policy": policy.digest.hex(),
                    **({} if choice is None else _placed(asked, choice)),
                },
            )
            self._home.ledger.append(
                "policy",
                {
                    "job": spec.name,
                    "policy": policy.digest.hex(),
                    "operator": operator,
                    **self._policies.entry(policy, signer),
                },
            )
            self._say(spec.name, JobSubmitted(job=spec.name, rounds=spec.rounds, sites=spec.sites))
            for site, reason in choice.passed_over.items() if choice is not None else ():
                self._say(spec.name, Log(line=f"not chosen: {reason}", site=site))
            self._begin(record)
        return self.get_job(spec.name)

    def list_jobs(self) -> Sequence[JobView]:
        """Return all jobs, oldest first."""
        return [_view(record) for record in self._book.all()]

    def get_job(self, name: str) -> JobView:
        """Return one job."""
        return _view(self._book.get(name))

    def follow_job(
        self, name: str, *, after: int, past_only: bool, stop: threading.Event
    ) -> Iterator[EventView]:
        """Yield events, and new ones as they come, until the job has ended."""
        self._book.get(name)
        while not stop.is_set():
            page = self._book.events(name, after=after, most=_EVENT_PAGE)
            for event in page:
                after = event.sequence
                yield EventView(
                    sequence=event.sequence,
                    unix_ms=int(event.at.timestamp() * 1000),
                    kind=event.kind,
                    json=event.body,
                )
            if len(page) == _EVENT_PAGE:
                continue
            if past_only or not self._book.get(name).status.open:
                return
            self._book.wait(name, after=after, seconds=1.0)

    def cancel_job(self, operator: str, name: str) -> JobView:
        """Stop a job. Its sealed versions stay."""
        record = self._book.get(name)
        if not record.status.open:
            raise JobError(f"job {name} is {record.status} already")
        self._note(name, "cancelled", operator)
        with self._lock:
            job = self._open.get(name)
        event = JobCancelled(detail=f"by operator {operator}")
        self._close(name, JobStatus.CANCELLED, event)
        if job is not None:
            job.host.cancel(f"cancelled by operator {operator}")
            job.host.close()
        return self.get_job(name)

    def resume_job(self, operator: str, name: str) -> JobView:
        """Go on with a job that was cancelled, failed or interrupted."""
        record = self._book.get(name)
        with self._lock:
            if name in self._open:
                raise JobError(f"job {name} runs already")
            if record.status is JobStatus.FINISHED:
                raise JobError(
                    f"job {name} has finished; there is nothing to resume",
                    hint="submit a job with another name to train further",
                )
            policy = AppraisalPolicy.from_toml(record.policy_in_force.encode())
            self._require_sites(record.spec, policy)
            self._note(name, "resumed", operator)
            self._begin(record)
        return self.get_job(name)

    def replace_policy(
        self, operator: str, name: str, policy_toml: str, policy_signature: bytes = b""
    ) -> None:
        """Judge the clients of a job by another policy from now on.

        :raises AttestationError: when the policy is not signed as it has to be, or older than
            one that was accepted before.
        """
        policy = AppraisalPolicy.from_toml(policy_toml.encode(), where="policy.toml")
        with self._lock:
            job = self._open.get(name)
        if job is None:
            raise JobError(f"job {name} is not open")
        with self._policies.deciding():
            signer = self._policies.check(policy, policy_signature)
            former = self._book.get(name)
            # The book first: what a restart finds is never older than the ledger.
            self._book.change(
                name, policy_in_force=policy_toml, signature_in_force=policy_signature
            )
            noted = {"operator": operator, **self._policies.entry(policy, signer)}
            try:
                self._admissions.replace_policy(name, policy, noted=noted)
            except BaseException:
                self._book.change(
                    name,
                    policy_in_force=former.policy_in_force,
                    signature_in_force=former.signature_in_force,
                )
                raise
            self._note(name, "policy replaced", operator)
        with self._lock:
            job.admittable = dataclasses.replace(job.admittable, policy=policy)

    # --- clients ----------------------------------------------------------------------

    def commit_data(self, admission: Admission, *, root: bytes, records: int) -> int:
        """Enter a commitment; a client whose data changed is put into quarantine."""
        with self._lock:
            job = self._open.get(admission.job)
        if job is None:
            raise JobError(f"job {admission.job} is not open")
        try:
            return job.desk.commit(admission, root=root, records=records)
        except FedlearnError as error:
            self._register.quarantine(admission.thumbprint, str(error), now=self._clock())
            raise

    def release_key(
        self, admission: Admission, *, model: str, version: int, file_id: bytes
    ) -> bytes:
        """Wrap the content key of one sealed version to an admitted client."""
        stored = self._home.store.version(model, version)
        if stored.file_id != file_id:
            raise JobError(f"version {version} of {model} is another file")
        return self._home.keys.release(
            admission, stored, register=self._register, now=self._clock()
        )

    # --- sites ------------------------------------------------------------------------

    def fetch_bundle(self, site: str, sha256: bytes) -> bytes:
        """Return the code of an open job that the site takes part in.

        :raises JobError: when there is none.
        """
        with self._lock:
            for job in self._open.values():
                if site in job.record.spec.sites and job.admittable.bundle_digest == sha256:
                    return job.record.bundle
        raise JobError("no open job of this site has such a bundle")

    def site_connected(
        self, site: str, orders: Orders, *, version: str, running: tuple[str, ...]
    ) -> None:
        """Order what a site should run, and stop what it should not."""
        self._dispatch.connected(site, orders, running=running)

    def site_disconnected(self, site: str, orders: Orders) -> None:
        """Forget the way to a site, unless it has a newer one."""
        self._dispatch.disconnected(site, orders)

    def workload_changed(self, site: str, *, assignment: str, phase: str, reason: str) -> None:
        """Tell people, and start a client anew that died while its job runs."""
        job = self._dispatch.job_of(site, assignment)
        if job is None:
            return
        name = job.record.name
        if phase in {"accepted", "starting"}:
            self._say(name, ClientStarting(site=site, detail=reason))
        elif phase in {"refused", "failed", "stopped", "succeeded"}:
            self._say(name, ClientLost(site=site, reason=f"{phase}: {reason}"))
            job.host.link.absent(site)
            if phase == "failed":
                self._dispatch.again(job, site, reason)
            elif phase == "refused":
                self._give_up_if_hopeless(job, site, reason)

    def site_assignments(self, site: str) -> tuple[str, ...]:
        """Return what the site runs, or shall run."""
        return self._dispatch.assignments(site)

    # --- inside -----------------------------------------------------------------------

    @property
    def _admissions(self) -> AdmissionGate:
        if self._gate is None:
            raise RuntimeError("the gate is not attached")
        return self._gate

    def _require_sites(self, spec: JobSpec, policy: AppraisalPolicy) -> None:
        """Refuse a job before its first round when too few of its sites can run it.

        :raises JobError: naming what stands in the way.
        """
        lacking = []
        for name in spec.sites:
            site = self._sites.show(name)
            if site.status is not SiteStatus.ACTIVE:
                raise JobError(
                    f"site {name} is {site.status}",
                    hint=f"`fedlearn site show {name}` says what it waits for",
                )
            reasons = obstacles(spec, policy, site=name, capabilities=site.capabilities)
            lacking += [f"site {name}: {reason}" for reason in reasons]
        unable = {text.split(":")[0] for text in lacking}
        if len(spec.sites) - len(unable) < spec.quorum:
            raise JobError(
                f"{'; '.join(lacking)}",
                hint="change the job or the sites, or lower `quorum` to go on without them",
            )

    def _chosen(self, spec: JobSpec, policy: AppraisalPolicy) -> Choice:
        """Choose the sites of a job that wants some of those it names.

        :raises JobError: when too few are able.
        """
        return choose(spec, policy, [self._candidate(name) for name in spec.sites])

    def _candidate(self, name: str) -> Candidate:
        site, unable = self._sites.show(name), ""
        with self._lock:
            if site.status is not SiteStatus.ACTIVE:
                unable = f"it is {site.status}"
            elif not self._dispatch.is_connected(name):
                unable = "it is not connected"
            return Candidate(
                name=name,
                unable=unable,
                capabilities=site.capabilities,
                busy=tuple(
                    job.record.spec.resources
                    for job in self._open.values()
                    if name in job.record.spec.sites
                ),
                failures=self._dispatch.failures(name),
            )

    def _begin(self, record: JobRecord) -> None:
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
            say=lambda event: self._say(name, event),
            clock=self._clock,
        )
        with self._lock:
            self._open[name] = job
            self._book.change(name, status=JobStatus.RUNNING, detail="")
        self._dispatch.begin(job)
        threading.Thread(target=self._watch, args=(job,), name=f"watch {name}", daemon=True).start()

    def _give_up_if_hopeless(self, job: OpenJob, site: str, reason: str) -> None:
        """End a job at once when those that were refused leave too few for its quorum."""
        spec = job.record.spec
        with self._lock:
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
                self._say(name, Log(line=f"{outcome.message}; starting it again", level="warning"))
        except FedlearnError as error:
            outcome = Outcome(status="failed", code=error.code, message=str(error), hint=error.hint)
        with self._lock:
            if self._open.get(name) is not job:
                return
        self._conclude(job, outcome)
        job.host.close()

    def _conclude(self, job: OpenJob, outcome: Outcome) -> None:
        name = job.record.name
        seconds = (self._clock() - job.started).total_seconds()
        if outcome.status == "finished":
            self._home.ledger.append(
                "job", {"job": name, "change": "finished", "rounds": job.desk.round}
            )
            event: Event = JobFinished(
                model=job.desk.model, seconds=seconds, metrics=job.desk.metrics
            )
            self._close(name, JobStatus.FINISHED, event)
        elif outcome.status == "cancelled":
            self._close(name, JobStatus.CANCELLED, JobCancelled(detail=outcome.message))
        else:
            self._home.ledger.append(
                "job", {"job": name, "change": "failed", "reason": outcome.message}
            )
            event = JobFailed(detail=outcome.message, hint=outcome.hint)
            self._close(name, JobStatus.FAILED, event, detail=outcome.message)

    def _close(self, name: str, status: JobStatus, event: Event, *, detail: str = "") -> None:
        """Take a job out of service: its clients, its sites, its name among the open ones."""
        with self._lock:
            job = self._open.pop(name, None)
        self._book.change(
            name, status=status, detail=detail, round_=job.desk.round if job else None
        )
        self._say(name, event)
        if job is None:
            return
        self._admissions.close_job(name, f"the job is {status}")
        self._dispatch.end(job, f"the job is {status}")

    def _admission_changed(self, event: AdmissionEvent) -> None:
        said = spoken(event.change.value, event)
        with self._lock:
            job = self._open.get(event.admission.job)
            if job is not None and event.change is Change.ADMITTED:
                job.refused.pop(event.admission.site, None)
        if job is None:
            return
        if event.change not in {Change.ADMITTED, Change.RENEWED}:
            job.desk.admission_ended(event)
        if said is not None:
            self._say(event.admission.job, said)

    def _note(self, name: str, change: str, operator: str) -> None:
        self._home.ledger.append("job", {"job": name, "change": change, "operator": operator})

    def _say(self, name: str, event: Event) -> None:
        self._book.say(name, event, at=self._clock())
        round_ = getattr(event, "round", None)
        if event.to_json()["kind"] == "round.finished" and isinstance(round_, int):
            self._book.change(name, round_=round_)


def _placed(asked: JobSpec, choice: Choice) -> dict[str, Any]:
    """Return what the ledger keeps of a choice, besides the job that came of it."""
    return {
        "asked": asked.digest().hex(),
        "prefer": asked.placement.prefer,
        "sites": list(choice.sites),
        "passed_over": dict(choice.passed_over),
    }


def _view(record: JobRecord) -> JobView:
    return JobView(
        name=record.name,
        id=record.spec.digest().hex(),
        status=record.status.value,
        round=record.round,
        rounds=record.spec.rounds,
        detail=record.detail,
        model=record.name if record.round else "",
        sites=record.spec.sites,
    )
