from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class EnrollRequest(_message.Message):
    __slots__ = ("token", "csr", "tpm_identity")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    TPM_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    token: str
    csr: bytes
    tpm_identity: bytes
    def __init__(self, token: _Optional[str] = ..., csr: _Optional[bytes] = ..., tpm_identity: _Optional[bytes] = ...) -> None: ...

class EnrollReply(_message.Message):
    __slots__ = ("status", "site", "certificate_chain", "order_key", "control_address")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[EnrollReply.Status]
        PENDING: _ClassVar[EnrollReply.Status]
        ACCEPTED: _ClassVar[EnrollReply.Status]
    UNSPECIFIED: EnrollReply.Status
    PENDING: EnrollReply.Status
    ACCEPTED: EnrollReply.Status
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    ORDER_KEY_FIELD_NUMBER: _ClassVar[int]
    CONTROL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    status: EnrollReply.Status
    site: str
    certificate_chain: bytes
    order_key: bytes
    control_address: str
    def __init__(self, status: _Optional[_Union[EnrollReply.Status, str]] = ..., site: _Optional[str] = ..., certificate_chain: _Optional[bytes] = ..., order_key: _Optional[bytes] = ..., control_address: _Optional[str] = ...) -> None: ...

class RenewSiteRequest(_message.Message):
    __slots__ = ("csr",)
    CSR_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    def __init__(self, csr: _Optional[bytes] = ...) -> None: ...

class ProposeTpmRequest(_message.Message):
    __slots__ = ("identity",)
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    identity: bytes
    def __init__(self, identity: _Optional[bytes] = ...) -> None: ...

class ProposeTpmReply(_message.Message):
    __slots__ = ("challenge", "blob", "expires_unix_ms")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    challenge: bytes
    blob: bytes
    expires_unix_ms: int
    def __init__(self, challenge: _Optional[bytes] = ..., blob: _Optional[bytes] = ..., expires_unix_ms: _Optional[int] = ...) -> None: ...

class ProveTpmRequest(_message.Message):
    __slots__ = ("challenge", "secret")
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    challenge: bytes
    secret: bytes
    def __init__(self, challenge: _Optional[bytes] = ..., secret: _Optional[bytes] = ...) -> None: ...

class ProveTpmReply(_message.Message):
    __slots__ = ("accepted", "endorsement")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ENDORSEMENT_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    endorsement: str
    def __init__(self, accepted: _Optional[bool] = ..., endorsement: _Optional[str] = ...) -> None: ...

class AttestCoordinatorRequest(_message.Message):
    __slots__ = ("job", "nonce")
    JOB_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    job: str
    nonce: bytes
    def __init__(self, job: _Optional[str] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class AttestCoordinatorReply(_message.Message):
    __slots__ = ("evidence", "hpke_key")
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    HPKE_KEY_FIELD_NUMBER: _ClassVar[int]
    evidence: bytes
    hpke_key: bytes
    def __init__(self, evidence: _Optional[bytes] = ..., hpke_key: _Optional[bytes] = ...) -> None: ...

class ChallengeRequest(_message.Message):
    __slots__ = ("job", "site")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    job: str
    site: str
    def __init__(self, job: _Optional[str] = ..., site: _Optional[str] = ...) -> None: ...

class ChallengeReply(_message.Message):
    __slots__ = ("nonce", "expires_unix_ms", "verifier_id")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    VERIFIER_ID_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    expires_unix_ms: int
    verifier_id: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., expires_unix_ms: _Optional[int] = ..., verifier_id: _Optional[bytes] = ...) -> None: ...

class AdmitRequest(_message.Message):
    __slots__ = ("job", "site", "client", "nonce", "csr", "hpke_key", "evidence", "site_voucher")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    HPKE_KEY_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    SITE_VOUCHER_FIELD_NUMBER: _ClassVar[int]
    job: str
    site: str
    client: str
    nonce: bytes
    csr: bytes
    hpke_key: bytes
    evidence: bytes
    site_voucher: bytes
    def __init__(self, job: _Optional[str] = ..., site: _Optional[str] = ..., client: _Optional[str] = ..., nonce: _Optional[bytes] = ..., csr: _Optional[bytes] = ..., hpke_key: _Optional[bytes] = ..., evidence: _Optional[bytes] = ..., site_voucher: _Optional[bytes] = ...) -> None: ...

