"""The sealed logs of apps as clients deliver and operators fetch them. None is opened here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fedlearn.errors import FedlearnError, JobError, Throttled
from fedlearn.job.app_log import SealedAppLog
from server.admission.registry import Admission
from server.jobs.active_jobs import OpenJobs
from server.jobs.records.app_log_store import AppLogStore
from server.jobs.records.job_store import JobStore
from server.quota import Quota

__all__ = ["AppLogs"]

_BURST: Final = 200
_SECONDS_FOR_EACH: Final = 0.1
"""How many logs one site may deliver in one job at once, and then one in so many seconds."""


class AppLogs:
    """Checks and keeps logs. Safe to use from many threads."""

    def __init__(self, store: AppLogStore, *, job_store: JobStore, jobs: OpenJobs) -> None:
        self._store = store
        self._job_store = job_store
        self._jobs = jobs
        self._quota = Quota(burst=_BURST, every=_SECONDS_FOR_EACH)

    def deliver(self, admission: Admission, log: SealedAppLog) -> None:
        """Keep a log of an admitted client.

        :raises JobError: when the job does not run, or was submitted without logs.
        :raises Throttled: when the site delivers more often than it may.
        """
        spec = self._jobs.require(admission.job).record.spec
        if spec.app_logs != "sealed":
            raise JobError(f"job {spec.name} was submitted without the logs of its app")
        if self._quota.take(f"{spec.name}/{admission.site}") is None:
            raise Throttled("this site delivers its logs more often than is accepted")
        self._store.add(spec.name, admission.site, log, sites=len(spec.sites))

    def of_site(self, name: str, site: str) -> Iterator[SealedAppLog]:
        """Yield the logs of a job at one site, oldest first.

        :raises JobError: when there is no such job, it has no such site, or it was submitted
            without logs.
        """
        spec = self._job_store.spec(name)
        if site not in spec.sites:
            raise JobError(
                f"job {name} has no site {site!r}", hint=f"it has {', '.join(spec.sites)}"
            )
        if spec.app_logs != "sealed":
            raise JobError(
                f"job {name} was submitted without the logs of its app",
                hint='set app_logs = "sealed" and owner_key in job.toml, and submit it again',
            )
        return self._store.of_site(name, site)

    def of_owner(
        self, run: str, site: str, owner_key: bytes
    ) -> tuple[bytes, Iterator[SealedAppLog]]:
        """Return the digest of a run and its logs at one site, for the holder of ``owner_key``.

        :raises JobError: in the same words for every run that is not sealed for that key.
        """
        refused = JobError(
            f"no logs of site {site} in a job {run} are sealed for this key",
            hint="name the job as the coordinator does, such as NAME or NAME@2",
        )
        try:
            spec = self._job_store.spec(run)
        except FedlearnError:
            raise refused from None
        if spec.owner_public_key() != owner_key or site not in spec.sites:
            raise refused
        if spec.app_logs != "sealed":
            raise refused
        return spec.digest(), self._store.of_site(run, site)

    def forget(self, name: str) -> None:
        """Delete the logs of a job, which is deleted."""
        self._store.forget(name)
