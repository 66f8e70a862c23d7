"""Selects the enrolled sites of a job, by the site registry and the sites that are connected.

The rules themselves are pure functions in :mod:`server.jobs.placement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from attestation.policy.model import AppraisalPolicy
from fedlearn.errors import ConfigError, JobError
from fedlearn.job.spec import JobSpec
from server.admission.absence import Absence
from server.admission.exclusions import Exclusion
from server.identity.site import Site, SiteStatus
from server.identity.site_registry import SiteRegistry
from server.jobs.active_jobs import OpenJobs
from server.jobs.assignment_dispatcher import AssignmentDispatcher
from server.jobs.placement import Candidate, Choice, choose, objections, obstacles

__all__ = ["Selection"]


class Selection:
    """Selects among the sites of ``sites``, which may be busy with the jobs of ``jobs``."""

    def __init__(
        self, sites: SiteRegistry, jobs: OpenJobs, dispatcher: AssignmentDispatcher
    ) -> None:
        self._sites = sites
        self._jobs = jobs
        self._dispatcher = dispatcher

    def sites(self, spec: JobSpec, policy: AppraisalPolicy | None) -> Choice:
        """Return the sites of a new job: all that it names, or those that are chosen of them.

        :param policy: its policy; ``None`` when that cannot be read, and only the names of the
            sites are checked.
        :raises JobError: naming every site that does not exist, or the obstacles of too many.
        """
        self._known(spec)
        if policy is None:
            return Choice(sites=spec.sites)
        if spec.placement.choose:
            return choose(spec, policy, [self._candidate(name) for name in spec.sites])
        self.require(spec, policy)
        return Choice(sites=spec.sites)

    def require(self, spec: JobSpec, policy: AppraisalPolicy) -> None:
        """Refuse a job before its first round when too few of its sites can run it.

        :raises JobError: naming the obstacles.
        """
        lacking = []
        waiting = []
        for site in self._known(spec):
            if site.status is not SiteStatus.ACTIVE:
                waiting.append(site)
                continue
            reasons = obstacles(spec, policy, site=site.name, capabilities=site.capabilities)
            lacking += [f"site {site.name}: {reason}" for reason in reasons]
        if waiting:
            raise JobError(
                "\n".join([*(f"site {site.name} is {site.status}" for site in waiting), *lacking]),
                hint=f"`fedlearn site show {waiting[0].name}` shows what it waits for",
            )
        unable = {text.split(":")[0] for text in lacking}
        if len(spec.sites) - len(unable) < spec.quorum:
            raise JobError(
                f"{'; '.join(lacking)}",
                hint="change the job or the sites, or lower `quorum` to continue without them",
            )

    def notes(self, spec: JobSpec, *, bundle: bytes, signer: bytes) -> tuple[str, ...]:
        """Return what the sites report that they would refuse, or ask a person about.

        :param bundle: the SHA-256 of the app's bundle.
        :param signer: the digest of the key that signed its policy; empty when it is not signed.
        """
        return tuple(
            f"site {site.name}: {note}"
            for site in self._known(spec)
            for note in objections(
                spec, bundle=bundle, signer=signer, capabilities=site.capabilities
            )
        )

    def absence(
        self, job: str, site: str, *, excluded: Sequence[Exclusion], now: datetime
    ) -> Absence:
        """Return what keeps a site away from an open job.

        :param excluded: the exclusions of the job that hold now.
        """
        try:
            found = self._sites.show(site)
        except ConfigError:
            return Absence("there is no such site", final=True)
        ago = max(0, round((now - found.changed).total_seconds()))
        if found.status is SiteStatus.REMOVED:
            return Absence("removed", final=True, seconds=ago)
        if found.status is SiteStatus.DRAINING:
            return Absence("drained", seconds=ago)
        if found.status is not SiteStatus.ACTIVE:
            return Absence(f"it is {found.status}")
        for exclusion in excluded:
            if exclusion.site == site and not exclusion.client:
                until = f" until {exclusion.until:%H:%M:%S} UTC" if exclusion.until else ""
                return Absence(
                    f"excluded{until} by operator {exclusion.operator}: {exclusion.reason}",
                    final=exclusion.until is None,
                )
        with self._jobs.lock:
            found_job = self._jobs.named(job)
            refused = found_job.refused.get(site, "") if found_job is not None else ""
            failed = found_job is not None and not found_job.may_try_again(site)
            connected = self._dispatcher.is_connected(site)
        if refused:
            return Absence(f"refused: {refused}", final=True)
        if failed:
            return Absence("its client failed too often", final=True)
        if not connected:
            return Absence("not connected")
        return Absence("its client is not admitted yet")

    def _known(self, spec: JobSpec) -> list[Site]:
        """Return the sites of a job.

        :raises JobError: naming every site that does not exist.
        """
        found, unknown = [], []
        for name in spec.sites:
            try:
                found.append(self._sites.show(name))
            except ConfigError as error:
                unknown.append(str(error))
        if unknown:
            raise JobError(
                "\n".join(unknown),
                hint="`fedlearn site list` lists all; `fedlearn site token NAME` invites one",
            )
        return found

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
