"""The open jobs of a coordinator.

A job is open from its start to its end, through crashes of its processes. What is stored of a
job beyond that is in :mod:`server.jobs.records.job_store`; the parts of one open job are in
:mod:`server.jobs.active_job`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from fedlearn.errors import JobError
from fedlearn.job.tables import Resources
from server.flower.exchange.job_exchange import JobExchange
from server.jobs.active_job import OpenJob

__all__ = ["OpenJobs"]


class OpenJobs:
    """The open jobs by name. Safe to use from many threads.

    ``lock`` guards the table and the parts of each job that change: its admittable form, and the
    attempts, failures and refusals of its sites. The gate takes it during an admission, so whoever
    holds it must not wait for the gate.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._open: dict[str, OpenJob] = {}

    def __len__(self) -> int:
        with self.lock:
            return len(self._open)

    def add(self, job: OpenJob) -> None:
        """Add a job; one of the same name is replaced."""
        with self.lock:
            self._open[job.record.name] = job

    def remove(self, name: str) -> None:
        """Remove a job, if it is open."""
        with self.lock:
            self._open.pop(name, None)

    def remove_all(self) -> Sequence[OpenJob]:
        """Remove every job; return them."""
        with self.lock:
            removed = list(self._open.values())
            self._open.clear()
        return removed

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
        """Return the open jobs that a site takes part in, by name."""
        with self.lock:
            return [job for _, job in sorted(self._open.items()) if site in job.admittable.sites]

    def busy(self, site: str) -> tuple[Resources, ...]:
        """Return the resources that the clients of open jobs need at a site, one entry each."""
        return tuple(job.record.spec.resources for job in self.of_site(site))

    def link_of(self, name: str) -> JobExchange | None:
        """Return the exchange of an open job, or ``None``."""
        job = self.named(name)
        return None if job is None else job.host.link
