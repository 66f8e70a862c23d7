"""The agent of a site: dials out, takes signed orders, and lets the site decide.

One stream to the coordinator, opened from here, so a site needs no open port. It comes back
after any pause; what runs meanwhile goes on. Where nobody answers it tries every few seconds: it
is back within five seconds of a coordinator that answers. One that answers and turns it away is
asked ever more seldom. An order is followed when the
coordinator's order key signed it for this site, the site's own rules allow it
(:mod:`edge.agent.site_policy`), and its code has the digest that the order names. It is followed
once: a client that ended is not started again under the same assignment.

An agent whose site is no longer enrolled stops all clients, and ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from attestation.errors import AttestationError
from edge.agent.budget_store import BudgetStore
from edge.agent.policy_versions import PolicyMemory
from edge.agent.sealed_file import MonotonicCounter, file_key
from edge.agent.site_policy import Answer, decide
from edge.agent.tpm_activation import OwnTpm, prove_tpm
from edge.config.site import SiteConfig
from edge.protocol.identity import SiteIdentity
from edge.protocol.rpc import ControlClient, enroll
from edge.protocol.seed_release import Client, grant_seed, kept_seed
from edge.protocol.site_stream import Order, Reports, Start, Stop
from edge.protocol.workload import Launcher, Phase, Workload
from fedlearn import __version__
from fedlearn.backoff import Backoff
from fedlearn.errors import (
    EnrollmentRefused,
    FedlearnError,
    JobError,
    NotEnrolled,
    PrivacyError,
    TransportError,
)
from fedlearn.job.assignment import Assignment
from fedlearn.job.spec import JobSpec
from fedlearn.wire.failure import Unreachable

__all__ = ["Agent", "approval_name"]

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 60.0
_LONGEST_UNANSWERED: Final = 2.0
"""Between two attempts that reach nobody, in seconds."""

_HEARTBEAT_SECONDS: Final = 15.0
_SHORTEST_BEAT_SECONDS: Final = 0.5
_ASK_AGAIN_SECONDS: Final = 30.0
_CLIENT: Final = "c1"
_MOST_ENDED: Final = 1000
_PROMPT_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.1


@dataclass(slots=True)
class _Held:
    """An assignment that this site knows, and where it stands."""

    assignment: Assignment
    phase: str = "accepted"
    reason: str = ""
    timer: threading.Timer | None = field(default=None, repr=False)


class Agent:
    """One site's agent. ``run`` returns when ``stop`` is called, or the site was removed.

    :param launcher: makes a launcher that reports to this agent.
    :param tpm: this machine's TPM, which the agent proves before it takes orders.
    :param counter: of that TPM; an older copy of the privacy budget is found by it.
    """

    def __init__(
        self,
        config: SiteConfig,
        identity: SiteIdentity,
        *,
        launcher: Callable[[Agent], Launcher],
        tpm: OwnTpm | None = None,
        counter: MonotonicCounter | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.config = config
        self.identity = identity
        self._now = now
        self._tpm = tpm
        self._proven = False
        self._lock = threading.RLock()
        self._held: dict[str, _Held] = {}
        self._ended: dict[str, tuple[str, str]] = {}
        self._policies = PolicyMemory(config.state)
        self._budget = BudgetStore(config, file_key(identity.key), counter=counter)
        self._settled = False
        self._reports: Reports | None = None
        self._answered = False
        self._stopped = threading.Event()
        self._launcher = launcher(self)

    def stop(self) -> None:
        """Make :meth:`run` return; safe from a signal handler's thread."""
        self._stopped.set()
        reports = self._reports
        if reports is not None:
            reports.close()

    def run(self) -> None:
        """Follow the coordinator until :meth:`stop`.

        :raises NotEnrolled: when the coordinator does not know the site any more. All of its
            clients were stopped then.
        """
        try:
            self._keep_following()
        except NotEnrolled as error:
            _LOG.error("%s; its clients are stopped", error)
            self._end_clients(str(error))
            raise
        finally:
            self._stopped.set()
            self._launcher.close()

    def _keep_following(self) -> None:
        backoff = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        while not self._stopped.is_set():
            self._answered = False
            longest = None
            try:
                self._renew_if_due()
                if self._follow():
                    continue
            except NotEnrolled:
                raise
            except Unreachable as error:
                _LOG.warning("the coordinator does not answer: %s", error)
                longest = _LONGEST_UNANSWERED
            except (FedlearnError, AttestationError) as error:
                _LOG.warning("the stream ended: %s", error)
            if self._answered:
                backoff.reset()
            self._stopped.wait(backoff.next(longest=longest))

    def _end_clients(self, reason: str) -> None:
        """Stop every client, also those of an earlier life; return when they are gone."""
        self._stopped.set()
        with self._lock:
            held = list(self._held.values())
            self._held.clear()
        for each in held:
            if each.timer is not None:
                each.timer.cancel()
        for assignment in self._launcher.running():
            self._launcher.stop(assignment, reason)
        until = time.monotonic() + _PROMPT_SECONDS
        while self._launcher.running() and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)

    def report(self, assignment: str, phase: Phase, reason: str) -> None:
        """Take a launcher's word; the coordinator hears it now or when it is back."""
        with self._lock:
            held = self._held.get(assignment)
            if held is not None:
                held.phase, held.reason = phase.value, reason
            if phase.final:
                self._held.pop(assignment, None)
                self._ended[assignment] = (phase.value, reason)
                while len(self._ended) > _MOST_ENDED:
                    del self._ended[next(iter(self._ended))]
        if phase.final:
            self._settle(assignment)
        self._say(assignment, phase.value, reason)

    def vouch_for(self, workload: Workload, nonce: bytes, tls_key: bytes) -> bytes:
        """Sign for a client that this agent started."""
        assignment = self._running_here(workload)
        return self.identity.vouch(
            job=assignment.job, client=workload.client, nonce=nonce, tls_key=tls_key
        )

    def seed_for(self, workload: Workload, request: bytes) -> bytes:
        """Give a client that was admitted the seed of its commitment, sealed to it."""
        assignment = self._running_here(workload)
        identity = self.identity
        return grant_seed(
            request,
            Client(job=assignment.job, site=identity.site, client=workload.client),
            seed=kept_seed(self.config.state, assignment.job),
            ca_pem=identity.ca_pem,
            chain=identity.chain,
            key=identity.key,
            now=self._now(),
        )

    def charge_for(self, workload: Workload, question: str) -> None:
        """Charge an update of a client to the budget of its data, before the update leaves.

        :raises PrivacyError: when the budget does not pay for it.
        :raises ConfigError: when the budget on disk cannot be used.
        """
        self._budget.charge(self._running_here(workload).id, question)

    def _running_here(self, workload: Workload) -> Assignment:
        assignment = workload.assignment
        with self._lock:
            if assignment.id not in self._held:
                raise JobError(f"assignment {assignment.id} does not run here")
        return assignment

    def _settle(self, assignment: str) -> None:
        """Give back what a job that has ended did not use of its data's budget."""
        try:
            self._budget.settle(assignment)
        except FedlearnError as error:
            # It stays reserved, which is the safe side, until an agent starts that can settle it.
            _LOG.error("the privacy budget cannot be settled: %s", error)

    # --- the stream -------------------------------------------------------------------

    def _follow(self) -> bool:
        """Take orders until the stream ends; say whether it ended for a new certificate only."""
        running = self._launcher.running()
        if not self._settled:
            self._budget.settle_others(running)
            self._settled = True
        reports = Reports(version=__version__, running=running)
        self._reports = reports
        if self._stopped.is_set():
            return False
        over = threading.Event()
        with ControlClient.of_site(self.identity) as control:
            self._prove_tpm(control)
            reports.capabilities(json.dumps(self._capabilities()))
            beats = threading.Thread(target=self._beat, args=(reports, control, over), daemon=True)
            beats.start()
            try:
                for order in control.follow(reports, answered=self._note_answer):
                    self._take(order, control)
            finally:
                over.set()
                reports.close()
                self._reports = None
        return reports.finished and not self._stopped.is_set()

    def _note_answer(self) -> None:
        """Note that the coordinator took the stream: whatever ends it, it was there."""
        self._answered = True

    def _capabilities(self) -> dict[str, object]:
        """Return what this site can run: what its launcher sees, within its own caps."""
        found: dict[str, object] = dict(self._launcher.capabilities())
        caps = self.config.caps
        for name, cap in (("cpu", caps.cpu), ("memory_mib", caps.memory_mib), ("gpu", caps.gpu)):
            has = found.get(name)
            if isinstance(has, int | float):
                found[name] = min(has, cap)
        found["data"] = sorted(self.config.data)
        found["jobs"] = caps.jobs
        if caps.cost is not None:
            found["cost"] = caps.cost
        return found

    def _prove_tpm(self, control: ControlClient) -> None:
        """Prove this machine's TPM, once in the agent's life: its keys stay the same."""
        if self._tpm is not None and not self._proven:
            prove_tpm(control, self._tpm, site=self.identity.site)
            self._proven = True

    def _beat(self, reports: Reports, control: ControlClient, over: threading.Event) -> None:
        while not over.wait(self._until_next_beat()):
            try:
                reports.heartbeat()
                if self._renew_if_due(control):
                    # A stream ends with the certificate that opened it. The next one is opened
                    # with the new one, while the former still counts.
                    reports.finish()
                    return
            except FedlearnError as error:
                _LOG.info("a heartbeat was not sent: %s", error)

    def _until_next_beat(self) -> float:
        """Return seconds: in time to renew, and often enough to try that several times."""
        identity, now = self.identity, self._now()
        if identity.renew_at is None or identity.expires is None:
            return _HEARTBEAT_SECONDS
        due = (identity.renew_at - now).total_seconds()
        if due <= 0:
            due = (identity.expires - now).total_seconds() / 4
        return min(_HEARTBEAT_SECONDS, max(due, _SHORTEST_BEAT_SECONDS))

    def _renew_if_due(self, control: ControlClient | None = None) -> bool:
        """Renew the site's certificate after half of its life, or come back with the token.

        Says whether there is a new one.
        """
        identity, now = self.identity, self._now()
        if identity.renew_at is not None and now < identity.renew_at:
            return False
        if identity.expires is not None and now < identity.expires:
            if control is None:
                with ControlClient.of_site(identity) as own:
                    self._renewed(own.renew_site(identity))
            else:
                self._renewed(control.renew_site(identity))
            return True
        shown = self._tpm.identity().to_bytes() if self._tpm is not None else b""
        try:
            enrolled = enroll(identity.token, identity=identity, tpm=shown, now=self._now)
        except EnrollmentRefused as refused:
            raise NotEnrolled(str(refused), hint=refused.hint) from refused
        self._renewed(enrolled)
        if self.identity.pending:
            raise TransportError(
                f"site {identity.site} waits for approval",
                hint=f"the coordinator's operator runs `fedlearn site approve {identity.site}`",
            )
        return True

    def _renewed(self, identity: SiteIdentity) -> None:
        identity.save(self.config.state)
        self.identity = identity

    # --- orders -----------------------------------------------------------------------

    def _take(self, order: Order, control: ControlClient) -> None:
        match order:
            case Start():
                self._start(order, control)
            case Stop():
                with self._lock:
                    held = self._held.pop(order.assignment, None)
                if held is not None and held.timer is not None:
                    held.timer.cancel()
                self._launcher.stop(order.assignment, order.reason)

    def _start(self, order: Start, control: ControlClient) -> None:
        try:
            assignment = Assignment.verify(
                order.assignment_json,
                order.signature,
                order_key=self.identity.order_key,
                site=self.identity.site,
                now=self._now(),
            )
        except JobError as error:
            # There is no id to answer for that could be believed.
            _LOG.error("an order was refused: %s", error)
            return
        with self._lock:
            held = self._held.get(assignment.id)
            if held is not None:
                if held.timer is None:
                    return
                # It waits for something, perhaps for the coordinator itself: look again now.
                held.timer.cancel()
                held.timer = None
            ended = self._ended.get(assignment.id)
            if ended is None:
                self._held[assignment.id] = _Held(assignment=assignment)
        if ended is None:
            self._consider(assignment, control)
            return
        # The coordinator may not have heard how it ended; it has others to give.
        phase, reason = ended
        if phase != Phase.REFUSED:
            phase, reason = Phase.FAILED, f"its client has ended here: {phase}: {reason}"
        self._say(assignment.id, phase, reason)

    def _consider(self, assignment: Assignment, control: ControlClient) -> None:
        """Decide, and start what the site agrees to."""
        try:
            spec = JobSpec.from_json(assignment.spec)
            running = set(self._launcher.running())
            adopting = assignment.id in running
            decision = decide(
                self.config,
                spec,
                site=self.identity.site,
                bundle=assignment.bundle,
                now=self._now(),
                running=len(running - {assignment.id}),
                approved=self._approved(assignment),
                adopting=adopting,
                policy=assignment.policy,
                policy_signature=assignment.policy_signature,
                seen=self._policies.seen(),
                budget=self._budget.book(),
            )
            reason = "; ".join(decision.reasons)
            if decision.answer is Answer.REFUSE:
                if adopting:
                    self._launcher.stop(assignment.id, f"this site refuses it now: {reason}")
                self._refuse(assignment, reason)
                return
            if decision.answer is not Answer.RUN:
                self._wait(assignment, reason)
                return
            bundle = control.fetch_bundle(assignment.bundle)
            if hashlib.sha256(bundle).digest() != assignment.bundle:
                raise JobError("the app bundle is not the one that the order names")
            if decision.policy is not None:
                self._policies.remember(decision.policy)
            self._budget.reserve(spec, place=decision.data, assignment=assignment.id)
            self._say(assignment.id, "accepted", "")
            self._launcher.launch(
                Workload(
                    assignment=assignment,
                    spec=spec,
                    bundle=bundle,
                    data=decision.data,
                    client=_CLIENT,
                )
            )
        except TransportError as error:
            self._wait(assignment, str(error))
        except PrivacyError as error:
            self._refuse(assignment, str(error))
        except (FedlearnError, OSError) as error:
            with self._lock:
                self._held.pop(assignment.id, None)
            self._settle(assignment.id)
            self._say(assignment.id, "failed", str(error))

    def _refuse(self, assignment: Assignment, reason: str) -> None:
        with self._lock:
            self._held.pop(assignment.id, None)
        self._say(assignment.id, "refused", reason)

    def _wait(self, assignment: Assignment, reason: str) -> None:
        """Look again later: the hours may come, or a person may say yes."""
        self._say(assignment.id, "accepted", f"waiting: {reason}")

        def again() -> None:
            with self._lock:
                held = self._held.get(assignment.id)
                if held is None or held.timer is not timer or self._stopped.is_set():
                    return
                held.timer = None
            try:
                with ControlClient.of_site(self.identity) as control:
                    self._consider(assignment, control)
            except FedlearnError as error:
                self._wait(assignment, str(error))

        timer = threading.Timer(_ASK_AGAIN_SECONDS, again)
        timer.daemon = True
        with self._lock:
            held = self._held.get(assignment.id)
            if held is None:
                return
            held.timer = timer
        timer.start()

    def _approved(self, assignment: Assignment) -> bool:
        """Return whether a person at this site said yes to this job and this code."""
        name = approval_name(assignment.job, assignment.bundle)
        return (self.config.state / "approvals" / name).is_file()

    def _say(self, assignment: str, phase: str, reason: str) -> None:
        reports = self._reports
        if reports is None:
            return
        try:
            reports.workload(assignment, phase, reason)
        except TransportError as error:
            _LOG.info("a report was not sent: %s", error)


def approval_name(job: str, bundle: bytes) -> str:
    """Return the name of the file that says yes to a job with this code (SHA-256)."""
    return f"{job}.{bundle.hex()}"
