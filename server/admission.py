"""The gate: challenge, evidence, certificate.

A client is admitted when, and only when, evidence for *its* key, made for *our* nonce, is
genuine, is liked by the job's policy, and a site that takes part in the job vouches for it.
:meth:`AdmissionGate.admit` numbers the steps. Each refusal says which step failed and why,
and every decision is in the ledger before it takes effect.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from attestation.binding import NONCE_BYTES, Binding, Role
from attestation.errors import AttestationError, EvidenceError
from attestation.evidence import MAX_EVIDENCE_BYTES, Claims, Evidence
from attestation.policy import AppraisalPolicy
from attestation.result import AttestationResult, Finding, Tier
from attestation.trust import TrustAnchors
from attestation.verifiers import verify
from fedlearn.errors import AdmissionDenied, ConfigError, FedlearnError, TransportError
from fedlearn.spiffe import checked_name
from fedlearn.voucher import verify_voucher
from server.challenges import Challenge, ChallengeBook, Limits, Rates, Throttled
from server.peers import csr_key, spki, thumbprint
from server.pki import MAX_CLIENT_LIFETIME, CertificateAuthority
from server.register import Admission, AdmissionEvent, AdmissionRegister, Change

__all__ = [
    "Admission",
    "AdmissionEvent",
    "AdmissionGate",
    "AdmissionRegister",
    "AdmittableJob",
    "Admitted",
    "AdmitRequest",
    "Change",
    "NodeDoor",
    "Periods",
    "Record",
    "SiteKeys",
]

HPKE_KEY_BYTES: Final = 32

Record = Callable[[str, Mapping[str, Any]], object]
"""Appends one entry to the ledger, durably: ``record(kind, body)``."""


class NodeDoor(Protocol):
    """What admission needs of Flower."""

    def create_node(self, job: str, tls_key: bytes) -> int:
        """Create the node of this key (DER SPKI) in the job's federation; return its id."""
        ...

    def delete_node(self, job: str, node_id: int) -> None:
        """Delete a node. It is no error when the job or the node is gone."""
        ...


class SiteKeys(Protocol):
    """What admission needs of the register of sites."""

    def key_of(self, site: str, *, admitting: bool) -> bytes:
        """Return the enrolled key (DER SPKI) of an active site.

        A draining site keeps its clients and admits no new ones.

        :raises AdmissionDenied: when the site is unknown, pending, removed, or draining
            while ``admitting``.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittableJob:
    """What a job asks of its clients.

    ``job_digest``     digest of the JobSpec; must be measured as ``job``
    ``bundle_digest``  SHA-256 of the app bundle; must be measured as ``app``
    ``workload``       the workload digest that evidence is bound to
    ``sites``          who takes part
    """

    name: str
    job_digest: bytes
    bundle_digest: bytes
    workload: bytes
    policy: AppraisalPolicy
    trust: TrustAnchors
    sites: frozenset[str]
    clients_per_site: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Periods:
    """``lifetime`` of a certificate, when to renew it, and when it is overdue."""

    lifetime: timedelta = MAX_CLIENT_LIFETIME
    renew_after: timedelta = timedelta(minutes=5)
    renew_by: timedelta = timedelta(minutes=10)

    def __post_init__(self) -> None:
        ordered = timedelta(0) < self.renew_after < self.renew_by <= self.lifetime
        if not ordered or self.lifetime > MAX_CLIENT_LIFETIME:
            raise ValueError("0 < renew_after < renew_by <= lifetime <= 30 minutes")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmitRequest:
    """What a client sends. Nothing in it is believed before its step."""

    job: str
    site: str
    client: str
    nonce: bytes
    csr: bytes
    hpke_key: bytes
    evidence: bytes
    site_voucher: bytes = b""
    peer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The answer to a client that was admitted or renewed.

    ``certificate_chain``  PEM, leaf first, then the root
    ``token``              the attestation result as ``sign_result`` encodes it
    """

    admission: Admission
    certificate_chain: bytes
    renew_after: datetime
    token: bytes


@dataclass(slots=True)
class _Attempt:
    """What is known so far about one request, for the ledger."""

    request: AdmitRequest
    step: str = "request"
    body: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Affirmed:
    job: AdmittableJob
    tls_key: bytes
    evidence_digest: bytes
    claims: Claims
    result: AttestationResult


