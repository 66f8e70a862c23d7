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

from fedlearn.errors import LedgerError
from fedlearn.job.state import JobStatus
from server.ledger import Ledger

__all__ = ["JobFacts", "JobHistory"]


_ENDED: Final = {
    status.value: status for status in (JobStatus.FINISHED, JobStatus.FAILED, JobStatus.CANCELLED)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """One job as the ledger has it. Digests are SHA-256, 32 bytes.

    ``digest``    of the job (:meth:`fedlearn.job.spec.JobSpec.digest`)
    ``bundle``    of the bundle
    ``policy``    of the text of the policy that was submitted
    ``in_force``  of the text of the policy by which its clients are appraised now
    ``ended``     how it ended; ``None``: it is open
    ``reason``    why it failed
    """

    job: str
    digest: bytes
    bundle: bytes
    policy: bytes
    in_force: bytes
    ended: JobStatus | None = None
    reason: str = ""


class JobHistory:
    """All jobs of a ledger, as of its newest entry. Safe to use from many threads."""

    def __init__(self, ledger: Ledger) -> None:
        """Read the ledger.

        :raises LedgerError: when this version cannot read an entry about a job.
        """
        self._ledger = ledger
        self._lock = threading.Lock()
        self._known: dict[str, JobFacts] = {}
        self._read = 0
        self._follow()

    def facts(self, job: str) -> JobFacts | None:
        """Return the ledger's facts about a job; ``None`` when it was not submitted."""
        with self._lock:
            self._follow()
            return self._known.get(job)

    def all(self) -> Mapping[str, JobFacts]:
        """Return all jobs by name."""
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
        except (KeyError, TypeError, ValueError) as error:
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
