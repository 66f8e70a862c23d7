"""The ledger's facts about each job: what was submitted, its policy in force, and its status.

A job is compared with these facts before it runs. An attacker with the disk can edit other files
undetected, but not the ledger.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from fedlearn.errors import ConfigError, JobError, LedgerError
from fedlearn.job.run import RunName, checked_reference
from fedlearn.job.state import JobStatus
from server.ledger import Ledger

__all__ = ["MAX_JOBS", "JobFacts", "JobHistory"]

MAX_JOBS: Final = 10_000
"""The most runs of all jobs that were not deleted."""

_ENDED: Final = {
    status.value: status for status in (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.CANCELLED)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """One run as the ledger has it. ``job`` is its id. Digests are SHA-256, 32 bytes.

    ``digest``    of the job (:meth:`fedlearn.job.spec.JobSpec.digest`)
    ``bundle``    of the bundle
    ``policy``    of the text of the policy that was submitted
    ``in_force``  of the text of the policy by which its clients are appraised now
    ``ended``     how it ended; ``None``: it is open
    ``reason``    why it failed
    ``deleted``   it was deleted
    ``removed``   the models that were deleted with it
    """

    job: str
    digest: bytes
    bundle: bytes
    policy: bytes
    in_force: bytes
    ended: JobStatus | None = None
    reason: str = ""
    deleted: bool = False
    removed: tuple[str, ...] = ()


class JobHistory:
    """All jobs of a ledger, as of its newest entry. Safe to use from many threads."""

    def __init__(self, ledger: Ledger) -> None:
        """Read the ledger.

        :raises LedgerError: when this version cannot read an entry about a job.
        """
        self._ledger = ledger
        self._lock = threading.Lock()
        self._known: dict[str, JobFacts] = {}
        self._runs: dict[str, int] = {}
        self._read = 0
        self._follow()

    def facts(self, job: str) -> JobFacts | None:
        """Return the ledger's facts about a run; ``None`` when there is none, or it was deleted."""
        with self._lock:
            self._follow()
            found = self._known.get(job)
            return None if found is None or found.deleted else found

    def all(self) -> Mapping[str, JobFacts]:
        """Return all runs that were not deleted, by id."""
        return {name: facts for name, facts in self._all().items() if not facts.deleted}

    def deleted(self) -> Mapping[str, JobFacts]:
        """Return the runs that were deleted, by id."""
        return {name: facts for name, facts in self._all().items() if facts.deleted}

    def runs(self, name: str) -> int:
        """Return the number of the newest run of a job; deleted runs count."""
        with self._lock:
            self._follow()
            return self._runs.get(name, 0)

    def next_run(self, name: str) -> RunName:
        """Return the run that the next submission of a job is.

        :raises JobError: when a run of the job is open, or there are too many.
        """
        known = self.all()
        for run in map(RunName.of_id, known):
            if run.name == name and known[run.id].ended is None:
                raise JobError(
                    f"run {run.number} of job {name} is not over",
                    hint=f"wait until it is, or `fedlearn job cancel {name}`; or choose another "
                    "`name` in job.toml",
                )
        if len(known) >= MAX_JOBS:
            raise JobError(
                f"the coordinator keeps at most {MAX_JOBS} runs",
                hint="`fedlearn job delete NAME` removes one that is over",
            )
        try:
            return RunName.of_id(RunName(name, self.runs(name) + 1).id)
        except ConfigError:
            raise JobError(
                f"job {name} was submitted {self.runs(name)} times, and the id of another run "
                "would be too long",
                hint="choose another `name` in job.toml, of at most 58 characters",
            ) from None

    def resolve(self, reference: str, *, kept: bool = False) -> str:
        """Return the id of the run that ``NAME`` (the newest one), ``NAME@N`` or an id names.

        :param kept: also runs that were deleted, and whose model was kept.

        :raises ConfigError: when it is not a reference.
        :raises JobError: when there is no such run.
        """
        name, number = checked_reference(reference)
        facts = self._all().values()
        found = (each.job for each in facts if not each.deleted or (kept and not each.removed))
        runs = map(RunName.of_id, found)
        numbers = [run.number for run in runs if run.name == name]
        if not numbers:
            raise JobError(
                f"there is no job {name!r}", hint="`fedlearn job status` lists all of them"
            )
        if number is not None and number not in numbers:
            known = ", ".join(f"{name}@{each}" for each in sorted(numbers)[-5:])
            raise JobError(f"job {name} has no run {number}", hint=f"its newest runs are {known}")
        return RunName(name, max(numbers) if number is None else number).id

    def _all(self) -> dict[str, JobFacts]:
        with self._lock:
            self._follow()
            return dict(self._known)

    def _follow(self) -> None:
        """Read the entries that were appended since. The caller holds the lock."""
        head = self._ledger.head()
        if head is None or head.sequence == self._read:
            return
        kinds = (self._ledger.entries(self._read, kind) for kind in ("job", "policy"))
        for entry in heapq.merge(*kinds, key=lambda entry: entry.sequence):
            if entry.sequence > head.sequence:
                break
            self._take(entry.kind, entry.body)
        self._read = head.sequence

    def _take(self, kind: str, body: Mapping[str, Any]) -> None:
        job, change = body.get("job"), body.get("change")
        if not isinstance(job, str):
            return
        try:
            if change == "submitted":
                self._known.setdefault(job, _submitted(job, body))
                run = RunName.of_id(job)
                self._runs[run.name] = max(run.number, self._runs.get(run.name, 0))
                return
            known = self._known.get(job)
            if known is None:
                return
            if kind == "policy":
                known = replace(known, in_force=bytes.fromhex(body["text"]))
            elif change in _ENDED:
                reason = str(body.get("reason", ""))
                known = replace(known, ended=_ENDED[change], reason=reason)
            elif change == "resumed":
                known = replace(known, ended=None, reason="")
            elif change == "deleted":
                known = replace(known, deleted=True, removed=tuple(map(str, body["models"])))
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"an entry about job {job} is not one that this version can read",
                hint="use the version that wrote it, or a newer one",
            ) from error
        self._known[job] = known


def _submitted(job: str, body: Mapping[str, Any]) -> JobFacts:
    text = bytes.fromhex(body["text"])
    return JobFacts(
        job=job,
        digest=bytes.fromhex(body["digest"]),
        bundle=bytes.fromhex(body["bundle"]),
        policy=text,
        in_force=text,
    )
