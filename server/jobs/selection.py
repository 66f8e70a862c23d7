"""Selects the enrolled sites of a job, by the site registry and the sites that are connected.

The rules themselves are pure functions in :mod:`server.jobs.placement`.
"""

from __future__ import annotations

from attestation.policy.model import AppraisalPolicy
from fedlearn.errors import JobError
from fedlearn.job.spec import JobSpec
from server.identity.site import SiteStatus
from server.identity.site_registry import SiteRegistry
from server.jobs.active_jobs import OpenJobs
from server.jobs.assignment_dispatcher import AssignmentDispatcher
from server.jobs.placement import Candidate, Choice, choose, obstacles

__all__ = ["Selection"]


class Selection:
    """Selects among the sites of ``sites``, which may be busy with the jobs of ``jobs``."""

    def __init__(
        self, sites: SiteRegistry, jobs: OpenJobs, dispatcher: AssignmentDispatcher
    ) -> None:
        self._sites = sites
        self._jobs = jobs
        self._dispatcher = dispatcher

    def require(self, spec: JobSpec, policy: AppraisalPolicy) -> None:
        """Refuse a job before its first round when too few of its sites can run it.

        :raises JobError: naming the obstacles.
        """
        lacking = []
        for name in spec.sites:
            site = self._sites.show(name)
            if site.status is not SiteStatus.ACTIVE:
                raise JobError(
                    f"site {name} is {site.status}",
                    hint=f"`fedlearn site show {name}` shows what it waits for",
                )
            reasons = obstacles(spec, policy, site=name, capabilities=site.capabilities)
            lacking += [f"site {name}: {reason}" for reason in reasons]
        unable = {text.split(":")[0] for text in lacking}
        if len(spec.sites) - len(unable) < spec.quorum:
            raise JobError(
                f"{'; '.join(lacking)}",
                hint="change the job or the sites, or lower `quorum` to continue without them",
            )

    def choose(self, spec: JobSpec, policy: AppraisalPolicy) -> Choice:
        """Choose the sites of a job that needs some of those it names.

        :raises JobError: when too few are able.
        """
        return choose(spec, policy, [self._candidate(name) for name in spec.sites])

    def _candidate(self, name: str) -> Candidate:
        site, unable = self._sites.show(name), ""
        with self._jobs.lock:
            if site.status is not SiteStatus.ACTIVE:
                unable = f"it is {site.status}"
            elif not self._dispatcher.is_connected(name):
                unable = "it is not connected"
            return Candidate(
                name=name,
                unable=unable,
                capabilities=site.capabilities,
                busy=self._jobs.busy(name),
                failures=self._dispatcher.failures(name),
            )