class AdmitReply(_message.Message):
    __slots__ = ("admitted", "refused")
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    admitted: Admitted
    refused: Refused
    def __init__(self, admitted: _Optional[_Union[Admitted, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ...) -> None: ...

class Admitted(_message.Message):
    __slots__ = ("certificate_chain", "expires_unix_ms", "renew_after_unix_ms", "fleet_address", "control_address", "node_id", "result")
    CERTIFICATE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    RENEW_AFTER_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    FLEET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    certificate_chain: bytes
    expires_unix_ms: int
    renew_after_unix_ms: int
    fleet_address: str
    control_address: str
    node_id: int
    result: bytes
    def __init__(self, certificate_chain: _Optional[bytes] = ..., expires_unix_ms: _Optional[int] = ..., renew_after_unix_ms: _Optional[int] = ..., fleet_address: _Optional[str] = ..., control_address: _Optional[str] = ..., node_id: _Optional[int] = ..., result: _Optional[bytes] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason", "findings_json", "code", "hint")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    reason: str
    findings_json: str
    code: str
    hint: str
    def __init__(self, reason: _Optional[str] = ..., findings_json: _Optional[str] = ..., code: _Optional[str] = ..., hint: _Optional[str] = ...) -> None: ...

class SiteReport(_message.Message):
    __slots__ = ("hello", "workload", "capabilities", "heartbeat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    WORKLOAD_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    workload: WorkloadStatus
    capabilities: Capabilities
    heartbeat: Heartbeat
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., workload: _Optional[_Union[WorkloadStatus, _Mapping]] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "running")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    version: str
    running: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., running: _Optional[_Iterable[str]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("unix_ms",)
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    unix_ms: int
    def __init__(self, unix_ms: _Optional[int] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class WorkloadStatus(_message.Message):
    __slots__ = ("assignment", "phase", "reason", "state")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[WorkloadStatus.Phase]
        ACCEPTED: _ClassVar[WorkloadStatus.Phase]
        STARTING: _ClassVar[WorkloadStatus.Phase]
        RUNNING: _ClassVar[WorkloadStatus.Phase]
        SUCCEEDED: _ClassVar[WorkloadStatus.Phase]
        FAILED: _ClassVar[WorkloadStatus.Phase]
        REFUSED: _ClassVar[WorkloadStatus.Phase]
        STOPPED: _ClassVar[WorkloadStatus.Phase]
    UNSPECIFIED: WorkloadStatus.Phase
    ACCEPTED: WorkloadStatus.Phase
    STARTING: WorkloadStatus.Phase
    RUNNING: WorkloadStatus.Phase
    SUCCEEDED: WorkloadStatus.Phase
    FAILED: WorkloadStatus.Phase
    REFUSED: WorkloadStatus.Phase
    STOPPED: WorkloadStatus.Phase
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    assignment: str
    phase: str
    reason: str
    state: WorkloadStatus.Phase
    def __init__(self, assignment: _Optional[str] = ..., phase: _Optional[str] = ..., reason: _Optional[str] = ..., state: _Optional[_Union[WorkloadStatus.Phase, str]] = ...) -> None: ...

class SiteOrder(_message.Message):
    __slots__ = ("start", "stop", "heartbeat")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    start: SignedAssignment
    stop: StopOrder
    heartbeat: Heartbeat
    def __init__(self, start: _Optional[_Union[SignedAssignment, _Mapping]] = ..., stop: _Optional[_Union[StopOrder, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class StopOrder(_message.Message):
    __slots__ = ("assignment", "reason")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    assignment: str
    reason: str
    def __init__(self, assignment: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SignedAssignment(_message.Message):
    __slots__ = ("assignment_json", "signature")
    ASSIGNMENT_JSON_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    assignment_json: bytes
    signature: bytes
    def __init__(self, assignment_json: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class FetchBundleRequest(_message.Message):
    __slots__ = ("sha256",)
    SHA256_FIELD_NUMBER: _ClassVar[int]
    sha256: bytes
    def __init__(self, sha256: _Optional[bytes] = ...) -> None: ...

class CommitDataRequest(_message.Message):
    __slots__ = ("job", "root", "records", "examples")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    job: str
    root: bytes
    records: int
    examples: int
    def __init__(self, job: _Optional[str] = ..., root: _Optional[bytes] = ..., records: _Optional[int] = ..., examples: _Optional[int] = ...) -> None: ...

class CommitDataReply(_message.Message):
    __slots__ = ("ledger_entry",)
    LEDGER_ENTRY_FIELD_NUMBER: _ClassVar[int]
    ledger_entry: int
    def __init__(self, ledger_entry: _Optional[int] = ...) -> None: ...

class ReleaseKeyRequest(_message.Message):
    __slots__ = ("model", "version", "file_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    file_id: bytes
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., file_id: _Optional[bytes] = ...) -> None: ...

class ReleaseKeyReply(_message.Message):
    __slots__ = ("wrapped",)
    WRAPPED_FIELD_NUMBER: _ClassVar[int]
    wrapped: bytes
    def __init__(self, wrapped: _Optional[bytes] = ...) -> None: ...

class AppLog(_message.Message):
    __slots__ = ("client", "stream", "round", "sequence", "sealed", "fault")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    client: str
    stream: bytes
    round: int
    sequence: int
    sealed: bytes
    fault: str
    def __init__(self, client: _Optional[str] = ..., stream: _Optional[bytes] = ..., round: _Optional[int] = ..., sequence: _Optional[int] = ..., sealed: _Optional[bytes] = ..., fault: _Optional[str] = ...) -> None: ...

class LaunchTicket(_message.Message):
    __slots__ = ("assignment", "tag")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    assignment: str
    tag: bytes
    def __init__(self, assignment: _Optional[str] = ..., tag: _Optional[bytes] = ...) -> None: ...

class VouchRequest(_message.Message):
    __slots__ = ("ticket", "nonce", "tls_key")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    TLS_KEY_FIELD_NUMBER: _ClassVar[int]
    ticket: LaunchTicket
    nonce: bytes
    tls_key: bytes
    def __init__(self, ticket: _Optional[_Union[LaunchTicket, _Mapping]] = ..., nonce: _Optional[bytes] = ..., tls_key: _Optional[bytes] = ...) -> None: ...

class VouchReply(_message.Message):
    __slots__ = ("voucher",)
    VOUCHER_FIELD_NUMBER: _ClassVar[int]
    voucher: bytes
    def __init__(self, voucher: _Optional[bytes] = ...) -> None: ...

class SeedRequest(_message.Message):
    __slots__ = ("ticket", "request")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ticket: LaunchTicket
    request: bytes
    def __init__(self, ticket: _Optional[_Union[LaunchTicket, _Mapping]] = ..., request: _Optional[bytes] = ...) -> None: ...

class SeedReply(_message.Message):
    __slots__ = ("reply",)
    REPLY_FIELD_NUMBER: _ClassVar[int]
    reply: bytes
    def __init__(self, reply: _Optional[bytes] = ...) -> None: ...

class ChargeRequest(_message.Message):
    __slots__ = ("ticket", "question")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    ticket: LaunchTicket
    question: str
    def __init__(self, ticket: _Optional[_Union[LaunchTicket, _Mapping]] = ..., question: _Optional[str] = ...) -> None: ...

class ClientState(_message.Message):
    __slots__ = ("ticket", "phase", "reason", "state")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ticket: LaunchTicket
    phase: str
    reason: str
    state: WorkloadStatus.Phase
    def __init__(self, ticket: _Optional[_Union[LaunchTicket, _Mapping]] = ..., phase: _Optional[str] = ..., reason: _Optional[str] = ..., state: _Optional[_Union[WorkloadStatus.Phase, str]] = ...) -> None: ...

class SubmitJobRequest(_message.Message):
    __slots__ = ("job_toml", "bundle", "policy_toml", "policy_signature")
    JOB_TOML_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    POLICY_TOML_FIELD_NUMBER: _ClassVar[int]
    POLICY_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    job_toml: str
    bundle: bytes
    policy_toml: str
    policy_signature: bytes
    def __init__(self, job_toml: _Optional[str] = ..., bundle: _Optional[bytes] = ..., policy_toml: _Optional[str] = ..., policy_signature: _Optional[bytes] = ...) -> None: ...

class JobName(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("name", "keep_model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEEP_MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    keep_model: bool
    def __init__(self, name: _Optional[str] = ..., keep_model: _Optional[bool] = ...) -> None: ...

class JobSubmission(_message.Message):
    __slots__ = ("name", "run_id", "job_json", "bundle", "policy_toml", "policy_signature", "bundle_sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_JSON_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    POLICY_TOML_FIELD_NUMBER: _ClassVar[int]
    POLICY_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    run_id: str
    job_json: str
    bundle: bytes
    policy_toml: str
    policy_signature: bytes
    bundle_sha256: bytes
    def __init__(self, name: _Optional[str] = ..., run_id: _Optional[str] = ..., job_json: _Optional[str] = ..., bundle: _Optional[bytes] = ..., policy_toml: _Optional[str] = ..., policy_signature: _Optional[bytes] = ..., bundle_sha256: _Optional[bytes] = ...) -> None: ...

class SiteName(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ApproveSiteRequest(_message.Message):
    __slots__ = ("name", "ek", "insecure_sample_key")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EK_FIELD_NUMBER: _ClassVar[int]
    INSECURE_SAMPLE_KEY_FIELD_NUMBER: _ClassVar[int]
    name: str
    ek: bytes
    insecure_sample_key: bytes
    def __init__(self, name: _Optional[str] = ..., ek: _Optional[bytes] = ..., insecure_sample_key: _Optional[bytes] = ...) -> None: ...

class JobList(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[JobState]
    def __init__(self, jobs: _Optional[_Iterable[_Union[JobState, _Mapping]]] = ...) -> None: ...

class SiteList(_message.Message):
    __slots__ = ("sites",)
    SITES_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[SiteState]
    def __init__(self, sites: _Optional[_Iterable[_Union[SiteState, _Mapping]]] = ...) -> None: ...

class JobState(_message.Message):
    __slots__ = ("name", "id", "status", "round", "rounds", "detail", "model", "sites", "exclusions", "run", "run_id", "notes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIONS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    id: str
    status: str
    round: int
    rounds: int
    detail: str
    model: str
    sites: _containers.RepeatedScalarFieldContainer[str]
    exclusions: _containers.RepeatedCompositeFieldContainer[Exclusion]
    run: int
    run_id: str
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., id: _Optional[str] = ..., status: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., detail: _Optional[str] = ..., model: _Optional[str] = ..., sites: _Optional[_Iterable[str]] = ..., exclusions: _Optional[_Iterable[_Union[Exclusion, _Mapping]]] = ..., run: _Optional[int] = ..., run_id: _Optional[str] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...

class Exclusion(_message.Message):
    __slots__ = ("site", "client", "until_unix_ms", "reason", "operator")
    SITE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    UNTIL_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    site: str
    client: str
    until_unix_ms: int
    reason: str
    operator: str
    def __init__(self, site: _Optional[str] = ..., client: _Optional[str] = ..., until_unix_ms: _Optional[int] = ..., reason: _Optional[str] = ..., operator: _Optional[str] = ...) -> None: ...

class FollowJobRequest(_message.Message):
    __slots__ = ("name", "after", "past_only")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    PAST_ONLY_FIELD_NUMBER: _ClassVar[int]
    name: str
    after: int
    past_only: bool
    def __init__(self, name: _Optional[str] = ..., after: _Optional[int] = ..., past_only: _Optional[bool] = ...) -> None: ...

class AppLogsRequest(_message.Message):
    __slots__ = ("job", "site")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    job: str
    site: str
    def __init__(self, job: _Optional[str] = ..., site: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("sequence", "unix_ms", "kind", "json")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    unix_ms: int
    kind: str
    json: str
    def __init__(self, sequence: _Optional[int] = ..., unix_ms: _Optional[int] = ..., kind: _Optional[str] = ..., json: _Optional[str] = ...) -> None: ...

class CreateTokenRequest(_message.Message):
    __slots__ = ("site", "lifetime_s", "needs_approval", "ek", "insecure_sample_key")
    SITE_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    NEEDS_APPROVAL_FIELD_NUMBER: _ClassVar[int]
    EK_FIELD_NUMBER: _ClassVar[int]
    INSECURE_SAMPLE_KEY_FIELD_NUMBER: _ClassVar[int]
    site: str
    lifetime_s: int
    needs_approval: bool
    ek: bytes
    insecure_sample_key: bytes
    def __init__(self, site: _Optional[str] = ..., lifetime_s: _Optional[int] = ..., needs_approval: _Optional[bool] = ..., ek: _Optional[bytes] = ..., insecure_sample_key: _Optional[bytes] = ...) -> None: ...

class CreateTokenReply(_message.Message):
    __slots__ = ("token", "expires_unix_ms")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    token: str
    expires_unix_ms: int
    def __init__(self, token: _Optional[str] = ..., expires_unix_ms: _Optional[int] = ...) -> None: ...

class SiteState(_message.Message):
    __slots__ = ("name", "status", "connected", "last_seen_unix_ms", "capabilities_json", "assignments", "key_thumbprint", "tpm", "insecure_sample_key")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_JSON_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    KEY_THUMBPRINT_FIELD_NUMBER: _ClassVar[int]
    TPM_FIELD_NUMBER: _ClassVar[int]
    INSECURE_SAMPLE_KEY_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: str
    connected: bool
    last_seen_unix_ms: int
    capabilities_json: str
    assignments: _containers.RepeatedScalarFieldContainer[str]
    key_thumbprint: bytes
    tpm: SiteTpm
    insecure_sample_key: bytes
    def __init__(self, name: _Optional[str] = ..., status: _Optional[str] = ..., connected: _Optional[bool] = ..., last_seen_unix_ms: _Optional[int] = ..., capabilities_json: _Optional[str] = ..., assignments: _Optional[_Iterable[str]] = ..., key_thumbprint: _Optional[bytes] = ..., tpm: _Optional[_Union[SiteTpm, _Mapping]] = ..., insecure_sample_key: _Optional[bytes] = ...) -> None: ...

class SiteTpm(_message.Message):
    __slots__ = ("ek", "endorsement", "ak", "shown_ek", "certificate")
    EK_FIELD_NUMBER: _ClassVar[int]
    ENDORSEMENT_FIELD_NUMBER: _ClassVar[int]
    AK_FIELD_NUMBER: _ClassVar[int]
    SHOWN_EK_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ek: bytes
    endorsement: str
    ak: bytes
    shown_ek: bytes
    certificate: str
    def __init__(self, ek: _Optional[bytes] = ..., endorsement: _Optional[str] = ..., ak: _Optional[bytes] = ..., shown_ek: _Optional[bytes] = ..., certificate: _Optional[str] = ...) -> None: ...

class RevokeClientRequest(_message.Message):
    __slots__ = ("job", "site", "reason", "client", "once", "until_unix_ms")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    ONCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    job: str
    site: str
    reason: str
    client: str
    once: bool
    until_unix_ms: int
    def __init__(self, job: _Optional[str] = ..., site: _Optional[str] = ..., reason: _Optional[str] = ..., client: _Optional[str] = ..., once: _Optional[bool] = ..., until_unix_ms: _Optional[int] = ...) -> None: ...

class ReadmitClientRequest(_message.Message):
    __slots__ = ("job", "site", "client")
    JOB_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    job: str
    site: str
    client: str
    def __init__(self, job: _Optional[str] = ..., site: _Optional[str] = ..., client: _Optional[str] = ...) -> None: ...

class OperatorState(_message.Message):
    __slots__ = ("name", "serial", "key_thumbprint", "expires_unix_ms", "by", "revoked", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    KEY_THUMBPRINT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    serial: str
    key_thumbprint: bytes
    expires_unix_ms: int
    by: str
    revoked: bool
    reason: str
    def __init__(self, name: _Optional[str] = ..., serial: _Optional[str] = ..., key_thumbprint: _Optional[bytes] = ..., expires_unix_ms: _Optional[int] = ..., by: _Optional[str] = ..., revoked: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class OperatorList(_message.Message):
    __slots__ = ("operators",)
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    operators: _containers.RepeatedCompositeFieldContainer[OperatorState]
    def __init__(self, operators: _Optional[_Iterable[_Union[OperatorState, _Mapping]]] = ...) -> None: ...

class AddOperatorRequest(_message.Message):
    __slots__ = ("name", "csr")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    name: str
    csr: bytes
    def __init__(self, name: _Optional[str] = ..., csr: _Optional[bytes] = ...) -> None: ...

class AddOperatorReply(_message.Message):
    __slots__ = ("operator", "certificate_chain", "control_address")
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_CHAIN_FIELD_NUMBER: _ClassVar[int]
    CONTROL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    operator: OperatorState
    certificate_chain: bytes
    control_address: str
    def __init__(self, operator: _Optional[_Union[OperatorState, _Mapping]] = ..., certificate_chain: _Optional[bytes] = ..., control_address: _Optional[str] = ...) -> None: ...

class RevokeOperatorRequest(_message.Message):
    __slots__ = ("name", "serial", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    serial: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., serial: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReplacePolicyRequest(_message.Message):
    __slots__ = ("job", "policy_toml", "policy_signature")
    JOB_FIELD_NUMBER: _ClassVar[int]
    POLICY_TOML_FIELD_NUMBER: _ClassVar[int]
    POLICY_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    job: str
    policy_toml: str
    policy_signature: bytes
    def __init__(self, job: _Optional[str] = ..., policy_toml: _Optional[str] = ..., policy_signature: _Optional[bytes] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class SealedModel(_message.Message):
    __slots__ = ("model", "version", "job", "round", "bytes", "digest", "file_id", "owners")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    job: str
    round: int
    bytes: int
    digest: bytes
    file_id: bytes
    owners: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., job: _Optional[str] = ..., round: _Optional[int] = ..., bytes: _Optional[int] = ..., digest: _Optional[bytes] = ..., file_id: _Optional[bytes] = ..., owners: _Optional[_Iterable[bytes]] = ...) -> None: ...

class DownloadModelRequest(_message.Message):
    __slots__ = ("model", "version", "offset", "file_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FILE_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    offset: int
    file_id: bytes
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., offset: _Optional[int] = ..., file_id: _Optional[bytes] = ...) -> None: ...

class SealedFile(_message.Message):
    __slots__ = ("model", "offset")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    model: SealedModel
    offset: int
    def __init__(self, model: _Optional[_Union[SealedModel, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class ModelPart(_message.Message):
    __slots__ = ("file", "data")
    FILE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    file: SealedFile
    data: bytes
    def __init__(self, file: _Optional[_Union[SealedFile, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ReadLedgerRequest(_message.Message):
    __slots__ = ("after", "kind", "limit")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    after: int
    kind: str
    limit: int
    def __init__(self, after: _Optional[int] = ..., kind: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class LedgerEntry(_message.Message):
    __slots__ = ("sequence", "unix_ms", "kind", "body", "previous", "hash", "signature")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    unix_ms: int
    kind: str
    body: bytes
    previous: bytes
    hash: bytes
    signature: bytes
    def __init__(self, sequence: _Optional[int] = ..., unix_ms: _Optional[int] = ..., kind: _Optional[str] = ..., body: _Optional[bytes] = ..., previous: _Optional[bytes] = ..., hash: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class LedgerEntries(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[LedgerEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[LedgerEntry, _Mapping]]] = ...) -> None: ...

class SignedLedgerHead(_message.Message):
    __slots__ = ("sequence", "unix_ms", "hash", "signature", "public_key", "key_signature")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    unix_ms: int
    hash: bytes
    signature: bytes
    public_key: bytes
    key_signature: bytes
    def __init__(self, sequence: _Optional[int] = ..., unix_ms: _Optional[int] = ..., hash: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., public_key: _Optional[bytes] = ..., key_signature: _Optional[bytes] = ...) -> None: ...

class OpenOwnerSessionRequest(_message.Message):
    __slots__ = ("owner_key",)
    OWNER_KEY_FIELD_NUMBER: _ClassVar[int]
    owner_key: bytes
    def __init__(self, owner_key: _Optional[bytes] = ...) -> None: ...

class SealedOwnerSession(_message.Message):
    __slots__ = ("sealed", "expires_unix_ms")
    SEALED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    sealed: bytes
    expires_unix_ms: int
    def __init__(self, sealed: _Optional[bytes] = ..., expires_unix_ms: _Optional[int] = ...) -> None: ...

class OwnerModelsRequest(_message.Message):
    __slots__ = ("token", "job")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    job: str
    def __init__(self, token: _Optional[bytes] = ..., job: _Optional[str] = ...) -> None: ...

class OwnerAppLogsRequest(_message.Message):
    __slots__ = ("token", "logs")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGS_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    logs: AppLogsRequest
    def __init__(self, token: _Optional[bytes] = ..., logs: _Optional[_Union[AppLogsRequest, _Mapping]] = ...) -> None: ...

class OwnerAppLogsPart(_message.Message):
    __slots__ = ("run", "log")
    RUN_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    run: AppLogsRun
    log: AppLog
    def __init__(self, run: _Optional[_Union[AppLogsRun, _Mapping]] = ..., log: _Optional[_Union[AppLog, _Mapping]] = ...) -> None: ...

class AppLogsRun(_message.Message):
    __slots__ = ("run_id", "digest")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    digest: bytes
    def __init__(self, run_id: _Optional[str] = ..., digest: _Optional[bytes] = ...) -> None: ...

class OwnerDownloadRequest(_message.Message):
    __slots__ = ("token", "download")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    download: DownloadModelRequest
    def __init__(self, token: _Optional[bytes] = ..., download: _Optional[_Union[DownloadModelRequest, _Mapping]] = ...) -> None: ...
