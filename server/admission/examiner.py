"""What is asked of a client before it is admitted: steps 1 to 9 of admission.

No state is changed here but that of the challenge store. The only decision is a refusal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from attestation.binding import NONCE_BYTES, Binding, Role
from attestation.errors import AttestationError, EvidenceError, VerificationError
from attestation.evidence import MAX_EVIDENCE_BYTES, Claims, Evidence
from attestation.policy.appraise import appraise
from attestation.policy.model import AppraisalPolicy
from attestation.policy.result import AttestationResult, Finding, Tier
from attestation.tpm.credential import ProvenKey
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from fedlearn.errors import AdmissionDenied, ConfigError
from fedlearn.identity.admission import AdmitRequest
from fedlearn.identity.spiffe import checked_name
from fedlearn.identity.voucher import verify_voucher
from fedlearn.job.run import checked_run_id
from fedlearn.sealing.keys import PUBLIC_KEY_BYTES
from server.admission.challenges import ChallengeStore
from server.admission.exclusions import ExclusionList
from server.admission.registry import Admission
from server.identity.peer_certificates import csr_key, spki, thumbprint

__all__ = [
    "AdmittableJob",
    "Affirmed",
    "Attempt",
    "Examiner",
    "SiteKeys",
    "check_only_client",
    "checked_names",
    "refusal_finding",
    "summary",
]


class SiteKeys(Protocol):
    """What admission reads of the site registry."""

    def key_of(self, site: str, *, admitting: bool) -> bytes:
        """Return the enrolled key (DER SPKI) of an active site.

        A draining site keeps its clients and admits no new ones.

        :raises AdmissionDenied: when the site is unknown, pending, removed, or draining
            while ``admitting``.
        """
        ...

    def tpm_of(self, site: str) -> ProvenKey | None:
        """Return the keys that the TPM of ``site`` has proven, if it has."""
        ...

    def sample_key_of(self, site: str) -> bytes:
        """Return the development key (SHA-256) that an operator named for ``site``, or nothing."""
        ...

    def site_of_ak(self, ak: bytes) -> str | None:
        """Return the site whose TPM holds an attestation key (SHA-256), if any is known to."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittableJob:
    """What a job requires of its clients.

    ``job_digest``     digest of the JobSpec; must be measured as ``job``
    ``bundle_digest``  SHA-256 of the app bundle; must be measured as ``app``
    ``workload``       the workload digest that evidence is bound to
    ``sites``          who takes part, each with one client
    """

    name: str
    job_digest: bytes
    bundle_digest: bytes
    workload: bytes
    policy: AppraisalPolicy
    trust: TrustAnchors
    sites: frozenset[str]


@dataclass(slots=True)
class Attempt:
    """What is known so far about one request, which came from ``peer``, for the ledger."""

    request: AdmitRequest
    peer: str
    step: str = "request"
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Affirmed:
    """The result of steps 1 to 9."""

    job: AdmittableJob
    tls_key: bytes
    evidence_digest: bytes
    claims: Claims
    result: AttestationResult
    tpm: ProvenKey | None = None
    sample_key: bytes = b""


