"""A job's application in another container: the app host as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.flower.job_plan import Outcome
from server.flower.job_runner import JobRunner
from tests.harness.federation import FederationHarness
from tests.harness.flower_federation import (
    PYPROJECT,
    SERVER_APP,
    Channel,
    During,
    FlowerFederation,
    ended,
    make_plan,
    write_app,
)

pytestmark = pytest.mark.e2e

BODY = """
    import os
    def attempt(name, path):
        try:
            print("REACHED", name, open(path).read())
        except OSError as error:
            print("refused", name, type(error).__name__)
    attempt("state", config["secret"])
    attempt("passphrase", f"/proc/{os.getppid()}/environ")
    print("folder", os.getcwd())
    open("left", "w").write("in the other container")
"""
CURIOUS_APP = SERVER_APP.replace(
    "    config = context.run_config\n", "    config = context.run_config\n" + BODY
)
PROJECT = PYPROJECT.replace("pause = 0.0", 'pause = 0.0\nsecret = ""')


class Daemon:
    """``fedlearn-server app-host`` with a scratch folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "own/app-host.sock"
        self.scratch = folder / "scratch"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["--socket", str(self.path), "--scratch", str(self.scratch), "--json"]
        command = [sys.executable, "-m", "server.main", "app-host", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline())["event"] == "listening"

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            with self.process:
                self.process.wait(20)

    def applications(self) -> list[Path]:
        return list(self.scratch.iterdir())


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    found = Daemon(tmp_path / "apps")
    found.start()
    yield found
    found.end()


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[FlowerFederation]:
    made = FlowerFederation(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    from server.flower.application.bundle import build

    folder = tmp_path_factory.mktemp("src") / "app"
    return build(write_app(folder, server=textwrap.dedent(CURIOUS_APP), project=PROJECT))


Run = Callable[..., tuple[Outcome, Channel]]


@pytest.fixture
def run(federation: FlowerFederation, bundle: bytes) -> Run:
    """Run a job to its end; return outcome and channel."""

    def go(
        *,
        app_host: Path | None = None,
        during: During | None = None,
        clients: bool = True,
        **plan: Any,
    ) -> tuple[Outcome, Channel]:
        made = make_plan(bundle, sites=2, **plan)
        host, channel = federation.host(made, app_host=app_host)
        for site in made.spec.sites if clients else ():
            federation.client(made, site)
        host.start()
        if during is not None:
            during(host, channel)
        outcome = ended(host, 60)
        host.close()
        assert outcome is not None
        return outcome, channel

    return go


def _bits(channel: Channel) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in channel.models[-1].items()}


def test_it_runs_there_and_nothing_of_it_in_the_coordinators_place(
    run: Run, daemon: Daemon, tmp_path: Path
) -> None:
    secret = tmp_path / "state" / "root.key"
    secret.parent.mkdir()
    secret.write_text("the root key")
    config = {"secret": str(secret)}
    here, received = run(job="here", run_config=config)

    def look(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("round.finished")
        assert len(daemon.applications()) == 1
        assert not (tmp_path / "job-there" / "app").exists()

    there, channel = run(job="there", run_config=config, app_host=daemon.path, during=look)
    assert here.status == there.status == "finished", (here, there)
    assert _bits(channel) == _bits(received)
    assert channel.files == received.files == [{"left": b"in the other container"}]
    lines = [fields["line"] for fields in channel.of("log")]
    assert not [line for line in lines if line.startswith("REACHED")]
    assert "refused state FileNotFoundError" in lines or "refused state PermissionError" in lines
    (folder,) = [line.split()[1] for line in lines if line.startswith("folder")]
    assert Path(folder).parent == daemon.scratch
    assert daemon.applications() == []


def test_a_daemon_that_is_killed_is_a_crash_and_the_job_goes_on_with_the_next_one(
    run: Run, daemon: Daemon
) -> None:
    config = {"pause": 0.2}
    whole, expected = run(job="whole", run_config=config, app_host=daemon.path)
    assert whole.status == "finished", whole

    def kill(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("round.started", 2)
        time.sleep(0.1)
        daemon.end(signal.SIGKILL)
        outcome = ended(host, 20)
        assert (outcome.status, outcome.code) == ("failed", "crashed")
        assert f"the app host at {daemon.path} is gone" in outcome.message
        threading.Timer(1.0, daemon.start).start()
        host.start()

    killed, channel = run(job="killed", run_config=config, app_host=daemon.path, during=kill)
    assert killed.status == "finished", killed
    assert len(channel.of("job.started")) == 2
    assert _bits(channel) == _bits(expected)


def test_an_application_that_is_killed_is_named_as_such(run: Run, daemon: Daemon) -> None:
    def kill(host: JobRunner, channel: Channel) -> None:
        channel.wait_for("log")
        assert daemon.process is not None
        (pid,) = [pid for pid in host.pids if _parent(pid) == daemon.process.pid]
        os.kill(pid, signal.SIGTERM)

    outcome, _ = run(job="dies", clients=False, app_host=daemon.path, during=kill)
    assert (outcome.status, outcome.code) == ("failed", "crashed")
    assert "the application's process ended with signal 9" in outcome.message
    assert daemon.applications() == []


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_job_that_is_ended_ends_it_there(
    federation: FlowerFederation, bundle: bytes, daemon: Daemon, how: str
) -> None:
    host, channel = federation.host(make_plan(bundle, job="ended", sites=2), app_host=daemon.path)
    host.start()
    channel.wait_for("log")
    assert len(daemon.applications()) == 1
    getattr(host, how)()
    assert host.wait(20) is not None
    end = time.monotonic() + 10
    while daemon.applications():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_job_that_waits_for_an_app_host_can_be_ended(
    federation: FlowerFederation, bundle: bytes, tmp_path: Path, how: str
) -> None:
    host, _ = federation.host(make_plan(bundle, job="waits", sites=2), app_host=tmp_path / "nobody")
    host.start()
    assert host.wait(0.5) is None
    began = time.monotonic()
    getattr(host, how)()
    outcome = ended(host, 20)
    assert time.monotonic() - began < 10
    assert outcome.status == ("cancelled" if how == "cancel" else "failed")


def test_a_coordinator_whose_app_host_dies_starts_the_job_again(
    daemon: Daemon, tmp_path: Path
) -> None:
    server = {"jobs": {"app_host": str(daemon.path)}}
    with FederationHarness(tmp_path / "harness", server=server) as harness:
        config = {"slow-site": "site-c", "slow-round": 2, "slow": 2.0}
        job = harness.job("moved", config=config).submit()
        job.wait_for("update.received", round=2)
        assert len(daemon.applications()) == 1
        daemon.end(signal.SIGKILL)
        daemon.start()
        job.finish()
        (line,) = [event.line for event in job.of("log") if "starting it again" in event.line]
        assert f"the app host at {daemon.path} is gone" in line
        assert [event.resumed_from for event in job.of("job.started")] == [0, 1]
