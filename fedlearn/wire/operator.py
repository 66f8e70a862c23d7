"""An operator's calls to the coordinator, for the command line and for programs.

Replies are plain dataclasses. Every failure is an error of :mod:`fedlearn.errors` or
:mod:`attestation.errors`, as the coordinator raised it, or a TransportError with a hint.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from attestation.policy.parse import parse_policy
from fedlearn.app.checks import MAX_BUNDLE_BYTES
from fedlearn.backoff import Backoff
from fedlearn.errors import ConfigError, TransportError
from fedlearn.job.app_log import SealedAppLog
from fedlearn.job.spec import JobSpec
from fedlearn.job.state import ExclusionState, JobEvent, JobState, JobStatus
from fedlearn.job.submission import Submission
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire import fedlearn_pb2_grpc as stubs
from fedlearn.wire.channel import MAX_CONTROL_BYTES, open_channel
from fedlearn.wire.failure import Unreachable
from fedlearn.wire.results import OperatorResults, app_log

__all__ = [
    "Invitation",
    "OperatorClient",
    "OperatorGrant",
    "OperatorState",
    "SiteState",
    "SiteTpm",
]

SUBMIT_SECONDS: Final = 120.0
RECONNECTS: Final = 4
_stubs: Final[Any] = stubs
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTpm:
    """A site's TPM. Keys are SHA-256 of their SPKI, empty where there is none.

    ``ek``           the endorsement key that the site is bound to
    ``endorsement``  why it is trusted: certificate, operator or invitation
    ``ak``           the attestation key that was proven to be in the same TPM
    ``shown_ek``     another endorsement key, which waits for approval
    ``certificate``  what the check of the endorsement key's certificate found
    """

    ek: bytes = b""
    endorsement: str = ""
    ak: bytes = b""
    shown_ek: bytes = b""
    certificate: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteState:
    """A site. ``status``: invited, pending, active, draining or removed.

    ``capabilities`` is the JSON that the site reports; empty in a list. ``sample_key`` is the
    SHA-256 of a development key that may sign its evidence, which proves nothing about hardware.
    """

    name: str
    status: str
    connected: bool
    last_seen: datetime | None
    capabilities: str
    assignments: tuple[str, ...]
    key_thumbprint: bytes
    sample_key: bytes = b""
    tpm: SiteTpm = field(default_factory=SiteTpm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A join token for a site's owner, until ``expires``. It is a secret."""

    token: str
    expires: datetime

    def __repr__(self) -> str:
        """Return the expiry, without the token."""
        return f"Invitation(expires={self.expires.isoformat()})"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorState:
    """One certificate of an operator. ``serial`` is hexadecimal, ``by`` who added it."""

    name: str
    serial: str
    key_thumbprint: bytes
    expires: datetime
    by: str
    revoked: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorGrant:
    """A new operator's certificate (PEM, leaf first), and the address where it is used."""

    operator: OperatorState
    chain: bytes
    address: str


