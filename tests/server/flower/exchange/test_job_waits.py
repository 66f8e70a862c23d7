"""Waits for answers: woken by events, ended in time, and no burden with many nodes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedlearn.app.message import MESSAGE_UNAVAILABLE, Head
from fedlearn.errors import TransportError
from server.flower.exchange.calls import CoordinatorClient
from server.flower.exchange.job_exchange import JobExchange
from server.flower.exchange.nodes import Delivered, NodeGone
from tests.fakes.exchange import FakeNode, ask, body
from tests.fakes.job_exchange import Clock, error, holds_nothing
from tests.harness.job_plans import job_plan

# Waiting


def _later(action: Callable[..., object], *arguments: object) -> threading.Thread:
    def run() -> None:
        time.sleep(0.1)
        action(*arguments)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_whoever_waits_is_woken_and_does_not_look_again_and_again(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    started = time.monotonic()
    thread = _later(nodes[0].deliver, nodes[0].answer(question))
    assert len(link.pull([question], 30)) == 1
    thread.join()
    link.absent("a")
    thread = _later(nodes[0].activate)
    assert len(link.wait_online(2, 30.0)) == 2
    thread.join()

    async def asked_while_it_waits() -> int:
        waiting = asyncio.create_task(nodes[0].request("fetch", [b""]))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(ask, link, nodes[0].number)
        return (await waiting)[0]

    assert asyncio.run(asked_while_it_waits()) == 200
    assert time.monotonic() - started < 10


def test_time_that_passes_without_an_event_ends_a_wait(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    (question,) = ask(link, nodes[0].number, ttl=0.2)
    assert error(link.pull([question], 30)[0]) == MESSAGE_UNAVAILABLE
    assert link.pull([question], 0.05) == []
    assert len(link.wait_online(3, 0.05)) == 2


def test_whoever_waits_for_many_names_them_once(link: JobExchange, nodes: list[FakeNode]) -> None:
    first, second = ask(link, nodes[0].number, nodes[1].number)
    (other,) = ask(link, nodes[0].number)
    assert link.pull([first, second], 0) == []
    for node, question in ((nodes[1], second), (nodes[0], first), (nodes[0], other)):
        node.fetched()
        assert node.deliver(node.answer(question)) == 200
        if question != other:
            assert [reply.question for reply in link.pull(None, 1)] == [question]
    assert link.pull(None, 0) == []
    assert [reply.question for reply in link.pull([other], 0)] == [other]


def test_a_jobs_process_names_what_it_waits_for_once() -> None:
    asked: list[Any] = []

    class Channel:
        def send(self, header: dict[str, Any], blobs: object) -> None:
            asked.append(header["ids"])

        def receive_parts(self) -> Any:
            reported = {"site": "a", "node": 5, "ids": [], "size": 0, "key": "", "digest": ""}
            question = {1: "b", 2: "a", 5: "x"}.get(len(asked))
            replies = [{"question": question, **reported}] if question else []
            return {"replies": replies}, [b"head"] * len(replies)

    channel: Any = Channel()
    coordinator = CoordinatorClient(channel)
    waiting = dict.fromkeys("abc")
    for _ in range(3):
        for reply in coordinator.pull(waiting, 1.0):
            del waiting[reply.question]
    assert asked == [["a", "b", "c"], None, None]
    coordinator.pull({"c": None}, 1.0)  # another caller
    coordinator.pull(waiting | {"x": None}, 1.0)
    waiting["d"] = None
    coordinator.pull(waiting, 1.0)
    assert asked[3:] == [["c"], ["c", "x"], ["c", "d"]]
    waiting["e"] = None
    coordinator.pull(waiting, 1.0)
    assert asked[6:] == [["c", "d", "e"]]


@pytest.mark.parametrize("seconds", [float("nan"), -1.0])
def test_a_wait_that_has_no_end_is_refused(
    link: JobExchange, nodes: list[FakeNode], seconds: float
) -> None:
    with pytest.raises(TransportError, match="a wait must be of"):
        link.pull([], seconds)
    with pytest.raises(TransportError, match="a wait must be of"):
        link.wait_online(9, seconds)


def test_a_wait_without_end_ends_with_an_answer(link: JobExchange, nodes: list[FakeNode]) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    thread = _later(nodes[0].deliver, nodes[0].answer(question))
    assert len(link.pull([question], float("inf"))) == 1
    thread.join()


# Many nodes


def test_two_thousand_nodes_are_each_asked_and_answered_once() -> None:
    sites = tuple(f"s{number}" for number in range(2000))
    link = JobExchange(job_plan(sites=sites))
    nodes = [FakeNode(link, site) for site in sites]

    async def round_() -> None:
        interval = b'{"interval":30}'
        for node in nodes:
            assert (await node.request("activate-node", [interval]))[0] == 200
        asked = await asyncio.to_thread(ask, link, *[node.number for node in nodes])

        async def work(node: FakeNode, question: str) -> None:
            assert (await node.request("fetch", [b""]))[0] == 200
            status, _ = await node.request("deliver", [body(node.answer(question))])
            assert status == 200

        works = zip(nodes, asked, strict=True)
        await asyncio.gather(*(work(node, question) for node, question in works))
        replies = link.pull(asked, 0)
        assert {(reply.question, reply.node) for reply in replies} == {
            (question, node.number) for node, question in zip(nodes, asked, strict=True)
        }

    asyncio.run(round_())
    assert len(link.online()) == 2000
    assert holds_nothing(link)
    sent, received = link.traffic()
    assert min(sent, received) > 2000 * 100


def test_timers_of_answered_questions_do_not_pile_up(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    for _ in range(300):
        (question,) = ask(link, nodes[0].number, content=RecordDict())
        link.forget([question])
    assert len(link._state._timers) < 100
    assert np.isfinite([when for when, _, _ in link._state._timers]).all()


_STEPS = {
    **dict.fromkeys(("beat", "ask", "answer"), 5),
    **dict.fromkeys(("create", "pull"), 2),
    **dict.fromkeys(("time", "forget", "delete", "absent", "leave"), 1),
}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_each_question_is_answered_once_or_withdrawn(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A walk through everything that may happen, in any order."""
    chance, clock = random.Random(seed), Clock(monkeypatch)
    sites = ("a", "b", "c", "d")
    link = JobExchange(job_plan(sites=sites))
    numbers = {site: link.create_node(site, b"key") for site in sites}
    asked: set[str] = set()
    answered, withdrawn, delivered = list[str](), set[str](), set[str]()

    def step(site: str) -> None:
        number = numbers[site]
        match chance.choices(list(_STEPS), list(_STEPS.values()))[0]:
            case "create":
                link.create_node(site, b"key")
            case "delete":
                link.delete_node(site)
            case "absent":
                link.absent(site)
            case "beat":
                link.beat(number, 30.0)
            case "leave":
                link.leave(number)
            case "ask":
                ttl = chance.choice([5.0, 1e6])
                asked.update(id_ for id_ in ask(link, number, number, ttl=ttl) if id_)
            case "forget":
                gone = {id_ for id_ in asked if chance.random() < 0.1} - set(answered)
                withdrawn.update(gone)
                link.forget(gone)
            case "time":
                clock.now += chance.choice([1, 10, 100])
            case "pull":
                answered.extend(reply.question for reply in link.pull(asked, 0))
            case _:
                frames = link.next_question(number)
                if frames is None:
                    return
                question = Head.from_bytes(bytes(frames[0]))
                assert question.receiver == number
                reply = replace(question, reply_to=question.id, sender=number)
                given = Delivered(head=reply, parts=tuple(frames[1:]), digest="")
                with link.delivery(number, 100):
                    assert link.accept(number, given, size=100, key=b"") is True
                    assert link.accept(number, given, size=100, key=b"") is False
                delivered.add(question.id)

    for _ in range(3000):
        with contextlib.suppress(NodeGone):
            step(chance.choice(sites))
        listed = link.online()
        assert link._state.online_count == len(listed)
    for site in sites:
        link.delete_node(site)
    answered.extend(reply.question for reply in link.pull(asked, 0))
    assert len(answered) == len(set(answered))
    assert set(answered) == asked - withdrawn
    assert len(delivered) > 50
    assert not link._state.questions
    assert len(link._state._timers) < 200
