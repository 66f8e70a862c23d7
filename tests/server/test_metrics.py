"""Counts for Prometheus: what they show, and what they do not."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from fedlearn.errors import ConfigError
from server.admission.registry import AdmissionRegistry
from server.metrics import AdmissionCounts, Gauge, exposition, serve_metrics


def _admission(thumbprint: bytes) -> Any:
    now = datetime.now(UTC)
    return SimpleNamespace(
        thumbprint=thumbprint,
        job="job",
        site="hospital-a",
        client="c1",
        issued=now,
        expires=now + timedelta(minutes=30),
        renew_by=None,
    )


@pytest.fixture
def counted() -> tuple[AdmissionRegistry, AdmissionCounts]:
    registry, counts = AdmissionRegistry(), AdmissionCounts()
    registry.subscribe(counts)
    return registry, counts


def test_admissions_are_counted_as_they_come_and_go(
    counted: tuple[AdmissionRegistry, AdmissionCounts],
) -> None:
    registry, counts = counted
    now = datetime.now(UTC)
    for name in (b"1" * 32, b"2" * 32):
        registry.add(_admission(name), now=now)
    registry.renew(_admission(b"1" * 32), now=now)
    registry.revoke(b"2" * 32, reason="gone", now=now)
    live, changes = counts.gauges()
    assert live.values == {"": 1}
    assert changes.values["admission"] == 2
    assert changes.values["renewal"] == 1
    assert changes.values["revocation"] == 1
    assert changes.values["quarantine"] == 0


def test_text_is_what_prometheus_reads() -> None:
    gauges = [
        Gauge(name="a_total", help="A.", values={"x": 2, "y": 0}, label="kind", kind="counter"),
        Gauge(name="b", help="B.", values={"": 1.5}),
    ]
    assert exposition(gauges) == (
        "# HELP a_total A.\n"
        "# TYPE a_total counter\n"
        'a_total{kind="x"} 2\n'
        'a_total{kind="y"} 0\n'
        "# HELP b B.\n"
        "# TYPE b gauge\n"
        "b 1.5\n"
    )


@pytest.fixture
def address() -> Iterator[str]:
    gauges = [Gauge(name="fedlearn_jobs", help="Jobs.", values={"": 3})]
    with serve_metrics("127.0.0.1:0", lambda: gauges) as bound:
        yield bound


def test_metrics_are_served(address: str) -> None:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert b"fedlearn_jobs 3\n" in answer.read()


@pytest.mark.parametrize("path", ["/", "/metrics/x", "/../state", "/metrics?x"])
def test_nothing_else_is_served(address: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{address}{path}", timeout=5)
    assert refused.value.code == 404


def test_a_count_that_fails_is_an_error_and_no_more() -> None:
    def read() -> list[Gauge]:
        raise RuntimeError("no")

    with serve_metrics("127.0.0.1:0", read) as bound:
        for _ in range(2):
            with pytest.raises(urllib.error.HTTPError) as failed:
                urllib.request.urlopen(f"http://{bound}/metrics", timeout=5)
            assert failed.value.code == 500


def test_an_address_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port} cannot be bound"):
            with serve_metrics(f"127.0.0.1:{port}", list):
                pass


def test_readiness_names_what_is_wrong() -> None:
    faults: dict[str, str] = {}
    with serve_metrics("127.0.0.1:0", list, lambda: faults) as bound:
        with urllib.request.urlopen(f"http://{bound}/readyz", timeout=5) as answer:
            assert answer.read() == b"ok\n"
        faults["disk"] = "is full"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://{bound}/readyz", timeout=5)
        assert (refused.value.code, refused.value.read()) == (503, b"disk: is full\n")
        with urllib.request.urlopen(f"http://{bound}/livez", timeout=5) as answer:
            assert answer.status == 200
