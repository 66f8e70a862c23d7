"""What the services need of the coordinator, in plain types."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedlearn.job.app_log import SealedAppLog
from fedlearn.job.phase import Phase
from fedlearn.job.state import JobEvent, JobState
from server.admission.registry import Admission
from server.jobs.records.job_store import JobRecord

__all__ = [
    "Coordinator",
    "Orders",
    "StartOrder",
    "StopOrder",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartOrder:
    """A signed assignment: the exact bytes that ``signature`` covers."""

    assignment_json: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StopOrder:
    """Stop an assignment."""

    assignment: str
    reason: str


class Orders(Protocol):
    """The way to one connected site."""

    def send(self, order: StartOrder | StopOrder) -> None:
        """Queue ``order``; never blocks, from any thread.

        :raises TransportError: when the site is gone or does not read its orders.
        """
        ...

    def close(self, reason: str) -> None:
        """End the connection."""
        ...


class Coordinator(Protocol):
    """The coordinator behind the services. Jobs are named by the id of a run.

    Methods are called from several threads at once. They raise errors of
    :mod:`fedlearn.errors` or :mod:`attestation.errors`, which the caller gets; any other
    error is logged here and reported as an internal error. ``operator`` is the name in the
    caller's certificate, for the ledger.
    """

    def submit_job(
        self,
        operator: str,
        *,
        job_toml: str,
        bundle: bytes,
        policy_toml: str,
        policy_signature: bytes = b"",
    ) -> JobState:
        """Accept a job."""
        ...

    def resolve_job(self, reference: str, *, kept: bool = False) -> str:
        """Return the id of the run that ``NAME``, ``NAME@N`` or an id names.

        With ``kept`` it may be one that was deleted without its model.
        """
        ...

    def delete_job(self, operator: str, name: str, *, keep_model: bool = False) -> JobState:
        """Delete a run that is over."""
        ...

    def submission(self, name: str) -> JobRecord:
        """Return what was submitted as a run, compared with the ledger."""
        ...

    def list_jobs(self) -> Sequence[JobState]:
        """Return all jobs."""
        ...

    def get_job(self, name: str) -> JobState:
        """Return one job."""
        ...

    def follow_job(
        self, name: str, *, after: int, past_only: bool, stop: threading.Event
    ) -> Iterator[JobEvent]:
        """Yield events with a sequence above ``after``, until the job ends.

        With ``past_only`` it does not wait for new ones. It looks at ``stop`` at least once
        a second, and returns soon after it is set.
        """
        ...

    def cancel_job(self, operator: str, name: str) -> JobState:
        """Stop a job."""
        ...

    def resume_job(self, operator: str, name: str) -> JobState:
        """Go on with a job from its last checkpoint."""
        ...

    def replace_policy(
        self, operator: str, name: str, policy_toml: str, policy_signature: bytes = b""
    ) -> None:
        """Put another appraisal policy in force for a job."""
        ...

    def fetch_bundle(self, site: str, sha256: bytes) -> bytes:
        """Return an app bundle that ``site`` has an assignment for."""
        ...

    def commit_data(self, admission: Admission, *, root: bytes, records: int, examples: int) -> int:
        """Record a client's commitment to its data; return the ledger entry's number."""
        ...

    def release_key(
        self, admission: Admission, *, model: str, version: int, file_id: bytes
    ) -> bytes:
        """Return a content key, HPKE-wrapped to the admission's key."""
        ...

    def release_state_secret(self, admission: Admission) -> bytes:
        """Return its part of the key of a client's states, HPKE-wrapped to the admission's key."""
        ...

    def deliver_app_log(self, admission: Admission, log: SealedAppLog) -> None:
        """Keep a sealed log of an admitted client."""
        ...

    def app_logs(self, name: str, site: str) -> Iterator[SealedAppLog]:
        """Yield the sealed logs of a job at one site, oldest first."""
        ...

    def app_logs_of_owner(
        self, name: str, site: str, owner_key: bytes
    ) -> tuple[str, bytes, Iterator[SealedAppLog]]:
        """Return the id and the digest of a run, and its logs at one site, for its owner."""
        ...

    def site_connected(
        self, site: str, orders: Orders, *, version: str, running: tuple[str, ...]
    ) -> None:
        """A site's agent connected and reports which assignments it runs."""
        ...

    def site_disconnected(self, site: str, orders: Orders) -> None:
        """That connection ended. The site may be connected again already, with other orders."""
        ...

    def workload_changed(self, site: str, *, assignment: str, phase: Phase, reason: str) -> None:
        """A site reports on an assignment."""
        ...

    def site_assignments(self, site: str) -> tuple[str, ...]:
        """Return the ids of what the site runs or shall run."""
        ...
