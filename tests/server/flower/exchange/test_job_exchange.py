"""The exchange of a job: each question is answered once, by its own node, and checked first."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from flwr.app import RecordDict

from fedlearn.app.array_records import arrays_of
from fedlearn.app.flower import Packer, flatten, inflate, unpack
from fedlearn.app.message import Head
from fedlearn.errors import AdmissionDenied, JobError, TransportError
from fedlearn.update import arrays as update
from server.flower.exchange.job_exchange import JobExchange
from tests.fakes.exchange import COORDINATOR, FakeNode, ask, body, message, model
from tests.fakes.job_exchange import holds_nothing
from tests.harness.job_plans import job_plan

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
    assert holds_nothing(link)


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
    assert reply.digest == hashlib.sha256(b"".join(map(bytes, frames[2:]))).hexdigest()

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
    assert holds_nothing(link)


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
