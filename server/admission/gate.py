"""The gate: challenge, evidence, certificate.

A client is admitted when, and only when, evidence for *its* key, made for *our* nonce, is
genuine, is liked by the job's policy, and a site that takes part in the job vouches for it.
:meth:`AdmissionGate.admit` numbers the steps. Each refusal says which step failed and why,
and every admission is in the ledger before it takes effect; what ends one ends it first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from attestation.evidence import Claims
from attestation.policy.model import AppraisalPolicy
from attestation.policy.result import AttestationResult, Tier
from fedlearn.errors import (
    AdmissionDenied,
    ConfigError,
    DiskError,
    FedlearnError,
    Throttled,
    TransportError,
)
from fedlearn.identity.admission import AdmitRequest
from server.admission.challenges import Challenge, ChallengeStore, Limits, Rates
from server.admission.examiner import (
    AdmittableJob,
    Affirmed,
    Attempt,
    Examiner,
    SiteKeys,
    checked_names,
    refusal_finding,
    summary,
)
from server.admission.exclusions import Exclusion, ExclusionList
from server.admission.ledger_entries import (
    admission_entry,
    challenge_entry,
    ending_entry,
    left_out_entry,
    refusal_entry,
)
from server.admission.registry import Admission, AdmissionEvent, AdmissionRegistry, Change
from server.admission.types import Admitted, JobNodes, Periods, Record
from server.identity.peer_certificates import thumbprint
from server.identity.pki import CertificateAuthority
from server.quota import Quota

__all__ = [
    "Admission",
    "AdmissionEvent",
    "AdmissionGate",
    "AdmissionRegistry",
    "AdmittableJob",
    "Admitted",
    "Change",
    "JobNodes",
    "Periods",
    "Record",
    "SiteKeys",
]

_OF_ONE_CLIENT: Final = Limits(rate=1e6, burst=10**6, rate_per_peer=0.5, burst_per_peer=16)
"""How often one client attests again, and one site's client begins anew in a job."""

_ENTRIES_AT_ONCE: Final = 64


