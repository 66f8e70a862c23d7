"""The policies of open jobs, and the claims of admitted clients that a new policy is applied to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from datetime import datetime

from attestation.evidence import Claims
from attestation.policy.model import AppraisalPolicy
from attestation.policy.result import Tier
from server.admission.examiner import AdmittableJob, Examiner, summary
from server.admission.registry import Admission

__all__ = ["JobPolicies"]


class JobPolicies:
    """The policy in force of each job. Changes are made under the lock of the gate.

    :param jobs: returns the job of a name with its first policy, or ``None``.
    """

    def __init__(self, jobs: Callable[[str], AdmittableJob | None], *, examiner: Examiner) -> None:
        self._jobs = jobs
        self._examiner = examiner
        self._policies: dict[str, AppraisalPolicy] = {}
        self._claims: dict[bytes, Claims] = {}

    def job(self, name: str) -> AdmittableJob | None:
        """Return a job with its policy in force, or ``None``."""
        job = self._jobs(name)
        policy = self._policies.get(name)
        if job is None or policy is None:
            return job
        return dataclasses.replace(job, policy=policy)

    def replace(self, name: str, policy: AppraisalPolicy) -> None:
        """Put a policy in force."""
        self._policies[name] = policy

    def forget(self, name: str) -> None:
        """Forget the policy that replaced the first one of a job."""
        self._policies.pop(name, None)

    def keep_claims(self, admission: Admission, claims: Claims) -> None:
        """Keep the claims of an admitted client."""
        self._claims[admission.thumbprint] = claims

    def drop_claims(self, admission: Admission) -> None:
        """Drop the claims of a client whose admission has ended."""
        self._claims.pop(admission.thumbprint, None)

    def unfit(
        self, job: AdmittableJob, admissions: Iterable[Admission], now: datetime
    ) -> list[tuple[Admission, str]]:
        """Return the admissions that the policy of ``job`` does not affirm, with the reason."""
        found: list[tuple[Admission, str]] = []
        for admission in admissions:
            claims = self._claims.get(admission.thumbprint)
            if claims is None:
                found.append((admission, "its claims are not available"))
                continue
            result = self._examiner.appraise(job, admission.site, claims, admission.tls_key, now)
            if result.status is not Tier.AFFIRMING:
                found.append((admission, summary(result.refusals)))
        return found