class OperatorClient(OperatorResults):
    """A client of the control listener for an operator; its context closes the channel.

    ``address`` is ``host:port``; ``ca``, ``chain`` and ``key`` are PEM bytes.
    """

    attempts = 4

    def __init__(self, *, address: str, ca: bytes, chain: bytes, key: bytes) -> None:
        super().__init__(
            open_channel(address, roots=ca, chain=chain, key=key, max_bytes=MAX_CONTROL_BYTES),
            f"the coordinator at {address}",
        )
        self._operator = _stubs.OperatorStub(self._channel)

    def submit_job(
        self, *, job_toml: str, bundle: bytes, policy_toml: str, policy_signature: bytes = b""
    ) -> JobState:
        """Submit a job: its specification, its app bundle, its policy and the policy's signature.

        :raises ConfigError: when the bundle is longer than 64 MiB, or the coordinator finds
            something wrong in the specification.
        """
        if len(bundle) > MAX_BUNDLE_BYTES:
            raise ConfigError(
                f"the app bundle has {len(bundle)} bytes, at most {MAX_BUNDLE_BYTES} are sent",
                key="app",
                hint="remove data and models from the app's folder",
            )
        request = pb.SubmitJobRequest(
            job_toml=job_toml,
            bundle=bundle,
            policy_toml=policy_toml,
            policy_signature=policy_signature,
        )
        return _job(self._once(self._operator.SubmitJob, request, SUBMIT_SECONDS))

    def list_jobs(self) -> tuple[JobState, ...]:
        """Return all jobs."""
        reply = self._retry(self._operator.ListJobs, pb.Empty())
        return tuple(_job(item) for item in reply.jobs)

    def get_job(self, name: str) -> JobState:
        """Return one job."""
        return _job(self._retry(self._operator.GetJob, pb.JobName(name=name)))

    def follow_job(
        self, name: str, *, after: int = 0, past_only: bool = False
    ) -> Iterator[JobEvent]:
        """Yield a job's events with a sequence above ``after``.

        Ends when the job ends, or with ``past_only`` after the last event that exists. A lost
        connection is opened again, and continues after the last event that was yielded.
        """
        seen, failures, backoff = after, 0, Backoff(first=0.4)
        while True:
            request = pb.FollowJobRequest(name=name, after=seen, past_only=past_only)
            try:
                with contextlib.closing(self._stream(self._operator.FollowJob(request))) as items:
                    for item in items:
                        seen, failures = item.sequence, 0
                        backoff.reset()
                        yield JobEvent(
                            sequence=item.sequence,
                            unix_ms=item.unix_ms,
                            kind=item.kind,
                            json=item.json,
                        )
                return
            except Unreachable:
                failures += 1
                if failures > RECONNECTS:
                    raise
            time.sleep(backoff.next())

    def fetch_app_logs(self, name: str, site: str) -> Iterator[SealedAppLog]:
        """Yield the sealed logs of a job's app at one site, oldest first.

        They are as the coordinator sent them: :mod:`fedlearn.api.app_logs` opens and checks them.

        :raises JobError: when there is no such job or site, or the job was submitted without logs.
        """
        call = self._operator.FetchAppLogs(pb.AppLogsRequest(job=name, site=site))
        with contextlib.closing(self._stream(call)) as logs:
            for log in logs:
                yield app_log(log)

    def cancel_job(self, name: str) -> JobState:
        """Stop a job."""
        return _job(self._once(self._operator.CancelJob, pb.JobName(name=name)))

    def resume_job(self, name: str) -> JobState:
        """Resume a job from its last checkpoint."""
        return _job(self._once(self._operator.ResumeJob, pb.JobName(name=name)))

    def delete_job(self, name: str, *, keep_model: bool = False) -> JobState:
        """Delete a run that is over, and its sealed model unless that is kept.

        :returns: its last state.
        """
        request = pb.DeleteJobRequest(name=name, keep_model=keep_model)
        return _job(self._once(self._operator.DeleteJob, request))

    def get_submission(self, name: str) -> Submission:
        """Return what was submitted as a run, checked against its digests.

        :raises TransportError: when the parts of the answer are not what its digests name.
        """
        reply = self._once(self._operator.GetSubmission, pb.JobName(name=name), SUBMIT_SECONDS)
        spec = JobSpec.from_json(reply.job_json, where="the submitted job")
        policy = parse_policy(reply.policy_toml.encode(), where="the submitted policy")
        found = (spec.name, hashlib.sha256(reply.bundle).digest(), policy.digest)
        expected = (reply.run_id, reply.bundle_sha256, spec.policy_digest)
        for what, is_, should in zip(("job", "bundle", "policy"), found, expected, strict=True):
            if is_ != should:
                raise TransportError(
                    f"the {what} that the coordinator returned is not the one that was submitted",
                    hint="try again; `fedlearn ledger verify` checks what the coordinator keeps",
                )
        return Submission(
            spec=spec,
            bundle=reply.bundle,
            policy_toml=reply.policy_toml,
            policy_signature=reply.policy_signature,
        )

    def replace_policy(self, job: str, policy_toml: str, signature: bytes = b"") -> None:
        """Put another appraisal policy in force for a job, at once."""
        request = pb.ReplacePolicyRequest(
            job=job, policy_toml=policy_toml, policy_signature=signature
        )
        self._once(self._operator.ReplacePolicy, request)

    def revoke_client(
        self,
        job: str,
        site: str,
        reason: str,
        *,
        client: str = "",
        until: datetime | None = None,
        once: bool = False,
    ) -> None:
        """Exclude a site, or one client of it, from a job; its admission ends at once.

        It lasts until ``until``, or until :meth:`readmit_client`. With ``once`` the admission
        ends and nothing else: the client may attest again.
        """
        request = pb.RevokeClientRequest(
            job=job,
            site=site,
            reason=reason,
            client=client,
            once=once,
            until_unix_ms=int(until.timestamp() * 1000) if until is not None else 0,
        )
        self._once(self._operator.RevokeClient, request)

    def readmit_client(self, job: str, site: str, *, client: str = "") -> None:
        """End the exclusion that :meth:`revoke_client` made for exactly this site or client."""
        request = pb.ReadmitClientRequest(job=job, site=site, client=client)
        self._once(self._operator.ReadmitClient, request)

    def list_operators(self) -> tuple[OperatorState, ...]:
        """Return all operators, also revoked ones."""
        reply = self._retry(self._operator.ListOperators, pb.Empty())
        return tuple(_operator(item) for item in reply.operators)

    def add_operator(self, name: str, csr: bytes) -> OperatorGrant:
        """Have the request ``csr`` (DER) signed, of another operator or one's own."""
        request = pb.AddOperatorRequest(name=name, csr=csr)
        reply = self._once(self._operator.AddOperator, request)
        return OperatorGrant(
            operator=_operator(reply.operator),
            chain=reply.certificate_chain,
            address=reply.control_address,
        )

    def revoke_operator(
        self, *, name: str = "", serial: str = "", reason: str = ""
    ) -> tuple[OperatorState, ...]:
        """Revoke an operator by name, or one certificate by serial; return what was revoked."""
        request = pb.RevokeOperatorRequest(name=name, serial=serial, reason=reason)
        reply = self._once(self._operator.RevokeOperator, request)
        return tuple(_operator(item) for item in reply.operators)

    def create_token(
        self,
        site: str,
        *,
        lifetime: timedelta | None = None,
        needs_approval: bool = True,
        ek: bytes = b"",
        sample_key: bytes = b"",
    ) -> Invitation:
        """Invite a site; ``ek`` names the endorsement key that its TPM must have (SHA-256).

        ``sample_key`` is insecure: a development key (SHA-256) that may sign its evidence.

        Without ``lifetime`` the token is valid for as long as the coordinator configures.
        """
        request = pb.CreateTokenRequest(
            site=site,
            lifetime_s=int(lifetime.total_seconds()) if lifetime is not None else 0,
            needs_approval=needs_approval,
            ek=ek,
            insecure_sample_key=sample_key,
        )
        reply = self._once(self._operator.CreateToken, request)
        return Invitation(token=reply.token, expires=_moment(reply.expires_unix_ms))

    def list_sites(self) -> tuple[SiteState, ...]:
        """Return all sites."""
        reply = self._retry(self._operator.ListSites, pb.Empty())
        return tuple(_site(item) for item in reply.sites)

    def get_site(self, name: str) -> SiteState:
        """Return one site, with what it reports about itself."""
        return _site(self._retry(self._operator.GetSite, pb.SiteName(name=name)))

    def approve_site(self, name: str, *, ek: bytes = b"", sample_key: bytes = b"") -> SiteState:
        """Approve a pending site, or activate a draining one again.

        The site is bound to the endorsement key that it has shown. ``ek`` names that key, and is
        required if the site was bound to another one before. ``sample_key`` is insecure: a
        development key (SHA-256) that may sign its evidence.
        """
        request = pb.ApproveSiteRequest(name=name, ek=ek, insecure_sample_key=sample_key)
        return _site(self._once(self._operator.ApproveSite, request))

    def reject_site(self, name: str) -> SiteState:
        """Reject a pending site."""
        return _site(self._once(self._operator.RejectSite, pb.SiteName(name=name)))

    def drain_site(self, name: str) -> SiteState:
        """Give a site no new clients."""
        return _site(self._once(self._operator.DrainSite, pb.SiteName(name=name)))

    def remove_site(self, name: str) -> SiteState:
        """Remove a site at once."""
        return _site(self._once(self._operator.RemoveSite, pb.SiteName(name=name)))