class AdmissionGate:
    """Decides who is admitted. Safe to use from many threads.

    ``jobs``         returns the job of a name, or ``None``
    ``sites``        the register of sites
    ``door``         where Flower nodes are made and deleted
    ``record``       the ledger; an admission that cannot be recorded does not take place
    ``sign_result``  encodes the attestation result for the client (a signed EAR)
    """

    def __init__(
        self,
        *,
        ca: CertificateAuthority,
        register: AdmissionRegister,
        jobs: Callable[[str], AdmittableJob | None],
        sites: SiteKeys,
        door: NodeDoor,
        record: Record,
        clock: Callable[[], datetime],
        periods: Periods | None = None,
        limits: Limits | None = None,
        sign_result: Callable[[AttestationResult], bytes] | None = None,
    ) -> None:
        self.register = register
        self.periods = periods or Periods()
        self._ca = ca
        self._jobs = jobs
        self._sites = sites
        self._door = door
        self._record = record
        self._clock = clock
        self._sign_result = sign_result or _unsigned
        self._book = ChallengeBook(limits=limits, verifier_id=ca.key_digest)
        self._rates = Rates(limits=limits)
        self._attempts = Rates(limits=limits)
        self._lock = threading.RLock()
        self._policies: dict[str, AppraisalPolicy] = {}
        self._claims: dict[bytes, Claims] = {}
        register.subscribe(self._ended)

    def challenge(self, job: str, site: str, peer: str) -> Challenge:
        """Give out a nonce for one admission to ``job`` at ``site``.

        Whether job and site exist is not told here: the caller has proven nothing.

        :raises Throttled: beyond the limits.
        :raises AdmissionDenied: when a name is malformed.
        """
        now = self._clock()
        self._rates.take(peer, now=now)
        _names(job=job, site=site)
        challenge = self._book.issue(job=job, site=site, peer=peer, now=now)
        self._record(
            "challenge",
            {
                "job": job,
                "site": site,
                "peer": peer,
                "nonce_sha256": hashlib.sha256(challenge.nonce).hexdigest(),
            },
        )
        return challenge

    def admit(self, request: AdmitRequest) -> Admitted:
        """Admit a client, or say why not.

        1. The request is within its bounds and its names are well-formed.
        2. The nonce is known, unused and fresh, and was given out for this job and site.
           Whatever follows, it is used up.
        3. The job is open and the site takes part in it.
        4. The site is enrolled and active.
        5. The CSR is signed by its own P-256 key.
        6. The site vouches: its enrolled key signed job, client, nonce and that key.
        7. The evidence decodes.
        8. The evidence is genuine, fresh, and bound to role, nonce, our CA, both keys, the
           site and the workload.
        9. The policy affirms the claims; ``app`` and ``job`` are measured as this job's.
        10. The policy is still the job's, and the site has no more clients than it may.
        11. The ledger has the admission; certificate and Flower node are made; the register
            has it.

        An earlier admission of the same client is revoked: there is one of each.

        :raises AdmissionDenied: with findings. The refusal is in the ledger.
        """
        now = self._clock()
        self._attempts.take(request.peer, now=now)
        attempt = _Attempt(request)
        try:
            affirmed = self._examine(attempt, now, current=None)
            with self._lock:
                attempt.step = "register"
                self._check_unchanged(affirmed)
                former = self._make_room(affirmed.job, request, thumbprint(affirmed.tls_key), now)
                admitted = self._establish(affirmed, request, now, current=None)
        except FedlearnError as error:
            raise self._refuse(attempt, error, "refusal") from error
        for admission in former:
            reason = "the same client was admitted anew"
            self.register.revoke(admission.thumbprint, reason, now=now)
        return admitted

    def renew(self, request: AdmitRequest, current: Admission) -> Admitted:
        """Attest again, on the connection of ``current``, whose keys stay the same.

        Steps as in :meth:`admit`, with two differences: job, site, client and both keys must
        be those of ``current``, and its connection takes the place of the site's voucher.

        :raises AdmissionDenied: with findings. ``current`` is then in quarantine.
        :raises Throttled: when it tries too often; ``current`` stays.
        """
        now = self._clock()
        self._attempts.take(f"{current.job}/{current.site}/{current.client}", now=now)
        attempt = _Attempt(request)
        try:
            self.register.live(current.thumbprint, now=now)
            affirmed = self._examine(attempt, now, current=current)
            with self._lock:
                attempt.step = "register"
                self._check_unchanged(affirmed)
                latest = self.register.live(current.thumbprint, now=now)
                return self._establish(affirmed, request, now, current=latest)
        except FedlearnError as error:
            denied = self._refuse(attempt, error, "refusal")
            self.register.quarantine(
                current.thumbprint, f"attesting again failed: {denied}", now=now
            )
            raise denied from error

    def replace_policy(self, job: str, policy: AppraisalPolicy) -> tuple[Admission, ...]:
        """Put ``policy`` in force for ``job`` and judge its clients by it at once.

        The claims of each live client are appraised again; who is not affirmed is revoked.

        :returns: the admissions that were revoked.
        :raises ConfigError: when there is no such job.
        """
        now = self._clock()
        with self._lock:
            offered = self._job(job)
            if offered is None:
                raise ConfigError(f"there is no open job {job!r}", key="job")
            self._record(
                "policy",
                {"job": job, "policy": policy.digest.hex(), "former": offered.policy.digest.hex()},
            )
            self._policies[job] = policy
            offered = dataclasses.replace(offered, policy=policy)
            unfit: list[tuple[Admission, str]] = []
            for admission in self.register.of_job(job, now=now):
                claims = self._claims.get(admission.thumbprint)
                if claims is None:
                    unfit.append((admission, "its claims are not at hand"))
                    continue
                result = self._appraise(offered, admission.site, claims, admission.tls_key, now)
                if result.status is not Tier.AFFIRMING:
                    unfit.append((admission, _summary(result.refusals)))
        for admission, why in unfit:
            reason = f"the job's policy changed: {why}"
            self.register.revoke(admission.thumbprint, reason, now=now)
        return tuple(admission for admission, _ in unfit)

    def close_job(self, job: str, reason: str = "the job ended") -> tuple[Admission, ...]:
        """End all admissions of ``job`` and forget a policy that replaced its first."""
        with self._lock:
            self._policies.pop(job, None)
        return self.register.revoke_job(job, reason, now=self._clock())

    def revoke_site(self, site: str, reason: str) -> tuple[Admission, ...]:
        """End all admissions of ``site``: to be called when a site is removed."""
        return self.register.revoke_site(site, reason, now=self._clock())

    def revoke_clients(self, job: str, site: str, reason: str) -> tuple[Admission, ...]:
        """End the admissions of ``site`` to ``job``."""
        now = self._clock()
        found = [a for a in self.register.of_job(job, now=now) if a.site == site]
        ended = [self.register.revoke(a.thumbprint, reason, now=now) for a in found]
        return tuple(admission for admission in ended if admission is not None)

    def sweep(self) -> tuple[AdmissionEvent, ...]:
        """End what has lapsed. To be called about once a second by the owner."""
        return self.register.sweep(now=self._clock())

    def _examine(self, attempt: _Attempt, now: datetime, *, current: Admission | None) -> _Affirmed:
        """Steps 1 to 9."""
        request = attempt.request
        _names(job=request.job, site=request.site, client=request.client)
        _bounded(request)
        attempt.step = "nonce"
        self._book.redeem(request.nonce, job=request.job, site=request.site, now=now)
        attempt.step = "job"
        job = self._job(request.job)
        if job is None:
            raise AdmissionDenied(f"job {request.job} is not open for clients")
        if request.site not in job.sites:
            raise AdmissionDenied(
                f"site {request.site} does not take part in job {request.job}",
                hint="list the site in the job's specification",
            )
        attempt.step = "site"
        site_key = self._sites.key_of(request.site, admitting=current is None)
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
                    verifier_id=self._ca.key_digest,
                    tls_key=tls_key,
                    hpke_key=request.hpke_key,
                    node_id=request.site,
                    workload=job.workload,
                ),
                trust=job.trust,
                now=now,
            )
        except AttestationError as error:
            raise _not_genuine(error) from error
        if claims.attributes.get("bound") is not True:
            raise AdmissionDenied("the verifier did not check what the evidence is bound to")
        attempt.step = "appraisal"
        attempt.body |= {
            "hardware_id": claims.hardware_id.hex(),
            "measurements": {name: value.hex() for name, value in claims.measurements.items()},
            "policy": job.policy.digest.hex(),
        }
        result = self._appraise(job, request.site, claims, tls_key, now)
        if result.status is not Tier.AFFIRMING:
            raise AdmissionDenied(
                f"the policy {job.policy.name!r} does not affirm it: {_summary(result.refusals)}",
                findings=tuple(finding.to_json() for finding in result.refusals),
                hint=next((f.remedy for f in result.refusals if f.remedy), ""),
            )
        return _Affirmed(
            job=job, tls_key=tls_key, evidence_digest=digest, claims=claims, result=result
        )

    def _appraise(
        self, job: AdmittableJob, site: str, claims: Claims, tls_key: bytes, now: datetime
    ) -> AttestationResult:
        return job.policy.appraise(
            claims,
            now=now,
            node=site,
            key=tls_key,
            extra=(
                _measured(claims, "app", job.bundle_digest, "run the bundle that was submitted"),
                _measured(claims, "job", job.job_digest, "run the job as it was submitted"),
            ),
            lifetime=self.periods.lifetime,
        )

    def _check_unchanged(self, affirmed: _Affirmed) -> None:
        """Step 10, first half: the job may have been closed or changed meanwhile."""
        job = self._job(affirmed.job.name)
        if job is None or job != affirmed.job:
            raise AdmissionDenied(
                f"job {affirmed.job.name} changed while the evidence was verified",
                hint="try again with a new challenge",
            )

    def _make_room(
        self, job: AdmittableJob, request: AdmitRequest, key: bytes, now: datetime
    ) -> list[Admission]:
        """Step 10, second half: return the admissions that this one takes the place of."""
        at_site = [a for a in self.register.of_job(job.name, now=now) if a.site == request.site]
        others = [a for a in at_site if a.client != request.client]
        if len(others) >= job.clients_per_site:
            raise AdmissionDenied(
                f"site {request.site} has {len(others)} live clients in this job already",
                hint="stop the other client, or restart it under the same client id",
            )
        if any(a.thumbprint == key for a in self.register.every(now=now)):
            raise AdmissionDenied(
                "this key is admitted already", hint="renew it, or make a fresh key"
            )
        return [a for a in at_site if a.client == request.client]

    def _establish(
        self,
        affirmed: _Affirmed,
        request: AdmitRequest,
        now: datetime,
        *,
        current: Admission | None,
    ) -> Admitted:
        """Step 11. The caller holds the lock."""
        job = affirmed.job
        issued = self._ca.issue_client(
            request.csr,
            job=job.name,
            site=request.site,
            client=request.client,
            evidence_digest=affirmed.evidence_digest,
            policy_digest=affirmed.result.policy,
            now=now,
            lifetime=self.periods.lifetime,
        )
        made = current is None
        node = self._door.create_node(job.name, affirmed.tls_key) if made else current.node_id
        try:
            admission = Admission(
                job=job.name,
                site=request.site,
                client=request.client,
                thumbprint=thumbprint(affirmed.tls_key),
                tls_key=affirmed.tls_key,
                hpke_key=request.hpke_key,
                serial=issued.serial,
                node_id=node,
                evidence_digest=affirmed.evidence_digest,
                policy_digest=affirmed.result.policy,
                result=affirmed.result,
                issued=issued.not_before,
                expires=issued.expires,
                renew_by=min(now + self.periods.renew_by, issued.expires),
            )
            token = self._sign_result(affirmed.result)
            kind = Change.ADMITTED if made else Change.RENEWED
            self._record(kind.value, _entry(admission, affirmed.claims))
        except BaseException:
            if made:
                self._door.delete_node(job.name, node)
            raise
        self._claims[admission.thumbprint] = affirmed.claims
        self.register.add(admission, now=now)
        return Admitted(
            admission=admission,
            certificate_chain=issued.chain_pem,
            renew_after=now + self.periods.renew_after,
            token=token,
        )

    def _job(self, name: str) -> AdmittableJob | None:
        job = self._jobs(name)
        policy = self._policies.get(name)
        if job is None or policy is None:
            return job
        return dataclasses.replace(job, policy=policy)

    def _refuse(self, attempt: _Attempt, error: FedlearnError, kind: str) -> AdmissionDenied:
        """Write the refusal to the ledger and return what the caller is told."""
        request = attempt.request
        if isinstance(error, AdmissionDenied):
            denied = error
        elif isinstance(error, ConfigError | TransportError):
            denied = AdmissionDenied(str(error), hint=error.hint)
        else:
            raise error
        if not denied.findings:
            denied.findings = (_finding(attempt.step, str(denied), denied.hint),)
        self._record(
            kind,
            {
                "job": _shown(request.job),
                "site": _shown(request.site),
                "client": _shown(request.client),
                "peer": request.peer,
                "step": attempt.step,
                "reason": str(denied),
                "findings": list(denied.findings),
                **attempt.body,
            },
        )
        return denied

    def _ended(self, event: AdmissionEvent) -> None:
        """Whatever ends an admission also ends its Flower node, and is in the ledger."""
        if event.change in (Change.ADMITTED, Change.RENEWED):
            return
        admission = event.admission
        self._claims.pop(admission.thumbprint, None)
        try:
            self._door.delete_node(admission.job, admission.node_id)
        finally:
            self._record(
                event.change.value,
                {
                    "job": admission.job,
                    "site": admission.site,
                    "client": admission.client,
                    "key_thumbprint": admission.thumbprint.hex(),
                    "node_id": str(admission.node_id),
                    "reason": event.reason,
                },
            )


