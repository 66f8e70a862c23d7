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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fakes.cluster import reserve_port

pytestmark = pytest.mark.e2e

_USUAL: dict[str, Any] = {"rounds": 4, "config": {"noise": 0.25, "wait": 0.2}}
_STRATEGIES = ("fedavg", "fedadam")


@pytest.fixture(scope="module")
def phoenix(fakes: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A federation of two sites, whose coordinator dies and comes back."""
    folder = tmp_path_factory.mktemp("phoenix")
    address = f"127.0.0.1:{reserve_port()}"
    with fakes.Spine(
        folder, ("site-a", "site-b"), server={"metrics": {"listen": address}}
    ) as spine:
        spine.metrics = address
        yield spine


@pytest.fixture(scope="module")
def undisturbed(phoenix: Any) -> dict[str, str]:
    """The models of jobs that nobody disturbed, by strategy."""
    found = {}
    for name in _STRATEGIES:
        phoenix.run(f"calm-{name}", strategy={"name": name}, **_USUAL)
        found[name] = phoenix.digest(f"calm-{name}")
    return found


def test_two_runs_agree_to_the_bit_whatever_arrives_first(phoenix, undisturbed):
    late = {"slow-site": "site-a", "slow": 0.4}
    config = {**_USUAL["config"], **late}
    phoenix.run("again", strategy={"name": "fedavg"}, rounds=4, config=config)
    assert phoenix.digest("again") == undisturbed["fedavg"]
    phoenix.run("other-seed", strategy={"name": "fedavg"}, **{**_USUAL, "seed": 6})
    assert phoenix.digest("other-seed") != undisturbed["fedavg"]


def _killed(phoenix: Any, fakes: Any, name: str, strategy: str, generator: random.Random) -> str:
    """Run a job whose coordinator is killed at a random moment, and return its model."""
    with fakes.eventually(90) as wait:  # agents come back with growing pauses
        wait(lambda: all(s.connected for s in phoenix.operator.list_sites()))
    job = phoenix.job(name, strategy={"name": strategy}, **_USUAL).submit()
    if generator.random() < 0.7:
        job.wait_for("round.started")
    delay = generator.uniform(0.0, 3.0)
    print(f"{name}: killed {delay:.3f} s later")
    time.sleep(delay)
    phoenix.kill_coordinator()
    assert phoenix.plaintext(fakes.MARKER.tobytes()[:64]) == []
    phoenix.start_coordinator()
    job.finish(seconds=90)
    verified = phoenix.command("fedlearn", "ledger", "verify", "--state", phoenix.state, "--json")
    assert '"intact": true' in verified.stdout
    return phoenix.digest(name)


@pytest.mark.parametrize("turn", range(4))
def test_a_killed_coordinator_resumes_to_the_same_bits(phoenix, undisturbed, fakes, turn):
    strategy = _STRATEGIES[turn % 2]
    name = f"killed-{turn}"
    made = _killed(phoenix, fakes, name, strategy, random.Random(turn))
    assert made == undisturbed[strategy]


@pytest.mark.long
@pytest.mark.parametrize("turn", range(100, 120))
def test_twenty_killed_coordinators_resume_to_the_same_bits(phoenix, undisturbed, fakes, turn):
    strategy = _STRATEGIES[turn % 2]
    generator = random.Random()
    assert _killed(phoenix, fakes, f"killed-{turn}", strategy, generator) == undisturbed[strategy]


def test_a_killed_job_process_is_started_again_and_gives_the_same_bits(phoenix, undisturbed):
    job = phoenix.job("job-killed", strategy={"name": "fedadam"}, **_USUAL).submit()
    job.wait_for("round.finished", round=1)
    os.kill(phoenix.job_pid(job.name), signal.SIGKILL)
    job.finish()
    assert phoenix.digest(job.name) == undisturbed["fedadam"]
    assert any("signal 9" in event.line for event in job.of("log"))


@pytest.mark.parametrize("away", [0.0, 1.0, 8.0])
def test_sites_are_back_within_five_seconds_of_a_coordinator_that_answers(phoenix, fakes, away):
    with fakes.eventually(20) as wait:
        wait(lambda: all(s.connected for s in phoenix.operator.list_sites()))
    phoenix.kill_coordinator()
    time.sleep(away)
    phoenix.start_coordinator()
    with fakes.eventually(5) as wait:
        wait(lambda: all(s.connected for s in phoenix.operator.list_sites()))


def _readiness(phoenix: Any) -> str:
    """Return what the coordinator says of itself."""
    answer = httpx.get(f"http://{phoenix.metrics}/readyz", timeout=5)
    assert (answer.status_code == 200) == (answer.text == "ok\n")
    return answer.text


def test_a_full_disk_interrupts_the_job_in_words_and_it_goes_on_when_there_is_room(phoenix, fakes):
    """No file may grow beyond 6 MiB: the sealed model has 10."""
    config = {"noise": 0.25, "ballast": 2_500_000, "wait": 0.5}
    job = phoenix.job("full", rounds=3, config=config).submit()
    job.wait_for("checkpoint.sealed", round=1)
    pid = phoenix.server_pid()
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (6 << 20, resource.RLIM_INFINITY))
    try:
        with fakes.eventually(40) as wait:
            wait(lambda: job.status == "interrupted")
            state = phoenix.operator.get_job(job.name)
        assert state.detail.startswith("full, version ")
        assert "file too large" in state.detail
        assert "Traceback" not in state.detail
        assert "job full: interrupted: full, version" in _readiness(phoenix)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    whole = {path.name for path in phoenix.sealed(job.name)}
    opened = phoenix.command(
        "fedlearn", "model", "open", phoenix.sealed(job.name)[-1], "--key", phoenix.owner.file
    )
    assert "ballast" in opened.stdout
    job.finish()
    assert _readiness(phoenix) == "ok\n"
    assert job.of("job.started")[-1].resumed_from >= 1
    assert len(whole) <= 2
    phoenix.run("roomy", rounds=3, config=config)
    assert phoenix.digest(job.name) == phoenix.digest("roomy")


@pytest.mark.parametrize("seconds", [0.3, 3.0])
def test_a_disk_that_takes_nothing_for_a_while_ends_no_job(phoenix, undisturbed, seconds):
    """Ledger, databases and store at once: no file may grow at all."""
    name = f"failing-{seconds:g}".replace(".", "-")
    job = phoenix.job(name, strategy={"name": "fedavg"}, **_USUAL).submit()
    job.wait_for("round.started", round=2)
    pid = phoenix.server_pid()
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    time.sleep(seconds)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    job.finish()
    assert phoenix.digest(name) == undisturbed["fedavg"]
    verified = phoenix.command("fedlearn", "ledger", "verify", "--state", phoenix.state, "--json")
    assert '"intact": true' in verified.stdout
    assert _readiness(phoenix) == "ok\n"


@pytest.fixture
def small_disk(phoenix: Any) -> Iterator[Path]:
    """The state of the coordinator on a file system of its own, with little room."""
    state, aside = phoenix.state, phoenix.state.with_name("state-aside")
    phoenix.stop_coordinator()
    state.rename(aside)
    state.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", str(state)]
    mounted = os.geteuid() == 0 and not subprocess.run(command, check=False).returncode
    try:
        if not mounted:
            pytest.skip("a tmpfs cannot be mounted here")
        shutil.copytree(aside, state, dirs_exist_ok=True)
        phoenix.start_coordinator()
        yield state
        phoenix.stop_coordinator()
        shutil.rmtree(aside)
        shutil.copytree(state, aside)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(state)], check=True)
        state.rmdir()
        aside.rename(state)
        phoenix.start_coordinator()


def test_a_full_file_system_interrupts_a_job_until_there_is_room(phoenix, small_disk, fakes):
    job = phoenix.job("no-room", strategy={"name": "fedavg"}, **_USUAL).submit()
    job.wait_for("round.finished", round=1)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    with fakes.eventually(30) as wait:
        wait(lambda: "job no-room: interrupted" in _readiness(phoenix))
    ballast.unlink()
    job.finish()
    assert _readiness(phoenix) == "ok\n"
    verified = phoenix.command("fedlearn", "ledger", "verify", "--state", phoenix.state, "--json")
    assert '"intact": true' in verified.stdout


def test_a_tampered_checkpoint_and_an_older_store_are_refused_by_name(phoenix, tmp_path):
    config = {"noise": 0.25, "wait": 0.4}
    job = phoenix.job("victim", rounds=10, config=config).submit()
    job.wait_for("checkpoint.sealed", round=2)
    phoenix.kill_coordinator()
    store, old, new = phoenix.state / "store", tmp_path / "old", tmp_path / "new"
    shutil.copytree(store, old)

    # One bit of the newest version.
    newest = phoenix.sealed("victim")[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    phoenix.start_coordinator()
    state = job.finish("failed")
    assert "victim, version" in state.detail
    assert "Traceback" not in state.detail
    phoenix.stop_coordinator()
    newest.write_bytes(whole)
    phoenix.start_coordinator()
    phoenix.operator.resume_job("victim")
    job.wait_for("checkpoint.sealed", round=5)
    phoenix.kill_coordinator()

    # A copy of the whole store from before.
    shutil.copytree(store, new)
    shutil.rmtree(store)
    shutil.copytree(old, store)
    done = phoenix.command("fedlearn-server", "run", "--config", phoenix.server_toml, ok=False)
    assert done.returncode == 1
    assert "rolled back: ledger-head.sealed of the store is of entry" in done.stderr
    assert "Traceback" not in done.stderr
    shutil.rmtree(store)
    shutil.copytree(new, store)
    phoenix.start_coordinator()
    job.finish()
    phoenix.run("unharmed", rounds=10, config={"noise": 0.25})
    assert phoenix.digest("victim") == phoenix.digest("unharmed")
