"""Calls from a site and its clients to the coordinator.

The gate is identified by the pinned hash of its CA's key. Every call has a deadline; a failure is
an error of :mod:`fedlearn.errors` with a hint. Calls that may be made twice are repeated while
nobody answers; a nonce that was used is never sent again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Self, TypeVar

from edge.protocol.identity import SiteIdentity, certification_request, key_pem, new_key
from edge.protocol.site_stream import Order, Reports, Start, Stop
from fedlearn.app.checks import MAX_BUNDLE_BYTES
from fedlearn.backoff import retry
from fedlearn.errors import FedlearnError, TransportError
from fedlearn.identity.admission import AdmitRequest
from fedlearn.identity.join import JoinToken
from fedlearn.job.app_log import SealedAppLog
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire import fedlearn_pb2_grpc as stubs
from fedlearn.wire.calls import ADMIT_SECONDS, Calls
from fedlearn.wire.channel import open_channel
from fedlearn.wire.failure import UNANSWERED, denied_of
from fedlearn.wire.pinning import PinnedServer, fetch_pinned

__all__ = [
    "AdmittedClient",
    "Challenge",
    "ControlClient",
    "CoordinatorEvidence",
    "GateClient",
    "TpmChallenge",
    "enroll",
]

_stubs: Final[Any] = stubs
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorEvidence:
    """Encoded evidence about the coordinator, unverified, and the HPKE key it names."""

    evidence: bytes
    hpke_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A nonce that may be used once, until ``expires`` by the coordinator's clock."""

    nonce: bytes
    expires: datetime
    verifier_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmChallenge:
    """A blob that only the site's TPM can open, and the name for the one answer to it."""

    challenge: bytes
    blob: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedClient:
    """What an admitted client received. Times are aware, UTC; ``result`` is a signed EAR."""

    chain: bytes
    expires: datetime
    renew_after: datetime
    fleet_address: str
    control_address: str
    node_id: int
    result: bytes


def _coordinator(address: str) -> str:
    return f"the coordinator at {address}"


