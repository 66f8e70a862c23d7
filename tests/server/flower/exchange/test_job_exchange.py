"""A job's exchange: each question is answered once, by its node, and nothing more is taken."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedlearn.app.flower import Packer, arrays_of, flatten, inflate, unpack
from fedlearn.app.message import MESSAGE_UNAVAILABLE, NODE_UNAVAILABLE, Head
from fedlearn.errors import AdmissionDenied, JobError, TransportError
from fedlearn.update import arrays as update
from fedlearn.update.frames import FrameReader
from server.clock import awake
from server.flower.exchange.calls import CoordinatorClient
from server.flower.exchange.job_exchange import JobExchange
from server.flower.exchange.nodes import Delivered, NodeGone
from server.flower.job_plan import Reply
from tests.fakes.exchange import COORDINATOR, FakeNode, ask, body, message, model
from tests.harness.job_plans import job_plan


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobExchange]:
    monkeypatch.setattr("server.flower.exchange.nodes._HOLD_SECONDS", 0.2)
    made = JobExchange(job_plan())
    yield made
    made.close(completed=False)


@pytest.fixture
def nodes(link: JobExchange) -> list[FakeNode]:
    made = [FakeNode(link, "a"), FakeNode(link, "b")]
    for node in made:
        node.activate()
    return made


def _online(link: JobExchange) -> list[str]:
    return [site for _, site in link.online()]


def _error(reply: Reply) -> int:
    failure = Head.from_bytes(reply.message).failure
    assert failure is not None
    assert reply.size == 0
    return failure.code


def _holds_nothing(link: JobExchange) -> bool:
    nodes = link._state.nodes.values()
    return not (
        link._state.questions or link._state.replies or any(n.queue or n.in_hand for n in nodes)
    )


# Questions and answers


def test_a_question_is_answered_once_and_then_forgotten(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    first, second = ask(link, nodes[0].number, nodes[1].number)
    assert nodes[0].fetched() == first
    # Not answered yet: handed out again, as after a restart of the client.
    assert nodes[0].fetched() == first
    assert nodes[0].deliver(nodes[0].answer(first)) == 200
    (reply,) = link.pull([first, second], 1)
    assert (reply.question, reply.site, reply.node) == (first, "a", nodes[0].number)
    assert (reply.size > 0, reply.key) == (True, b"key".hex())
    assert nodes[0].fetch()[0] == 204
    assert nodes[0].deliver(nodes[0].answer(first)) == 410
    link.forget([second])
    assert nodes[1].fetch()[0] == 204
    assert _holds_nothing(link)


def test_what_a_node_gets_and_what_it_sends_are_whole(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    (question,) = ask(link, nodes[0].number)
    _, (head, *parts) = nodes[0].fetch()
    asked = inflate(head, dict(zip(Head.from_bytes(head).parts, parts, strict=True)))
    found = unpack(asked.content, max_bytes=10_000)
    assert arrays_of(found["arrays"])["0"].tolist() == [[0, 1, 2], [3, 4, 5]]

    assert nodes[0].deliver(nodes[0].answer(question)) == 200
    (reply,) = link.pull([question], 1)
    answer = inflate(reply.message, reply.objects)
    found = unpack(answer.content, max_bytes=10_000)
    assert found["metrics"]["num-examples"] == 3
    assert reply.digest == update.digest(arrays_of(found["arrays"])).hex()


def test_the_digest_covers_every_part_after_the_content(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    content = model()
    content["second"] = model()["arrays"]
    packed = Packer().content(content)
    frames = flatten(
        [message(packed, to=COORDINATOR, by=nodes[0].number, reply_to=question)]
    ).frames(0)
    assert nodes[0].deliver(frames) == 200
    (reply,) = link.pull([question], 1)
    assert reply.digest == hashlib.sha256(b"".join(frames[2:])).hexdigest()

    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    empty = message(RecordDict(), to=COORDINATOR, by=nodes[0].number, reply_to=question)
    assert nodes[0].deliver(flatten([empty]).frames(0)) == 200
    assert link.pull([question], 1)[0].digest == ""


def test_questions_are_handed_out_in_the_order_in_which_they_were_asked(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    asked = [ask(link, nodes[0].number)[0] for _ in range(3)]
    for question in asked:
        assert nodes[0].fetched() == question
        assert nodes[0].deliver(nodes[0].answer(question)) == 200
    assert [reply.question for reply in link.pull(asked, 1)] == asked


def test_the_model_is_held_once_for_all_messages(link: JobExchange, nodes: list[FakeNode]) -> None:
    ask(link, nodes[0].number, nodes[1].number)
    first, second = link._state.questions.values()
    assert [id(part) for part in first.frames[1:]] == [id(part) for part in second.frames[1:]]
    assert len(first.frames) == 3


def test_a_reply_has_the_metadata_of_its_question(link: JobExchange, nodes: list[FakeNode]) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    frames = nodes[0].answer(question)
    reported = json.loads(frames[0])
    reported |= {"run": 77, "receiver": 5, "group": "other", "kind": "evaluate"}
    assert nodes[0].deliver([json.dumps(reported).encode(), *frames[1:]]) == 200
    head = Head.from_bytes(link.pull([question], 1)[0].message)
    assert (head.run, head.receiver, head.group, head.kind) == (9, COORDINATOR, "1", "train")
    assert (head.sender, head.reply_to) == (nodes[0].number, question)


def test_node_numbers_come_from_the_job_and_the_site(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    other = JobExchange(job_plan())
    assert other.run_id == link.run_id
    assert other.create_node("a", b"another key") == nodes[0].number
    assert other.create_node("a", b"a third key") == nodes[0].number
    other.delete_node("a")
    assert other.create_node("a", b"a fourth key") == nodes[0].number
    assert link.online() == [(nodes[0].number, "a"), (nodes[1].number, "b")]
    with pytest.raises(JobError, match="not a site"):
        link.create_node("c", b"")


def test_what_the_job_sends_is_bounded_and_checked(
    link: JobExchange, nodes: list[FakeNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Packer().content(model())
    flat = flatten([message(content, to=nodes[0].number)])
    with pytest.raises(TransportError, match="part of the message is missing"):
        link.push(flat.messages, [])
    with pytest.raises(TransportError, match="same id"):
        link.push(flat.messages * 2, flat.objects.items())
    assert link.push(flat.messages, flat.objects.items()) == list(flat.ids)
    with pytest.raises(TransportError, match="same id"):
        link.push(flat.messages, flat.objects.items())
    with pytest.raises(TransportError, match="time to live"):
        ask(link, nodes[0].number, ttl=-1.0)
    with pytest.raises(TransportError, match="not JSON"):
        link.push([b"{"], [])
    assert ask(link, 4711) == [""]
    monkeypatch.setattr("server.flower.exchange.exchange_state._MAX_OPEN", 2)
    with pytest.raises(TransportError, match="at most 2 for each site"):
        ask(link, *[nodes[0].number] * 4)
    assert len(link._state.questions) == 1


# What a node may not do


def test_a_node_cannot_answer_for_another(link: JobExchange, nodes: list[FakeNode]) -> None:
    mine, theirs = ask(link, nodes[0].number, nodes[1].number)
    nodes[0].fetched()
    nodes[1].fetched()
    assert nodes[0].deliver(nodes[0].answer(theirs, by=nodes[1].number)) == 400
    assert nodes[0].deliver(nodes[0].answer(mine, by=nodes[1].number)) == 400
    assert nodes[0].deliver(nodes[0].answer(theirs)) == 410
    assert link.pull([mine, theirs], 0) == []
    assert nodes[1].deliver(nodes[1].answer(theirs)) == 200


def test_only_the_question_in_hand_is_answered(link: JobExchange, nodes: list[FakeNode]) -> None:
    first, second = ask(link, nodes[0].number)[0], ask(link, nodes[0].number)[0]
    # Asked, but not handed out yet.
    assert nodes[0].deliver(nodes[0].answer(first)) == 410
    assert nodes[0].fetched() == first
    assert nodes[0].deliver(nodes[0].answer(second)) == 410
    assert nodes[0].deliver(nodes[0].answer("made up")) == 410
    assert link.pull([first, second], 0) == []


def test_an_answer_to_a_withdrawn_question_is_not_taken(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()

    async def withdrawn_meanwhile() -> Any:
        link.forget([question])
        return {"type": "http.request", "body": whole[40:], "more_body": False}

    whole = body(nodes[0].answer(question))
    status, _ = nodes[0].call("deliver", whole[:40], length=len(whole), more=withdrawn_meanwhile)
    assert status == 410
    assert _holds_nothing(link)


def test_without_a_question_in_hand_nothing_is_read(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    before = nodes[0].read
    assert nodes[0].call("deliver", b"x" * 100)[0] == 410
    ask(link, nodes[0].number)
    assert nodes[0].call("deliver", b"x" * 100)[0] == 410
    assert nodes[0].read == before


def test_an_answer_that_is_too_large_is_not_read(link: JobExchange, nodes: list[FakeNode]) -> None:
    ask(link, nodes[0].number)
    nodes[0].fetched()
    before = nodes[0].read
    status, reason = nodes[0].call("deliver", b"x", length=5 * 1024**3)
    assert (status, reason.startswith(b"an answer of 5368709120 bytes")) == (413, True)
    assert nodes[0].read == before


def test_a_node_delivers_one_answer_at_a_time(link: JobExchange, nodes: list[FakeNode]) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    whole = body(nodes[0].answer(question))

    async def both() -> list[int]:
        release = asyncio.Event()

        async def rest() -> Any:
            await release.wait()
            return {"type": "http.request", "body": whole[40:], "more_body": False}

        first = asyncio.create_task(
            nodes[0].request("deliver", [whole[:40]], length=len(whole), more=rest)
        )
        await asyncio.sleep(0.05)
        before = nodes[0].read
        second, reason = await nodes[0].request("deliver", [whole])
        assert nodes[0].read == before
        assert b"another delivery" in reason
        release.set()
        return [(await first)[0], second]

    assert asyncio.run(both()) == [200, 409]
    assert len(link.pull([question], 1)) == 1


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_a_body_that_ends_early_is_refused_and_may_be_sent_again(
    link: JobExchange, nodes: list[FakeNode], cut: int
) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    whole = body(nodes[0].answer(question))
    assert nodes[0].call("deliver", whole[:cut], length=len(whole))[0] == 400
    assert nodes[0].deliver(nodes[0].answer(question)) == 200


def test_a_body_whose_connection_ends_is_let_go(link: JobExchange, nodes: list[FakeNode]) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    whole = body(nodes[0].answer(question))

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    assert nodes[0].call("deliver", whole[:40], length=len(whole), more=gone)[0] == 0
    assert nodes[0].deliver(nodes[0].answer(question)) == 200


def test_a_body_that_the_front_ends_is_let_go(link: JobExchange, nodes: list[FakeNode]) -> None:
    """As one that stalls is, see test_front_limits.py; the node may send its answer again."""
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    whole = body(nodes[0].answer(question))

    class Ended(Exception):
        """What the front raises out of ``receive``."""

    async def ended() -> Any:
        raise Ended

    with pytest.raises(Ended):
        nodes[0].call("deliver", whole[:40], length=len(whole), more=ended)
    assert nodes[0].deliver(nodes[0].answer(question)) == 200


def test_a_message_that_is_not_one_is_refused(link: JobExchange, nodes: list[FakeNode]) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    head, content, document = nodes[0].answer(question)
    for frames in (
        [],
        [b""],
        [b"\xff" * 64],
        [head],
        [head, content],
        [head, content, document, b"a stowaway"],
        [head, b"[]", document],
        [head, b"[[[[", document],
    ):
        assert nodes[0].deliver(frames) == 400, frames
    assert nodes[0].call("deliver", b"\xff" * 64)[0] == 400
    assert nodes[0].deliver([head, content, document]) == 200


def test_requests_that_are_not_one_are_refused(nodes: list[FakeNode]) -> None:
    assert nodes[0].call("get-fab")[0] == 400
    for content in (b"", b"{}", b"[]", b'{"interval":1}', b'{"interval":NaN}', b"[" * 5000):
        assert nodes[0].call("send-node-heartbeat", content)[0] == 400


def test_an_admission_that_ended_meanwhile_gets_and_sends_nothing(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    (question,) = ask(link, nodes[0].number)
    nodes[0].fetched()
    nodes[0].live = False
    with pytest.raises(AdmissionDenied):
        nodes[0].fetch()
    with pytest.raises(AdmissionDenied):
        nodes[0].deliver(nodes[0].answer(question))
    assert link.pull([question], 0) == []


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
    assert [_error(reply) for reply in replies] == [NODE_UNAVAILABLE] * 2
    assert nodes[0].fetch()[0] == 410
    assert nodes[0].deliver(nodes[0].answer(first)) == 410
    assert ask(link, nodes[0].number) == [""]
    assert _holds_nothing(link)


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
    assert _error(reply) == NODE_UNAVAILABLE
    assert nodes[0].deliver(nodes[0].answer(question)) == 410


def test_a_node_that_is_not_online_is_answered_for_at_once(
    link: JobExchange, nodes: list[FakeNode]
) -> None:
    link.absent("a")
    (question,) = ask(link, nodes[0].number)
    assert _error(link.pull([question], 0)[0]) == NODE_UNAVAILABLE


class Clock:
    """The time for which the coordinator ran, as a test sets it; no date is its business."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = awake()
        for module in ("job_exchange", "exchange_state"):
            monkeypatch.setattr(f"server.flower.exchange.{module}.awake", lambda: self.now)


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
    assert _error(link.pull([question], 0)[0]) == NODE_UNAVAILABLE
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
    assert (reply.question, _error(reply)) == (first, MESSAGE_UNAVAILABLE)
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
    assert _holds_nothing(link)


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
    assert _error(link.pull([question], 30)[0]) == MESSAGE_UNAVAILABLE
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

        def receive(self) -> Any:
            reported = {"site": "a", "node": 5, "ids": [], "size": 0, "key": "", "digest": ""}
            question = {1: "b", 2: "a"}.get(len(asked))
            replies = [{"question": question, **reported}] if question else []
            return {"replies": replies}, [b"head"] * len(replies)

    channel: Any = Channel()
    coordinator = CoordinatorClient(channel)
    for wanted in ("abc", "ac", "c", "cd"):
        coordinator.pull(wanted, 1.0)
    assert asked == [["a", "b", "c"], None, None, ["c", "d"]]


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
    assert _holds_nothing(link)
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


def test_a_large_part_is_in_memory_once_when_it_has_arrived() -> None:
    size = 32 * 1024 * 1024
    piece = bytes(64 * 1024)
    tracemalloc.start()
    try:
        reader = FrameReader(8 + size)
        list(reader.feed(size.to_bytes(8, "big")))
        found = [frame for _ in range(size // len(piece)) for frame in reader.feed(piece)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(frame) for frame in found] == [size]
    assert peak < 1.5 * size


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
                question = Head.from_bytes(frames[0])
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
