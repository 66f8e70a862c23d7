"""How one job is watched: crashes, a failing disk, a hang, and errors nobody thought of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fedlearn.errors import DiskError, JobError
from fedlearn.job.events import Event
from fedlearn.job.state import JobStatus
from server.flower.job_plan import Outcome
from server.health import Health
from server.jobs import watch as watched
from server.jobs.active_job import OpenJob
from server.jobs.watch import JobWatch, longest, longest_pause

FINISHED = Outcome(status=JobStatus.FINISHED, rounds=3)
CRASHED = Outcome(status=JobStatus.FAILED, code="crashed", message="signal 9")
DISK = Outcome(
    status=JobStatus.FAILED, code="disk", message="demo, version 2: no space left on device"
)


class Host:
    """Ends as it is instructed to, process after process; ``None`` hangs until it is cancelled."""

    def __init__(self, *outcomes: Outcome | Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.starts = 0
        self.cancelled = threading.Event()
        self.reason = ""
        self.disk: list[str] = []

    def start(self) -> None:
        if self.cancelled.is_set():
            raise JobError("has ended")
        self.starts += 1

    def wait(self, timeout: float | None = None) -> Outcome | None:
        outcome = self.outcomes[0]
        if outcome is None:
            if not self.cancelled.wait(timeout):
                return None
            return Outcome(status=JobStatus.CANCELLED, message=self.reason)
        self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is DISK:
            self.disk.append(outcome.message)
        return outcome

    def cancel(self, reason: str) -> None:
        self.reason = reason
        self.cancelled.set()


class Scene:
    """A watch of a job with nothing real around it."""

    def __init__(self, host: Host, *, deadline_s: float = 600.0, rounds: int = 3) -> None:
        self.host = host
        spec = SimpleNamespace(deadline_s=deadline_s, rounds=rounds)
        self.job: Any = SimpleNamespace(
            record=SimpleNamespace(name="demo", spec=spec),
            host=host,
            channel=SimpleNamespace(round=0),
            crashes=0,
            ending=None,
            disk=[],
            interrupted="",
            progress=0,
        )
        host.disk = self.job.disk
        self.reported: list[Event] = []
        self.marks: list[str] = []
        self.health = Health()
        self.over = threading.Event()
        self.open = True
        self.probe: Callable[[], object] = lambda: None
        self.watch = JobWatch(
            cast("OpenJob", self.job),
            report=self.reported.append,
            mark=self.marks.append,
            probe=lambda: self.probe(),
            current=lambda: self.open,
            over=self.over,
            health=self.health,
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(watched, "_PROBE_SECONDS", 0.02)
    monkeypatch.setattr(watched, "_LOOK_SECONDS", 0.02)


def test_a_crashed_process_is_started_again_a_few_times() -> None:
    scene = Scene(Host(CRASHED, CRASHED, FINISHED))
    assert scene.watch.run() == FINISHED
    assert scene.host.starts == 3
    often = Scene(Host(*[CRASHED] * 9))
    assert often.watch.run() == CRASHED
    assert often.host.starts == 4


def test_a_failed_disk_interrupts_the_job_which_goes_on_by_itself() -> None:
    scene = Scene(Host(DISK, FINISHED))
    seen: list[tuple[str, Any]] = []

    def probe() -> None:
        seen.append((scene.job.interrupted, scene.health.faults()))
        if len(seen) < 4:
            raise DiskError("still full")

    scene.probe = probe
    assert scene.watch.run() == FINISHED
    assert scene.host.starts == 2
    assert len(seen) == 4
    assert all(reason == DISK.message for reason, _ in seen)
    assert "interrupted: demo, version 2: no space left" in seen[0][1]["job demo"]
    assert "still full" in seen[2][1]["job demo"]
    assert scene.marks == [DISK.message] * 4 + [""]
    assert [event.kind for event in scene.reported] == ["log", "log"]
    assert (scene.job.interrupted, scene.health.faults()) == ("", {})


def test_a_disk_that_fails_often_interrupts_as_often_with_growing_pauses() -> None:
    scene = Scene(Host(*[DISK] * 6, FINISHED))
    assert scene.watch.run() == FINISHED
    assert scene.watch._backoff.bound == pytest.approx(0.01 * 2**6)
    assert scene.job.crashes == 0


def test_a_job_that_is_closed_while_the_disk_fails_is_not_started_again() -> None:
    for end in ("closed", "stopped"):
        scene = Scene(Host(DISK, FINISHED))

        def probe(scene: Scene = scene, end: str = end) -> None:
            if end == "closed":
                scene.open = False
            else:
                scene.over.set()
            raise DiskError("still full")

        scene.probe = probe
        assert scene.watch.run() is None
        assert scene.host.starts == 1
        assert scene.job.interrupted == ""


def test_an_end_is_of_the_disk_only_where_the_coordinator_saw_it_fail() -> None:
    """The job's process may report that the disk failed; it is not started again for that."""
    lying = Outcome(status=JobStatus.FAILED, code="disk", message="believe me")
    scene = Scene(Host(lying, FINISHED))
    assert scene.watch.run() == lying
    raised = Scene(Host(DiskError("no room for its folder"), FINISHED))
    assert raised.watch.run() == FINISHED
    assert raised.host.starts == 2


def test_what_the_coordinator_decided_is_the_outcome() -> None:
    scene = Scene(Host(None))
    decided = Outcome(status=JobStatus.FAILED, code="quorum", message="too few")

    def decide() -> None:
        time.sleep(0.05)
        scene.job.ending = decided
        scene.host.cancel("too few")

    threading.Thread(target=decide).start()
    assert scene.watch.run() == decided


def test_a_hang_ends_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_SLACK_SECONDS", 0.2)
    scene = Scene(Host(None), deadline_s=0.01)
    began = time.monotonic()
    outcome = scene.watch.run()
    assert outcome is not None
    assert (outcome.status, outcome.code) == ("failed", "deadline")
    assert "made no progress for 0.23 s" in outcome.message
    assert outcome.hint
    assert time.monotonic() - began < 5
    assert scene.host.cancelled.is_set()


def test_progress_prolongs_up_to_what_all_rounds_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_SLACK_SECONDS", 0.2)
    scene = Scene(Host(None), deadline_s=0.0, rounds=3)
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(0.02):
            scene.job.progress += 1

    threading.Thread(target=go_on).start()
    outcome = scene.watch.run()
    over.set()
    assert outcome is not None
    assert outcome.code == "deadline"
    assert "longer than 0.8 s" in outcome.message


def test_time_in_which_the_coordinator_stood_still_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A coordinator that was stopped finds its jobs as it left them."""
    monkeypatch.setattr(watched, "_SLACK_SECONDS", 1.0)
    scene = Scene(Host(None, FINISHED), deadline_s=0.0)
    clock = [0.0]
    monkeypatch.setattr("server.jobs.watch.time.monotonic", lambda: clock[0])
    looks = 0

    def wait(timeout: float | None = None) -> Outcome | None:
        nonlocal looks
        looks += 1
        clock[0] += 60.0 if looks == 3 else 0.02
        return FINISHED if looks == 6 else None

    scene.host.wait = wait  # type: ignore[method-assign]
    assert scene.watch.run() == FINISHED


def test_the_times_follow_the_jobs_deadline() -> None:
    assert longest_pause(600) == 2100
    assert longest(600, 10) == 23_100
