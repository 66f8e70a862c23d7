"""What an agent logs: each event once, and no text of an app."""

from __future__ import annotations

import logging

import pytest

from edge.agent.agent_log import ConnectionLog, PhaseLog
from fedlearn.errors import NotApproved, TransportError
from fedlearn.job.phase import Phase


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="edge.agent.agent_log")
    return caplog


def events(logged: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["event"] for record in logged.records]


def test_waiting_for_approval_and_the_approval_are_logged_once(
    logged: pytest.LogCaptureFixture,
) -> None:
    log = ConnectionLog("north")
    error = NotApproved("site north waits for approval", hint="`fedlearn site approve north`")
    for _ in range(3):
        log.waits_for_approval(error)
    log.connected()
    log.connected()
    assert events(logged) == ["site.waits", "site.approved", "site.connected", "site.connected"]
    assert "`fedlearn site approve north`" in logged.messages[0]
    # Not a warning: nothing is wrong.
    assert {record.levelno for record in logged.records} == {logging.INFO}


def test_a_failure_that_repeats_is_logged_once_until_it_changes(
    logged: pytest.LogCaptureFixture,
) -> None:
    log = ConnectionLog("north")
    for _ in range(3):
        log.failed("the coordinator does not answer", TransportError("refused"))
    log.failed("the coordinator does not answer", TransportError("unknown host"))
    log.connected()
    log.failed("the coordinator does not answer", TransportError("unknown host"))
    assert [message.rpartition(": ")[2] for message in logged.messages] == [
        "refused",
        "unknown host",
        "site north is connected to the coordinator",
        "unknown host",
    ]


def test_the_reason_of_a_failed_client_is_not_logged(logged: pytest.LogCaptureFixture) -> None:
    log = PhaseLog()
    log.begin("a-1", "heart")
    for phase, reason in (
        (Phase.ACCEPTED, "waiting: this site runs jobs at 20:00 only"),
        (Phase.ACCEPTED, "waiting: this site runs jobs at 20:00 only"),
        (Phase.RUNNING, ""),
        (Phase.FAILED, "KeyError: 'patient 4711'"),
        (Phase.REFUSED, "the measurement is another one"),
    ):
        log.phase("a-1", phase, reason)
    assert events(logged) == [
        "client.accepted",
        "client.running",
        "client.failed",
        "client.refused",
    ]
    assert logged.messages[0].endswith("waiting: this site runs jobs at 20:00 only")
    assert logged.messages[2] == "job heart: its client failed"
    assert logged.messages[3] == "job heart: its client was refused: the measurement is another one"
    assert "4711" not in logged.text


def test_a_charge_and_an_approval_name_the_job(logged: pytest.LogCaptureFixture) -> None:
    log = PhaseLog()
    log.begin("a-1", "heart.2")
    log.charged("a-1")
    log.charged("a-2")
    log.approved("heart.2", bytes(32))
    assert events(logged) == ["budget.charged", "budget.charged", "job.approved"]
    assert "job heart.2" in logged.messages[0]
    assert "job a-2" in logged.messages[1]