class GateClient(Calls):
    """A client of the Gate of one server, the holder of ``pinned.tls_key``."""

    def __init__(self, pinned: PinnedServer) -> None:
        # The server's own certificate is the only root. So evidence that names its key is
        # evidence about the server that answers on this channel.
        super().__init__(
            open_channel(pinned.address, roots=pinned.leaf_pem), _coordinator(pinned.address)
        )
        self.pinned = pinned
        self._gate = _stubs.GateStub(self._channel)

    @classmethod
    def connect(
        cls, address: str, *, ca_pin: bytes, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> Self:
        """Connect to the server at ``address`` and pin its key.

        :raises TransportError: when the pin is of another server, or none can be reached.
        """
        return cls(
            retry(
                lambda: fetch_pinned(address, ca_pin=ca_pin, now=now()),
                failures=UNANSWERED,
                attempts=cls.attempts,
            )
        )

    def enroll(self, token: str, csr: bytes, tpm: bytes = b"") -> pb.EnrollReply:
        """Redeem a join token, or ask again with the key that redeemed it.

        ``tpm`` is the encoded identity of the site's TPM, for the operator to see.
        """
        reply: pb.EnrollReply = self._retry(
            self._gate.Enroll, pb.EnrollRequest(token=token, csr=csr, tpm_identity=tpm)
        )
        return reply

    def attest_coordinator(self, job: str, nonce: bytes) -> CoordinatorEvidence:
        """Ask the coordinator for evidence over ``nonce``, 32 bytes that the caller made."""
        request = pb.AttestCoordinatorRequest(job=job, nonce=nonce)
        reply = self._retry(self._gate.AttestCoordinator, request)
        return CoordinatorEvidence(evidence=reply.evidence, hpke_key=reply.hpke_key)

    def challenge(self, job: str, site: str) -> Challenge:
        """Ask for a nonce."""
        return _challenge(
            self._retry(self._gate.Challenge, pb.ChallengeRequest(job=job, site=site))
        )

    def admit(self, request: AdmitRequest) -> AdmittedClient:
        """Request admission. The nonce is used up, whatever the answer is.

        :raises AdmissionDenied: with the coordinator's findings.
        """
        return _admitted(self._when_taken(self._gate.Admit, pb.AdmitRequest(**asdict(request))))


class ControlClient(Calls):
    """A client of the control listener over mutual TLS, as a site or as an admitted client."""

    def __init__(self, address: str, *, roots: bytes, chain: bytes, key: bytes) -> None:
        super().__init__(
            open_channel(address, roots=roots, chain=chain, key=key), _coordinator(address)
        )
        self._sites = _stubs.SitesStub(self._channel)
        self._clients = _stubs.ClientsStub(self._channel)

    @classmethod
    def of_site(cls, identity: SiteIdentity) -> Self:
        """Return a client with a site's identity.

        :raises TransportError: while the site waits for approval.
        """
        if identity.pending:
            raise TransportError(
                f"site {identity.site} is not approved yet",
                hint=f"the coordinator's operator runs `fedlearn site approve {identity.site}`",
            )
        return cls(
            identity.control_address,
            roots=identity.ca_pem,
            chain=identity.chain,
            key=key_pem(identity.key),
        )

    def challenge(self) -> Challenge:
        """Ask for a nonce for attesting again, as an admitted client."""
        return _challenge(self._retry(self._clients.Challenge, pb.Empty()))

    def renew(self, request: AdmitRequest) -> AdmittedClient:
        """Attest again, once, on the connection of the certificate in use.

        :raises AdmissionDenied: with findings; the client is then in quarantine.
        """
        return _admitted(self._when_taken(self._clients.Renew, pb.AdmitRequest(**asdict(request))))

    def commit_data(self, job: str, *, root: bytes, records: int, examples: int) -> int:
        """Commit to the client's data (Merkle root, 32 bytes); return the ledger entry.

        :param examples: the most examples that the records can hold (:mod:`edge.client.dataset`).
        """
        request = pb.CommitDataRequest(job=job, root=root, records=records, examples=examples)
        return int(self._retry(self._clients.CommitData, request).ledger_entry)

    def release_key(self, model: str, version: int, file_id: bytes) -> bytes:
        """Return a content key, wrapped to the attested HPKE key.

        :raises KeyReleaseDenied: when it is not for this client, or not now.
        """
        request = pb.ReleaseKeyRequest(model=model, version=version, file_id=file_id)
        return bytes(self._retry(self._clients.ReleaseKey, request).wrapped)

    def release_state_secret(self) -> bytes:
        """Return the coordinator's part of the key of this client's states, wrapped.

        :raises KeyReleaseDenied: when it is not for this client, or not now.
        """
        return bytes(self._retry(self._clients.ReleaseStateSecret, pb.Empty()).wrapped)

    def deliver_app_log(self, log: SealedAppLog) -> None:
        """Deliver a sealed log of the app, once: a log that does not arrive leaves a gap."""
        request = pb.AppLog(
            stream=log.stream, round=log.round, sequence=log.sequence, sealed=log.sealed
        )
        self._once(self._clients.DeliverAppLog, request)

    def renew_site(self, identity: SiteIdentity) -> SiteIdentity:
        """Return the site's identity with a new certificate for the same key."""
        csr = certification_request(identity.key)
        reply = self._retry(self._sites.RenewSite, pb.RenewSiteRequest(csr=csr))
        return _accepted(identity, reply)

    def propose_tpm(self, identity: bytes) -> TpmChallenge:
        """Name the site's TPM; return the challenge that it has to open."""
        reply = self._once(self._sites.ProposeTpm, pb.ProposeTpmRequest(identity=identity))
        return TpmChallenge(challenge=reply.challenge, blob=reply.blob)

    def prove_tpm(self, challenge: TpmChallenge, secret: bytes) -> str:
        """Answer the challenge, once; return why the coordinator trusts the endorsement key.

        Empty when the operator has to approve it first.

        :raises EnrollmentRefused: when the answer is wrong, or the TPM is another site's.
        """
        request = pb.ProveTpmRequest(challenge=challenge.challenge, secret=secret)
        reply = self._once(self._sites.ProveTpm, request)
        return str(reply.endorsement) if reply.accepted else ""

    def fetch_bundle(self, sha256: bytes) -> bytes:
        """Return an app bundle. The caller checks its digest before it is used.

        :raises TransportError: when it is longer than 64 MiB.
        """
        return retry(lambda: self._fetch(sha256), failures=UNANSWERED, attempts=self.attempts)

    def follow(
        self, reports: Reports, *, answered: Callable[[], object] = lambda: None
    ) -> Iterator[Order]:
        """Send ``reports`` and yield orders until the stream ends.

        ``answered`` is called when the coordinator has accepted the stream: it sends a message
        at once to each site that it knows.

        :raises FedlearnError: stating why it ended, unless ``reports`` was closed or finished.
        """
        call = self._sites.Follow(iter(reports))
        reports.ends(call.cancel)
        try:
            with contextlib.closing(self._stream(call)) as orders:
                for order in orders:
                    answered()
                    match order.WhichOneof("order"):
                        case "start":
                            yield Start(
                                assignment_json=order.start.assignment_json,
                                signature=order.start.signature,
                            )
                        case "stop":
                            yield Stop(assignment=order.stop.assignment, reason=order.stop.reason)
                        case _:
                            continue
        except FedlearnError:
            if not (reports.closed or reports.finished):
                raise

    def _fetch(self, sha256: bytes) -> bytes:
        call = self._sites.FetchBundle(pb.FetchBundleRequest(sha256=sha256), timeout=ADMIT_SECONDS)
        return self._joined(call, limit=MAX_BUNDLE_BYTES, what="the bundle")


def enroll(
    token: str,
    *,
    identity: SiteIdentity | None = None,
    keep: Callable[[SiteIdentity], None] = lambda identity: None,
    tpm: bytes = b"",
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> SiteIdentity:
    """Redeem a join token with a fresh key, or ask again with the key of ``identity``.

    The result may be pending: ask again with it after the operator's approval. ``keep`` is
    called with the identity before the token is redeemed: from then on the token is valid for
    this key only, which a crash must not lose. ``tpm`` is the encoded
    identity of the site's TPM, which the operator sees while the site waits.

    :raises ConfigError: when the token was mistyped.
    :raises EnrollmentRefused: when the coordinator does not accept it.
    :raises TransportError: when the coordinator is not the one that made the token.
    """
    parsed = JoinToken.parse(token)
    with GateClient.connect(parsed.address, ca_pin=parsed.ca_pin, now=now) as gate:
        if identity is None:
            identity = SiteIdentity(
                site=parsed.site,
                gate_address=parsed.address,
                control_address="",
                ca_pin=parsed.ca_pin,
                ca_pem=gate.pinned.ca_pem,
                chain=b"",
                order_key=b"",
                key=new_key(),
                token=token.strip(),
            )
        identity = replace(identity, token=token.strip())
        keep(identity)
        reply = gate.enroll(identity.token, certification_request(identity.key), tpm)
    if reply.status == pb.EnrollReply.PENDING:
        return replace(identity, chain=b"")
    return _accepted(identity, reply)


def _accepted(identity: SiteIdentity, reply: pb.EnrollReply) -> SiteIdentity:
    if reply.status != pb.EnrollReply.ACCEPTED or not reply.certificate_chain:
        raise TransportError("the coordinator's answer to the enrollment is malformed")
    if reply.site != identity.site:
        raise TransportError(f"the coordinator enrolled {reply.site[:64]!a}, not {identity.site}")
    return identity.accepted(
        chain=reply.certificate_chain,
        order_key=reply.order_key,
        control_address=reply.control_address,
    )


def _challenge(reply: pb.ChallengeReply) -> Challenge:
    return Challenge(
        nonce=reply.nonce,
        expires=_moment(reply.expires_unix_ms),
        verifier_id=reply.verifier_id,
    )


def _admitted(reply: pb.AdmitReply) -> AdmittedClient:
    match reply.WhichOneof("outcome"):
        case "admitted":
            admitted = reply.admitted
            return AdmittedClient(
                chain=admitted.certificate_chain,
                expires=_moment(admitted.expires_unix_ms),
                renew_after=_moment(admitted.renew_after_unix_ms),
                fleet_address=admitted.fleet_address,
                control_address=admitted.control_address,
                node_id=admitted.node_id,
                result=admitted.result,
            )
        case "refused":
            refused = reply.refused
            raise denied_of(
                refused.reason,
                findings_json=refused.findings_json,
                code=refused.code,
                hint=refused.hint,
            )
        case _:
            raise TransportError("the coordinator's answer is empty")


def _moment(unix_ms: int) -> datetime:
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        raise TransportError("the coordinator's answer has a time that is out of range") from None