def _names(**names: str) -> None:
    try:
        for what, name in names.items():
            checked_name(name, what)
    except ConfigError as error:
        raise AdmissionDenied(str(error), hint=error.hint) from None


def _bounded(request: AdmitRequest) -> None:
    if len(request.nonce) != NONCE_BYTES:
        raise AdmissionDenied(f"a nonce has {NONCE_BYTES} bytes, not {len(request.nonce)}")
    if len(request.hpke_key) != HPKE_KEY_BYTES:
        raise AdmissionDenied(
            f"the HPKE key must be a raw X25519 key of {HPKE_KEY_BYTES} bytes, "
            f"not {len(request.hpke_key)}"
        )
    if len(request.evidence) > MAX_EVIDENCE_BYTES:
        raise AdmissionDenied(f"evidence has at most {MAX_EVIDENCE_BYTES} bytes")


def _same_party(request: AdmitRequest, tls_key: bytes, current: Admission) -> None:
    asked = (request.job, request.site, request.client)
    if asked != (current.job, current.site, current.client):
        raise AdmissionDenied(
            f"the connection belongs to client {current.client} of site {current.site} in job "
            f"{current.job}, and renews nobody else"
        )
    if tls_key != current.tls_key or request.hpke_key != current.hpke_key:
        raise AdmissionDenied("a renewal keeps its keys", hint="seek a new admission for a new key")


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
    )