def _status(text: str) -> JobStatus:
    try:
        return JobStatus(text)
    except ValueError:
        raise TransportError(
            f"the coordinator names a status of a job that is not known here: {text[:40]!a}",
            hint="use the version of fedlearn that the coordinator has",
        ) from None


def _job(state: pb.JobState) -> JobState:
    return JobState(
        name=state.name,
        id=state.id,
        status=_status(state.status),
        round=state.round,
        rounds=state.rounds,
        detail=state.detail,
        model=state.model,
        sites=tuple(state.sites),
        run=state.run,
        run_id=state.run_id or state.name,
        notes=tuple(state.notes),
        exclusions=tuple(
            ExclusionState(
                site=item.site,
                client=item.client,
                until=_moment(item.until_unix_ms) if item.until_unix_ms else None,
                reason=item.reason,
                operator=item.operator,
            )
            for item in state.exclusions
        ),
    )


def _operator(state: pb.OperatorState) -> OperatorState:
    return OperatorState(
        name=state.name,
        serial=state.serial,
        key_thumbprint=state.key_thumbprint,
        expires=_moment(state.expires_unix_ms),
        by=state.by,
        revoked=state.revoked,
        reason=state.reason,
    )


def _moment(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms / 1000, UTC)


def _site(state: pb.SiteState) -> SiteState:
    seen = state.last_seen_unix_ms
    return SiteState(
        name=state.name,
        status=state.status,
        connected=state.connected,
        last_seen=_moment(seen) if seen else None,
        capabilities=state.capabilities_json,
        assignments=tuple(state.assignments),
        key_thumbprint=state.key_thumbprint,
        sample_key=state.insecure_sample_key,
        tpm=SiteTpm(
            ek=state.tpm.ek,
            endorsement=state.tpm.endorsement,
            ak=state.tpm.ak,
            shown_ek=state.tpm.shown_ek,
            certificate=state.tpm.certificate,
        ),
    )