class Examiner:
    """Examines requests against one challenge store, one site registry and one CA."""

    def __init__(
        self,
        *,
        challenges: ChallengeStore,
        sites: SiteKeys,
        verifier_id: bytes,
        lifetime: timedelta,
        exclusions: ExclusionList,
    ) -> None:
        self._exclusions = exclusions
        self._challenges = challenges
        self._sites = sites
        self._verifier_id = verifier_id
        self._lifetime = lifetime

    def examine(
        self,
        attempt: Attempt,
        *,
        job_of: Callable[[str], AdmittableJob | None],
        current: Admission | None,
        now: datetime,
    ) -> Affirmed:
        """Take ``attempt`` through its steps; ``attempt.step`` is the last that was begun.

        ``current`` is the admission that is being renewed, or ``None``.

        :raises FedlearnError: when a step fails; mostly :class:`AdmissionDenied`.
        """
        request = attempt.request
        checked_names(job=request.job, site=request.site, client=request.client)
        _bounded(request)
        attempt.step = "nonce"
        self._challenges.redeem(request.nonce, job=request.job, site=request.site, now=now)
        attempt.step = "job"
        job = job_of(request.job)
        if job is None:
            raise AdmissionDenied(f"job {request.job} is not open for clients")
        if request.site not in job.sites:
            raise AdmissionDenied(
                f"site {request.site} does not take part in job {request.job}",
                hint="list the site in the job's specification",
            )
        attempt.step = "site"
        site_key = self._sites.key_of(request.site, admitting=current is None)
        attempt.step = "exclusion"
        self._exclusions.check(request.job, request.site, request.client, now=now)
        attempt.step = "csr"
        tls_key = spki(csr_key(request.csr))
        attempt.body["key_thumbprint"] = thumbprint(tls_key).hex()
        attempt.step = "voucher" if current is None else "identity"
        if current is None:
            verify_voucher(
                request.site_voucher,
                site_key=site_key,
                job=request.job,
                site=request.site,
                client=request.client,
                nonce=request.nonce,
                tls_key=tls_key,
            )
        else:
            _same_party(request, tls_key, current)
        attempt.step = "evidence"
        tpm = self._sites.tpm_of(request.site)
        sample_key = self._sites.sample_key_of(request.site)
        trust = _trusting(job.trust, tpm, sample_key)
        try:
            evidence = Evidence.from_bytes(request.evidence)
            digest = evidence.digest()
            attempt.body |= {"tee": evidence.tee.value, "evidence": digest.hex()}
            attempt.step = "verification"
            claims = verify(
                evidence,
                binding=Binding(
                    role=Role.CLIENT,
                    nonce=request.nonce,
                    verifier_id=self._verifier_id,
                    tls_key=tls_key,
                    hpke_key=request.hpke_key,
                    node_id=request.site,
                    workload=job.workload,
                ),
                trust=job.policy.anchors_for(trust, tee=evidence.tee, now=now),
                now=now,
            )
        except AttestationError as error:
            raise _not_genuine(error, request.site) from error
        if not claims.bound:
            raise AdmissionDenied("the verifier did not check what the evidence is bound to")
        self._check_own_key(request.site, claims)
        attempt.step = "appraisal"
        attempt.body |= {
            "hardware_id": claims.hardware_id.hex(),
            "measurements": {name: value.hex() for name, value in claims.measurements.items()},
            "policy": job.policy.digest.hex(),
        }
        result = self.appraise(job, request.site, claims, tls_key, now)
        if result.status is not Tier.AFFIRMING:
            raise AdmissionDenied(
                f"the policy {job.policy.name!r} does not affirm it: {summary(result.refusals)}",
                findings=tuple(finding.to_json() for finding in result.refusals),
                hint=next((f.remedy for f in result.refusals if f.remedy), ""),
            )
        return Affirmed(
            job=job,
            tls_key=tls_key,
            evidence_digest=digest,
            claims=claims,
            result=result,
            tpm=tpm,
            sample_key=sample_key,
        )

    def recheck(
        self,
        affirmed: Affirmed,
        request: AdmitRequest,
        *,
        job_of: Callable[[str], AdmittableJob | None],
        admitting: bool,
        now: datetime,
    ) -> None:
        """Check again what may have changed while the evidence was verified.

        :raises AdmissionDenied: when the job or the site has.
        """
        site = request.site
        self._exclusions.check(request.job, site, request.client, now=now)
        self._sites.key_of(site, admitting=admitting)
        if self._sites.tpm_of(site) != affirmed.tpm:
            raise AdmissionDenied(
                f"the TPM of site {site} changed while the evidence was verified",
                hint="try again with a new challenge",
            )
        if self._sites.sample_key_of(site) != affirmed.sample_key:
            raise AdmissionDenied(
                f"the development key of site {site} changed while the evidence was verified",
                hint="try again with a new challenge",
            )
        job = job_of(affirmed.job.name)
        if job is None or job != affirmed.job:
            raise AdmissionDenied(
                f"job {affirmed.job.name} changed while the evidence was verified",
                hint="try again with a new challenge",
            )

    def _check_own_key(self, site: str, claims: Claims) -> None:
        """Refuse evidence whose attestation key was proven to be in the TPM of another site.

        The anchors of another site are never used here; this is for keys that are pinned for
        all sites, and proven by one.
        """
        named = claims.attributes.get("tpm.ak")
        if not isinstance(named, str):
            return
        owner = self._sites.site_of_ak(bytes.fromhex(named))
        if owner not in (None, site):
            why = f"the attestation key {named} is that of another site's TPM"
            raise AdmissionDenied(why, findings=(refusal_finding("attestation key", why, ""),))

    def appraise(
        self, job: AdmittableJob, site: str, claims: Claims, tls_key: bytes, now: datetime
    ) -> AttestationResult:
        """Apply the job's policy, and whether job and bundle are measured as this job's."""
        return appraise(
            job.policy,
            claims,
            now=now,
            node=site,
            key=tls_key,
            extra=(
                _measured(claims, "app", job.bundle_digest, "run the bundle that was submitted"),
                _measured(claims, "job", job.job_digest, "run the job as it was submitted"),
            ),
            lifetime=self._lifetime,
        )


