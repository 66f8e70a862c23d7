"""The chart's front for real: Envoy as helm configures it, between sites and a coordinator."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedlearn.identity.spiffe import COORDINATOR_DNS
from tests.harness.envoy import Envoy, free_port, rendered
from tests.harness.federation import FederationHarness

ROOT = Path(__file__).resolve().parents[2]
CHECK = ROOT / "helm/fedlearn-server/files/check.py"
PORTS = ("gate", "control", "fleet")

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def front(
    helm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Envoy, FederationHarness]]:
    """A federation whose sites and operator know the front's addresses only."""
    folder = tmp_path_factory.mktemp("front")
    listen = {name: f"127.0.0.1:{free_port()}" for name in PORTS}
    envoy = Envoy(folder / "envoy", rendered(helm, folder, {}), listen)
    advertise = {name: envoy.address(name) for name in PORTS}
    server = {"listen": listen, "advertise": advertise}
    with (
        envoy,
        FederationHarness(folder / "harness", ("site-a", "site-b"), server=server) as harness,
    ):
        yield envoy, harness


def ready(envoy: Envoy) -> int:
    try:
        url = f"http://{envoy.address('ready')}/ready"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def outcome(port: int, hello: bytes | None, name: str | None = None) -> str:
    """Return how a connection ends: ``closed``, or with the first bytes that came back."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as plain:
        try:
            if hello is not None:
                plain.sendall(hello)
                reported = plain.recv(16)
                return reported.hex() or "closed"
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            with context.wrap_socket(plain, server_hostname=name) as secure:
                return str(secure.version())
        except (ConnectionError, ssl.SSLError):
            return "closed"


def test_a_job_runs_through_the_front_and_outlives_it(
    front: tuple[Envoy, FederationHarness],
) -> None:
    envoy, harness = front
    job = harness.job(
        "through", sites=["site-a", "site-b"], rounds=6, config={"wait": 0.2}
    ).submit()
    job.wait_for("round.finished", 2)
    envoy.kill()
    time.sleep(0.5)
    envoy.start()
    job.finish()
    assert {body["round"] for body in job.ledger("round")} == set(range(1, 7))
    assert ready(envoy) == 200


def test_tls_ends_behind_it(front: tuple[Envoy, FederationHarness]) -> None:
    envoy, _ = front
    ports = [str(envoy.ports[name]) for name in PORTS]
    done = subprocess.run(
        [sys.executable, CHECK, "127.0.0.1", *ports],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "control" in done.stdout


@pytest.mark.parametrize("port", PORTS)
def test_what_is_not_for_the_coordinator_is_closed(
    front: tuple[Envoy, FederationHarness], port: str
) -> None:
    envoy, _ = front
    number = envoy.ports[port]
    assert outcome(number, None, COORDINATOR_DNS) == "TLSv1.3"
    assert outcome(number, None, "somebody.else") == "closed"
    assert outcome(number, None) == "closed"
    assert outcome(number, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == "closed"
    assert outcome(number, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == "closed"


def test_whoever_states_nothing_is_closed(front: tuple[Envoy, FederationHarness]) -> None:
    envoy, _ = front
    begun = time.monotonic()
    assert outcome(envoy.ports["gate"], b"\x16\x03\x01") == "closed"
    assert 3 < time.monotonic() - begun < 12


def test_connections_above_the_limit_are_closed(
    front: tuple[Envoy, FederationHarness], helm: Path, tmp_path: Path
) -> None:
    _, harness = front
    config = rendered(helm, tmp_path, {"limits": {"connections": 3}})
    with (
        Envoy(tmp_path / "envoy", config, listening(harness)) as narrow,
        contextlib.ExitStack() as held,
    ):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for _ in range(3):
            plain = socket.create_connection(("127.0.0.1", narrow.ports["gate"]), timeout=10)
            held.enter_context(context.wrap_socket(plain, server_hostname=COORDINATOR_DNS))
        assert outcome(narrow.ports["gate"], None, COORDINATOR_DNS) == "closed"


def test_it_is_ready_only_while_the_coordinator_answers(helm: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        behind = {name: f"127.0.0.1:{there.getsockname()[1]}" for name in PORTS}
        config = rendered(helm, tmp_path, {})
        for cluster in config["static_resources"]["clusters"]:
            for check in cluster["health_checks"]:
                check.update(interval="0.1s", no_traffic_interval="0.1s")
        envoy = Envoy(tmp_path / "envoy", config, behind)
        with envoy:
            assert until(lambda: ready(envoy) == 200)
            there.close()
            assert until(lambda: ready(envoy) == 503)


def test_it_has_no_key_and_no_admin_interface(helm: Path, tmp_path: Path) -> None:
    config = rendered(helm, tmp_path, {})
    text = json.dumps(config)
    assert "admin" not in config
    assert "transport_socket" not in text
    assert "tls_certificate" not in text


def listening(harness: FederationHarness) -> dict[str, str]:
    """Return where the coordinator itself listens."""
    from server.config import ServerConfig

    listen = ServerConfig.load(harness.server_toml).listen
    return {name: str(getattr(listen, name)) for name in PORTS}


def until(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + 15
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
