"""The line between an agent in a cluster and its clients, over real TLS."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge.agent.client_service import Keys, WorkloadService
from edge.client.pod_main import EXIT, START_LINE, PodEnvironment
from edge.kube.client_object import Launch, environment
from edge.protocol.bootstrap import MAX_BOOTSTRAP_BYTES, Bootstrap
from edge.protocol.workload import REFUSED_EXIT, Workload
from fedlearn.errors import ConfigError, LaunchError, PrivacyError, TransportError
from fedlearn.identity.voucher import sign_voucher, verify_voucher
from fedlearn.job.phase import Phase
from fedlearn.wire import client_service as wire
from fedlearn.wire.client_service import Ticket, WorkloadApiClient, WorkloadApiServer
from fedlearn.wire.failure import Unreachable
from tests.harness.cluster_site import bootstrap, workload
from tests.harness.forwarder import Forwarder

SITE_KEY = ec.generate_private_key(ec.SECP256R1())
NONCE = bytes(range(32))
KEY = (
    ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)


class Line:
    """A client service with one client's workload."""

    def __init__(self) -> None:
        self.workload = workload("a")
        self.reported: list[tuple[str, Phase, str]] = []
        self.keys = Keys(SITE_KEY)

        def vouch(item: Workload, nonce: bytes, tls_key: bytes) -> bytes:
            return sign_voucher(
                SITE_KEY,
                job=item.assignment.job,
                site=item.assignment.site,
                client=item.client,
                nonce=nonce,
                tls_key=tls_key,
            )

        self.charged: list[tuple[str, str]] = []
        self.service = WorkloadService(
            self.keys,
            vouch_for=vouch,
            charge_for=self.charge,
            seed_for=lambda item, request: b"sealed for " + item.assignment.id.encode() + request,
            report=lambda *values: self.reported.append(values),
        )
        self.server = WorkloadApiServer(self.service, self.keys.tls, listen="127.0.0.1:0").start()
        self.address = f"127.0.0.1:{self.server.port}"

    def charge(self, item: Workload, question: str) -> None:
        if question == "too much":
            raise PrivacyError("6 rounds of the job bring the data set to epsilon 9")
        self.charged.append((item.assignment.id, question))

    def ticket(self, assignment: str = "a") -> Ticket:
        return Ticket(assignment=assignment, tag=self.keys.tag(assignment))

    def client(self, ticket: Ticket | None = None) -> WorkloadApiClient:
        return WorkloadApiClient(self.address, pin=self.keys.pin, ticket=ticket or self.ticket())


@pytest.fixture
def line() -> Iterator[Line]:
    running = Line()
    running.service.take(running.workload, bootstrap)
    yield running
    running.server.stop()


def test_a_client_gets_its_start_and_a_voucher(line: Line) -> None:
    client = line.client()
    document = Bootstrap.decode(client.bootstrap(limit=MAX_BOOTSTRAP_BYTES))
    assert document.bundle == line.workload.bundle
    tls_key = ec.generate_private_key(ec.SECP256R1()).public_key()
    der = tls_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    voucher = client.vouch(NONCE, der)
    verify_voucher(
        voucher,
        site_key=SITE_KEY.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        ),
        job="mortality",
        site="site-a",
        client="c1",
        nonce=NONCE,
        tls_key=der,
    )
    assert client.grant_seed(b" and so on") == b"sealed for a and so on"
    client.charge("q1")
    assert line.charged == [("a", "q1")]
    with pytest.raises(PrivacyError, match="bring the data set to epsilon 9"):
        client.charge("too much")
    client.report(Phase.RUNNING, "admitted\x1b[31m")
    assert line.reported == [("a", Phase.RUNNING, "admitted [31m")]
    client.close()


def test_tickets_and_pin_outlive_the_agent(line: Line) -> None:
    again = Keys(SITE_KEY)
    assert (again.pin, again.tag("a")) == (line.keys.pin, line.keys.tag("a"))
    other = Keys(ec.generate_private_key(ec.SECP256R1()))
    assert other.pin != line.keys.pin
    assert other.tag("a") != line.keys.tag("a")


def test_a_ticket_is_good_for_one_assignment(line: Line) -> None:
    line.service.take(workload("b"), bootstrap)
    for ticket in (
        Ticket(assignment="b", tag=line.keys.tag("a")),
        Ticket(assignment="a", tag=bytes(32)),
        Ticket(assignment="a", tag=b""),
    ):
        client = line.client(ticket)
        for attempt in (
            lambda: client.bootstrap(limit=MAX_BOOTSTRAP_BYTES),  # noqa: B023
            lambda: client.vouch(NONCE, b"key"),  # noqa: B023
            lambda: client.charge("q1"),  # noqa: B023
            lambda: client.report(Phase.RUNNING, "x"),  # noqa: B023
        ):
            with pytest.raises(LaunchError, match="was not issued by this site"):
                attempt()
        client.close()
    assert line.reported == []


