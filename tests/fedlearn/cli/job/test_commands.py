"""``fedlearn job`` against a coordinator's control port: real TLS, real gRPC, both ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from attestation.policy.parse import parse_policy
from fedlearn.api.job import Job
from fedlearn.api.validation import examine
from fedlearn.app.checks import check_bundle
from fedlearn.cli import main
from fedlearn.cli.job import template
from fedlearn.identity.login import OperatorLogin
from fedlearn.job import events
from fedlearn.job.spec import JobSpec
from server.identity.pki import CertificateAuthority
from tests.fakes.lone_coordinator import LoneCoordinator
from tests.harness.passes import passes


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[LoneCoordinator]:
    with LoneCoordinator.started(tmp_path) as running:
        yield running


@pytest.fixture
def job(tmp_path: Path) -> Path:
    template.write(tmp_path / "heart", "heart")
    return tmp_path / "heart/job.toml"


GOOD = [
    events.JobStarted(job="heart", rounds=1, sites=("site-a", "site-b")),
    events.RoundStarted(round=1, rounds=1, sites=("site-a", "site-b")),
    events.RoundFinished(round=1, rounds=1, seconds=0.3, sites=2, bytes=9, metrics={"accuracy": 1}),
    events.JobFinished(model="heart"),
]


def test_a_job_is_submitted_whole(deployment: LoneCoordinator, job: Path) -> None:
    done = deployment.run("job", "submit", job)
    assert done.exit_code == 0, done.output
    assert "job heart: running" in done.stdout
    request = deployment.coordinator.submitted[0]
    policy = parse_policy(request.policy_toml.encode())
    spec = JobSpec.from_toml(request.job_toml, policy=policy)
    assert spec.digest() == JobSpec.load(job).digest()
    assert check_bundle(request.bundle).name == "heart"
    assert str(job.parent) not in request.job_toml


def test_a_job_and_its_policy_are_parsed_once_where_they_are_written(job: Path) -> None:
    with passes(b"") as counted:
        report = examine(job)
    assert counted == {"spec": 1, "policy": 1}
    assert report.policy_toml == report.policy_file.read_text()


def test_a_loaded_job_is_checked_as_it_was_read(job: Path) -> None:
    with passes(b"") as counted:
        loaded = Job.load(job)
        job.write_text(job.read_text().replace("rounds = ", "rounds = 9"))
        report = loaded.validate()
    assert counted == {"spec": 1, "policy": 1}
    assert report.spec is loaded.spec
    assert Job.load(job).validate().spec.rounds != report.spec.rounds


def test_a_job_is_followed_to_its_end(deployment: LoneCoordinator, job: Path) -> None:
    deployment.coordinator.story = [*GOOD]
    done = deployment.run("job", "submit", job, "--follow")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-2:] == [
        "round 1/1: 2 sites  0.30 s  9 B  accuracy 1.0000",
        "job finished, model heart is sealed",
    ]
    done = deployment.run("job", "logs", "heart", "--follow", "--json")
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    assert [row["kind"] for row in rows] == [event.kind for event in GOOD]


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (events.JobFailed(detail="quorum not reached", hint="see the sites"), "quorum not reached"),
        (events.JobCancelled(detail="by ada"), "was cancelled: by ada"),
        (events.JobInterrupted(), "was interrupted"),
    ],
)
def test_a_job_that_ends_badly_is_an_error(
    deployment: LoneCoordinator, job: Path, last: events.Event, words: str
) -> None:
    deployment.coordinator.story = [*GOOD[:-1], last]
    done = deployment.run("job", "submit", job, "--follow")
    assert done.exit_code == 1
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_an_end_before_a_resumption_is_not_the_end(deployment: LoneCoordinator, job: Path) -> None:
    deployment.coordinator.story = [GOOD[0], events.JobCancelled(), *GOOD]
    done = deployment.run("job", "submit", job, "--follow")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == "job finished, model heart is sealed"


def test_a_stream_that_breaks_off_is_reported(deployment: LoneCoordinator, job: Path) -> None:
    deployment.coordinator.story = GOOD[:-1]
    done = deployment.run("job", "submit", job, "--follow")
    assert done.exit_code == 1
    assert "ended the stream" in done.stderr
    assert "job logs heart --follow" in done.stderr


def test_a_status_that_is_not_known_here_is_not_guessed(
    deployment: LoneCoordinator, job: Path
) -> None:
    deployment.run("job", "submit", job)
    deployment.coordinator.jobs["heart"].status = "paused"
    done = deployment.run("job", "status", "heart")
    assert done.exit_code == 1
    assert "not known here: 'paused'" in done.stderr


def test_status_cancel_and_resume(deployment: LoneCoordinator, job: Path) -> None:
    assert "no jobs yet" in deployment.run("job", "status").stdout
    deployment.run("job", "submit", job)
    assert "running" in deployment.run("job", "status").stdout
    assert "site-a, site-b" in deployment.run("job", "status", "heart").stdout
    assert "cancelled" in deployment.run("job", "cancel", "heart").stdout
    state = json.loads(deployment.run("job", "status", "heart", "--json").stdout)
    assert (state["status"], state["rounds"]) == ("cancelled", 5)
    assert state.pop("schema") == "fedlearn job status/1"
    every = json.loads(deployment.run("job", "status", "--json").stdout)
    assert every == {"jobs": [state], "schema": "fedlearn job status/1"}
    assert "running" in deployment.run("job", "resume", "heart").stdout


def test_a_client_is_revoked_with_a_reason(deployment: LoneCoordinator, job: Path) -> None:
    deployment.run("job", "submit", job)
    done = deployment.run("job", "revoke", "heart", "--site", "site-a", "--reason", "stolen disk")
    assert "site-a" in done.stdout
    (request,) = deployment.coordinator.revoked
    assert (request.job, request.site, request.reason) == ("heart", "site-a", "stolen disk")
    assert (request.client, request.once, request.until_unix_ms) == ("", False, 0)


@pytest.mark.parametrize(
    "words",
    [("heart", "--site", "Site A"), ("nobody", "--site", "site-a"), ("heart",)],
    ids=["site", "job", "few"],
)
def test_a_revocation_that_is_wrong_revokes_nobody(
    deployment: LoneCoordinator, job: Path, words: tuple[str, ...]
) -> None:
    deployment.run("job", "submit", job)
    done = deployment.run("job", "revoke", *words)
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert deployment.coordinator.revoked == []


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "resume"])
def test_a_job_that_is_not_there_is_named(deployment: LoneCoordinator, verb: str) -> None:
    done = deployment.run("job", verb, "nobody")
    assert done.exit_code == 1
    assert "nobody" in done.stderr
    assert "Traceback" not in done.output


def test_a_job_that_is_wrong_never_leaves(deployment: LoneCoordinator, job: Path) -> None:
    job.write_text(job.read_text().replace("rounds = 5", "rounds = 0"))
    done = deployment.run("job", "submit", job)
    assert done.exit_code == 1
    assert "job.toml:5: rounds" in done.stderr
    assert deployment.coordinator.submitted == []


def test_an_absent_coordinator_is_reported(deployment: LoneCoordinator, tmp_path: Path) -> None:
    good = OperatorLogin.load(deployment.login)
    closed = OperatorLogin(address="127.0.0.1:1", ca=good.ca, chain=good.chain, key=good.key)
    closed.save(tmp_path / "closed")
    started = time.monotonic()
    done = CliRunner().invoke(
        main, ["job", "status", "--json", "--operator", str(tmp_path / "closed")]
    )
    assert time.monotonic() - started < 30
    assert done.exit_code == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "transport"
    assert "127.0.0.1:1" in error["message"]
    assert error["hint"]


def test_another_authority_is_not_trusted(deployment: LoneCoordinator, tmp_path: Path) -> None:
    good = OperatorLogin.load(deployment.login)
    other = CertificateAuthority.create("test.example", datetime.now(UTC))
    OperatorLogin(
        address=good.address, ca=other.certificate_pem, chain=good.chain, key=good.key
    ).save(tmp_path / "other")
    done = CliRunner().invoke(main, ["job", "status", "--operator", str(tmp_path / "other")])
    assert done.exit_code == 1
    assert "error: " in done.stderr


# --- the login ------------------------------------------------------------------------


def test_a_login_is_private_and_never_overwritten(deployment: LoneCoordinator) -> None:
    from fedlearn.errors import ConfigError

    assert (deployment.login.stat().st_mode & 0o777) == 0o700
    assert ((deployment.login / "operator.key").stat().st_mode & 0o777) == 0o600
    login = OperatorLogin.load(deployment.login)
    assert "PRIVATE" not in repr(login)
    with pytest.raises(ConfigError, match="exists"):
        login.save(deployment.login)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("operator.key", None, "operator.key: does not exist"),
        ("operator.key", b"nothing", "holds no private key"),
        ("operator.pem", b"nothing", "holds no certificate"),
        ("ca.pem", b"\0" * 10, "holds no certificate"),
        ("ca.pem", b"x" * 10**6, "larger than"),
        ("coordinator.toml", b"address = 5", "coordinator.toml:1: address: must be an address"),
        ("coordinator.toml", b"", "needs the key 'address'"),
        ("coordinator.toml", None, "coordinator.toml: does not exist"),
    ],
)
def test_a_broken_login_is_named(
    deployment: LoneCoordinator, file: str, content: bytes | None, words: str
) -> None:
    path = deployment.login / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    done = deployment.run("job", "status")
    assert done.exit_code == 1
    assert words in done.stderr


def test_a_key_that_others_may_read_is_refused(deployment: LoneCoordinator) -> None:
    (deployment.login / "operator.key").chmod(0o644)
    done = deployment.run("job", "status")
    assert done.exit_code == 1
    assert "hint: chmod 600" in done.stderr
