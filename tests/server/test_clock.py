"""A clock that jumps, and a process that is stopped: neither ends what is alive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fedlearn.errors import AdmissionDenied, NonceRefused
from server import clock as clock_module
from server.admission.challenges import NONCE_LIFETIME, ChallengeStore
from server.admission.registry import Admission, Change
from server.clock import SteadyClock
from tests.harness.deployment import Deployment

START = datetime(2026, 11, 27, 12, tzinfo=UTC)


class Machine:
    """A machine whose date, running time and pauses the test sets."""

    def __init__(self, start: datetime = START) -> None:
        self.date, self.ran, self.paused = start, 0.0, 0.0
        self.clock = SteadyClock(
            wall=lambda: self.date, elapsed=lambda: self.ran, paused=lambda: self.paused
        )
        self.moved: list[timedelta] = []
        self.clock.subscribe(self.moved.append)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            self.ran += 0.5
            self.date += timedelta(seconds=0.5)
            self.clock.tick()

    def jump(self, **by: float) -> None:
        self.date += timedelta(**by)
        self.clock.tick()

    def stop(self, seconds: float) -> None:
        self.date += timedelta(seconds=seconds)
        self.paused += seconds
        self.clock.tick()


def test_a_jump_that_ends_soon_is_not_believed() -> None:
    for by in (timedelta(minutes=12), timedelta(minutes=-12), timedelta(days=400)):
        machine = Machine()
        machine.run(5)
        machine.jump(seconds=by.total_seconds())
        assert abs(machine.clock() - START - timedelta(seconds=5)) < timedelta(seconds=1)
        machine.run(12)
        machine.jump(seconds=-by.total_seconds())
        machine.run(60)
        assert machine.clock() == machine.date
        assert machine.moved == []


def test_a_date_that_stays_different_is_adopted_once() -> None:
    for minutes in (12, -12):
        machine = Machine()
        machine.jump(minutes=minutes)
        machine.run(29)
        assert machine.moved == []
        machine.run(5)
        assert machine.moved == [timedelta(minutes=minutes)]
        assert machine.clock() == machine.date


def test_a_date_that_jumps_about_is_not_adopted() -> None:
    machine = Machine()
    for turn in range(20):
        machine.jump(minutes=5 if turn % 2 == 0 else -5)
        machine.run(10)
    assert machine.moved == []


def test_small_corrections_are_followed_without_a_word() -> None:
    machine = Machine()
    for _ in range(10):
        machine.jump(milliseconds=400)
        machine.run(1)
    assert machine.clock() == machine.date
    assert machine.moved == []


def test_a_pause_of_the_process_explains_itself() -> None:
    machine = Machine()
    machine.run(3)
    machine.stop(60)
    assert machine.moved == [timedelta(seconds=60)]
    assert machine.clock() == machine.date


def test_time_in_which_the_process_is_stopped_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("server.clock.time.monotonic", lambda: now[0])
    awake = clock_module._Awake()
    awake._ticking = True
    for _ in range(10):
        now[0] += 0.5
        awake()
    assert (awake(), awake.paused()) == (5.0, 0.0)
    now[0] += 65.0
    assert (awake(), awake.paused()) == (10.0, 60.0)


@pytest.fixture
def moving(deployment: Deployment) -> Machine:
    """The deployment with the date of a machine that the test moves."""
    machine = Machine(datetime.now(UTC))
    deployment.clock = machine.clock  # type: ignore[assignment]
    machine.clock.subscribe(deployment.gate.shift)
    return machine


def _live(deployment: Deployment, admission: Admission) -> bool:
    try:
        deployment.registry.live(admission.thumbprint, now=deployment.clock())
    except AdmissionDenied:
        return False
    return True


def test_an_admission_survives_a_jump_and_a_pause_and_still_has_to_be_renewed(
    deployment: Deployment, moving: Machine
) -> None:
    admission = deployment.admit(deployment.client()).admission
    moving.jump(minutes=12)
    moving.run(12)
    assert _live(deployment, admission)
    moving.jump(minutes=-12)
    moving.run(60)
    moving.stop(600)
    deployment.gate.sweep()
    assert _live(deployment, admission), "nobody can attest again to a coordinator that is stopped"
    # Ten minutes to attest again, from its admission: a jump that stays prolongs nothing.
    moving.jump(minutes=-12)
    moving.run(40)
    assert moving.moved[-1] == timedelta(minutes=-12)
    assert _live(deployment, admission)
    moving.run(600 - 12 - 60 - 40 + 5)
    deployment.gate.sweep()
    assert not _live(deployment, admission)
    assert deployment.kinds()[-1] == "quarantine"


def test_a_date_that_moves_beyond_a_certificate_ends_no_clients_part(
    deployment: Deployment, moving: Machine
) -> None:
    client = deployment.client()
    admission = deployment.admit(client).admission
    moving.jump(minutes=40)
    moving.run(40)
    (event,) = deployment.gate.sweep()
    assert (event.change, event.part_stays) == (Change.EXPIRED, True)
    assert not _live(deployment, admission)
    assert admission.node_id in deployment.nodes.alive
    again = deployment.admit(deployment.client()).admission
    assert (again.node_id, _live(deployment, again)) == (admission.node_id, True)
    # A client that does not attest again in time leaves, whatever its certificate states.
    moving.run(605)
    (event,) = deployment.gate.sweep()
    assert (event.change, event.part_stays) == (Change.QUARANTINED, False)
    assert deployment.nodes.alive == {}


@pytest.mark.parametrize("by", [timedelta(minutes=5), timedelta(minutes=-5)])
def test_a_nonce_lives_neither_longer_nor_shorter_when_the_date_is_moved(by: timedelta) -> None:
    for seconds in (59, 60):
        book = ChallengeStore()
        challenge = book.issue(job="a", site="b", peer="c", now=START)
        book.shift(by)
        now = START + by + timedelta(seconds=seconds)
        if now < START + by + NONCE_LIFETIME:
            assert book.redeem(challenge.nonce, job="a", site="b", now=now).nonce
        else:
            with pytest.raises(NonceRefused, match="stale"):
                book.redeem(challenge.nonce, job="a", site="b", now=now)