def test_a_malformed_question_is_refused(line: Line) -> None:
    client = line.client()
    for nonce, key in ((b"short", b"k"), (NONCE, b""), (NONCE, bytes(2000))):
        with pytest.raises(LaunchError, match="malformed"):
            client.vouch(nonce, key)
    client.close()


def test_another_server_is_not_the_agent(line: Line) -> None:
    with pytest.raises(LaunchError, match="is not the agent that started this client"):
        WorkloadApiClient(line.address, pin=bytes(32), ticket=line.ticket())


def test_a_document_that_is_too_long_is_refused(line: Line) -> None:
    client = line.client()
    with pytest.raises(TransportError, match="longer than 100 bytes"):
        client.bootstrap(limit=100)
    client.close()


def test_an_ended_assignment_is_answered_no_more(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.service.release("a")
    with pytest.raises(Unreachable, match="not known here yet"):
        line.service.vouch(line.ticket(), NONCE, b"key")
    monkeypatch.setattr(wire, "retry", lambda call, **_: call())
    client = line.client()
    with pytest.raises(Unreachable):
        client.vouch(NONCE, b"key")
    client.close()


def test_a_port_in_use_is_named(line: Line) -> None:
    with pytest.raises(ConfigError, match=r"sponsor_listen: .* cannot be bound"):
        WorkloadApiServer(line.service, line.keys.tls, listen=line.address)


# --- the client's program -----------------------------------------------------------------


def test_what_the_pod_is_given_is_what_the_client_reads(line: Line) -> None:
    launch = Launch(agent_address=line.address, pin=line.keys.pin, ticket=line.keys.tag("a"))
    found = PodEnvironment.read(environment(line.workload, launch))
    assert (found.agent_address, found.pin, found.tag) == (
        launch.agent_address,
        launch.pin,
        launch.ticket,
    )
    assert (found.assignment, found.data) == ("a", "/data")
    assert "tag" not in repr(found)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FEDLEARN_SPONSOR", "", "FEDLEARN_SPONSOR: is not set"),
        ("FEDLEARN_SPONSOR_PIN", "ab", "FEDLEARN_SPONSOR_PIN: must be 64 hexadecimal digits"),
        ("FEDLEARN_TICKET", "zz" * 32, "FEDLEARN_TICKET: must be 64 hexadecimal digits"),
    ],
)
def test_a_broken_environment_is_named(line: Line, name: str, value: str, message: str) -> None:
    launch = Launch(agent_address=line.address, pin=line.keys.pin, ticket=line.keys.tag("a"))
    with pytest.raises(ConfigError, match=message):
        PodEnvironment.read({**environment(line.workload, launch), name: value})


def test_the_program_leaves_its_last_words(line: Line, tmp_path: Path) -> None:
    launch = Launch(agent_address=line.address, pin=line.keys.pin, ticket=line.keys.tag("a"))
    words = tmp_path / "words"
    variables = {
        **environment(line.workload, launch),
        "FEDLEARN_LAST_WORDS": str(words),
        "FEDLEARN_LOG": "CRITICAL",
        "FEDLEARN_SCRATCH": str(tmp_path),
        "FEDLEARN_STATE": str(tmp_path / "state"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "edge.client.pod_main"],
        env={**os.environ, **variables},
        cwd=Path(__file__).resolve().parents[3],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    # Its job names another policy than the one that came with it.
    assert done.returncode == 1, done.stderr
    assert "policy" in words.read_text()
    # Whatever the log level: an empty log then shows that the guest keeps it.
    assert done.stderr.splitlines()[0] == START_LINE


def test_only_a_job_that_ended_well_is_complete() -> None:
    """Kubernetes starts a client again unless its status is 0, or states that it was refused."""
    assert set(EXIT) == {phase for phase in Phase if phase.final}
    assert [phase for phase, status in EXIT.items() if status == 0] == [Phase.SUCCEEDED]
    assert EXIT[Phase.REFUSED] == REFUSED_EXIT
    assert len(set(EXIT.values())) == len(EXIT)


def test_a_client_that_states_nothing_keeps_no_other_from_the_agent(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_MESSAGE_SECONDS", 1.0)
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait(30)
        yield b""

    far = Forwarder("127.0.0.2", line.address)
    certificate = wire._pinned(far.address, line.keys.pin)
    with grpc.secure_channel(
        far.address,
        grpc.ssl_channel_credentials(certificate),
        options=[("grpc.ssl_target_name_override", wire.WORKLOAD_API_DNS)],
    ) as channel:
        opened = channel.stream_unary(
            "/fedlearn.v1.Sponsor/Vouch",
            request_serializer=bytes,
            response_deserializer=bytes,
        )
        calls = [opened.future(silence()) for _ in range(60)]
        with line.client() as client:
            assert client.vouch(NONCE, KEY)
        end = time.monotonic() + 10
        while not all(call.done() for call in calls):
            assert time.monotonic() < end
            time.sleep(0.05)
        codes = [call.code() for call in calls]
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) >= 50
        assert grpc.StatusCode.CANCELLED in codes
        over.set()
    far.close()
