"""The commands of README.md, given exactly as they are printed, in fresh home directories.

The section *Install* is not walked: it names the package index. What it installs is tested in
``tests/packaging``. The ports are those of the README, so that one walk runs at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.readme import README, Step, steps

pytestmark = pytest.mark.e2e

FIRST: Final = "Your first job, in five minutes"
LOCAL: Final = "All of it on one machine"
FEDERATION: Final = "A federation of your own, in twelve commands"
SUBMIT: Final = "fedlearn job submit"
PATH: Final = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


class Walk:
    """Shells of several parties in one folder, each party with a home directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self._homes = folder / "homes"
        self._staying: list[subprocess.Popen[bytes]] = []
        self.folder.mkdir()

    def give(self, step: Step) -> str:
        """Give one command and return what it printed; of one that stays the first line."""
        home = self.home(step.party)
        # A shell's environment has nothing that a setting could come from but the home directory.
        environment = {"HOME": str(home), "PATH": PATH, "LANG": "C.UTF-8"}
        if step.stays:
            return self._start(step, environment)
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{step.party}$ {step.command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def home(self, party: str) -> Path:
        """Return the home directory of a party."""
        home = self._homes / party
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _start(self, step: Step, environment: dict[str, str]) -> str:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {step.command}"],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._staying.append(process)
        assert process.stdout is not None
        first = process.stdout.readline().decode()
        failed = not first or first.startswith("error:")
        assert not failed, f"{step.party}$ {step.command}\n{first}"
        return first

    def close(self) -> None:
        for process in reversed(self._staying):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._staying:
            process.communicate(timeout=30)


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    with (Path(tempfile.gettempdir()) / "fedlearn-readme-walk.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = Walk(tmp_path)
        try:
            yield made
        finally:
            made.close()


def test_a_researcher_runs_a_job_once_and_at_a_federation_that_stays(walk: Walk) -> None:
    """One reader, who goes from one section to the next."""
    printed = [walk.give(step) for step in steps(FIRST)]
    assert "can run" in printed[1]
    assert (walk.folder / "runs/my-job-1/model.safetensors").stat().st_size > 0
    try:
        printed = [walk.give(step) for step in steps(LOCAL)]
    finally:
        with contextlib.suppress(AssertionError):
            walk.give(Step("reader", "fedlearn local down --purge"))
    assert "job finished, model my-job is sealed" in printed[1]
    assert (walk.folder / "my-job.safetensors").stat().st_size > 0
    assert printed[-1].startswith("ended: site-b, site-a, coordinator")
    assert not (walk.home("reader") / ".config/fedlearn/operator").exists()


def test_a_federation_without_an_edit_of_a_file(walk: Walk) -> None:
    """At most twelve commands to a finished job, and each party's home is its own."""
    given = list(steps(FEDERATION))
    submit = next(n for n, step in enumerate(given) if step.command.startswith(SUBMIT))
    assert submit + 1 <= 12
    assert {step.party for step in given} == {"coordinator", "north", "south"}
    start = time.monotonic()
    printed = [walk.give(step) for step in given[: submit + 1]]
    print(f"{submit + 1} commands to a finished job in {time.monotonic() - start:.1f} s")
    assert "job finished, model my-job is sealed" in printed[-1]
    for step in given[submit + 1 :]:
        walk.give(step)
    assert (walk.folder / "my-job.safetensors").stat().st_size > 0


def test_no_section_edits_a_file() -> None:
    for heading in (FIRST, LOCAL, FEDERATION):
        assert all(step.command.startswith("fedlearn") for step in steps(heading))


def test_a_section_without_commands_is_not_taken_for_one_that_works() -> None:
    with pytest.raises(ValueError, match="no section"):
        list(steps("Not there"))
    with pytest.raises(ValueError, match="no block"):
        list(steps("Limits", README.read_text()))


def test_a_command_that_fails_is_reported_with_its_output(walk: Walk) -> None:
    with pytest.raises(AssertionError, match=r"reader\$ fedlearn job validate none.toml"):
        walk.give(Step("reader", "fedlearn job validate none.toml"))
    with pytest.raises(AssertionError, match=r"error: site\.toml: does not exist"):
        walk.give(Step("reader", "fedlearn-edge run"))