def _not_genuine(error: AttestationError) -> AdmissionDenied:
    malformed = isinstance(error, EvidenceError)
    step = "evidence" if malformed else getattr(error, "step", "") or "verification"
    what = "the evidence is malformed" if malformed else "the evidence is not genuine"
    return AdmissionDenied(
        f"{what}: {error}",
        findings=(_finding(step, str(error), error.hint),),
        hint=error.hint,
    )


def _finding(claim: str, actual: str, remedy: str) -> dict[str, object]:
    return Finding(
        claim=claim,
        tier=Tier.CONTRAINDICATED,
        expected="verified",
        actual=actual,
        category="instance-identity",
        remedy=remedy,
    ).to_json()


def _summary(findings: tuple[Finding, ...]) -> str:
    if not findings:
        return "there is no finding in its favour"
    first = findings[0]
    more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"{first.claim} is {first.actual}, expected {first.expected}{more}"


def _entry(admission: Admission, claims: Claims) -> dict[str, Any]:
    return {
        "job": admission.job,
        "site": admission.site,
        "client": admission.client,
        "key_thumbprint": admission.thumbprint.hex(),
        "serial": f"{admission.serial:x}",
        "node_id": str(admission.node_id),
        "tee": claims.tee.value,
        "hardware_id": claims.hardware_id.hex(),
        "measurements": {name: value.hex() for name, value in claims.measurements.items()},
        "evidence": admission.evidence_digest.hex(),
        "policy": admission.policy_digest.hex(),
        "result": admission.result.to_json(),
        "expires": admission.expires.isoformat(),
    }


def _shown(name: str) -> str:
    """A name from outside, for the ledger: printable and short, marked where it was cut."""
    return ascii(name)[1:-1] if len(name) <= 63 else f"{ascii(name[:60])[1:-1]}..."


def _unsigned(result: AttestationResult) -> bytes:
    return json.dumps(result.to_json(), sort_keys=True, separators=(",", ":")).encode()
