"""Nodes come, go silent and leave, and what they were asked is answered all the same."""

from __future__ import annotations

import asyncio
import time

import pytest

from fedlearn.app.message import MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE
from fedlearn.errors import TransportError
from server.flower.exchange.job_exchange import JobExchange
from tests.fakes.exchange import FakeNode, ask
from tests.fakes.job_exchange import Clock, error, holds_nothing


def _online(link: JobExchange) -> list[str]:
    return [site for _, site in link.online()]


def test_a_newer_request_for_work_takes_the_place_of_an_older_one(
    nodes: list[FakeNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.flower.exchange.nodes._HOLD_SECONDS", 3.0)

    async def both() -> tuple[float, int]:
        started = time.monotonic()
        first = asyncio.create_task(nodes[0].request("fetch", [b""]))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(nodes[0].request("fetch", [b""]))
        status, _ = await first
        seconds = time.monotonic() - started
        ask(nodes[0].link, nodes[0].number)
        assert (await second)[0] == 200
        return seconds, status

    seconds, status = asyncio.run(both())
    assert (status, seconds < 2) == (204, True)


# Nodes that go and come


def test_a_node_that_was_taken_away_is_answered_for_and_gets_nothing(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    first, second = ask(link, nodes[0].number)[0], ask(link, nodes[0].number)[0]
    nodes[0].fetched()
    link.delete_node("a")
    replies = link.pull([first, second], 2)
    assert [(reply.question, reply.site) for reply in replies] == [(first, "a"), (second, "a")]
    assert [error(reply) for reply in replies] == [NODE_UNAVAILABLE] * 2
    assert nodes[0].fetch()[0] == 410
    assert nodes[0].deliver(nodes[0].answer(first)) == 410
    assert ask(link, nodes[0].number) == [""]
    assert holds_nothing(link)


def test_a_node_that_lost_its_connections_is_back_with_its_next_question(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    link.absent("a")
    assert _online(link) == ["b"]
    assert nodes[0].fetch()[0] == 204
    assert _online(link) == ["a", "b"]


def test_a_node_that_left_is_not_brought_back_by_a_late_question(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    assert nodes[0].call("deactivate-node")[0] == 200
    assert nodes[0].fetch()[0] == 204
    assert _online(link) == ["b"]
    nodes[0].activate()
    assert _online(link) == ["a", "b"]


def _leave(node: FakeNode, link: JobExchange, how: str) -> None:
    if how == "absent":
        link.absent("a")
        return
    assert node.call("deactivate-node")[0] == 200


@pytest.mark.parametrize("how", ["leaves", "absent"])
def test_what_a_node_sent_before_it_left_counts(
    link: JobExchange, nodes: list[FakeNode], how: str
) -> None:
    """A client that is instructed to stop answers what it has in hand, and goes at once."""
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    assert nodes[0].deliver(nodes[0].answer(question)) == 200
    _leave(nodes[0], link, how)
    (reply,) = link.pull([question], 2)
    assert reply.size > 0
    assert _online(link) == ["b"]


@pytest.mark.parametrize("how", ["leaves", "absent"])
def test_a_node_that_left_without_an_answer_has_none(
    link: JobExchange, nodes: list[FakeNode], how: str
) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    _leave(nodes[0], link, how)
    (reply,) = link.pull([question], 2)
    assert error(reply) == NODE_UNAVAILABLE
    assert nodes[0].deliver(nodes[0].answer(question)) == 410


def test_a_node_that_is_not_online_is_answered_for_at_once(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    link.absent("a")
    (question,) = ask(link, nodes[0].number)
    assert error(link.pull([question], 0)[0]) == NODE_UNAVAILABLE


def test_a_node_that_goes_silent_is_answered_for(
    link: JobExchange, nodes: list[FakeNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    for node in nodes:
        node.activate()
    clock.now += 50
    nodes[1].activate()
    (question,) = ask(link, nodes[0].number, ttl=1e6)
    nodes[0].fetched()  # a sign of life too
    clock.now += 59
    assert link.pull([question], 0) == []
    assert _online(link) == ["a", "b"]
    nodes[1].activate()
    clock.now += 2
    assert error(link.pull([question], 0)[0]) == NODE_UNAVAILABLE
    assert _online(link) == ["b"]
    nodes[0].activate()
    assert _online(link) == ["a", "b"]
    clock.now += 1000
    assert _online(link) == []


def test_a_question_lives_as_long_as_the_application_states(
    link: JobExchange, nodes: list[FakeNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    for node in nodes:
        node.activate(interval=1000)
    first, second = ask(link, nodes[0].number, ttl=5.0)[0], ask(link, nodes[0].number)[0]
    nodes[0].fetched()
    clock.now += 6
    (reply,) = link.pull([first, second], 0)
    assert (reply.question, error(reply)) == (first, MESSAGE_UNAVAILABLE)
    assert nodes[0].fetched() == second


def test_the_clock_of_the_day_does_not_matter(
    link: JobExchange, nodes: list[FakeNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert _online(link) == ["a", "b"]
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert _online(link) == ["a", "b"]
    assert nodes[0].deliver(nodes[0].answer(question)) == 200
    assert link.pull([question], 1)[0].size > 0


def test_a_closed_link_lets_everybody_go(link: JobExchange, nodes: list[FakeNode]) -> None:
    ask(link, nodes[0].number)
    link.close(completed=True)
    status, reason = nodes[0].call("fetch")
    assert (status, reason) == (410, b"the job has finished")
    assert link.pull(["x"], 5) == []
    assert link.wait_online(5, 5.0) == [(node.number, node.site) for node in nodes]
    with pytest.raises(TransportError, match="finished"):
        ask(link, nodes[0].number)
    assert holds_nothing(link)


def test_a_job_that_starts_over_withdraws_what_its_process_asked(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    first, second = ask(link, nodes[0].number, nodes[1].number)
    nodes[0].fetched()
    nodes[1].fetched()
    assert nodes[1].deliver(nodes[1].answer(second)) == 200
    link.start_over()
    assert link.pull([first, second], 0) == []
    assert nodes[0].deliver(nodes[0].answer(first)) == 410
    (again,) = ask(link, nodes[0].number)
    assert nodes[0].fetched() == again
