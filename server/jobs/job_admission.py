"""The interface of the admission gate to open jobs: what it reads, and what it changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from attestation.trust import TrustAnchors
from fedlearn.job.events import Event
from server.admission.events import of_change, of_entry
from server.admission.examiner import AdmittableJob
from server.admission.exclusions import Exclusion
from server.admission.registry import AdmissionEvent, AdmissionRegistry, Change
from server.jobs.active_jobs import OpenJobs
from server.jobs.assignment_dispatcher import AssignmentDispatcher
from server.ledger import Ledger

__all__ = ["JobAdmission"]


class JobAdmission:
    """The open jobs as the admission gate uses them. Safe to use from many threads.

    It is the :class:`server.admission.types.JobNodes` of the gate.

    :param report: ``report(job, event)`` writes an event of a job.
    """

    def __init__(
        self,
        jobs: OpenJobs,
        *,
        ledger: Ledger,
        registry: AdmissionRegistry,
        dispatcher: AssignmentDispatcher,
        report: Callable[[str, Event], object],
        trust: Callable[[], TrustAnchors],
    ) -> None:
        self._jobs = jobs
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._report = report
        self._trust = trust
        registry.subscribe(self._changed)

    def admittable(self, name: str) -> AdmittableJob | None:
        """Return what the gate reads of an open job."""
        job = self._jobs.named(name)
        return None if job is None else dataclasses.replace(job.admittable, trust=self._trust())

    def create_node(self, job: str, site: str, tls_key: bytes) -> int:
        """Create the node of a site in an open job; return its number.

        :raises JobError: when the job is not open.
        """
        found = self._jobs.require(job)
        with found.nodes:
            number = found.host.create_node(site, tls_key)
            found.node_keys[site] = tls_key
        return number

    def delete_node(self, job: str, site: str, tls_key: bytes) -> None:
        """Delete the node of a site, unless it has another key now."""
        found = self._jobs.named(job)
        if found is None:
            return
        with found.nodes:
            if found.node_keys.get(site) == tls_key:
                del found.node_keys[site]
                found.host.delete_node(site)

    def readmitted(self, exclusion: Exclusion) -> None:
        """Have a site start its client again if an exclusion, now over, was why it was refused."""
        with self._jobs.lock:
            job = self._jobs.named(exclusion.job)
            was_refused = job is not None and job.refused.pop(exclusion.site, None) is not None
        if job is not None and was_refused:
            self._dispatcher.anew(job, exclusion.site)

    def record(self, kind: str, body: Mapping[str, Any]) -> object:
        """Append to the ledger, and report the entry to the job that it concerns."""
        entry = self._ledger.append(kind, body)
        event = of_entry(kind, body)
        name = body.get("job")
        if event is not None and isinstance(name, str) and self._jobs.named(name) is not None:
            self._report(name, event)
        return entry

    def _changed(self, event: AdmissionEvent) -> None:
        admission = event.admission
        with self._jobs.lock:
            job = self._jobs.named(admission.job)
            if job is not None and event.change is Change.ADMITTED:
                job.refused.pop(admission.site, None)
                job.failed.pop(admission.site, None)
        if job is None:
            return
        if event.change not in {Change.ADMITTED, Change.RENEWED}:
            job.channel.admission_ended(event)
        self._report(admission.job, of_change(event))
