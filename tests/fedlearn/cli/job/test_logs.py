"""``fedlearn job logs --site``: what it prints, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedlearn.identity.keyfile import make_key_pair, read_private_key
from fedlearn.sealing.app_log import AppLogLine, AppLogName, OpenedAppLog, seal_app_log
from fedlearn.wire import fedlearn_pb2 as pb
from tests.fakes.lone_coordinator import LoneCoordinator

DIGEST = bytes(range(32))
NAME = AppLogName(
    job="heart",
    digest=DIGEST,
    site="north",
    client="c1",
    stream=bytes(16),
    round=1,
    sequence=0,
)
LINES = (
    AppLogLine(level="output", text="loss \x1b[2J0.3"),
    AppLogLine(level="warning", text="slow", logger="mine", file="app/client_app.py", line=3),
    AppLogLine(level="error", text="KeyError: 'x'", file="app/client_app.py", line=31),
)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key_pair(tmp_path / "owner.pem")
    return tmp_path / "owner.pem"


@pytest.fixture
def deployment(tmp_path: Path, key: Path) -> Iterator[LoneCoordinator]:
    with LoneCoordinator.started(tmp_path) as running:
        state = pb.JobState(name="heart", id=DIGEST.hex(), status="running", sites=["north"])
        running.coordinator.jobs["heart"] = state
        owner = read_private_key(key)
        running.coordinator.app_logs = [sealed(owner, number) for number in range(3)]
        yield running


def sealed(owner: X25519PrivateKey, number: int) -> pb.AppLog:
    name = dataclasses.replace(NAME, round=number + 1, sequence=number)
    content = OpenedAppLog(lines=LINES, left_out=number)
    data = seal_app_log(content, name, owner.public_key().public_bytes_raw())
    return pb.AppLog(
        client="c1", stream=name.stream, round=number + 1, sequence=number, sealed=data
    )


def test_each_line_has_its_round_level_and_place(deployment: LoneCoordinator, key: Path) -> None:
    done = deployment.run("job", "logs", "heart", "--site", "north", "--key", key)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) == 9
    assert lines[:3] == [
        "round 1  c1  output    loss \N{REPLACEMENT CHARACTER}[2J0.3",
        "round 1  c1  warning   mine: slow  [app/client_app.py:3]",
        "round 1  c1  error     KeyError: 'x'",
    ]


def test_one_round_as_json(deployment: LoneCoordinator, key: Path) -> None:
    words = ("job", "logs", "heart", "--site", "north", "--key", key, "--round", "3", "--json")
    found = json.loads(deployment.run(*words).stdout)
    assert found["schema"] == "fedlearn job logs/1"
    assert (found["job"], found["site"], found["faults"]) == ("heart", "north", [])
    (log,) = found["logs"]
    assert (log["client"], log["round"], log["left_out"]) == ("c1", 3, 2)
    assert log["lines"] == [dataclasses.asdict(line) for line in LINES]


def test_a_log_that_is_missing_or_altered_is_named_and_the_status_states_it(
    deployment: LoneCoordinator, key: Path
) -> None:
    logs = deployment.coordinator.app_logs
    words = ("job", "logs", "heart", "--site", "north", "--key", key)
    deployment.coordinator.app_logs = [logs[0], logs[2]]
    done = deployment.run(*words)
    assert done.exit_code == 2
    assert done.stderr == "warning: log 1 of client c1 is missing before round 3\n"
    assert len(done.stdout.splitlines()) == 6
    altered = pb.AppLog()
    altered.CopyFrom(logs[1])
    altered.sealed = altered.sealed[:-1] + b"\0"
    gone = pb.AppLog(client="c1", stream=bytes(16), round=3, sequence=2, fault="\x1b altered")
    deployment.coordinator.app_logs = [logs[0], altered, gone]
    done = deployment.run(*words)
    assert done.exit_code == 2
    assert "log 1 of client c1 (round 2) does not open: it was altered" in done.stderr
    assert "log 2 of client c1 (round 3) is not there: \N{REPLACEMENT CHARACTER} altered" in (
        done.stderr
    )


def test_a_number_that_no_log_has_is_named(deployment: LoneCoordinator, key: Path) -> None:
    odd = pb.AppLog(client="c1", stream=b"short", round=2, sequence=0, sealed=b"x")
    deployment.coordinator.app_logs.append(odd)
    done = deployment.run("job", "logs", "heart", "--site", "north", "--key", key)
    assert "does not open" in done.stderr


def test_another_key_is_a_refusal(deployment: LoneCoordinator, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    make_key_pair(other)
    done = deployment.run("job", "logs", "heart", "--site", "north", "--key", other)
    assert done.exit_code == 2
    assert "none of the 3 logs of site north in job heart opens with this key" in done.stderr
    assert "loss" not in done.output


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--site", "north"), "give the owner's --key"),
        (("--key", "KEY"), "name its --site"),
        (("--round", "1"), "name its --site"),
        (("--site", "north", "--key", "KEY", "--follow"), "leave it out with --site"),
        (("--site", "north", "--key", "KEY", "--round", "-1"), "--round"),
        (("--site", "north", "--key", "nowhere.pem"), "does not exist"),
        (("--coordinator", "h:1"), "name its --site"),
        (("--site", "north", "--key", "KEY", "--ca-pin", "00" * 32), "name both, or none"),
        (
            ("--site", "north", "--key", "KEY", "--coordinator", "h:1", "--ca-pin", "00" * 32),
            "no --operator",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    deployment: LoneCoordinator, key: Path, words: tuple[str, ...], reason: str
) -> None:
    done = deployment.run("job", "logs", "heart", *(key if w == "KEY" else w for w in words))
    assert done.exit_code != 0
    assert reason in done.stderr
