"""Follows the coordinator's orders at a site: verify, decide, start, wait, stop.

An order is followed when the coordinator's order key signed it for this site, the site's own
rules allow it (:mod:`edge.agent.site_policy`), and its code has the digest that the order names.
It is followed once: a client that ended is not started again under the same assignment.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from edge.agent.assignments import AssignmentTable, StatusSender
from edge.agent.budget_store import BudgetStore
from edge.agent.certificate import SiteCertificate
from edge.agent.policy_versions import PolicyMemory
from edge.agent.site_policy import Answer, decide
from edge.config.site import SiteConfig
from edge.protocol.rpc import ControlClient
from edge.protocol.site_stream import Order, Start, Stop
from edge.protocol.workload import Launcher, Workload
from fedlearn.errors import FedlearnError, JobError, PrivacyError, TransportError
from fedlearn.job.assignment import Assignment
from fedlearn.job.phase import Phase
from fedlearn.job.spec import JobSpec

__all__ = ["OrderHandler", "approval_name"]

_LOG = logging.getLogger(__name__)
_DECIDE_AGAIN_SECONDS: Final = 30.0
_CLIENT: Final = "c1"
_END_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1


class OrderHandler:
    """Follows orders with a launcher.

    :param stopped: when it is set, waiting assignments are no longer decided on.
    """

    def __init__(
        self,
        config: SiteConfig,
        certificate: SiteCertificate,
        launcher: Launcher,
        *,
        table: AssignmentTable,
        budget: BudgetStore,
        sender: StatusSender,
        stopped: threading.Event,
        now: Callable[[], datetime],
    ) -> None:
        self._config = config
        self._certificate = certificate
        self._launcher = launcher
        self._table = table
        self._budget = budget
        self._sender = sender
        self._stopped = stopped
        self._now = now
        self._policies = PolicyMemory(config.state)

    def take(self, order: Order, control: ControlClient) -> None:
        """Follow an order, or report why it is not followed.

        An order whose signature, site or time is wrong is logged only: without a verified
        assignment there is nothing to report about.
        """
        match order:
            case Start():
                self._start(order, control)
            case Stop():
                self._table.remove(order.assignment)
                self._launcher.stop(order.assignment, order.reason)

    def end_all(self, reason: str) -> None:
        """Stop every client, also those that an earlier agent started; return when they ended.

        It waits for them for at most 30 s.
        """
        self._table.clear()
        for assignment in self._launcher.running():
            self._launcher.stop(assignment, reason)
        until = time.monotonic() + _END_SECONDS
        while self._launcher.running() and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)

    def _start(self, order: Start, control: ControlClient) -> None:
        identity = self._certificate.identity
        try:
            assignment = Assignment.verify(
                order.assignment_json,
                order.signature,
                order_key=identity.order_key,
                site=identity.site,
                now=self._now(),
            )
        except JobError as error:
            _LOG.error("an order was refused: %s", error)
            return
        self._sender.log.begin(assignment.id, assignment.job)
        if self._table.begin(assignment.id):
            self._decide(assignment, control)
            return
        ended = self._table.ended(assignment.id)
        if ended is None:
            return
        # The report of its end may not have arrived. Only an assignment with another id runs.
        phase, reason = ended
        if phase in {Phase.SUCCEEDED, Phase.STOPPED}:
            how = "ended" if phase is Phase.SUCCEEDED else "was stopped"
            why = f" ({reason})" if reason else ""
            phase, reason = Phase.FAILED, f"it {how} before the end of the job{why}"
        self._sender.send(assignment.id, phase, reason)

    def _decide(self, assignment: Assignment, control: ControlClient) -> None:
        """Decide by the site's rules, and start the client if they allow it."""
        try:
            spec = JobSpec.from_json(assignment.spec)
            approved = self._approved(assignment)
            running = set(self._launcher.running())
            adopting = assignment.id in running
            decision = decide(
                self._config,
                spec,
                site=self._certificate.identity.site,
                bundle=assignment.bundle,
                now=self._now(),
                running=len(running - {assignment.id}),
                approved=approved,
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
            if approved:
                self._sender.log.approved(assignment.job, assignment.bundle)
            self._budget.reserve(spec, place=decision.data, assignment=assignment.id)
            self._sender.send(assignment.id, Phase.ACCEPTED, _note(self._config, spec))
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
            self._table.remove(assignment.id)
            self._budget.settle_or_log(assignment.id)
            self._sender.send(assignment.id, Phase.FAILED, str(error))

    def _refuse(self, assignment: Assignment, reason: str) -> None:
        self._table.remove(assignment.id)
        self._sender.send(assignment.id, Phase.REFUSED, reason)

    def _wait(self, assignment: Assignment, reason: str) -> None:
        """Decide again later: the site's hours may have begun, or a person approved the job."""
        self._sender.send(assignment.id, Phase.ACCEPTED, f"waiting: {reason}")

        def again() -> None:
            if self._stopped.is_set():
                return
            try:
                with ControlClient.of_site(self._certificate.identity) as control:
                    self._decide(assignment, control)
            except FedlearnError as error:
                self._wait(assignment, str(error))

        self._table.wait(assignment.id, _DECIDE_AGAIN_SECONDS, again)

    def _approved(self, assignment: Assignment) -> bool:
        """Return whether a person at this site approved this job with this code."""
        name = approval_name(assignment.job, assignment.bundle)
        return (self._config.state / "approvals" / name).is_file()


def _note(config: SiteConfig, spec: JobSpec) -> str:
    """Return what the job asks for and does not get here; empty when there is nothing."""
    if spec.app_logs == "sealed" and config.accept.app_logs != "sealed":
        return (
            f'without the app\'s logs: accept.app_logs of this site is "{config.accept.app_logs}"'
        )
    return ""


def approval_name(job: str, bundle: bytes) -> str:
    """Return the name of the file that approves a job with this code (SHA-256)."""
    return f"{job}.{bundle.hex()}"
