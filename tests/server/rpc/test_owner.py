"""Owners of models at the gate: what the holder of a key gets, and what nobody else does."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.errors import UnsealError
from fedlearn.api.app_logs import fetch_app_logs_as_owner
from fedlearn.errors import ConfigError, FedlearnError, JobError, Throttled, TransportError
from fedlearn.job.app_log import SealedAppLog
from fedlearn.sealing.app_log import AppLogLine, AppLogName, OpenedAppLog, seal_app_log
from fedlearn.sealing.owner_session import open_owner_session, seal_owner_session
from fedlearn.wire import fedlearn_pb2 as pb
from fedlearn.wire import fedlearn_pb2_grpc as rpc
from fedlearn.wire.channel import open_channel
from fedlearn.wire.failure import failure_of
from fedlearn.wire.owner import OwnerClient
from server.admission.challenges import Limits, Rates
from server.identity.pki import CertificateAuthority
from server.rpc.guard import Caller
from server.rpc.results.models import ModelSender
from server.rpc.results.owner import MAX_DOWNLOADS, SESSION_LIFETIME, OwnerService, OwnerTokens
from tests.harness.deployment import TRUST_DOMAIN, key_pem
from tests.harness.listeners import DeploymentListeners, RecordingCoordinator

ALICE, BOB, STRANGER = (X25519PrivateKey.generate() for _ in range(3))
WEIGHTS = {"w": np.arange(600_000, dtype=np.float32)}
PIN = b"p" * 32


def public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def connect(listeners: DeploymentListeners, key: X25519PrivateKey) -> OwnerClient:
    pin = listeners.deployment.ca.key_digest
    return OwnerClient.connect(listeners.gate, ca_pin=pin, key=key, now=datetime.now(UTC))


@pytest.fixture
def sealed(listeners: DeploymentListeners) -> DeploymentListeners:
    """A heart of Alice's, a lung of Bob's, and one that is the coordinator's alone."""
    store = listeners.store
    store.write("heart", WEIGHTS, round=1, recipients=(public(ALICE),))
    store.write("heart", WEIGHTS, round=2, recipients=(public(ALICE),))
    store.write("lung", WEIGHTS, round=7, recipients=(public(BOB),))
    store.write("nobodys", WEIGHTS, round=1)
    return listeners


@pytest.fixture
def stub(listeners: DeploymentListeners) -> Iterator[rpc.OwnerStub]:
    roots = listeners.deployment.ca.certificate_pem
    with open_channel(listeners.gate, roots=roots) as channel:
        yield rpc.OwnerStub(channel)


def names(client: OwnerClient) -> list[tuple[str, int]]:
    return [(found.model, found.version) for found in client.list_models()]


def data(client: OwnerClient, model: str) -> bytes:
    with client.download_model(model) as download:
        return b"".join(download.chunks)


