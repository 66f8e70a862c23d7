"""One peer holds what it can of a running coordinator, and no job notices."""

from __future__ import annotations

import base64
import contextlib
import resource
import socket
import struct
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedlearn.identity.spiffe import COORDINATOR_DNS
from fedlearn.identity.tls import client_context
from fedlearn.wire.channel import open_channel
from tests.fakes.misbehaving_client import MisbehavingClient
from tests.harness.federation import FederationHarness, Job, eventually

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
CHALLENGE = "/fedlearn.v1.Gate/Challenge"


@pytest.fixture(scope="module")
def brisk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHarness]:
    """A federation whose clients attest again every five seconds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16_384), hard))
    certificates = {"client_s": 60, "renew_after_s": 5, "renew_by_s": 10}
    # So few sites that 400 open files are enough for all of them.
    limits = {"requests_per_second_per_peer": 200.0, "jobs": 64, "sites": 64}
    folder = tmp_path_factory.mktemp("floods")
    with FederationHarness(
        folder, ("site-a", "site-b"), server={"certificates": certificates, "limits": limits}
    ) as harness:
        yield harness
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _memory(harness: FederationHarness) -> int:
    """Return the MiB that the coordinator's process holds."""
    for line in Path(f"/proc/{harness.server_pid()}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no VmRSS")


def _address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _job(harness: FederationHarness, name: str, **more: Any) -> Job:
    config = {"wait": 0.5, **more.pop("config", {})}
    return harness.job(name, rounds=12, quorum=2, deadline_s=120, config=config, **more).submit()


def _whole(job: Job) -> None:
    """Every site was in every round, and attested again meanwhile."""
    job.finish(seconds=120)
    assert [event.sites for event in job.of("round.finished")] == [2] * 12
    assert len(job.of("client.renewed")) >= 2
    assert job.of("client.quarantined") == []


def _listens(harness: FederationHarness, listener: str) -> str:
    """Return where a listener of the coordinator is."""
    return str(tomllib.loads(harness.server_toml.read_text())["listen"][listener])


@contextlib.contextmanager
def _silent(harness: FederationHarness, count: int) -> Iterator[list[socket.socket]]:
    """Hold connections to every listener from another address of loopback."""
    made = []
    try:
        for address in (_listens(harness, name) for name in ("gate", "control", "fleet")):
            for _ in range(count):
                with contextlib.suppress(OSError):
                    made.append(
                        socket.create_connection(
                            _address(address), 5, source_address=("127.0.0.2", 0)
                        )
                    )
        yield made
    finally:
        for one in made:
            one.close()


def test_fifteen_hundred_silent_connections_to_each_listener_cost_little(
    brisk: FederationHarness,
) -> None:
    job = _job(brisk, "silent")
    job.wait_for("round.started", round=2)
    before = _memory(brisk)
    with _silent(brisk, 1500):
        time.sleep(3)
        assert _memory(brisk) - before < 100
        _whole(job)


def test_few_file_descriptors_are_enough_under_a_flood(brisk: FederationHarness) -> None:
    brisk.stop_coordinator()
    brisk.start_coordinator(wrapper=["prlimit", "--nofile=400:400"])
    try:
        with eventually(20) as wait:
            wait(
                lambda: all(
                    s.connected for s in brisk.operator.list_sites() if s.name != "misbehaving"
                )
            )
        job = _job(brisk, "few-files", config={"wait": 0.8})
        job.wait_for("round.started", round=2)
        with _silent(brisk, 400):
            _whole(job)
    finally:
        brisk.stop_coordinator()
        brisk.start_coordinator()


def _silence(over: threading.Event) -> Iterator[bytes]:
    over.wait(120)
    yield b""


@contextlib.contextmanager
def _held_calls(harness: FederationHarness) -> Iterator[list[Any]]:
    """Open calls to the gate from this address, again and again, and send nothing in them."""
    over = threading.Event()
    calls: list[Any] = []
    channels: list[grpc.Channel] = []

    def hold() -> None:
        while not over.is_set():
            channel = open_channel(_listens(harness, "gate"), roots=harness.ca.certificate_pem)
            channels.append(channel)
            opened = channel.stream_unary(
                CHALLENGE, request_serializer=bytes, response_deserializer=bytes
            )
            calls.extend(opened.future(_silence(over)) for _ in range(32))
            over.wait(0.1)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    try:
        yield calls
    finally:
        over.set()
        thread.join(10)
        for channel in channels:
            channel.close()


def test_whoever_holds_the_gate_from_a_clients_own_address_keeps_no_client_from_renewing(
    brisk: FederationHarness,
) -> None:
    job = _job(brisk, "held", config={"wait": 1.0})
    job.wait_for("round.started", round=1)
    with _held_calls(brisk) as calls:
        _whole(job)
        assert len(calls) > 256


def test_deliveries_that_nobody_asked_for_are_not_kept(brisk: FederationHarness) -> None:
    misbehaving = MisbehavingClient(brisk)
    job = brisk.job("unasked", sites=["site-a", "misbehaving"], quorum=2, deadline_s=60).submit()
    held = misbehaving.admit(job)
    identity = held.identity
    pem = identity.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    key = base64.b64encode(pem).decode()
    context = client_context(identity.chain, identity.key, identity.authorities)
    address = _address(held.admitted.fleet_address)
    before, taken = _memory(brisk), []

    def deliver() -> None:
        size = 300 * MIB
        head = (
            f"POST /v1/fleet/deliver HTTP/1.1\r\nhost: x\r\nflwr-public-key: {key}\r\n"
            f"content-length: {size}\r\n\r\n"
        )
        raw = socket.create_connection(address, 10)
        sent = 0
        with contextlib.suppress(OSError):
            with context.wrap_socket(raw, server_hostname=COORDINATOR_DNS) as tls:
                tls.sendall(head.encode() + struct.pack(">Q", size - 8))
                while sent < size - MIB:
                    tls.sendall(bytes(MIB))
                    sent += MIB
                time.sleep(5)
        taken.append(sent)

    threads = [threading.Thread(target=deliver, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert _memory(brisk) - before < 64
    assert len(taken) == 8
    assert max(taken) < 100 * MIB
    assert job.status == "running"
    brisk.operator.cancel_job("unasked")
