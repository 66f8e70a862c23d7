"""The status of a job and its events, as coordinator and operators exchange them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime

__all__ = ["ExclusionState", "JobEvent", "JobState", "JobStatus"]


class JobStatus(enum.StrEnum):
    """The status of a job."""

    PENDING = "pending"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    """The coordinator stopped or was killed; the job continues from its last checkpoint."""
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def open(self) -> bool:
        """Whether the job runs, or will run without another request."""
        return self in {JobStatus.PENDING, JobStatus.RUNNING, JobStatus.INTERRUPTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExclusionState:
    """A site, or one ``client`` of it, that is kept out of a job; ``until`` somebody lifts it."""

    site: str
    client: str
    until: datetime | None
    reason: str
    operator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """A run of a job.

    ``name``        of the job, as people type it; the coordinator itself has the id of the run here
    ``run``         which run of that name it is, from 1; 0 from a coordinator of an earlier release
    ``run_id``      its name in the ledger, in SPIFFE ids, of its model and at its sites
    ``id``          its digest (:meth:`fedlearn.job.spec.JobSpec.digest`), in hexadecimal
    ``round``       the last round that has a model; ``rounds`` of all that it has
    ``model``       name of its sealed model; empty while there is none
    ``exclusions``  who is kept out of it; empty in a list of jobs
    ``notes``       of a submission: what may keep a site from running it
    """

    name: str
    id: str
    status: JobStatus
    round: int = 0
    rounds: int = 0
    detail: str = ""
    model: str = ""
    sites: tuple[str, ...] = ()
    exclusions: tuple[ExclusionState, ...] = ()
    run: int = 0
    run_id: str = ""
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        """What names exactly this run to every command and call, also after later runs."""
        return f"{self.name}@{self.run}" if self.run else self.name

    @property
    def label(self) -> str:
        """What the run is called where people read it: the first one by the job's name alone."""
        return self.reference if self.run > 1 else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """One line of a job's progress; ``json`` has the fields of its ``kind``."""

    sequence: int
    unix_ms: int
    kind: str
    json: str