class AdmissionGate:
    """Decides who is admitted. Safe to use from many threads.

    ``jobs``, ``nodes`` and ``record`` are called while the gate holds its lock: they must not
    wait for anything that calls the gate.

    ``jobs``         returns the job of a name, or ``None``
    ``sites``        the register of sites
    ``nodes``        where Flower nodes are made and deleted
    ``record``       the ledger; an admission that cannot be recorded does not take place
    ``sign_result``  encodes the attestation result for the client (a signed EAR)
    ``exclusions``   who is kept out of a job by an operator
    ``readmitted``   told of an exclusion that ended, after it did
    """

    def __init__(
        self,
        *,
        ca: CertificateAuthority,
        register: AdmissionRegistry,
        jobs: Callable[[str], AdmittableJob | None],
        sites: SiteKeys,
        nodes: JobNodes,
        record: Record,
        clock: Callable[[], datetime],
        periods: Periods | None = None,
        limits: Limits | None = None,
        sign_result: Callable[[AttestationResult], bytes] | None = None,
        exclusions: ExclusionList | None = None,
        readmitted: Callable[[Exclusion], object] = lambda _: None,
    ) -> None:
        self.register = register
        self.exclusions = exclusions or ExclusionList()
        self._readmitted = readmitted
        self.periods = periods or Periods()
        self._ca = ca
        self._jobs = jobs
        self._nodes = nodes
        self._sites = sites
        self._record = record
        self._clock = clock
        self._sign_result = sign_result or _unsigned
        self._book = ChallengeStore(limits=limits, verifier_id=ca.key_digest)
        self._examiner = Examiner(
            book=self._book,
            sites=sites,
            verifier_id=ca.key_digest,
            lifetime=self.periods.lifetime,
            exclusions=self.exclusions,
        )
        self._rates = Rates(limits=limits)
        self._attempts = Rates(limits=limits)
        self._renewals = Rates(limits=_OF_ONE_CLIENT)
        self._admissions = Rates(limits=_OF_ONE_CLIENT)
        self._quotas = {
            kind: Quota(burst=_ENTRIES_AT_ONCE, every=1.0) for kind in ("challenge", "refusal")
        }
        self._lock = threading.RLock()
        self._paying = threading.RLock()
        self._policies: dict[str, AppraisalPolicy] = {}
        self._claims: dict[bytes, Claims] = {}
        self._owed: deque[tuple[str, Mapping[str, Any]]] = deque()
        register.subscribe(self._ended)

    def now(self) -> datetime:
        """Return the time by the gate's clock."""
        return self._clock()

    def count(self, peer: str) -> None:
        """Count a request that is not an admission against the rates of ``peer``.

        :raises Throttled: when it is one too many.
        """
        self._rates.take(peer, now=self._clock())

    def challenge(self, job: str, site: str, peer: str) -> Challenge:
        """Give out a nonce for one admission to ``job`` at ``site``.

        Whether job and site exist is not told here: the caller has proven nothing.

        :raises Throttled: beyond the limits.
        :raises AdmissionDenied: when a name is malformed.
        """
        now = self._clock()
        self._rates.take(peer, now=now)
        checked_names(job=job, site=site)
        challenge = self._book.issue(job=job, site=site, peer=peer, now=now)
        self._enter_of(peer, "challenge", challenge_entry(challenge))
        return challenge

    def admit(self, request: AdmitRequest, *, peer: str) -> Admitted:
        """Admit a client whose request came from ``peer``, or say why not.

        1. The request is within its bounds and its names are well-formed.
        2. The nonce is known, unused and fresh, and was given out for this job and site.
           Whatever follows, it is used up.
        3. The job is open and the site takes part in it.
        4. The site is enrolled and active, and no operator keeps it, or this client of it, out
           of the job.
        5. The CSR is signed by its own P-256 key.
        6. The site vouches: its enrolled key signed job, client, nonce and that key.
        7. The evidence decodes.
        8. The evidence is genuine, fresh, and bound to role, nonce, our CA, both keys, the
           site and the workload. A TPM's attestation key counts when this very site has
           proven it, or when it is pinned and no other site has.
        9. The policy affirms the claims; ``app`` and ``job`` are measured as this job's.
        10. The policy is still the job's, and the site has no other client in it.
        11. The ledger has the admission; certificate and Flower node are made; the register
            has it.

        An earlier admission of the same client is revoked first: a site has one client in a
        job, so that nobody outweighs the others by running many.

        :raises AdmissionDenied: with findings. The refusal is in the ledger.
        """
        now = self._clock()
        self._attempts.take(peer, now=now)
        attempt = Attempt(request, peer)
        try:
            affirmed = self._examiner.examine(attempt, job_of=self._job, current=None, now=now)
            attempt.step = "register"
            self._count_admission(request, now)
            with self._lock:
                self._check_unchanged(affirmed, request, now, admitting=True)
                self._make_room(request, thumbprint(affirmed.tls_key), now)
                return self._establish(affirmed, request, now, current=None)
        except FedlearnError as error:
            raise self._refuse(attempt, error) from error

    def renew(self, request: AdmitRequest, current: Admission, *, peer: str) -> Admitted:
        """Attest again, on the connection of ``current``, whose keys stay the same.

        Steps as in :meth:`admit`, with two differences: job, site, client and both keys must
        be those of ``current``, and its connection takes the place of the site's voucher.

        :raises AdmissionDenied: with findings. ``current`` is then in quarantine.
        :raises Throttled: when it tries too often; ``current`` stays.
        """
        now = self._clock()
        self._renewals.take(f"{current.job}/{current.site}/{current.client}", now=now)
        attempt = Attempt(request, peer)
        try:
            self.register.live(current.thumbprint, now=now)
            affirmed = self._examiner.examine(attempt, job_of=self._job, current=current, now=now)
            with self._lock:
                attempt.step = "register"
                self._check_unchanged(affirmed, request, now, admitting=False)
                latest = self.register.live(current.thumbprint, now=now)
                return self._establish(affirmed, request, now, current=latest)
        except FedlearnError as error:
            denied = self._refuse(attempt, error)
            self.register.quarantine(
                current.thumbprint, f"attesting again failed: {denied}", now=now
            )
            raise denied from error

    def replace_policy(
        self, job: str, policy: AppraisalPolicy, *, noted: Mapping[str, Any] | None = None
    ) -> tuple[Admission, ...]:
        """Put ``policy`` in force for ``job`` and judge its clients by it at once.

        The claims of each live client are appraised again; who is not affirmed is revoked.
        ``noted`` goes into the ledger beside it: who signed, which version.

        :returns: the admissions that were revoked.
        :raises ConfigError: when there is no such job.
        """
        now = self._clock()
        with self._lock:
            offered = self._job(job)
            if offered is None:
                raise ConfigError(f"there is no open job {job!r}", key="job")
            self._enter(
                "policy",
                {
                    "job": job,
                    "policy": policy.digest.hex(),
                    "former": offered.policy.digest.hex(),
                    **(noted or {}),
                },
            )
            self._policies[job] = policy
            offered = dataclasses.replace(offered, policy=policy)
            unfit: list[tuple[Admission, str]] = []
            for admission in self.register.of_job(job, now=now):
                claims = self._claims.get(admission.thumbprint)
                if claims is None:
                    unfit.append((admission, "its claims are not at hand"))
                    continue
                result = self._examiner.appraise(
                    offered, admission.site, claims, admission.tls_key, now
                )
                if result.status is not Tier.AFFIRMING:
                    unfit.append((admission, summary(result.refusals)))
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
        # The lock: whoever is between its last check and the register is not missed.
        with self._lock:
            return self.register.revoke_site(site, reason, now=self._clock())

    def revoke_clients(
        self, job: str, site: str, reason: str, *, client: str = ""
    ) -> tuple[Admission, ...]:
        """End the admissions of ``site``, or of one client of it, to ``job``.

        Who is what it should be attests again and is back; :meth:`exclude` keeps it out.
        """
        now = self._clock()
        with self._lock:
            found = [
                a
                for a in self.register.of_job(job, now=now)
                if a.site == site and client in ("", a.client)
            ]
            ended = [self.register.revoke(a.thumbprint, reason, now=now) for a in found]
        return tuple(admission for admission in ended if admission is not None)

    def exclude(self, exclusion: Exclusion) -> tuple[Admission, ...]:
        """Keep a site, or one client of it, out of a job; return the admissions that ended.

        :raises ConfigError: when its time is over already, or there are too many.
        """
        now = self._clock()
        if exclusion.over(now):
            raise ConfigError("is in the past", key="until")
        with self._lock:
            self.exclusions.check_room(exclusion)
            self._enter("exclusion", exclusion.entry("laid"))
            self.exclusions.lay(exclusion)
            reason = f"{exclusion.reason} (operator {exclusion.operator})"
            return self.revoke_clients(
                exclusion.job, exclusion.site, reason, client=exclusion.client
            )

    def readmit(self, job: str, site: str, *, client: str = "", operator: str) -> Exclusion:
        """Lift an exclusion. Its clients may attest again.

        :raises ConfigError: when there is none of exactly these names.
        """
        with self._lock:
            found = self.exclusions.find(job, site, client)
            self._lift(dataclasses.replace(found, operator=operator), "lifted")
        self._readmitted(found)
        return found

    def shift(self, by: timedelta) -> None:
        """Move the end of what lives for a time, and not until a date: the date was moved."""
        with self._lock:
            self._book.shift(by)
            self.register.shift(by)

    def sweep(self) -> tuple[AdmissionEvent, ...]:
        """End what has lapsed. To be called about once a second by the owner."""
        now = self._clock()
        self._pay()
        self._settle()
        for exclusion in self.exclusions.over(now=now):
            with self._lock:
                if exclusion not in self.exclusions.over(now=now):
                    continue
                self._lift(exclusion, "over")
            self._readmitted(exclusion)
        return self.register.sweep(now=now)

    def _lift(self, exclusion: Exclusion, change: str) -> None:
        self._enter("exclusion", exclusion.entry(change))
        self.exclusions.lift(exclusion)

    def _count_admission(self, request: AdmitRequest, now: datetime) -> None:
        """Bound how often a site, which has vouched for it, begins anew in a job."""
        try:
            self._admissions.take(f"{request.job}/{request.site}", now=now)
        except Throttled:
            # The nonce is used up: this attempt is over, unlike one that was throttled before.
            raise AdmissionDenied(
                f"clients of site {request.site} sought admission to job {request.job} too often",
                hint="see why they end so soon; one is admitted every few seconds",
            ) from None

    def _check_unchanged(
        self, affirmed: Affirmed, request: AdmitRequest, now: datetime, *, admitting: bool
    ) -> None:
        """Step 10, first half: the job or the site may have gone or changed meanwhile."""
        site = request.site
        self.exclusions.check(request.job, site, request.client, now=now)
        self._sites.key_of(site, admitting=admitting)
        if self._sites.tpm_of(site) != affirmed.tpm:
            raise AdmissionDenied(
                f"the TPM of site {site} changed while the evidence was verified",
                hint="try again with a new challenge",
            )
        job = self._job(affirmed.job.name)
        if job is None or job != affirmed.job:
            raise AdmissionDenied(
                f"job {affirmed.job.name} changed while the evidence was verified",
                hint="try again with a new challenge",
            )

    def _make_room(self, request: AdmitRequest, key: bytes, now: datetime) -> None:
        """Step 10, second half: one client of a site in a job, one admission of a key.

        A client that was restarted takes the place of its former self. A site has one node in
        a job, which stays: what it was asked and did not answer, its new client is asked.
        """
        live = self.register.every(now=now)
        at_site = [a for a in live if (a.job, a.site) == (request.job, request.site)]
        if any(a.client != request.client for a in at_site):
            raise AdmissionDenied(
                f"site {request.site} has a live client in this job already",
                hint="stop the other client, or restart it under the same client id",
            )
        if any(a.thumbprint == key for a in live):
            raise AdmissionDenied(
                "this key is admitted already", hint="renew it, or make a fresh key"
            )
        for former in at_site:
            reason = "the same client was admitted anew"
            self.register.revoke(former.thumbprint, reason, now=now, superseded=True)

    def _establish(
        self,
        affirmed: Affirmed,
        request: AdmitRequest,
        now: datetime,
        *,
        current: Admission | None,
    ) -> Admitted:
        """Step 11. The caller holds the lock."""
        job = affirmed.job
        made = current is None
        if current is None:
            node = self._nodes.create_node(job.name, request.site, affirmed.tls_key)
        else:
            node = current.node_id
        try:
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
            self._enter(kind.value, admission_entry(admission, affirmed.claims))
        except BaseException:
            if made:
                self._nodes.delete_node(job.name, request.site, affirmed.tls_key)
            raise
        self._claims[admission.thumbprint] = affirmed.claims
        if made:
            self.register.add(admission, now=now)
        else:
            self.register.renew(admission, now=now)
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

    def _refuse(self, attempt: Attempt, error: FedlearnError) -> AdmissionDenied:
        """Write the refusal to the ledger and return what the caller is told."""
        if isinstance(error, AdmissionDenied):
            denied = error
        elif isinstance(error, ConfigError | TransportError):
            denied = AdmissionDenied(str(error), hint=error.hint)
        else:
            raise error
        if not denied.findings:
            denied.findings = (refusal_finding(attempt.step, str(denied), denied.hint),)
        self._enter_of(attempt.peer, "refusal", refusal_entry(attempt, denied))
        return denied

    def _ended(self, event: AdmissionEvent) -> None:
        """Whatever ends an admission also ends its Flower node, and is in the ledger.

        But for one whose part in the job stays: the node is its client's next one's.
        """
        if event.change in (Change.ADMITTED, Change.RENEWED):
            return
        admission = event.admission
        self._claims.pop(admission.thumbprint, None)
        try:
            if not event.part_stays:
                self._nodes.delete_node(admission.job, admission.site, admission.tls_key)
        finally:
            # It has ended, whether or not the disk takes the entry now.
            self._owed.append((event.change.value, ending_entry(event)))
            with contextlib.suppress(DiskError):
                self._pay()

    def _enter(self, kind: str, body: Mapping[str, Any]) -> None:
        """Enter something into the ledger, after what the disk did not take before."""
        self._pay()
        self._record(kind, body)

    def _enter_of(self, peer: str, kind: str, body: Mapping[str, Any]) -> None:
        """Enter what a peer may cause at will, as often as it may; then say how much was not."""
        left_out = self._quotas[kind].take(peer)
        if left_out is not None:
            self._enter(kind, {**body, **({"left_out": left_out} if left_out else {})})

    def _settle(self) -> None:
        """Enter how often peers caused what was not entered, once they have stopped."""
        for kind, quota in self._quotas.items():
            for peer, left_out in quota.settle().items():
                self._enter(kind, left_out_entry(kind, peer, left_out))

    def _pay(self) -> None:
        """Enter what the disk did not take before, in its order.

        :raises DiskError: when it does not take it now.
        """
        with self._paying:
            while self._owed:
                self._record(*self._owed[0])
                self._owed.popleft()


def _unsigned(result: AttestationResult) -> bytes:
    return json.dumps(result.to_json(), sort_keys=True, separators=(",", ":")).encode()
