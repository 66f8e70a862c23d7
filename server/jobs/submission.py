"""What an operator submits: read, checked, and accepted as the next run of its job.

A refusal lists everything that is wrong with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Any

from attestation.policy.model import AppraisalPolicy
from attestation.policy.parse import parse_policy
from fedlearn.app.checks import check_bundle
from fedlearn.errors import JobError
from fedlearn.faults import Faults
from fedlearn.job.spec import JobSpec
from fedlearn.job.state import JobStatus
from fedlearn.privacy import Budget
from server.jobs.active_jobs import OpenJobs
from server.jobs.placement import Choice
from server.jobs.policy_registry import PolicyRegistry
from server.jobs.records.bundles import Bundle
from server.jobs.records.job_store import JobRecord, JobStore
from server.jobs.selection import Selection
from server.state_directory import StateDirectory

__all__ = ["JobIntake"]


class JobIntake:
    """Accepts submissions: after it, the ledger has the run, and nothing of it runs yet."""

    def __init__(
        self,
        directory: StateDirectory,
        *,
        job_store: JobStore,
        jobs: OpenJobs,
        policies: PolicyRegistry,
        selection: Selection,
        clock: Callable[[], datetime],
    ) -> None:
        self._directory = directory
        self._job_store = job_store
        self._jobs = jobs
        self._policies = policies
        self._selection = selection
        self._clock = clock

    def accept(
        self,
        operator: str,
        *,
        job_toml: str,
        bundle: Bundle,
        policy_toml: str,
        policy_signature: bytes,
    ) -> tuple[JobRecord, Choice]:
        """Return the run of a submission, and its sites. The caller holds the locks.

        :raises FedlearnError: naming everything that is wrong with it.
        :raises AttestationError: when the only fault is its policy.
        """
        faults = Faults()
        policy = faults.of(lambda: parse_policy(policy_toml.encode(), where="policy.toml"))
        asked = faults.of(lambda: JobSpec.from_toml(job_toml, where="job.toml", policy=policy))
        faults.of(lambda: check_bundle(bundle.data, where="the app bundle"))
        signer, run, choice = b"", None, None
        if policy is not None:
            signer = faults.of(lambda: self._policies.check(policy, policy_signature)) or b""
        if asked is not None:
            run = faults.of(lambda: self._job_store.history.next_run(asked.name))
            choice = faults.of(lambda: self._selection.sites(asked, policy))
            faults.of(lambda: _check_budget(asked))
        faults.of(self.check_room)
        faults.check()
        assert policy is not None
        assert asked is not None
        assert run is not None
        assert choice is not None
        chosen = asked.at(choice.sites) if asked.placement.choose else asked
        record = JobRecord(
            name=run.id,
            status=JobStatus.PENDING,
            spec=chosen.as_run(run),
            policy=policy_toml,
            policy_in_force=policy,
            bundle=bundle,
            created=self._clock(),
            policy_signature=policy_signature,
            signature_in_force=policy_signature,
        )
        self._job_store.add(record)
        text = hashlib.sha256(policy_toml.encode()).hexdigest()
        self._directory.ledger.append(
            "job",
            {
                "job": record.name,
                "change": "submitted",
                "operator": operator,
                "digest": record.spec.digest().hex(),
                "bundle": bundle.digest.hex(),
                "policy": policy.digest.hex(),
                "text": text,
                **(_placed(asked, choice) if asked.placement.choose else {}),
            },
        )
        self.enter_policy(record.name, policy, signer, operator=operator, text=text)
        return record, choice

    def enter_policy(
        self, run: str, policy: AppraisalPolicy, signer: bytes, *, operator: str, text: str
    ) -> None:
        """Enter into the ledger that a policy is in force for a run.

        :param signer: the digest of the key that signed it; empty when it is not signed.
        :param text: SHA-256 of its text, in hexadecimal.
        """
        self._directory.ledger.append(
            "policy",
            {
                "job": run,
                "policy": policy.digest.hex(),
                "text": text,
                "operator": operator,
                **self._policies.entry(policy, signer),
            },
        )

    def check_room(self) -> None:
        """Check that one more job may run.

        :raises JobError: when as many run as may.
        """
        limit = self._directory.config.limits.jobs
        if len(self._jobs) >= limit:
            raise JobError(
                f"{limit} jobs run already",
                hint="wait for one to end, or raise limits.jobs in server.toml",
            )


def _check_budget(spec: JobSpec) -> None:
    if spec.privacy is not None:
        Budget.require(spec.privacy, spec.rounds)


def _placed(asked: JobSpec, choice: Choice) -> dict[str, Any]:
    """Return what the ledger has of a choice, besides the job that results from it."""
    return {
        "asked": asked.digest().hex(),
        "prefer": asked.placement.prefer,
        "sites": list(choice.sites),
        "passed_over": dict(choice.passed_over),
    }
