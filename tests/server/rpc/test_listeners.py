"""The gRPC listeners, over real TLS: who may call what, and what callers receive."""

from __future__ import annotations

import dataclasses
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import ConfigError, TransportError
from fedlearn.identity.admission import AdmitRequest
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire import fedlearn_pb2_grpc as rpc
from fedlearn.wire.channel import open_channel
from fedlearn.wire.failure import failure_of
from server.identity.pki import CertificateAuthority
from server.rpc.gate import admit_request
from tests.harness.deployment import Deployment, key_pem, new_csr, new_key
from tests.harness.listeners import DeploymentListeners

Open = Callable[..., grpc.Channel]


def channel(
    listeners: DeploymentListeners,
    address: str,
    chain: bytes | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> grpc.Channel:
    pem = key_pem(key) if key is not None else None
    roots = listeners.deployment.ca.certificate_pem
    return open_channel(address, roots=roots, chain=chain, key=pem, max_bytes=200 * 1024 * 1024)


@pytest.fixture
def opened(listeners: DeploymentListeners) -> Iterator[Open]:
    """Open channels of any identity, to be closed afterwards."""
    made: list[grpc.Channel] = []

    def control(
        chain: bytes | None = None, key: ec.EllipticCurvePrivateKey | None = None
    ) -> grpc.Channel:
        made.append(channel(listeners, listeners.control, chain, key))
        return made[-1]

    yield control
    for item in made:
        item.close()


def site_chain(
    listeners: DeploymentListeners, name: str = "site-a", **changes: Any
) -> tuple[bytes, Any]:
    key = listeners.deployment.site_keys[name]
    now = changes.pop("now", listeners.deployment.clock())
    issued = listeners.deployment.ca.issue_site(new_csr(key), site=name, now=now, **changes)
    return issued.chain_pem, key


def operator_chain(listeners: DeploymentListeners) -> tuple[bytes, Any]:
    found: tuple[bytes, Any] = listeners.deployment.operator()
    return found


def client_chain(listeners: DeploymentListeners) -> tuple[bytes, Any, Any]:
    client = listeners.deployment.client()
    admitted = listeners.deployment.admit(client)
    return admitted.certificate_chain, client.key, admitted.admission


def refused(call: Callable[..., object], request: object, code: grpc.StatusCode, match: str) -> Any:
    with pytest.raises(grpc.RpcError, match=match) as caught:
        call(request, timeout=5)
    assert caught.value.code() is code
    return failure_of(caught.value, "the coordinator")


def test_no_certificate_gets_no_further_than_the_handshake(
    listeners: DeploymentListeners, opened: Open
) -> None:
    stub = rpc.OperatorStub(opened())
    with pytest.raises(grpc.RpcError) as caught:
        stub.ListJobs(pb.Empty(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(failure_of(caught.value, "x"), TransportError)


def test_an_expired_certificate_gets_no_further_than_the_handshake(
    listeners: DeploymentListeners, opened: Open
) -> None:
    past = datetime.now(UTC) - timedelta(days=3)
    chain, key = site_chain(listeners, now=past, lifetime=timedelta(hours=1))
    stub = rpc.SitesStub(opened(chain, key))
    with pytest.raises(grpc.RpcError) as caught:
        stub.RenewSite(pb.RenewSiteRequest(csr=new_csr(key)), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_that_expires_on_an_open_connection_is_refused(
    listeners: DeploymentListeners, opened: Open
) -> None:
    chain, key = site_chain(listeners, lifetime=timedelta(hours=1))
    stub = rpc.SitesStub(opened(chain, key))
    request = pb.RenewSiteRequest(csr=new_csr(key))
    assert stub.RenewSite(request, timeout=5).status == pb.EnrollReply.ACCEPTED
    listeners.deployment.clock.advance(hours=2)
    refused(stub.RenewSite, request, grpc.StatusCode.UNAUTHENTICATED, "expired")


def test_a_certificate_of_another_ca_gets_no_further_than_the_handshake(
    listeners: DeploymentListeners, opened: Open
) -> None:
    other = CertificateAuthority.create("test.example", listeners.deployment.clock())
    key = new_key()
    issued = other.issue_operator(new_csr(key), name="eve", now=listeners.deployment.clock())
    stub = rpc.OperatorStub(opened(issued.chain_pem, key))
    with pytest.raises(grpc.RpcError) as caught:
        stub.ListJobs(pb.Empty(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_each_kind_of_certificate_reaches_its_own_service_only(
    listeners: DeploymentListeners, opened: Open
) -> None:
    who = {
        "Sites": opened(*site_chain(listeners)),
        "Operator": opened(*operator_chain(listeners)),
        "Clients": opened(*client_chain(listeners)[:2]),
    }
    csr = new_csr(listeners.deployment.site_keys["site-a"])
    for kind, open_as in who.items():
        calls = {
            "Sites": (rpc.SitesStub(open_as).RenewSite, pb.RenewSiteRequest(csr=csr)),
            "Operator": (rpc.OperatorStub(open_as).ListJobs, pb.Empty()),
            "Clients": (
                rpc.ClientsStub(open_as).ReleaseKey,
                pb.ReleaseKeyRequest(model="alpha"),
            ),
        }
        for service, (call, request) in calls.items():
            if service == kind:
                call(request, timeout=5)
            else:
                refused(call, request, grpc.StatusCode.UNAUTHENTICATED, "may not call")


def test_the_gates_certificate_authenticates_nobody(
    listeners: DeploymentListeners, opened: Open
) -> None:
    stub = rpc.OperatorStub(
        opened(listeners.deployment.server.chain_pem, listeners.deployment.server_key)
    )
    with pytest.raises(grpc.RpcError):
        stub.ListJobs(pb.Empty(), timeout=5)


def test_an_admission_that_ended_ends_the_service_on_the_open_connection(
    listeners: DeploymentListeners, opened: Open
) -> None:
    chain, key, admission = client_chain(listeners)
    stub = rpc.ClientsStub(opened(chain, key))
    request = pb.ReleaseKeyRequest(model="alpha")
    assert stub.ReleaseKey(request, timeout=5).wrapped == b"wrapped for " + admission.hpke_key
    listeners.deployment.gate.revoke_clients("alpha", "site-a", "enough")
    error = refused(stub.ReleaseKey, request, grpc.StatusCode.PERMISSION_DENIED, "revoked: enough")
    assert error.findings[0]["actual"] == "revoked"


def test_a_client_that_is_overdue_is_refused(listeners: DeploymentListeners, opened: Open) -> None:
    chain, key, _ = client_chain(listeners)
    stub = rpc.ClientsStub(opened(chain, key))
    listeners.deployment.clock.advance(minutes=11)
    refused(
        stub.ReleaseKey,
        pb.ReleaseKeyRequest(model="alpha"),
        grpc.StatusCode.PERMISSION_DENIED,
        "quarantined",
    )


def test_a_certificate_whose_key_was_admitted_as_somebody_else_is_refused(
    listeners: DeploymentListeners, opened: Open
) -> None:
    client = listeners.deployment.client()
    listeners.deployment.admit(client)
    forged = listeners.deployment.ca.issue_client(
        new_csr(client.key),
        job="beta",
        site="site-a",
        client="c1",
        evidence_digest=bytes(32),
        policy_digest=bytes(32),
        now=listeners.deployment.clock(),
    )
    stub = rpc.ClientsStub(opened(forged.chain_pem, client.key))
    refused(
        stub.ReleaseKey,
        pb.ReleaseKeyRequest(model="alpha"),
        grpc.StatusCode.UNAUTHENTICATED,
        "not whom this key was admitted as",
    )


def test_a_client_commits_for_its_own_job(listeners: DeploymentListeners, opened: Open) -> None:
    chain, key, _ = client_chain(listeners)
    stub = rpc.ClientsStub(opened(chain, key))
    root = bytes(32)
    reply = stub.CommitData(pb.CommitDataRequest(job="alpha", root=root, records=7), timeout=5)
    assert reply.ledger_entry == 42
    assert ("commit", ("site-a", root, 7)) in listeners.coordinator.calls
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    refused(stub.CommitData, pb.CommitDataRequest(job="beta", root=root), invalid, "job alpha")
    refused(stub.CommitData, pb.CommitDataRequest(job="alpha", root=b"x"), invalid, "32 bytes")
    refused(
        stub.ReleaseKey,
        pb.ReleaseKeyRequest(model="other"),
        grpc.StatusCode.PERMISSION_DENIED,
        "not for alpha",
    )


def test_oversized_messages_are_refused(listeners: DeploymentListeners, opened: Open) -> None:
    front_gate = rpc.GateStub(channel(listeners, listeners.gate))
    too_long = pb.AdmitRequest(evidence=bytes(5 * 1024 * 1024))
    refused(front_gate.Admit, too_long, grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max")
    site = rpc.SitesStub(opened(*site_chain(listeners)))
    refused(
        site.RenewSite,
        pb.RenewSiteRequest(csr=bytes(5 * 1024 * 1024)),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "at most",
    )
    operator = rpc.OperatorStub(opened(*operator_chain(listeners)))
    operator.SubmitJob(pb.SubmitJobRequest(bundle=bytes(60 * 1024 * 1024)), timeout=20)
    refused(
        operator.SubmitJob,
        pb.SubmitJobRequest(bundle=bytes(69 * 1024 * 1024)),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "larger than max",
    )


def test_errors_keep_their_kind_and_hint_and_internal_ones_tell_nothing(
    listeners: DeploymentListeners, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    stub = rpc.OperatorStub(opened(*operator_chain(listeners)))
    error = refused(
        stub.SubmitJob,
        pb.SubmitJobRequest(job_toml="broken"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "job.toml:3",
    )
    assert (type(error).__name__, error.hint) == ("ConfigError", "write 5")
    error = refused(
        stub.GetJob, pb.JobName(name="nope"), grpc.StatusCode.FAILED_PRECONDITION, "no job"
    )
    assert type(error).__name__ == "JobError"
    error = refused(
        stub.SubmitJob,
        pb.SubmitJobRequest(job_toml="crash"),
        grpc.StatusCode.INTERNAL,
        "internal error",
    )
    assert "secret" not in str(error)
    assert "secret path" in caplog.text
    refused(stub.GetJob, pb.JobName(name="../x"), grpc.StatusCode.INVALID_ARGUMENT, "not a name")


def follow(
    listeners: DeploymentListeners, open_as: grpc.Channel, reports: Iterator[pb.SiteReport]
) -> tuple[Any, list[Any], threading.Thread]:
    call = rpc.SitesStub(open_as).Follow(reports)
    seen: list[Any] = []

    def read() -> None:
        try:
            seen.extend(call)
        except grpc.RpcError as error:
            seen.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return call, seen, thread


def hello(*more: pb.SiteReport, hold: threading.Event) -> Iterator[pb.SiteReport]:
    yield pb.SiteReport(hello=pb.Hello(version="1", running=["a-1"]))
    yield from more
    hold.wait(20)


def test_a_site_that_is_removed_is_cut_off_at_once(
    listeners: DeploymentListeners, opened: Open
) -> None:
    hold = threading.Event()
    _, seen, thread = follow(listeners, opened(*site_chain(listeners)), hello(hold=hold))
    assert listeners.coordinator.connected.wait(5)
    started = time.monotonic()
    listeners.deployment.sites.remove("site-a")
    thread.join(5)
    hold.set()
    assert time.monotonic() - started < 2
    assert seen[-1].code() is grpc.StatusCode.UNAUTHENTICATED
    assert "was removed" in seen[-1].details()


def test_a_removed_site_loses_its_clients_too(listeners: DeploymentListeners) -> None:
    listeners.deployment.admit(listeners.deployment.client())
    listeners.deployment.sites.remove("site-a")
    assert listeners.deployment.nodes.alive == {}
    assert "site site-a was removed" in listeners.deployment.last("revocation")["reason"]


def test_a_second_stream_of_a_site_replaces_the_first(
    listeners: DeploymentListeners, opened: Open
) -> None:
    hold = threading.Event()
    chain = site_chain(listeners)
    _, seen, thread = follow(listeners, opened(*chain), hello(hold=hold))
    assert listeners.coordinator.connected.wait(5)
    listeners.coordinator.connected.clear()
    follow(listeners, opened(*chain), hello(hold=hold))
    assert listeners.coordinator.connected.wait(5)
    thread.join(5)
    hold.set()
    assert "connected again" in seen[-1].details()
    assert listeners.running._sites_service.connected("site-a")


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (pb.SiteReport(workload=pb.WorkloadStatus(phase="dancing")), "no phase"),
        (pb.SiteReport(capabilities=pb.Capabilities(json="[]")), "not a JSON object"),
        (pb.SiteReport(), "unknown kind"),
        (
            pb.SiteReport(capabilities=pb.Capabilities(json="x" * 5 * 1024 * 1024)),
            "at most",
        ),
    ],
)
def test_a_site_that_reports_nonsense_is_informed(
    listeners: DeploymentListeners, opened: Open, report: pb.SiteReport, why: str
) -> None:
    hold = threading.Event()
    _, seen, thread = follow(listeners, opened(*site_chain(listeners)), hello(report, hold=hold))
    thread.join(5)
    hold.set()
    assert why in seen[-1].details()


def test_a_site_states_hello_first(listeners: DeploymentListeners, opened: Open) -> None:
    heartbeat = iter([pb.SiteReport(heartbeat=pb.Heartbeat())])
    _, seen, thread = follow(listeners, opened(*site_chain(listeners)), heartbeat)
    thread.join(5)
    assert "has to be hello" in seen[-1].details()


def test_a_watcher_that_leaves_frees_its_thread(
    listeners: DeploymentListeners, opened: Open
) -> None:
    stub = rpc.OperatorStub(opened(*operator_chain(listeners)))
    call = stub.FollowJob(pb.FollowJobRequest(name="alpha"))
    assert [next(call).sequence for _ in range(3)] == [1, 2, 3]
    assert listeners.coordinator.waiting.wait(5)
    call.cancel()
    assert listeners.coordinator.stopped.wait(5)
    past = list(stub.FollowJob(pb.FollowJobRequest(name="alpha", after=2, past_only=True)))
    assert [event.sequence for event in past] == [3]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_below_1_2_is_refused(listeners: DeploymentListeners) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", listeners.running.gate_port), timeout=5) as plain:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(plain)


def test_plain_text_and_junk_do_not_bother_the_listener(listeners: DeploymentListeners) -> None:
    for junk in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000)):
        with socket.create_connection(("127.0.0.1", listeners.running.gate_port), timeout=5) as raw:
            raw.sendall(junk)
    stub = rpc.GateStub(channel(listeners, listeners.gate))
    reply = stub.Challenge(pb.ChallengeRequest(job="alpha", site="site-a"), timeout=5)
    assert len(reply.nonce) == 32
    assert reply.verifier_id == listeners.deployment.ca.key_digest


def test_a_port_that_is_taken_states_it(listeners: DeploymentListeners) -> None:
    with pytest.raises(ConfigError, match="cannot be bound"):
        DeploymentListeners(listeners.deployment, gate=listeners.gate)


def test_a_request_for_admission_crosses_the_wire_whole(deployment: Deployment) -> None:
    request = deployment.request(deployment.client())
    message = pb.AdmitRequest(**dataclasses.asdict(request))
    assert admit_request(pb.AdmitRequest.FromString(message.SerializeToString())) == request
    assert {field.name for field in pb.AdmitRequest.DESCRIPTOR.fields} == {
        field.name for field in dataclasses.fields(AdmitRequest)
    }


def test_a_log_is_that_of_the_client_that_was_admitted(
    listeners: DeploymentListeners, opened: Open
) -> None:
    chain, key, _ = client_chain(listeners)
    clients = rpc.ClientsStub(opened(chain, key))
    # The name in the request is not read: a client cannot speak for another one.
    request = pb.AppLog(client="c9", stream=bytes(16), round=2, sequence=5, sealed=b"sealed")
    clients.DeliverAppLog(request, timeout=5)
    operator = rpc.OperatorStub(opened(*operator_chain(listeners)))
    asked = pb.AppLogsRequest(job="alpha", site="site-a")
    found = list(operator.FetchAppLogs(asked, timeout=5))
    assert [(log.client, log.round, log.sequence, log.sealed) for log in found] == [
        ("c1", 2, 5, b"sealed")
    ]
    assert not list(operator.FetchAppLogs(pb.AppLogsRequest(job="alpha", site="site-b")))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sealed": b""}, "at most"),
        ({"sealed": bytes(2 * 1024 * 1024 + 1)}, "at most"),
        ({"stream": b"short"}, "16 bytes"),
        ({"round": 2**31}, "at most 10000"),
    ],
)
def test_a_malformed_log_is_refused(
    listeners: DeploymentListeners, opened: Open, changes: dict[str, Any], match: str
) -> None:
    chain, key, _ = client_chain(listeners)
    clients = rpc.ClientsStub(opened(chain, key))
    request = pb.AppLog(**({"stream": bytes(16), "sealed": b"sealed"} | changes))
    refused(clients.DeliverAppLog, request, grpc.StatusCode.INVALID_ARGUMENT, match)
    assert not [call for call in listeners.coordinator.calls if call[0] == "app log"]


def test_logs_are_for_operators_and_from_clients(
    listeners: DeploymentListeners, opened: Open
) -> None:
    site = opened(*site_chain(listeners))
    unauthenticated = grpc.StatusCode.UNAUTHENTICATED
    log = pb.AppLog(stream=bytes(16), sealed=b"x")
    refused(rpc.ClientsStub(site).DeliverAppLog, log, unauthenticated, "may not call")
    client = opened(*client_chain(listeners)[:2])
    asked = pb.AppLogsRequest(job="alpha", site="site-a")
    with pytest.raises(grpc.RpcError, match="may not call"):
        list(rpc.OperatorStub(client).FetchAppLogs(asked, timeout=5))
    listeners.deployment.gate.revoke_clients("alpha", "site-a", "enough")
    denied = grpc.StatusCode.PERMISSION_DENIED
    refused(rpc.ClientsStub(client).DeliverAppLog, log, denied, "revoked: enough")
