"""A client reads what it is started with once: its job, its policy and its code."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attestation.policy.parse import parse_policy
from edge.client import runner as client
from edge.client.flower.replies import Replies
from edge.protocol.bootstrap import Bootstrap
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.job.phase import Phase
from fedlearn.job.spec import JobSpec
from tests.harness.passes import passes
from tests.harness.restarting_coordinator import tiny_bundle

POLICY = 'accept = ["sample"]\ninsecure_sample = true\n'
JOB = 'name = "alpha"\napp = "app"\nrounds = 1\nsites = ["site-a"]\npolicy = "policy.toml"\n'


class Attester:
    """Measures into a dictionary."""

    def __init__(self) -> None:
        self.measured: dict[str, bytes] = {}

    def extend(self, claim: str, value: bytes) -> None:
        self.measured[claim] = value


class Warm:
    """Loads the app as a warm client does, and has no round to work in."""

    def __init__(self, plan: Any, *, directory: Path, charge: Any, **_: Any) -> None:
        self._replies = Replies(plan, directory=directory, charge=charge)

    def load(self) -> None:
        self._replies.load()

    def run(self) -> str:
        return "the job is over"

    def stop(self) -> None:
        return None

    def close(self) -> None:
        return None


@pytest.fixture
def attester(monkeypatch: pytest.MonkeyPatch) -> Attester:
    """A client whose coordinator admits it at once, as far as the start of round 1."""
    made = Attester()
    later = datetime.now(UTC) + timedelta(hours=1)
    admitted = SimpleNamespace(fleet_address="", renew_after=later)
    gate = SimpleNamespace(connect=lambda *_, **__: SimpleNamespace(close=lambda: None))
    for name, fake in {
        "GateClient": gate,
        "WarmClient": Warm,
        "_identity": lambda status: None,
        "open_attester": lambda *_, **__: made,
        "protect_this_process": lambda: None,
        "seek_admission": lambda *_, **__: admitted,
    }.items():
        monkeypatch.setattr(client, name, fake)
    monkeypatch.setattr(client._Client, "_commit", lambda self, status: None)
    monkeypatch.setattr(Replies, "_started", lambda self: None)
    return made


def test_before_round_1_a_client_reads_all_of_it_once(attester: Attester, tmp_path: Path) -> None:
    code = tiny_bundle(tmp_path / "app")
    spec = JobSpec.from_toml(JOB, policy=parse_policy(POLICY.encode()))
    reported = Bootstrap(
        site="site-a",
        client="c1",
        spec=spec.to_json(),
        policy=POLICY,
        bundle=code,
        gate_address="127.0.0.1:1",
        ca_pin=bytes(32),
        data="",
        attester=AttesterSettings(kind="insecure-sample"),
        state=tmp_path,
    ).encode()
    with passes(code) as counted:
        phase = client.run(
            Bootstrap.decode(reported),
            SimpleNamespace(vouch=None, charge=None),
            report=lambda phase, reason: None,
            stop=threading.Event(),
            scratch=tmp_path / "scratch",
        )
    assert phase is Phase.SUCCEEDED
    assert attester.measured["job"] == spec.digest()
    assert counted == {"spec": 1, "policy": 1, "hash": 1}
