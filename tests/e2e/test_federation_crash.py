"""Killed, full, tampered with, rolled back: what a job is after all of that."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness.cluster import reserve_port
from tests.harness.federation import MARKER, FederationHarness, eventually

pytestmark = pytest.mark.e2e

_USUAL: dict[str, Any] = {"rounds": 4, "config": {"noise": 0.25, "wait": 0.2}}
_STRATEGIES = ("fedavg", "fedadam")


@pytest.fixture(scope="module")
def restarting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationHarness]:
    """A federation of two sites, whose coordinator dies and comes back."""
    folder = tmp_path_factory.mktemp("restarting")
    listen = {"listen": f"127.0.0.1:{reserve_port()}"}
    with FederationHarness(folder, ("site-a", "site-b"), server={"metrics": listen}) as harness:
        yield harness


@pytest.fixture(scope="module")
def undisturbed(restarting: FederationHarness) -> dict[str, str]:
    """The models of jobs that nobody disturbed, by strategy."""
    found = {}
    for name in _STRATEGIES:
        restarting.run(f"calm-{name}", strategy={"name": name}, **_USUAL)
        found[name] = restarting.digest(f"calm-{name}")
    return found


def test_two_runs_agree_to_the_bit_whatever_arrives_first(
    restarting: FederationHarness, undisturbed: dict[str, str]
) -> None:
    late = {"slow-site": "site-a", "slow": 0.4}
    config = {**_USUAL["config"], **late}
    restarting.run("again", strategy={"name": "fedavg"}, rounds=4, config=config)
    assert restarting.digest("again") == undisturbed["fedavg"]
    restarting.run("other-seed", strategy={"name": "fedavg"}, **{**_USUAL, "seed": 6})
    assert restarting.digest("other-seed") != undisturbed["fedavg"]


def _killed(
    restarting: FederationHarness, name: str, strategy: str, generator: random.Random
) -> str:
    """Run a job whose coordinator is killed at a random moment, and return its model."""
    with eventually(90) as wait:  # agents come back with growing pauses
        wait(lambda: all(s.connected for s in restarting.operator.list_sites()))
    job = restarting.job(name, strategy={"name": strategy}, **_USUAL).submit()
    if generator.random() < 0.7:
        job.wait_for("round.started")
    delay = generator.uniform(0.0, 3.0)
    print(f"{name}: killed {delay:.3f} s later")
    time.sleep(delay)
    restarting.kill_coordinator()
    assert restarting.plaintext(MARKER.tobytes()[:64]) == []
    restarting.start_coordinator()
    job.finish(seconds=90)
    verified = restarting.command(
        "fedlearn", "ledger", "verify", "--state", restarting.state, "--json"
    )
    assert '"intact": true' in verified.stdout
    return restarting.digest(name)


@pytest.mark.parametrize("turn", range(4))
def test_a_killed_coordinator_resumes_to_the_same_bits(
    restarting: FederationHarness, undisturbed: dict[str, str], turn: int
) -> None:
    strategy = _STRATEGIES[turn % 2]
    name = f"killed-{turn}"
    made = _killed(restarting, name, strategy, random.Random(turn))
    assert made == undisturbed[strategy]


@pytest.mark.long
@pytest.mark.parametrize("turn", range(100, 120))
def test_twenty_killed_coordinators_resume_to_the_same_bits(
    restarting: FederationHarness, undisturbed: dict[str, str], turn: int
) -> None:
    strategy = _STRATEGIES[turn % 2]
    generator = random.Random()
    assert _killed(restarting, f"killed-{turn}", strategy, generator) == undisturbed[strategy]


def test_a_killed_job_process_is_started_again_and_gives_the_same_bits(
    restarting: FederationHarness, undisturbed: dict[str, str]
) -> None:
    job = restarting.job("job-killed", strategy={"name": "fedadam"}, **_USUAL).submit()
    job.wait_for("round.finished", round=1)
    os.kill(restarting.job_pid(job.name), signal.SIGKILL)
    job.finish()
    assert restarting.digest(job.name) == undisturbed["fedadam"]
    assert any("signal 9" in event.line for event in job.of("log"))


@pytest.mark.parametrize("away", [0.0, 1.0, 8.0])
def test_sites_are_back_within_five_seconds_of_a_coordinator_that_answers(
    restarting: FederationHarness, away: float
) -> None:
    with eventually(20) as wait:
        wait(lambda: all(s.connected for s in restarting.operator.list_sites()))
    restarting.kill_coordinator()
    time.sleep(away)
    restarting.start_coordinator()
    with eventually(5) as wait:
        wait(lambda: all(s.connected for s in restarting.operator.list_sites()))


def _readiness(restarting: FederationHarness) -> str:
    """Return what the coordinator reports of itself."""
    listen = tomllib.loads(restarting.server_toml.read_text())["metrics"]["listen"]
    answer = httpx.get(f"http://{listen}/readyz", timeout=5)
    assert (answer.status_code == 200) == (answer.text == "ok\n")
    return answer.text


@pytest.mark.parametrize("seconds", [0.3, 3.0])
def test_a_disk_that_takes_nothing_for_a_while_ends_no_job(
    restarting: FederationHarness, undisturbed: dict[str, str], seconds: float
) -> None:
    """Ledger, databases and store at once: no file may grow at all."""
    name = f"failing-{seconds:g}".replace(".", "-")
    job = restarting.job(name, strategy={"name": "fedavg"}, **_USUAL).submit()
    job.wait_for("round.started", round=2)
    pid = restarting.server_pid()
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    time.sleep(seconds)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    job.finish()
    assert restarting.digest(name) == undisturbed["fedavg"]
    verified = restarting.command(
        "fedlearn", "ledger", "verify", "--state", restarting.state, "--json"
    )
    assert '"intact": true' in verified.stdout
    assert _readiness(restarting) == "ok\n"


@pytest.fixture
def small_disk(restarting: FederationHarness) -> Iterator[Path]:
    """The state of the coordinator on a file system of its own, with little room."""
    state, aside = restarting.state, restarting.state.with_name("state-aside")
    restarting.stop_coordinator()
    state.rename(aside)
    state.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=128m,mode=700", "tmpfs", str(state)]
    mounted = os.geteuid() == 0 and not subprocess.run(command, check=False).returncode
    try:
        if not mounted:
            pytest.skip("a tmpfs cannot be mounted here")
        shutil.copytree(aside, state, dirs_exist_ok=True)
        restarting.start_coordinator()
        yield state
        restarting.stop_coordinator()
        shutil.rmtree(aside)
        shutil.copytree(state, aside)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(state)], check=True)
        state.rmdir()
        aside.rename(state)
        restarting.start_coordinator()


def test_a_full_disk_interrupts_the_job_in_words_and_it_goes_on_when_there_is_room(
    restarting: FederationHarness, small_disk: Path
) -> None:
    """There is room for 6 MiB, and the sealed model has 10."""
    config = {"noise": 0.25, "ballast": 2_500_000, "wait": 0.5}
    job = restarting.job("full", rounds=3, config=config).submit()
    job.wait_for("checkpoint.sealed", round=1)
    taken = small_disk / "taken"

    def interrupted() -> bool:
        # Again and again: an older version that is removed makes room.
        disk = os.statvfs(small_disk)
        with taken.open("ab") as file:
            file.write(bytes(max(0, disk.f_bavail * disk.f_frsize - (6 << 20))))
        return job.status == "interrupted"

    with eventually(40) as wait:
        wait(interrupted)
    state = restarting.operator.get_job(job.name)
    assert state.detail.startswith("full, version ")
    assert "no space left" in state.detail.lower()
    assert "Traceback" not in state.detail
    assert "job full: interrupted: full, version" in _readiness(restarting)
    taken.unlink()
    whole = {path.name for path in restarting.sealed(job.name)}
    opened = restarting.command(
        "fedlearn", "model", "open", restarting.sealed(job.name)[-1], "--key", restarting.owner.file
    )
    assert "ballast" in opened.stdout
    job.finish()
    assert _readiness(restarting) == "ok\n"
    assert job.of("job.started")[-1].resumed_from >= 1
    assert len(whole) <= 2
    restarting.run("roomy", rounds=3, config=config)
    assert restarting.digest(job.name) == restarting.digest("roomy")


def test_a_full_file_system_interrupts_a_job_until_there_is_room(
    restarting: FederationHarness, small_disk: Path
) -> None:
    job = restarting.job("no-room", strategy={"name": "fedavg"}, **_USUAL).submit()
    job.wait_for("round.finished", round=1)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with eventually(30) as wait:
        wait(lambda: "job no-room: interrupted" in _readiness(restarting))
    ballast.unlink()
    job.finish()
    assert _readiness(restarting) == "ok\n"
    verified = restarting.command(
        "fedlearn", "ledger", "verify", "--state", restarting.state, "--json"
    )
    assert '"intact": true' in verified.stdout


def test_a_tampered_checkpoint_and_an_older_store_are_refused_by_name(
    restarting: FederationHarness, tmp_path: Path
) -> None:
    config = {"noise": 0.25, "wait": 0.4}
    job = restarting.job("victim", rounds=10, config=config).submit()
    job.wait_for("checkpoint.sealed", round=2)
    restarting.kill_coordinator()
    store, old, new = restarting.state / "store", tmp_path / "old", tmp_path / "new"
    shutil.copytree(store, old)

    # One bit of the newest version.
    newest = restarting.sealed("victim")[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    restarting.start_coordinator()
    state = job.finish("failed")
    assert "victim, version" in state.detail
    assert "Traceback" not in state.detail
    restarting.stop_coordinator()
    newest.write_bytes(whole)
    restarting.start_coordinator()
    restarting.operator.resume_job("victim")
    job.wait_for("checkpoint.sealed", round=5)
    restarting.kill_coordinator()

    # A copy of the whole store from before.
    shutil.copytree(store, new)
    shutil.rmtree(store)
    shutil.copytree(old, store)
    done = restarting.command(
        "fedlearn-server", "run", "--config", restarting.server_toml, ok=False
    )
    assert done.returncode == 1
    assert "rolled back: ledger-head.sealed of the store is of entry" in done.stderr
    assert "Traceback" not in done.stderr
    shutil.rmtree(store)
    shutil.copytree(new, store)
    restarting.start_coordinator()
    job.finish()
    restarting.run("unharmed", rounds=10, config={"noise": 0.25})
    assert restarting.digest("victim") == restarting.digest("unharmed")


def test_a_coordinator_runs_jobs_when_its_configuration_is_named_relative_to_its_folder(
    restarting: FederationHarness,
) -> None:
    restarting.stop_coordinator()
    beside = 'cd "$(dirname "$4")" && exec "$1" run --config "$(basename "$4")"'
    restarting.start_coordinator(wrapper=["sh", "-c", beside, "sh"])
    restarting.run("beside", rounds=1)
