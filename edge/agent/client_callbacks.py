"""The callbacks of a launcher: reports of its clients, and requests of a client to its site."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from edge.agent.assignments import AssignmentTable, StatusSender
from edge.agent.budget_store import BudgetStore
from edge.agent.certificate import SiteCertificate
from edge.protocol.identity import SiteIdentity
from edge.protocol.seed_release import Client, grant_seed, kept_seed
from edge.protocol.workload import Workload
from fedlearn.job.phase import Phase

__all__ = ["ClientCallbacks"]


class ClientCallbacks:
    """Takes the reports of a launcher and answers the clients that it started.

    Only clients of assignments that are followed here are answered.
    """

    def __init__(
        self,
        certificate: SiteCertificate,
        *,
        state: Path,
        table: AssignmentTable,
        budget: BudgetStore,
        sender: StatusSender,
        now: Callable[[], datetime],
    ) -> None:
        self._certificate = certificate
        self._state = state
        self._table = table
        self._budget = budget
        self._sender = sender
        self._now = now

    @property
    def identity(self) -> SiteIdentity:
        """The site, with the certificate that is in force."""
        return self._certificate.identity

    def report(self, assignment: str, phase: Phase, reason: str) -> None:
        """Record the phase of a client, and send it to the coordinator when it is connected."""
        if phase.final:
            self._table.finish(assignment, phase, reason)
            self._budget.settle_or_log(assignment)
        self._sender.send(assignment, phase, reason)

    def vouch_for(self, workload: Workload, nonce: bytes, tls_key: bytes) -> bytes:
        """Return the site's signature for a client (:meth:`SiteIdentity.vouch`).

        :raises JobError: when its assignment does not run here.
        """
        assignment = workload.assignment
        self._table.check_followed(assignment.id)
        return self.identity.vouch(
            job=assignment.job, client=workload.client, nonce=nonce, tls_key=tls_key
        )

    def seed_for(self, workload: Workload, request: bytes) -> bytes:
        """Return the seed of a client's commitment, sealed to its admitted key.

        :raises JobError: when its assignment does not run here.
        """
        assignment = workload.assignment
        self._table.check_followed(assignment.id)
        identity = self.identity
        return grant_seed(
            request,
            Client(job=assignment.job, site=identity.site, client=workload.client),
            seed=kept_seed(self._state, assignment.job),
            ca_pem=identity.ca_pem,
            chain=identity.chain,
            key=identity.key,
            now=self._now(),
        )

    def charge_for(self, workload: Workload, question: str) -> None:
        """Charge an update of a client to the budget of its data, before the update leaves.

        :raises JobError: when its assignment does not run here.
        :raises PrivacyError: when the update does not fit into the budget.
        :raises ConfigError: when the budget on disk cannot be used.
        """
        self._table.check_followed(workload.assignment.id)
        self._budget.charge(workload.assignment.id, question)
        self._sender.log.charged(workload.assignment.id)
