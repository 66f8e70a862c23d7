"""Assignments of jobs to sites: sent when a site is connected, and again when a client failed."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import TransportError
from fedlearn.job.assignment import Assignment
from fedlearn.job.events import Event, Log
from server.jobs.active_job import OpenJob
from server.jobs.active_jobs import OpenJobs
from server.rpc.ports import Orders, StartOrder, StopOrder

__all__ = ["AssignmentDispatcher"]

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS: Final = 2.0
_LONGEST_RETRY: Final = 30.0
_ASSIGNMENT_LIFETIME: Final = timedelta(days=7)
_LATELY: Final = timedelta(hours=1)
_MOST_FAILURES: Final = 100


class AssignmentDispatcher:
    """Sends orders to the connected sites. Safe to use from many threads.

    ``order_key``  signs assignments
    ``report``     ``report(job, event)`` writes an event of a job
    """

    def __init__(
        self,
        *,
        jobs: OpenJobs,
        order_key: ec.EllipticCurvePrivateKey,
        report: Callable[[str, Event], object],
        clock: Callable[[], datetime],
    ) -> None:
        self._jobs = jobs
        self._lock = jobs.lock
        self._order_key = order_key
        self._report = report
        self._clock = clock
        self._orders: dict[str, Orders] = {}
        self._failures: dict[str, deque[datetime]] = {}

    def connected(self, site: str, orders: Orders, *, running: tuple[str, ...]) -> None:
        """Start at a site what it should run, and stop what it should not."""
        with self._lock:
            self._orders[site] = orders
            wanted = self._jobs.of_site(site)
            kept = set()
            for job in wanted:
                for attempt, identity in job.assignments(site):
                    if identity in running:
                        job.attempts[site] = attempt
                        kept.add(identity)
            for identity in running:
                if identity not in kept:
                    orders.send(StopOrder(assignment=identity, reason="the job is not open"))
            # Also for clients that run already: a restarted agent adopts a client by its order.
            for job in wanted:
                self._order(job, site, orders)

    def disconnected(self, site: str, orders: Orders) -> None:
        """Forget the connection of a site, unless it has a newer one."""
        with self._lock:
            if self._orders.get(site) is orders:
                del self._orders[site]

    def is_connected(self, site: str) -> bool:
        """Return whether the site is connected."""
        with self._lock:
            return site in self._orders

    def begin(self, job: OpenJob) -> None:
        """Order a job at its connected sites; the others get the order when they connect."""
        with self._lock:
            for site in job.record.spec.sites:
                if site in self._orders:
                    self._order(job, site, self._orders[site])

    def end(self, job: OpenJob, reason: str) -> None:
        """Have the sites of a job stop its clients."""
        for site in job.record.spec.sites:
            with self._lock:
                orders = self._orders.get(site)
            if orders is None:
                continue
            identity = job.assignment(site, job.attempts.get(site, 1))
            try:
                orders.send(StopOrder(assignment=identity, reason=reason))
            except TransportError as error:
                _LOG.info("site %s: %s", site, error)

    def again(self, job: OpenJob, site: str, reason: str) -> None:
        """Record that a site's client failed, and order it once more after a pause."""
        with self._lock:
            failures = self._failures.setdefault(site, deque(maxlen=_MOST_FAILURES))
            failures.append(self._clock())
            job.failed[site] = job.failed.get(site, 0) + 1
        attempt = job.attempts.get(site, 1)
        if not job.may_try_again(site):
            text = f"the client was started {attempt} times and is not started again: {reason}"
            self._report(job.record.name, Log(line=text, site=site, level="error"))
            return

        def start() -> None:
            with self._lock:
                orders = self._orders.get(site)
                still = self._jobs.named(job.record.name) is job
                if still and job.attempts.get(site) == attempt:
                    job.attempts[site] = attempt + 1
                    if orders is not None:
                        self._order(job, site, orders)

        timer = threading.Timer(min(_RETRY_SECONDS * attempt, _LONGEST_RETRY), start)
        timer.daemon = True
        timer.start()

    def anew(self, job: OpenJob, site: str) -> None:
        """Order a site's client once more, when the reason for its refusal no longer holds."""
        with self._lock:
            attempt = job.attempts.get(site, 1)
            orders = self._orders.get(site)
            if not job.may_try_again(site):
                text = f"the client was started {attempt} times and is not started again"
                self._report(job.record.name, Log(line=text, site=site, level="error"))
                return
            job.attempts[site] = attempt + 1
            if orders is not None:
                self._order(job, site, orders)

    def failures(self, site: str) -> int:
        """Return how many clients of the site failed in the last hour."""
        since = self._clock() - _LATELY
        with self._lock:
            return sum(at > since for at in self._failures.get(site, ()))

    def assignments(self, site: str) -> tuple[str, ...]:
        """Return the assignments that the site runs or is to run."""
        with self._lock:
            return tuple(
                job.assignment(site, job.attempts.get(site, 1)) for job in self._jobs.of_site(site)
            )

    def job_of(self, site: str, assignment: str) -> OpenJob | None:
        """Return the open job that an assignment of the site belongs to."""
        with self._lock:
            for job in self._jobs.of_site(site):
                if any(identity == assignment for _, identity in job.assignments(site)):
                    return job
        return None

    def _order(self, job: OpenJob, site: str, orders: Orders) -> None:
        """Send the assignment of the present attempt. The caller holds the lock."""
        attempt = job.attempts.setdefault(site, 1)
        now = self._clock()
        assignment = Assignment(
            id=job.assignment(site, attempt),
            job=job.record.name,
            site=site,
            spec=job.record.spec.to_json(),
            bundle=job.admittable.bundle_digest,
            policy=job.record.policy,
            policy_signature=job.record.policy_signature,
            workload=job.admittable.workload,
            issued=now - timedelta(minutes=1),
            expires=now + _ASSIGNMENT_LIFETIME,
        )
        try:
            orders.send(
                StartOrder(
                    assignment_json=assignment.to_bytes(),
                    signature=assignment.sign(self._order_key),
                )
            )
        except TransportError as error:
            _LOG.warning("site %s: %s", site, error)
