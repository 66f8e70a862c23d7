"""The Operator service: jobs, sites, revocation, policies, and who is an operator."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from attestation.policy.model import MAX_POLICY_BYTES
from fedlearn.errors import ConfigError, TransportError
from fedlearn.identity.spiffe import checked_name
from fedlearn.job.run import RunName
from fedlearn.job.spec import MAX_JOB_TOML_BYTES
from fedlearn.job.state import JobState
from fedlearn.wire import fedlearn_pb2 as pb
from server.admission.exclusions import Exclusion
from server.admission.gate import AdmissionGate
from server.identity.operators import Operator, OperatorRegistry
from server.identity.peer_certificates import PeerCertificate
from server.identity.site import Site
from server.identity.site_registry import SiteRegistry
from server.rpc.guard import Caller
from server.rpc.ports import Coordinator
from server.rpc.results.ledger import LedgerSender
from server.rpc.results.models import ModelSender
from server.rpc.results.operator import OperatorResults

__all__ = ["OperatorService"]

_MAX_REASON_CHARS = 500
_MAX_CERTIFICATE_CHARS = 500
_MAX_UNIX_MS = 4_102_444_800_000  # the year 2100


class OperatorService(OperatorResults):
    """Bodies of ``fedlearn.v1.Operator``. ``connected`` returns whether a site has a stream."""

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        sites: SiteRegistry,
        operators: OperatorRegistry,
        gate: AdmissionGate,
        connected: Callable[[str], bool],
        control_address: str,
        models: ModelSender,
        ledger: LedgerSender,
    ) -> None:
        self._models = models
        self._ledger = ledger
        self._coordinator = coordinator
        self._sites = sites
        self._operators = operators
        self._control_address = control_address
        self._gate = gate
        self._connected = connected

    def SubmitJob(self, request: pb.SubmitJobRequest, caller: Caller) -> pb.JobState:  # noqa: N802
        """Accept a job."""
        if len(request.job_toml.encode()) > MAX_JOB_TOML_BYTES:
            raise ConfigError(f"at most {MAX_JOB_TOML_BYTES} bytes", where="job.toml")
        _bounded_policy(request.policy_toml)
        return _job(
            self._coordinator.submit_job(
                caller.operator,
                job_toml=request.job_toml,
                bundle=request.bundle,
                policy_toml=request.policy_toml,
                policy_signature=request.policy_signature,
            )
        )

    def ListJobs(self, request: pb.Empty, caller: Caller) -> pb.JobList:  # noqa: N802
        """Return all jobs."""
        return pb.JobList(jobs=[_job(view) for view in self._coordinator.list_jobs()])

    def GetJob(self, request: pb.JobName, caller: Caller) -> pb.JobState:  # noqa: N802
        """Return one job."""
        name = self._coordinator.resolve_job(request.name)
        state = _job(self._coordinator.get_job(name))
        excluded = self._gate.exclusions.of_job(name, now=self._gate.now())
        state.exclusions.extend(_exclusion(one) for one in excluded)
        return state

    def FollowJob(  # noqa: N802
        self, request: pb.FollowJobRequest, caller: Caller, stop: threading.Event
    ) -> Iterator[pb.Event]:
        """Return a job's events as they happen."""
        events = self._coordinator.follow_job(
            self._coordinator.resolve_job(request.name),
            after=request.after,
            past_only=request.past_only,
            stop=stop,
        )
        for event in events:
            yield pb.Event(
                sequence=event.sequence, unix_ms=event.unix_ms, kind=event.kind, json=event.json
            )

    def FetchAppLogs(  # noqa: N802
        self, request: pb.AppLogsRequest, caller: Caller, stop: threading.Event
    ) -> Iterator[pb.AppLog]:
        """Return the sealed logs of a job at one site."""
        job = self._coordinator.resolve_job(request.job)
        site = checked_name(request.site, "site")
        for log in self._coordinator.app_logs(job, site):
            if stop.is_set():
                return
            yield pb.AppLog(**dataclasses.asdict(log))

    def CancelJob(self, request: pb.JobName, caller: Caller) -> pb.JobState:  # noqa: N802
        """Stop a job."""
        name = self._coordinator.resolve_job(request.name)
        return _job(self._coordinator.cancel_job(caller.operator, name))

    def ResumeJob(self, request: pb.JobName, caller: Caller) -> pb.JobState:  # noqa: N802
        """Go on with a job."""
        name = self._coordinator.resolve_job(request.name)
        return _job(self._coordinator.resume_job(caller.operator, name))

    def DeleteJob(self, request: pb.DeleteJobRequest, caller: Caller) -> pb.JobState:  # noqa: N802
        """Delete a run that is over."""
        name = self._coordinator.resolve_job(request.name, kept=True)
        return _job(
            self._coordinator.delete_job(caller.operator, name, keep_model=request.keep_model)
        )

    def GetSubmission(self, request: pb.JobName, caller: Caller) -> pb.JobSubmission:  # noqa: N802
        """Return what was submitted as a run."""
        record = self._coordinator.submission(self._coordinator.resolve_job(request.name))
        return pb.JobSubmission(
            name=RunName.of_id(record.name).name,
            run_id=record.name,
            job_json=record.spec.to_json(),
            bundle=record.bundle.data,
            policy_toml=record.policy,
            policy_signature=record.policy_signature,
            bundle_sha256=record.bundle.digest,
        )

    def ReplacePolicy(self, request: pb.ReplacePolicyRequest, caller: Caller) -> pb.Empty:  # noqa: N802
        """Put another policy in force."""
        _bounded_policy(request.policy_toml)
        name = self._coordinator.resolve_job(request.job)
        self._coordinator.replace_policy(
            caller.operator, name, request.policy_toml, request.policy_signature
        )
        return pb.Empty()

    def RevokeClient(self, request: pb.RevokeClientRequest, caller: Caller) -> pb.Empty:  # noqa: N802
        """Keep a site, or one client of it, out of a job; or only end its admission."""
        job, site, client = self._named(request)
        reason = _reason(request.reason) or "revoked"
        if request.once:
            why = f"{reason} (operator {caller.operator})"
            if not self._gate.revoke_clients(job, site, why, client=client):
                raise ConfigError(f"site {site} has no live client in job {job}", key="site")
            return pb.Empty()
        if not 0 <= request.until_unix_ms < _MAX_UNIX_MS:
            raise ConfigError("is not a Unix time in milliseconds", key="until")
        until = None
        if request.until_unix_ms:
            until = datetime.fromtimestamp(request.until_unix_ms / 1000, UTC)
        self._gate.exclude(
            Exclusion(
                job=job,
                site=site,
                client=client,
                until=until,
                reason=reason,
                operator=caller.operator,
            )
        )
        return pb.Empty()

    def ReadmitClient(self, request: pb.ReadmitClientRequest, caller: Caller) -> pb.Empty:  # noqa: N802
        """Lift the exclusion that RevokeClient placed on a site or a client."""
        job, site, client = self._named(request)
        self._gate.readmit(job, site, client=client, operator=caller.operator)
        return pb.Empty()

    def _named(
        self, request: pb.RevokeClientRequest | pb.ReadmitClientRequest
    ) -> tuple[str, str, str]:
        """Return job, site and client of a request; the site has to be one of the job's."""
        job, site = self._coordinator.resolve_job(request.job), checked_name(request.site, "site")
        if request.client:
            checked_name(request.client, "client")
        if site not in self._coordinator.get_job(job).sites:
            raise ConfigError(f"site {site} does not take part in job {job}", key="site")
        return job, site, request.client

    def CreateToken(self, request: pb.CreateTokenRequest, caller: Caller) -> pb.CreateTokenReply:  # noqa: N802
        """Invite a site."""
        seconds = request.lifetime_s or int(self._sites.invitations.lifetime.total_seconds())
        if not 0 < seconds < 10**9:
            raise ConfigError(f"a token cannot be valid for {seconds} s", key="lifetime")
        lifetime = timedelta(seconds=seconds)
        token = self._sites.invitations.create_token(
            request.site,
            lifetime=lifetime,
            needs_approval=request.needs_approval,
            ek=request.ek,
            sample_key=request.insecure_sample_key,
        )
        expires = self._gate.now() + lifetime
        return pb.CreateTokenReply(
            token=token.encode(), expires_unix_ms=int(expires.timestamp() * 1000)
        )

    def ListSites(self, request: pb.Empty, caller: Caller) -> pb.SiteList:  # noqa: N802
        """Return all sites, without what they report about themselves."""
        sites = [self._site(site, whole=False) for site in self._sites.list()]
        return pb.SiteList(sites=sites)

    def GetSite(self, request: pb.SiteName, caller: Caller) -> pb.SiteState:  # noqa: N802
        """Return one site."""
        return self._site(self._sites.show(request.name))

    def ApproveSite(self, request: pb.ApproveSiteRequest, caller: Caller) -> pb.SiteState:  # noqa: N802
        """Let a site in, and bind it to the TPM that it has shown."""
        approved = self._sites.approve(
            request.name, ek=request.ek, sample_key=request.insecure_sample_key
        )
        return self._site(approved)

    def RejectSite(self, request: pb.SiteName, caller: Caller) -> pb.SiteState:  # noqa: N802
        """Turn a site away."""
        return self._site(self._sites.reject(request.name))

    def DrainSite(self, request: pb.SiteName, caller: Caller) -> pb.SiteState:  # noqa: N802
        """Give a site no new clients."""
        return self._site(self._sites.drain(request.name))

    def RemoveSite(self, request: pb.SiteName, caller: Caller) -> pb.SiteState:  # noqa: N802
        """Cut a site off."""
        return self._site(self._sites.remove(request.name))

    def ListOperators(self, request: pb.Empty, caller: Caller) -> pb.OperatorList:  # noqa: N802
        """Return all operators, those that were revoked included."""
        return pb.OperatorList(operators=[_operator(one) for one in self._operators.list()])

    def AddOperator(self, request: pb.AddOperatorRequest, caller: Caller) -> pb.AddOperatorReply:  # noqa: N802
        """Let another operator in, or the caller with a new key."""
        added, issued = self._operators.add(request.name, request.csr, by=_certificate(caller))
        return pb.AddOperatorReply(
            operator=_operator(added),
            certificate_chain=issued.chain_pem,
            control_address=self._control_address,
        )

    def RevokeOperator(  # noqa: N802
        self, request: pb.RevokeOperatorRequest, caller: Caller
    ) -> pb.OperatorList:
        """Shut an operator out; return what was revoked."""
        ended = self._operators.revoke(
            name=request.name,
            serial=request.serial,
            reason=_reason(request.reason),
            by=_certificate(caller),
        )
        return pb.OperatorList(operators=[_operator(one) for one in ended])

    def _site(self, site: Site, *, whole: bool = True) -> pb.SiteState:
        seen = site.last_seen
        tpm = self._sites.tpm(site.name)
        return pb.SiteState(
            name=site.name,
            status=site.status.value,
            connected=self._connected(site.name),
            last_seen_unix_ms=int(seen.timestamp() * 1000) if seen else 0,
            capabilities_json=site.capabilities if whole else "",
            assignments=list(self._coordinator.site_assignments(site.name)),
            key_thumbprint=site.key_thumbprint,
            insecure_sample_key=site.sample_key,
            tpm=pb.SiteTpm(
                ek=tpm.ek,
                endorsement=tpm.endorsement,
                ak=tpm.ak,
                shown_ek=tpm.shown_ek,
                certificate=tpm.certificate[:_MAX_CERTIFICATE_CHARS],
            ),
        )


