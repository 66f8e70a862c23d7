"""The gate: challenge, evidence, certificate.

A client is admitted when, and only when, evidence for *its* key, made for *our* nonce, is
genuine, the job's policy affirms it, and a site that takes part in the job vouches for it.
:meth:`AdmissionGate.admit` numbers the steps. Each refusal names the step that failed and the
reason. Every admission is in the ledger before it takes effect; the end of one takes effect first.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from attestation.policy.model import AppraisalPolicy
from attestation.policy.result import AttestationResult
from fedlearn.errors import (
    AdmissionDenied,
    ConfigError,
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
    check_only_client,
    checked_names,
    refusal_finding,
)
from server.admission.exclusions import Exclusion, ExclusionList
from server.admission.job_policies import JobPolicies
from server.admission.ledger_entries import (
    admission_entry,
    challenge_entry,
    ending_entry,
    refusal_entry,
)
from server.admission.ledger_writer import AdmissionLedger
from server.admission.locks import AdmissionLocks
from server.admission.registry import Admission, AdmissionEvent, AdmissionRegistry, Change
from server.admission.types import Admitted, JobNodes, Periods, Record
from server.identity.peer_certificates import thumbprint
from server.identity.pki import CertificateAuthority

__all__ = ["AdmissionGate"]

_OF_ONE_CLIENT: Final = Limits(rate=1e6, burst=10**6, rate_per_peer=0.5, burst_per_peer=16)
"""How often one client renews, and how often one site's client is admitted to a job."""