def error_of(call: Callable[[], object]) -> FedlearnError:
    """Return how a call with one or more answers fails."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call()) if inspect.isgeneratorfunction(call) else call()
    error = failure_of(caught.value, "the coordinator")
    assert isinstance(error, FedlearnError)
    return error


def test_an_owner_sees_and_gets_what_is_sealed_for_their_key(sealed: DeploymentListeners) -> None:
    with connect(sealed, ALICE) as alice:
        assert names(alice) == [("heart", 1), ("heart", 2)]
        assert [found.round for found in alice.list_models("heart")] == [1, 2]
        assert alice.list_models("lung") == ()
        assert data(alice, "heart") == sealed.store.version("heart").path.read_bytes()
        (_, second) = alice.list_models()
        with alice.download_model("heart", offset=9, file_id=second.file_id) as download:
            assert download.offset == 9


def test_another_owner_gets_nothing_and_learns_nothing(sealed: DeploymentListeners) -> None:
    with connect(sealed, BOB) as bob:
        assert names(bob) == [("lung", 7 - 6)]
        with pytest.raises(JobError) as hidden:
            data(bob, "heart")
        with pytest.raises(JobError) as missing:
            data(bob, "never")
        with pytest.raises(JobError) as coordinators:
            data(bob, "nobodys")
    assert str(hidden.value) == "there is no model 'heart'"
    assert str(missing.value) == "there is no model 'never'"
    assert str(coordinators.value) == "there is no model 'nobodys'"
    assert hidden.value.hint == missing.value.hint == coordinators.value.hint


def test_a_stranger_cannot_tell_which_keys_are_owners(
    sealed: DeploymentListeners, stub: rpc.OwnerStub
) -> None:
    replies = [
        stub.OpenSession(pb.OpenOwnerSessionRequest(owner_key=public(key)))
        for key in (ALICE, STRANGER)
    ]
    assert len({len(reply.sealed) for reply in replies}) == 1
    # What was sealed for an owner does not open with another key.
    for reply in replies[:1]:
        with pytest.raises(UnsealError):
            open_owner_session(
                reply.sealed,
                STRANGER,
                ca_pin=sealed.deployment.ca.key_digest,
                expires_unix_ms=reply.expires_unix_ms,
            )
    with connect(sealed, STRANGER) as stranger:
        assert names(stranger) == []


def test_a_token_that_nobody_issued_is_refused(
    sealed: DeploymentListeners, stub: rpc.OwnerStub
) -> None:
    issued = OwnerTokens().issue(public(ALICE))  # by another coordinator, or before a restart
    for token in (b"", b"x", bytes(72), issued, issued[:-1], issued + b"x", b"x" * 100_000):
        for call in (
            lambda token=token: list(stub.ListModels(pb.OwnerModelsRequest(token=token))),
            lambda token=token: list(
                stub.DownloadModel(
                    pb.OwnerDownloadRequest(
                        token=token, download=pb.DownloadModelRequest(model="heart")
                    )
                )
            ),
        ):
            assert "not one of this coordinator" in str(error_of(call))


def test_a_token_of_ones_own_is_not_made_one_of_another(sealed: DeploymentListeners) -> None:
    tokens = OwnerTokens()
    mine = tokens.issue(public(STRANGER))
    assert tokens.owner_key(mine) == public(STRANGER)
    for forged in (public(ALICE) + mine[32:], mine[:32] + bytes([255]) + mine[33:]):
        with pytest.raises(TransportError, match="not one of this coordinator"):
            tokens.owner_key(forged)


def test_a_session_expires_and_is_not_replayed_later() -> None:
    now = [1000.0]
    tokens = OwnerTokens(monotonic=lambda: now[0])
    token = tokens.issue(public(ALICE))
    now[0] += SESSION_LIFETIME.total_seconds() - 0.01
    assert tokens.owner_key(token) == public(ALICE)
    now[0] += 0.02
    with pytest.raises(TransportError, match="the session has expired"):
        tokens.owner_key(token)


def test_a_session_is_sealed_for_one_coordinator_and_time() -> None:
    sealed = seal_owner_session(b"token", public(ALICE), ca_pin=PIN, expires_unix_ms=7)
    assert open_owner_session(sealed, ALICE, ca_pin=PIN, expires_unix_ms=7) == b"token"
    altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for data_, key, pin, expires in (
        (sealed, BOB, PIN, 7),
        (sealed, ALICE, b"q" * 32, 7),
        (sealed, ALICE, PIN, 8),
        (altered, ALICE, PIN, 7),
        (b"", ALICE, PIN, 7),
    ):
        with pytest.raises(UnsealError):
            open_owner_session(data_, key, ca_pin=pin, expires_unix_ms=expires)


def test_a_session_that_another_coordinator_passes_on_is_not_opened(
    sealed: DeploymentListeners,
) -> None:
    with connect(sealed, ALICE) as alice:
        alice._pin = PIN  # the coordinator that Alice meant, which passes on what she asks
        with pytest.raises(TransportError, match="made by another coordinator"):
            alice.list_models()


@pytest.mark.parametrize("key", [b"", b"x" * 31, b"x" * 33, bytes(32), (1).to_bytes(32, "little")])
def test_what_is_no_key_is_refused(stub: rpc.OwnerStub, key: bytes) -> None:
    error = error_of(lambda: stub.OpenSession(pb.OpenOwnerSessionRequest(owner_key=key)))
    assert isinstance(error, ConfigError)
    assert "X25519 public key" in str(error)


def test_the_coordinator_is_the_pinned_one(sealed: DeploymentListeners) -> None:
    other = CertificateAuthority.create(TRUST_DOMAIN, sealed.deployment.clock())
    with pytest.raises(TransportError, match="does not have the pinned key"):
        OwnerClient.connect(sealed.gate, ca_pin=other.key_digest, key=ALICE, now=datetime.now(UTC))


def test_an_operator_is_no_owner(sealed: DeploymentListeners) -> None:
    chain, key = sealed.deployment.operator()
    roots = sealed.deployment.ca.certificate_pem
    request = pb.OpenOwnerSessionRequest(owner_key=public(ALICE))
    with open_channel(sealed.control, roots=roots, chain=chain, key=key_pem(key)) as channel:
        owner = rpc.OwnerStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            owner.OpenSession(request)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    # At the gate the certificate is worth nothing: the session opens with the owner's key only.
    with open_channel(sealed.gate, roots=roots, chain=chain, key=key_pem(key)) as channel:
        owner = rpc.OwnerStub(channel)
        reply = owner.OpenSession(request)
        token = reply.sealed
        error = error_of(lambda: list(owner.ListModels(pb.OwnerModelsRequest(token=token))))
        assert "not one of this coordinator" in str(error)


def test_the_control_listener_is_not_the_gate(sealed: DeploymentListeners) -> None:
    pin = sealed.deployment.ca.key_digest
    with (
        pytest.raises(FedlearnError) as caught,
        OwnerClient.connect(sealed.control, ca_pin=pin, key=ALICE, now=datetime.now(UTC)) as wrong,
    ):
        wrong.list_models()
    assert sealed.control in str(caught.value)
    assert "gate" in caught.value.hint


def test_an_owner_is_no_operator(sealed: DeploymentListeners, stub: rpc.OwnerStub) -> None:
    roots = sealed.deployment.ca.certificate_pem
    with open_channel(sealed.gate, roots=roots) as channel:
        operator = rpc.OperatorStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(operator.ListModels(pb.ListModelsRequest()))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_one_address_has_a_bounded_number_of_downloads_and_the_gate_goes_on(
    sealed: DeploymentListeners,
) -> None:
    large = {"w": np.zeros(12_000_000, np.float32)}
    sealed.store.write("heart", large, round=3, recipients=(public(ALICE),))
    with connect(sealed, ALICE) as alice, contextlib.ExitStack() as stack:
        for _ in range(8):
            next(stack.enter_context(alice.download_model("heart")).chunks)
        with pytest.raises(Throttled, match="8 feeds under way"):
            data(alice, "heart")
        roots = sealed.deployment.ca.certificate_pem
        with open_channel(sealed.gate, roots=roots) as channel:
            gate = rpc.GateStub(channel)
            assert gate.Challenge(pb.ChallengeRequest(job="alpha", site="site-a")).nonce


def test_a_flood_of_one_address_is_throttled_and_keeps_nothing(
    sealed: DeploymentListeners,
) -> None:
    limits = Limits(rate_per_peer=1.0, burst_per_peer=3)
    service = OwnerService(
        coordinator=RecordingCoordinator(),
        models=ModelSender(sealed.store),
        ca_pin=PIN,
        rates=Rates(limits=limits),
        clock=sealed.deployment.clock,
    )
    request = pb.OpenOwnerSessionRequest(owner_key=public(STRANGER))
    flooder, other = Caller(peer="192.0.2.1"), Caller(peer="192.0.2.2")
    for _ in range(3):
        service.OpenSession(request, flooder)
    with pytest.raises(Throttled, match="too many requests from this address"):
        service.OpenSession(request, flooder)
    assert service.OpenSession(request, other).sealed


def test_all_owners_together_have_a_bounded_number_of_downloads(
    sealed: DeploymentListeners,
) -> None:
    service = OwnerService(
        coordinator=RecordingCoordinator(),
        models=ModelSender(sealed.store),
        ca_pin=PIN,
        rates=Rates(),
        clock=sealed.deployment.clock,
        tokens=(tokens := OwnerTokens()),
    )
    wanted = pb.DownloadModelRequest(model="heart")
    request = pb.OwnerDownloadRequest(token=tokens.issue(public(ALICE)), download=wanted)

    def begun(number: int) -> Iterator[Any]:
        caller = Caller(peer=f"192.0.2.{number}")
        parts = service.DownloadModel(request, caller, threading.Event())
        next(parts)
        return parts

    held = [begun(number) for number in range(MAX_DOWNLOADS)]
    with pytest.raises(Throttled, match="owners have 64 downloads under way"):
        begun(MAX_DOWNLOADS)
    del held[0]
    assert begun(MAX_DOWNLOADS)


def test_an_owner_reads_the_logs_of_their_job_and_of_no_other(
    listeners: DeploymentListeners,
) -> None:
    coordinator = listeners.coordinator
    coordinator.owner_key = public(ALICE)
    name = AppLogName(
        job="alpha",
        digest=bytes(32),
        site="site-a",
        client="c1",
        stream=bytes(16),
        round=1,
        sequence=0,
    )
    lines = (AppLogLine(level="output", text="for Alice"),)
    sealed = seal_app_log(OpenedAppLog(lines=lines), name, public(ALICE))
    log = SealedAppLog(client="c1", stream=name.stream, round=1, sequence=0, sealed=sealed)
    coordinator.calls.append(("app log", ("alpha", "site-a", log)))
    with connect(listeners, ALICE) as alice:
        (found,) = fetch_app_logs_as_owner(alice, "alpha", "site-a", ALICE).logs
        assert found.lines == lines
        assert fetch_app_logs_as_owner(alice, "alpha", "site-b", ALICE).logs == ()
        with pytest.raises(JobError, match="sealed for this key"):
            fetch_app_logs_as_owner(alice, "beta", "site-a", ALICE)
    with connect(listeners, BOB) as bob, pytest.raises(JobError, match="sealed for this key"):
        fetch_app_logs_as_owner(bob, "alpha", "site-a", BOB)


def test_logs_need_a_session_and_names_that_can_be(
    listeners: DeploymentListeners, stub: rpc.OwnerStub
) -> None:
    asked = pb.AppLogsRequest(job="alpha", site="site-a")
    error = error_of(
        lambda: list(stub.FetchAppLogs(pb.OwnerAppLogsRequest(token=b"made up", logs=asked)))
    )
    assert "not one of this coordinator" in str(error)
    with connect(listeners, ALICE) as alice, pytest.raises(ConfigError, match="at most"):
        fetch_app_logs_as_owner(alice, "a" * 1000, "site-a", ALICE)