def _certificate(caller: Caller) -> PeerCertificate:
    if caller.certificate is None:
        raise TransportError("this service needs an operator's certificate")
    return caller.certificate


def _reason(text: str) -> str:
    if len(text) > _MAX_REASON_CHARS:
        raise ConfigError(f"at most {_MAX_REASON_CHARS} characters", key="reason")
    return text


def _operator(one: Operator) -> pb.OperatorState:
    return pb.OperatorState(
        name=one.name,
        serial=one.serial,
        key_thumbprint=one.thumbprint,
        expires_unix_ms=int(one.expires.timestamp() * 1000),
        by=one.by,
        revoked=one.revoked,
        reason=one.reason,
    )


def _exclusion(one: Exclusion) -> pb.Exclusion:
    return pb.Exclusion(
        site=one.site,
        client=one.client,
        until_unix_ms=int(one.until.timestamp() * 1000) if one.until else 0,
        reason=one.reason,
        operator=one.operator,
    )


def _bounded_policy(policy_toml: str) -> None:
    if len(policy_toml.encode()) > MAX_POLICY_BYTES:
        raise ConfigError(f"at most {MAX_POLICY_BYTES} bytes", where="policy.toml")


def _job(state: JobState) -> pb.JobState:
    run = RunName.of_id(state.name)
    return pb.JobState(
        name=run.name,
        run=run.number,
        run_id=run.id,
        notes=state.notes,
        id=state.id,
        status=state.status,
        round=state.round,
        rounds=state.rounds,
        detail=state.detail,
        model=state.model,
        sites=list(state.sites),
    )