def checked_names(**names: str) -> None:
    """Check names from outside.

    :raises AdmissionDenied: naming the first that is malformed.
    """
    try:
        for what, name in names.items():
            if what == "job":
                checked_run_id(name)
            else:
                checked_name(name, what)
    except ConfigError as error:
        raise AdmissionDenied(str(error), hint=error.hint) from None


def check_only_client(at_site: Sequence[Admission], request: AdmitRequest) -> None:
    """Check that a site has no other client in a job than the one that seeks admission.

    :param at_site: the live admissions of the site to the job.
    :raises AdmissionDenied: when it has another client.
    """
    if any(a.client != request.client for a in at_site):
        raise AdmissionDenied(
            f"site {request.site} has a live client in this job already",
            hint="stop the other client, or restart it under the same client id",
        )


def _bounded(request: AdmitRequest) -> None:
    if len(request.nonce) != NONCE_BYTES:
        raise AdmissionDenied(f"a nonce has {NONCE_BYTES} bytes, not {len(request.nonce)}")
    if len(request.hpke_key) != PUBLIC_KEY_BYTES:
        raise AdmissionDenied(
            f"the HPKE key must be a raw X25519 key of {PUBLIC_KEY_BYTES} bytes, "
            f"not {len(request.hpke_key)}"
        )
    if len(request.evidence) > MAX_EVIDENCE_BYTES:
        raise AdmissionDenied(f"evidence has at most {MAX_EVIDENCE_BYTES} bytes")


def _same_party(request: AdmitRequest, tls_key: bytes, current: Admission) -> None:
    asked = (request.job, request.site, request.client)
    if asked != (current.job, current.site, current.client):
        raise AdmissionDenied(
            f"the connection belongs to client {current.client} of site {current.site} in job "
            f"{current.job}, and cannot renew another client"
        )
    if tls_key != current.tls_key or request.hpke_key != current.hpke_key:
        raise AdmissionDenied("a renewal keeps its keys", hint="seek a new admission for a new key")


def _trusting(trust: TrustAnchors, tpm: ProvenKey | None, sample_key: bytes) -> TrustAnchors:
    """Return ``trust`` with the keys that count for this site, and for no other.

    ``tpm`` is what its TPM has proven, ``sample_key`` the development key that an operator named.
    """
    if sample_key:
        trust = dataclasses.replace(trust, sample_keys=trust.sample_keys | {sample_key})
    if tpm is None:
        return trust
    return dataclasses.replace(
        trust,
        tpm_aks=trust.tpm_aks | {tpm.ak},
        tpm_ek_of={**trust.tpm_ek_of, tpm.ak: tpm.ek},
    )


def _measured(claims: Claims, claim: str, expected: bytes, remedy: str) -> Finding:
    actual = claims.measurements.get(claim)
    known = actual is not None and claim not in claims.unverified
    matches = known and actual == expected
    return Finding(
        claim=claim,
        tier=Tier.AFFIRMING if matches else Tier.CONTRAINDICATED,
        expected=f"{expected.hex()} (this job)",
        actual="not measured" if actual is None else actual.hex(),
        category="executables",
        remedy="" if matches else remedy,
        origin=claims.origin_of(claim),
    )


def _not_genuine(error: AttestationError, site: str) -> AdmissionDenied:
    malformed = isinstance(error, EvidenceError)
    hint = error.hint
    if isinstance(error, VerificationError) and error.key and error.step == "sample key":
        name = f"`fedlearn site approve {site} --insecure-trust-sample-key {error.key.hex()}`"
        hint = f"if it is the site's own, {name} accepts it"
    step = "evidence" if malformed else getattr(error, "step", "") or "verification"
    what = "the evidence is malformed" if malformed else "the evidence is not genuine"
    return AdmissionDenied(
        f"{what}: {error}",
        findings=(refusal_finding(step, str(error), hint),),
        hint=hint,
    )


def refusal_finding(claim: str, actual: str, remedy: str) -> dict[str, object]:
    """Return the finding, JSON-ready, of a step that failed before any appraisal."""
    return Finding(
        claim=claim,
        tier=Tier.CONTRAINDICATED,
        expected="verified",
        actual=actual,
        category="instance-identity",
        remedy=remedy,
    ).to_json()


def summary(findings: tuple[Finding, ...]) -> str:
    """Return in one line why a result is not affirming."""
    if not findings:
        return "there is no finding in its favour"
    first = findings[0]
    # A claim that several rules refuse for the same value is one finding to people.
    others = len({(finding.claim, finding.actual) for finding in findings}) - 1
    more = f", and {others} more" if others else ""
    return f"{first.claim} is {first.actual}, expected {first.expected}{more}"
