"""Transfers that are cut off: where they go on, and every offset at which they do not."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, RecordDict

from fedlearn.app.flower import Packer, flatten
from server.flower.exchange import resumption
from server.flower.exchange.job_exchange import JobExchange
from server.flower.job_plan import Reply
from server.rpc.fleet_streams import DeliveryMemory, RequestRefused
from tests.fakes.exchange import COORDINATOR, FakeNode, ask, body, frames_of, message

NAME = "0123456789abcdef" * 2
OTHER = "f" * 32
HALF = 100_000


def _headers(name: str = NAME, offset: int | str = 0) -> list[tuple[bytes, bytes]]:
    return [
        (b"fedlearn-delivery", name.encode()),
        (b"fedlearn-offset", str(offset).encode()),
    ]


def _keep(size: int, drop: Callable[[], None]) -> Any:
    return DeliveryMemory(1 << 30).keep(size, drop)


async def _gone() -> dict[str, str]:
    return {"type": "http.disconnect"}


async def _slow() -> dict[str, str]:
    raise RequestRefused(408, "planted")


class Scene:
    """A node with a question in hand, and a large answer to it."""

    def __init__(self, link: JobExchange, node: FakeNode) -> None:
        self.link, self.node = link, node
        large = RecordDict({"arrays": ArrayRecord([np.arange(60_000, dtype=np.float32)])})
        node.activate()
        (self.question,) = ask(link, node.number, content=large)
        assert node.fetched() == self.question
        self.whole = self.answer(self.question)

    def answer(self, question: str) -> bytes:
        content = RecordDict({"arrays": ArrayRecord([np.arange(70_000, dtype=np.float32)])})
        asked = message(
            Packer().content(content), to=COORDINATOR, by=self.node.number, reply_to=question
        )
        return body(flatten([asked]).frames(0))

    def send(self, data: bytes, *, cut: Any = None, **headers: Any) -> int:
        length = headers.pop("length", None)
        status, self.reason = self.node.call(
            "deliver", data, length=length, more=cut, headers=_headers(**headers), keep=_keep
        )
        return status

    def cut(self, *, at: int = HALF, how: Any = _gone) -> None:
        """Deliver the beginning of the answer."""
        assert self.send(self.whole[:at], length=len(self.whole), cut=how) == 0

    def offset(self, name: str = NAME, length: int | None = None) -> int:
        asked = {"delivery": name, "length": len(self.whole) if length is None else length}
        status, answer = self.node.call("delivery-offset", json.dumps(asked).encode())
        assert status == 200, answer
        return int(json.loads(answer)["offset"])

    def reply(self) -> Reply:
        (reply,) = self.link.pull([self.question], 1)
        return reply


@pytest.fixture
def scene(link: JobExchange, nodes: list[FakeNode]) -> Scene:
    return Scene(link, nodes[0])


def _same_as_uncut(scene: Scene, reply: Reply) -> None:
    _, *parts = map(bytes, reply.objects.values())
    assert parts == frames_of(scene.whole)[2:]
    assert reply.digest == hashlib.sha256(b"".join(parts)).hexdigest()
    assert reply.size == len(scene.whole)


def test_a_delivery_goes_on_where_it_was_cut_as_often_as_it_is(scene: Scene) -> None:
    assert scene.offset() == 0
    scene.cut(at=1)
    assert scene.offset() == 1
    assert scene.send(scene.whole[1:HALF], length=len(scene.whole) - 1, cut=_gone, offset=1) == 0
    assert scene.offset() == HALF
    assert scene.send(scene.whole[HALF:], offset=HALF) == 200
    _same_as_uncut(scene, scene.reply())


def test_a_delivery_that_was_too_slow_goes_on_too(scene: Scene) -> None:
    with pytest.raises(RequestRefused):
        scene.cut(how=_slow)
    assert scene.offset() == HALF
    assert scene.send(scene.whole[HALF:], offset=HALF) == 200
    _same_as_uncut(scene, scene.reply())


@pytest.mark.parametrize(
    ("begin", "end", "how", "reason"),
    [
        (HALF - 1, None, {}, "goes on at 100000"),
        (HALF + 1, None, {}, "goes on at 100000"),
        (HALF, -1, {}, "goes on at 100000"),
        (0, None, {"offset": HALF}, "goes on at 100000"),
        (HALF, None, {"name": OTHER}, "with this name"),
        (HALF, None, {"name": ""}, "without a name"),
        (HALF, None, {"name": "../../etc"}, "32 hexadecimal digits"),
        (HALF, None, {"offset": "-1"}, "a number of bytes"),
        (HALF, None, {"offset": "9" * 16}, "a number of bytes"),
    ],
)
def test_an_offset_at_which_nothing_goes_on_is_refused_and_changes_nothing(
    scene: Scene, begin: int, end: int | None, how: dict[str, Any], reason: str
) -> None:
    scene.cut()
    assert scene.send(scene.whole[begin:end], **{"offset": begin, **how}) == 416
    assert reason in scene.reason.decode()
    assert scene.offset() == HALF
    assert scene.send(scene.whole[HALF:], offset=HALF) == 200
    _same_as_uncut(scene, scene.reply())


def test_the_rest_comes_once(scene: Scene) -> None:
    scene.cut()
    assert scene.send(scene.whole[HALF:], offset=HALF) == 200
    assert scene.send(scene.whole[HALF:], offset=HALF) == 410
    _same_as_uncut(scene, scene.reply())


def test_headers_that_appear_twice_are_refused(scene: Scene) -> None:
    scene.cut()
    status, _ = scene.node.call(
        "deliver", scene.whole[HALF:], headers=[*_headers(offset=HALF), *_headers(offset=0)]
    )
    assert status == 416
    assert scene.offset() == HALF


def test_what_was_kept_ends_with_its_question(scene: Scene) -> None:
    scene.cut()
    scene.link.forget([scene.question])
    (scene.question,) = ask(scene.link, scene.node.number)
    assert scene.node.fetched() == scene.question
    assert scene.offset() == 0
    assert scene.send(scene.whole[HALF:], offset=HALF) == 416
    assert "another question" in scene.reason.decode()
    scene.whole = scene.answer(scene.question)
    assert scene.send(scene.whole) == 200
    _same_as_uncut(scene, scene.reply())


def test_another_node_has_nothing_of_it(scene: Scene, nodes: list[FakeNode]) -> None:
    scene.cut()
    other = nodes[1]
    other.activate()
    ask(scene.link, other.number)
    other.fetched()
    asked = json.dumps({"delivery": NAME, "length": len(scene.whole)}).encode()
    assert json.loads(other.call("delivery-offset", asked)[1]) == {"offset": 0}
    status, _ = other.call("deliver", scene.whole[HALF:], headers=_headers(offset=HALF))
    assert status == 416
    assert scene.offset() == HALF


def test_a_restarted_client_begins_anew_and_nothing_of_the_first_answer_is_in_it(
    scene: Scene,
) -> None:
    scene.cut()
    assert scene.offset(OTHER) == 0
    assert scene.offset(length=len(scene.whole) + 1) == 0
    assert scene.send(scene.whole, name=OTHER) == 200
    _same_as_uncut(scene, scene.reply())


def test_a_client_that_names_no_delivery_works_as_before(scene: Scene) -> None:
    status, _ = scene.node.call("deliver", scene.whole[:HALF], length=len(scene.whole), more=_gone)
    assert status == 0
    assert scene.node.call("deliver", scene.whole)[0] == 200
    _same_as_uncut(scene, scene.reply())


def test_what_is_not_a_message_is_not_kept(scene: Scene) -> None:
    bad = b"\xff" * 8 + scene.whole[8:]
    assert scene.send(bad[:HALF], length=len(bad), cut=_gone) == 400
    assert scene.offset() == 0


@pytest.mark.parametrize(
    "asked",
    [b"", b"[]", b"x", b'{"delivery": "x", "length": 1}', b'{"delivery": 1, "length": 1}'],
)
def test_a_question_for_an_offset_that_is_not_one_is_refused(scene: Scene, asked: bytes) -> None:
    assert scene.node.call("delivery-offset", asked)[0] == 416


def test_what_arrived_is_dropped_after_a_while(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumption, "KEPT_SECONDS", 0.05)
    memory = DeliveryMemory(1 << 20)

    async def run() -> tuple[int, int]:
        await scene.node.request(
            "deliver",
            [scene.whole[:HALF]],
            length=len(scene.whole),
            more=_gone,
            headers=_headers(),
            keep=memory.keep,
        )
        held = memory._reserved
        await asyncio.sleep(0.2)
        return held, memory._reserved

    assert asyncio.run(run()) == (HALF, 0)
    assert scene.offset() == 0


def test_what_arrived_is_dropped_when_another_delivery_needs_the_memory(scene: Scene) -> None:
    memory = DeliveryMemory(HALF + 10)

    async def run() -> int:
        await scene.node.request(
            "deliver",
            [scene.whole[:HALF]],
            length=len(scene.whole),
            more=_gone,
            headers=_headers(),
            keep=memory.keep,
        )
        await memory.reserve(11)
        status, reason = await scene.node.request(
            "deliver", [scene.whole[HALF:]], headers=_headers(offset=HALF), keep=memory.keep
        )
        assert b"begin it anew" in reason
        return status

    assert asyncio.run(run()) == 416
    assert memory._reserved == 11
    assert scene.send(scene.whole) == 200


def test_kept_memory_is_dropped_oldest_first_unless_it_is_pinned() -> None:
    async def run() -> list[str]:
        memory, dropped = DeliveryMemory(10), list[str]()
        kept = [memory.keep(3, lambda name=name: dropped.append(name)) for name in "abc"]  # type: ignore[misc]
        assert memory.keep(2, lambda: None) is None
        assert kept[0] is not None
        kept[0].pin()
        await memory.reserve(3)
        assert dropped == ["b"]
        await memory.reserve(4)
        waiting = asyncio.ensure_future(memory.reserve(1))
        await asyncio.sleep(0)
        assert not waiting.done()
        kept[0].release()
        kept[0].release()
        await waiting
        return dropped

    assert asyncio.run(run()) == ["b", "c"]


# Fetching


def test_a_message_goes_on_at_any_byte_of_the_same_question(scene: Scene) -> None:
    _, whole = scene.node.call("fetch")
    for offset in (1, HALF, len(whole) - 1):
        asked = json.dumps({"question": scene.question, "offset": offset}).encode()
        assert scene.node.call("fetch", asked) == (200, whole[offset:])


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"question": "another", "offset": 5}, "another question"),
        ({"question": None, "offset": 10**9}, "ends before"),
        ({"question": None, "offset": 0}, "above 0"),
        ({"question": None, "offset": -1}, "above 0"),
        ({"question": None, "offset": True}, "above 0"),
        ({"question": None, "offset": "5"}, "above 0"),
        ({"question": "", "offset": 5}, "name the question"),
        ({"question": ["x"], "offset": 5}, "name the question"),
        ([1], "JSON object"),
    ],
)
def test_a_message_does_not_go_on_elsewhere(scene: Scene, asked: Any, reason: str) -> None:
    if isinstance(asked, dict) and asked["question"] is None:
        asked = {**asked, "question": scene.question}
    status, why = scene.node.call("fetch", json.dumps(asked).encode())
    assert status == 416
    assert reason in why.decode()
    assert scene.node.fetched() == scene.question


def test_without_a_question_in_hand_nothing_goes_on(scene: Scene) -> None:
    scene.link.forget([scene.question])
    asked = json.dumps({"question": scene.question, "offset": 5}).encode()
    assert scene.node.call("fetch", asked)[0] == 416


def test_an_offset_is_not_known_while_the_delivery_is_read(scene: Scene) -> None:
    asked = json.dumps({"delivery": NAME, "length": len(scene.whole)}).encode()
    found: list[int] = []

    async def meanwhile() -> dict[str, str]:
        found.append((await scene.node.request("delivery-offset", [asked]))[0])
        return await _gone()

    scene.cut(how=meanwhile)
    assert found == [409]
    assert scene.offset() == HALF