class AdmissionGate:
    """Decides who is admitted. Safe to use from many threads.

    ``jobs``, ``nodes`` and ``record`` are called while the gate holds its locks: they must not
    wait for anything that calls the gate. They are called by many threads at once.

    ``jobs``         returns the job of a name, or ``None``
    ``sites``        the site registry
    ``nodes``        where Flower nodes are made and deleted
    ``record``       the ledger; an admission that cannot be recorded does not take place
    ``sign_result``  encodes the attestation result for the client (a signed EAR)
    ``exclusions``   the sites and clients that operators exclude from jobs
    ``readmitted``   called with an exclusion that has ended
    """

    def __init__(
        self,
        *,
        ca: CertificateAuthority,
        registry: AdmissionRegistry,
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
        self.registry = registry
        self.exclusions = exclusions or ExclusionList()
        self._readmitted = readmitted
        self.periods = periods or Periods()
        self._ca = ca
        self._nodes = nodes
        self._ledger = AdmissionLedger(record)
        self._clock = clock
        self._sign_result = sign_result or _unsigned
        self._challenges = ChallengeStore(limits=limits, verifier_id=ca.key_digest)
        self._examiner = Examiner(
            challenges=self._challenges,
            sites=sites,
            verifier_id=ca.key_digest,
            lifetime=self.periods.lifetime,
            exclusions=self.exclusions,
        )
        self._rates = Rates(limits=limits)
        self._attempts = Rates(limits=limits)
        self._renewals = Rates(limits=_OF_ONE_CLIENT)
        self._admissions = Rates(limits=_OF_ONE_CLIENT)
        self._locks = AdmissionLocks()
        self._policies = JobPolicies(jobs, examiner=self._examiner)
        registry.subscribe(self._ended)

    def now(self) -> datetime:
        """Return the time by the gate's clock."""
        return self._clock()

    def count(self, peer: str) -> None:
        """Count a request that is not an admission against the rates of ``peer``.

        :raises Throttled: when it is one too many.
        """
        self._rates.take(peer, now=self._clock())

    def challenge(self, job: str, site: str, peer: str) -> Challenge:
        """Issue a nonce for one admission to ``job`` at ``site``.

        The reply is the same whether job and site exist or not: the caller has proven nothing.

        :raises Throttled: beyond the limits.
        :raises AdmissionDenied: when a name is malformed.
        """
        now = self._clock()
        self._rates.take(peer, now=now)
        checked_names(job=job, site=site)
        challenge = self._challenges.issue(job=job, site=site, peer=peer, now=now)
        self._ledger.append_bounded(peer, "challenge", challenge_entry(challenge))
        return challenge

    def admit(self, request: AdmitRequest, *, peer: str) -> Admitted:
        """Admit a client whose request came from ``peer``.

        1. The request is within its bounds and its names are well-formed.
        2. The nonce is known, unused and fresh, and was issued for this job and site.
           It is used up, whatever the result.
        3. The job is open and the site takes part in it.
        4. The site is enrolled and active, and neither it nor this client of it is excluded
           from the job.
        5. The CSR is signed by its own P-256 key.
        6. The site vouches: its enrolled key signed job, client, nonce and that key.
        7. The evidence decodes.
        8. The evidence is genuine, fresh, and bound to role, nonce, our CA, both keys, the
           site and the workload. A TPM's attestation key counts when this very site has
           proven it, or when it is pinned and no other site has.
        9. The policy affirms the claims; ``app`` and ``job`` are measured as this job's.
        10. The policy is still the job's, and the site has no other client in it.
        11. The ledger has the admission; certificate and Flower node are made; the registry
            has it.

        An earlier admission of the same client is revoked first: a site has one client in a
        job, so that no site gains weight by running several.

        :raises AdmissionDenied: with findings. The refusal is in the ledger.
        """
        now = self._clock()
        self._attempts.take(peer, now=now)
        attempt = Attempt(request, peer)
        try:
            affirmed = self._examiner.examine(
                attempt, job_of=self._policies.job, current=None, now=now
            )
            attempt.step = "register"
            self._count_admission(request, now)
            key = thumbprint(affirmed.tls_key)
            with self._locks.admitting((request.job, request.site), key):
                self._examiner.recheck(
                    affirmed, request, job_of=self._policies.job, admitting=True, now=now
                )
                self._end_former(request, key, now)
                return self._complete(affirmed, request, now, current=None)
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
            self.registry.live(current.thumbprint, now=now)
            affirmed = self._examiner.examine(
                attempt, job_of=self._policies.job, current=current, now=now
            )
            with self._locks.admitting((request.job, request.site), current.thumbprint):
                attempt.step = "register"
                self._examiner.recheck(
                    affirmed, request, job_of=self._policies.job, admitting=False, now=now
                )
                latest = self.registry.live(current.thumbprint, now=now)
                return self._complete(affirmed, request, now, current=latest)
        except FedlearnError as error:
            denied = self._refuse(attempt, error)
            self.registry.quarantine(
                current.thumbprint, f"attesting again failed: {denied}", now=now
            )
            raise denied from error

    def replace_policy(
        self, job: str, policy: AppraisalPolicy, *, noted: Mapping[str, Any] | None = None
    ) -> tuple[Admission, ...]:
        """Put ``policy`` in force for ``job`` and appraise its clients by it at once.

        A live client whose claims it does not affirm is revoked. ``noted`` is written to the
        ledger with it: the signer and the version.

        :returns: the admissions that were revoked.
        :raises ConfigError: when there is no such job.
        """
        now = self._clock()
        with self._locks.changing():
            offered = self._policies.job(job)
            if offered is None:
                raise ConfigError(f"there is no open job {job!r}", key="job")
            self._ledger.append(
                "policy",
                {
                    "job": job,
                    "policy": policy.digest.hex(),
                    "former": offered.policy.digest.hex(),
                    **(noted or {}),
                },
            )
            self._policies.replace(job, policy)
            offered = dataclasses.replace(offered, policy=policy)
            unfit = self._policies.unfit(offered, self.registry.of_job(job, now=now), now)
            for admission, why in unfit:
                reason = f"the job's policy changed: {why}"
                self.registry.revoke(admission.thumbprint, reason, now=now)
        return tuple(admission for admission, _ in unfit)

    def close_job(self, job: str, reason: str = "the job ended") -> tuple[Admission, ...]:
        """End all admissions of ``job`` and forget a policy that replaced its first."""
        with self._locks.changing():
            self._policies.forget(job)
            return self.registry.revoke_job(job, reason, now=self._clock())

    def revoke_site(self, site: str, reason: str) -> tuple[Admission, ...]:
        """End all admissions of ``site``; to be called when a site is removed."""
        # With the lock, an admission between its last check and the registry is not missed.
        with self._locks.changing():
            return self.registry.revoke_site(site, reason, now=self._clock())

    def revoke_clients(
        self, job: str, site: str, reason: str, *, client: str = ""
    ) -> tuple[Admission, ...]:
        """End the admissions of ``site``, or of one client of it, to ``job``.

        A client that still satisfies the policy may be admitted again at once; :meth:`exclude`
        prevents that.
        """
        now = self._clock()
        with self._locks.changing():
            found = [
                a
                for a in self.registry.of_job(job, now=now)
                if a.site == site and client in ("", a.client)
            ]
            ended = [self.registry.revoke(a.thumbprint, reason, now=now) for a in found]
        return tuple(admission for admission in ended if admission is not None)

    def exclude(self, exclusion: Exclusion) -> tuple[Admission, ...]:
        """Exclude a site, or one client of it, from a job; return the admissions that ended.

        :raises ConfigError: when its time is over already, or there are too many.
        """
        now = self._clock()
        if exclusion.over(now):
            raise ConfigError("is in the past", key="until")
        with self._locks.changing():
            self.exclusions.check_room(exclusion)
            self._ledger.append("exclusion", exclusion.entry("laid"))
            self.exclusions.lay(exclusion)
            reason = f"{exclusion.reason} (operator {exclusion.operator})"
            return self.revoke_clients(
                exclusion.job, exclusion.site, reason, client=exclusion.client
            )

    def readmit(self, job: str, site: str, *, client: str = "", operator: str) -> Exclusion:
        """Lift an exclusion. Its clients may attest again.

        :raises ConfigError: when there is none of exactly these names.
        """
        with self._locks.changing():
            found = self.exclusions.find(job, site, client)
            self._lift(dataclasses.replace(found, operator=operator), "lifted")
        self._readmitted(found)
        return found

    def shift(self, by: timedelta) -> None:
        """Move the expiry of challenges and admissions: the clock of the system was changed."""
        with self._locks.changing():
            self._challenges.shift(by)
            self.registry.shift(by)

    def sweep(self) -> tuple[AdmissionEvent, ...]:
        """End what has expired. To be called about once a second by the owner."""
        now = self._clock()
        self._ledger.catch_up()
        self._ledger.settle()
        for exclusion in self.exclusions.over(now=now):
            with self._locks.changing():
                if exclusion not in self.exclusions.over(now=now):
                    continue
                self._lift(exclusion, "over")
            self._readmitted(exclusion)
        return self.registry.sweep(now=now)

    def _lift(self, exclusion: Exclusion, change: str) -> None:
        self._ledger.append("exclusion", exclusion.entry(change))
        self.exclusions.lift(exclusion)

    def _count_admission(self, request: AdmitRequest, now: datetime) -> None:
        """Bound how often the clients of a site are admitted to a job."""
        try:
            self._admissions.take(f"{request.job}/{request.site}", now=now)
        except Throttled:
            # The nonce is used up, so this attempt cannot be retried like one throttled earlier.
            raise AdmissionDenied(
                f"clients of site {request.site} sought admission to job {request.job} too often",
                hint="see why they end so soon; one is admitted every few seconds",
            ) from None

    def _end_former(self, request: AdmitRequest, key: bytes, now: datetime) -> None:
        """Step 10, second half. A restarted client replaces its earlier admission.

        The node of the site in the job stays: its open questions go to the new client.
        """
        at_site = self.registry.of_site(request.job, request.site, now=now)
        check_only_client(at_site, request)
        if self.registry.holds(key, now=now):
            raise AdmissionDenied(
                "this key is admitted already", hint="renew it, or make a fresh key"
            )
        for former in at_site:
            reason = "the same client was admitted again"
            self.registry.revoke(former.thumbprint, reason, now=now, superseded=True)

    def _complete(
        self,
        affirmed: Affirmed,
        request: AdmitRequest,
        now: datetime,
        *,
        current: Admission | None,
    ) -> Admitted:
        """Step 11. The caller holds the locks of the admission."""
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
            self._ledger.append(kind.value, admission_entry(admission, affirmed.claims))
        except BaseException:
            if made:
                self._nodes.delete_node(job.name, request.site, affirmed.tls_key)
            raise
        self._policies.keep_claims(admission, affirmed.claims)
        if made:
            self.registry.add(admission, now=now)
        else:
            self.registry.renew(admission, now=now)
        return Admitted(
            admission=admission,
            certificate_chain=issued.chain_pem,
            renew_after=now + self.periods.renew_after,
            token=token,
        )

    def _refuse(self, attempt: Attempt, error: FedlearnError) -> AdmissionDenied:
        """Write the refusal to the ledger; return the error for the caller."""
        if isinstance(error, AdmissionDenied):
            denied = error
        elif isinstance(error, ConfigError | TransportError):
            denied = AdmissionDenied(str(error), hint=error.hint)
        else:
            raise error
        if not denied.findings:
            denied.findings = (refusal_finding(attempt.step, str(denied), denied.hint),)
        self._ledger.append_bounded(attempt.peer, "refusal", refusal_entry(attempt, denied))
        return denied

    def _ended(self, event: AdmissionEvent) -> None:
        """End the Flower node of an admission that has ended, and write it to the ledger.

        The node stays when the next admission of the same client takes it over.
        """
        if event.change in (Change.ADMITTED, Change.RENEWED):
            return
        admission = event.admission
        self._policies.drop_claims(admission)
        try:
            if not event.part_stays:
                self._nodes.delete_node(admission.job, admission.site, admission.tls_key)
        finally:
            # It has ended, whether or not the entry can be written now.
            self._ledger.append_later(event.change.value, ending_entry(event))


def _unsigned(result: AttestationResult) -> bytes:
    return json.dumps(result.to_json(), sort_keys=True, separators=(",", ":")).encode()
