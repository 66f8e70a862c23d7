"""The Clients service: the requests of an admitted client."""

from __future__ import annotations

from fedlearn.errors import AdmissionDenied, ConfigError, Throttled, TransportError
from fedlearn.job.app_log import SealedAppLog
from fedlearn.job.tables import MAX_ROUNDS
from fedlearn.sealing.app_log import MAX_SEALED_BYTES, STREAM_BYTES
from fedlearn.wire import fedlearn_pb2 as pb
from server.admission.gate import AdmissionGate
from server.admission.registry import Admission
from server.rpc.gate import Welcome, admit_reply, admit_request, challenge_reply, refused_reply
from server.rpc.guard import Caller
from server.rpc.ports import Coordinator

__all__ = ["ClientsService"]

_ROOT_BYTES = 32
_MAX_EXAMPLES = 2**53
_MAX_FILE_ID_BYTES = 64
_MAX_MODEL_CHARS = 256


class ClientsService:
    """Bodies of ``fedlearn.v1.Clients``. The guard has found the caller's live admission."""

    def __init__(self, *, gate: AdmissionGate, coordinator: Coordinator, welcome: Welcome) -> None:
        self._gate = gate
        self._coordinator = coordinator
        self._welcome = welcome

    def Challenge(self, request: pb.Empty, caller: Caller) -> pb.ChallengeReply:  # noqa: N802
        """Give out a nonce for attesting again; counted for the client, not for its address."""
        admission = _admission(caller)
        return challenge_reply(self._gate.challenge(admission.job, admission.site, caller.name))

    def Renew(self, request: pb.AdmitRequest, caller: Caller) -> pb.AdmitReply:  # noqa: N802
        """Attest again; a refusal is a reply, with its findings."""
        try:
            admitted = self._gate.renew(
                admit_request(request), _admission(caller), peer=caller.peer
            )
        except Throttled:
            raise
        except AdmissionDenied as denied:
            return refused_reply(denied)
        return admit_reply(admitted, self._welcome)

    def CommitData(self, request: pb.CommitDataRequest, caller: Caller) -> pb.CommitDataReply:  # noqa: N802
        """Commit to the client's data set."""
        admission = _admission(caller)
        if request.job != admission.job:
            raise ConfigError(f"the admission is for job {admission.job}", key="job")
        if len(request.root) != _ROOT_BYTES:
            raise ConfigError(f"a Merkle root has {_ROOT_BYTES} bytes", key="root")
        for name in ("records", "examples"):
            if getattr(request, name) > _MAX_EXAMPLES:
                raise ConfigError(f"at most {_MAX_EXAMPLES} are counted", key=name)
        entry = self._coordinator.commit_data(
            admission, root=request.root, records=request.records, examples=request.examples
        )
        return pb.CommitDataReply(ledger_entry=entry)

    def ReleaseKey(self, request: pb.ReleaseKeyRequest, caller: Caller) -> pb.ReleaseKeyReply:  # noqa: N802
        """Release a content key to the attested key."""
        if len(request.model) > _MAX_MODEL_CHARS or len(request.file_id) > _MAX_FILE_ID_BYTES:
            raise ConfigError("the name of the model or file is too long", key="model")
        wrapped = self._coordinator.release_key(
            _admission(caller),
            model=request.model,
            version=request.version,
            file_id=request.file_id,
        )
        return pb.ReleaseKeyReply(wrapped=wrapped)

    def ReleaseStateSecret(self, request: pb.Empty, caller: Caller) -> pb.ReleaseKeyReply:  # noqa: N802
        """Release the coordinator's part of the key of a client's states to the attested key."""
        wrapped = self._coordinator.release_state_secret(_admission(caller))
        return pb.ReleaseKeyReply(wrapped=wrapped)

    def DeliverAppLog(self, request: pb.AppLog, caller: Caller) -> pb.Empty:  # noqa: N802
        """Keep a sealed log. Whose it is, the admission states, and not the request."""
        admission = _admission(caller)
        if not 0 < len(request.sealed) <= MAX_SEALED_BYTES:
            raise ConfigError(f"a sealed log has at most {MAX_SEALED_BYTES} bytes", key="sealed")
        if len(request.stream) != STREAM_BYTES:
            raise ConfigError(f"a stream is named by {STREAM_BYTES} bytes", key="stream")
        if request.round > MAX_ROUNDS:
            raise ConfigError(f"a round is at most {MAX_ROUNDS}", key="round")
        log = SealedAppLog(
            client=admission.client,
            stream=request.stream,
            round=request.round,
            sequence=request.sequence,
            sealed=request.sealed,
        )
        self._coordinator.deliver_app_log(admission, log)
        return pb.Empty()


def _admission(caller: Caller) -> Admission:
    if caller.admission is None:
        raise TransportError("this service needs an admission")
    return caller.admission
