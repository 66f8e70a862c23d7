"""What is compared, and how: links, evidence, figures, and the command on a small job."""

from __future__ import annotations

import json
import socket
import struct
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attestation.errors import VerificationError
from attestation.evidence import Tee
from fedlearn import extras
from fedlearn.cli import main
from fedlearn.cli.bench.costs import EVERYTHING, PLAIN, STAGES, Comparison, Run, Stage
from fedlearn.cli.bench.insecure_evidence import Machine
from fedlearn.cli.bench.insecure_link import Link
from fedlearn.cli.bench.job import Job, make_job
from fedlearn.cli.bench.parties import machines
from fedlearn.errors import AdmissionDenied, ConfigError, TransportError


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job("digits", tmp_path_factory.mktemp("job"), sites=2, rounds=2, images=32)


def pair() -> tuple[Link, socket.socket]:
    ours, theirs = socket.socketpair()
    return Link(ours), theirs


def test_frames_arrive_as_they_were_sent() -> None:
    ours, theirs = pair()
    frames = [b"", b"one", bytes(300_000)]
    sender = threading.Thread(target=ours.send, args=(frames,))
    sender.start()
    assert Link(theirs).receive() == frames
    sender.join()
    ours.close()
    assert Link(theirs).receive() is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack(">IQ", 1, 5) + b"four", "in the middle"),
        (struct.pack(">I", 10_001), "10001 frames"),
        (struct.pack(">IQ", 1, (1 << 33) + 1), "were announced"),
    ],
)
def test_frames_out_of_bounds_are_refused(data: bytes, message: str) -> None:
    ours, theirs = pair()
    theirs.sendall(data)
    theirs.close()
    with pytest.raises(TransportError, match=message):
        ours.receive()


def test_evidence_of_the_machine_is_affirmed_and_that_of_another_one_is_not(
    job: Job, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    with machines(job, tmp_path, Tee.SAMPLE) as made:
        ends = [(Machine.of(ours), Machine.of(theirs)) for ours, theirs in made.values()]
    (ours, theirs), (_, others) = ends
    ours.verify(theirs.collect(), now=now)
    theirs.verify(ours.collect(), now=now)
    with pytest.raises(VerificationError):
        ours.verify(others.collect(), now=now)


def test_evidence_of_another_app_is_not_affirmed(job: Job, tmp_path: Path) -> None:
    with machines(job, tmp_path, Tee.SAMPLE) as made:
        ours, theirs = made[job.sites[0]]
    altered = Machine.of({**theirs, "app": bytes(32).hex()})
    with pytest.raises(AdmissionDenied, match="app"):
        Machine.of(ours).verify(altered.collect(), now=datetime.now(UTC))


def test_the_ratio_is_that_of_the_median_rounds_without_the_first() -> None:
    plain = Run(start=1.0, rounds=[9.0, 2.0, 2.0, 3.0], parts={"sending": 0.5}, cpu={"app": 1.0})
    whole = Run(start=3.0, rounds=[9.0, 2.1, 2.0, 2.2], end=1.0)
    stages = [Stage(name=PLAIN, runs=[plain, plain]), Stage(name=EVERYTHING, runs=[whole])]
    found = Comparison(job="a job", stages=stages).to_json()
    first, last = found["stages"]
    assert (first["round_s"], first["job_s"], first["parts_s"]) == (2.0, 17.0, {"sending": 0.5})
    assert (last["round_ratio"], last["job_s"]) == (1.05, 19.3)
    assert found["met"] is True
    slower = Run(start=3.0, rounds=[9.0, 2.2, 2.2, 2.2])
    stages[1] = Stage(name=EVERYTHING, runs=[slower])
    assert Comparison(job="a job", stages=stages).to_json()["met"] is False


def test_more_images_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are 60000 in all"):
        make_job("fashion", tmp_path, sites=8, rounds=2, images=30_000)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def require(extra: str, *, needed_for: str) -> None:
        asked.append(extra)
        if extra == "torch":
            raise ConfigError("torch is not installed", hint=extras.install(extra))

    monkeypatch.setattr(extras, "require", require)
    done = CliRunner().invoke(main, ["bench", "confidentiality"])
    assert asked == ["server", "demo", "torch"]
    assert done.exit_code != 0
    assert "pip install 'fedlearn[torch]'" in done.stderr


def run_command(*options: str) -> dict[str, Any]:
    words = ["bench", "confidentiality", "--rounds", "2", "--repeat", "1", "--tee", "sample"]
    done = CliRunner().invoke(main, [*words, "--json", *options], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_plain_job_gives_its_times() -> None:
    found = run_command("--app", "medpar", "--stage", PLAIN)
    (stage,) = found["stages"]
    assert stage["name"] == PLAIN
    assert 0 < stage["round_s"] < 60
    assert stage["cpu_s"]["app"] > 0
    assert stage["what"].startswith("insecure")


@pytest.mark.long
def test_each_protection_is_measured() -> None:
    found = run_command("--app", "medpar")
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert list(stages) == list(STAGES)
    assert stages["sealing"]["parts_s"]["sealing of the model"] > 0
    assert stages["ledger"]["parts_s"]["entry of an update"] > 0
    assert stages["attestation"]["once_s"]["a site's evidence verified"] > 0
    moved = "CPU of sending and receiving"
    assert stages["mutual TLS"]["parts_s"][moved] > stages[PLAIN]["parts_s"][moved]
    assert {"coordinator", "aggregator", "client", "app"} <= set(stages[EVERYTHING]["cpu_s"])
