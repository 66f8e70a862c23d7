"""Flower is what we think it is; and a link gives nodes nothing but their own."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy
from flwr.supercore.date import now

from fedlearn import flower, flower_pin
from fedlearn.errors import AdmissionDenied, JobError, PrivacyError, TransportError
from fedlearn.flower import ArrayView, FlowerMismatch, Packer, arrays_of, flatten, inflate, unpack
from fedlearn.frames import FrameReader, write_frames
from fedlearn.privacy import PrivacySpec
from fedlearn.strategies import STRATEGIES
from server.flower import contract, loop
from server.flower.capture import NotCaptured, capture, restore
from server.flower.link import JobLink
from server.flower.pipe import Pipe
from server.flower.plan import JobPlan, from_record, to_record
from server.front import Caller


def _plan(**more: Any) -> JobPlan:
    values: dict[str, Any] = {
        "job": "j",
        "digest": hashlib.sha256(b"job").digest(),
        "bundle": b"bundle",
        "rounds": 1,
        "sites": ("a", "b"),
        "quorum": 1,
        "seconds": 5.0,
        "seed": 1,
    }
    return JobPlan(**{**values, **more})


def test_the_installed_flower_fits():
    contract.check()
    loop.check_start()


def test_another_release_is_named_before_it_is_imported(monkeypatch):
    monkeypatch.setattr(flower_pin, "version", lambda _: "1.42.0")
    with pytest.raises(FlowerMismatch, match=r"1\.42\.0 is installed; .* knows 1\.41\.0"):
        flower_pin.prepare()

    def missing(_: str) -> str:
        raise flower_pin.PackageNotFoundError

    monkeypatch.setattr(flower_pin, "version", missing)
    with pytest.raises(FlowerMismatch, match="not installed"):
        flower_pin.prepare()


def test_another_flower_is_named(monkeypatch):
    monkeypatch.setattr(contract, "_LINKSTATE", ("store_thing",))
    with pytest.raises(FlowerMismatch, match=r"1\.41\.0 .* InMemoryLinkState has no store_thing"):
        contract.check()

    def start(self, grid, initial_arrays, num_rounds=3):
        return None

    monkeypatch.setattr(Strategy, "start", start)
    with pytest.raises(FlowerMismatch, match="start takes self, grid"):
        loop.check_start()


# Messages


def _message(content: RecordDict, *, to: int, run: int, reply_to: str = "", by: int = 1) -> Message:
    metadata = Metadata(
        run_id=run,
        message_id="",
        src_node_id=by,
        dst_node_id=to,
        reply_to_message_id=reply_to,
        group_id="",
        created_at=now().timestamp(),
        ttl=60,
        message_type="train",
    )
    return make_message(metadata=metadata, content=content)


def _content() -> RecordDict:
    arrays = ArrayRecord([np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((), np.int64)])
    return RecordDict({"arrays": arrays, "config": ConfigRecord({"round": 1})})


def test_a_packed_message_comes_back_as_it_was():
    content = _content()
    packed = Packer().content(content)
    flat = flatten([_message(packed, to=5, run=9)])
    message = inflate(flat.ids[0], dict(flat.objects))
    found = unpack(message.content, max_bytes=10_000)
    for name, array in content["arrays"].items():
        assert found["arrays"][name].numpy().tobytes() == array.numpy().tobytes()
        assert found["arrays"][name].data == array.data
    assert found["config"] == content["config"]
    assert found["arrays"].object_id == content["arrays"].object_id


def test_the_model_is_packed_once_for_many_nodes():
    content, packer = _content(), Packer()
    messages = [_message(packer.content(content), to=node, run=9) for node in (5, 6, 7)]
    flat = flatten(messages)
    assert len(flat.messages) == 3
    documents = [o for o in flat.objects.values() if o.startswith(b"ArrayChunk")]
    assert len(documents) == 1


def test_a_view_may_be_read_only_and_a_copy_may_not_be():
    view = ArrayView(np.frombuffer(b"\0" * 8, np.float32))
    copy = view.numpy()
    copy += 1
    assert view.numpy().tolist() == [0, 0]


def test_objects_that_make_up_nothing_are_refused():
    flat = flatten([_message(_content(), to=5, run=9)])
    objects = dict(flat.objects)
    objects.pop(next(iter(objects)))
    with pytest.raises(TransportError, match="do not make up"):
        inflate(flat.ids[0], objects)


# A link and its nodes


class Node_:  # noqa: N801  a node of Flower, as the front would present it
    def __init__(self, link: JobLink, site: str) -> None:
        self.link = link
        self.number = link.create_node(site, site.encode())
        self.site = site
        self.live = True

    def call(self, action: str, body: bytes) -> tuple[int, bytes]:
        def still_live() -> None:
            if not self.live:
                raise AdmissionDenied("planted")

        caller = Caller(node_id=self.number, site=self.site, still_live=still_live)
        scope = {
            "type": "http",
            "path": f"/v1/fleet/{action}",
            "fedlearn.caller": caller,
            "fedlearn.length": len(body),
        }
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(event: Any) -> None:
            sent.append(event)

        asyncio.run(self.link(scope, receive, send))
        return sent[0]["status"], b"".join(e.get("body", b"") for e in sent)

    def activate(self) -> None:
        request = ActivateNodeRequest(heartbeat_interval=30)
        assert self.call("activate-node", request.SerializeToString())[0] == 200

    def fetch(self, node: int | None = None) -> tuple[int, bytes]:
        own = self.number if node is None else node
        return self.call("fetch", PullMessagesRequest(node=Node(node_id=own)).SerializeToString())

    def deliver(self, message: Message, *, by: int | None = None, drop: int = 0) -> int:
        flat = flatten([message])
        request = PushMessagesRequest(
            node=Node(node_id=self.number if by is None else by),
            messages_list=[ProtoMessage.FromString(flat.messages[0])],
            message_object_trees=[ObjectTree.FromString(flat.trees[0])],
        )
        objects = list(flat.objects.values())
        parts = [request.SerializeToString(), *objects[: len(objects) - drop]]
        return self.call("deliver", b"".join(map(bytes, write_frames(parts))))[0]


@pytest.fixture
def link(monkeypatch):
    monkeypatch.setattr("server.flower.nodes._HOLD_SECONDS", 0.2)
    made = JobLink(_plan())
    yield made
    made.close(completed=False)


@pytest.fixture
def nodes(link):
    made = [Node_(link, "a"), Node_(link, "b")]
    for node in made:
        node.activate()
    return made


def _ask(link: JobLink, *nodes: Node_) -> list[str]:
    content = _content()
    flat = flatten([_message(content, to=each.number, run=link.run_id) for each in nodes])
    return link.push(flat.messages, flat.trees, flat.objects.items())


def _fetched(body: bytes) -> str:
    frames = list(FrameReader(len(body)).feed(body))
    head = PullMessagesResponse.FromString(frames[0])
    objects = {hashlib.sha256(each).hexdigest(): each for each in frames[1:]}
    message = inflate(head.messages_list[0].metadata.message_id, objects)
    assert arrays_of(message.content["arrays"])["0"].tolist() == [[0, 1, 2], [3, 4, 5]]
    return message.metadata.message_id


def _answer(node: Node_, link: JobLink, question: str, **more: Any) -> Message:
    content = RecordDict({"metrics": MetricRecord({"num-examples": 3})})
    by = more.pop("by", node.number)
    return _message(content, to=1, run=link.run_id, reply_to=question, by=by)


def test_a_question_is_answered_once_and_then_forgotten(link, nodes):
    first, second = _ask(link, *nodes)
    status, body = nodes[0].fetch()
    assert (status, _fetched(body)) == (200, first)
    # Not answered yet: handed out again, as after a restart of the client.
    assert _fetched(nodes[0].fetch()[1]) == first
    assert nodes[0].deliver(_answer(nodes[0], link, first)) == 200
    replies = link.pull([first, second], 1)
    assert len(replies) == 1
    assert replies[0].size > 0
    assert nodes[0].fetch()[0] == 204
    assert nodes[0].deliver(_answer(nodes[0], link, first)) == 410
    link.forget([second])
    assert nodes[1].fetch()[0] == 204
    assert not link._state.object_store.store


def test_node_numbers_come_from_the_job_and_the_site(link, nodes):
    other = JobLink(_plan())
    assert other.create_node("a", b"another key") == nodes[0].number
    assert other.create_node("a", b"a third key") == nodes[0].number
    other.delete_node("a")
    assert other.create_node("a", b"a fourth key") == nodes[0].number
    assert link.online() == [(nodes[0].number, "a"), (nodes[1].number, "b")]
    with pytest.raises(JobError, match="not a site"):
        link.create_node("c", b"")


def test_a_node_cannot_speak_for_another(link, nodes):
    mine, theirs = _ask(link, *nodes)
    assert nodes[0].fetch(nodes[1].number)[0] == 400
    nodes[0].fetch()
    nodes[1].fetch()
    stolen = _answer(nodes[0], link, theirs, by=nodes[1].number)
    assert nodes[0].deliver(stolen) == 400
    assert nodes[0].deliver(stolen, by=nodes[1].number) == 400
    assert nodes[0].deliver(_answer(nodes[0], link, theirs)) == 410
    assert link.pull([mine, theirs], 0) == []


def test_a_delivery_that_is_not_whole_is_refused(link, nodes):
    (question,) = _ask(link, nodes[0])
    nodes[0].fetch()
    assert nodes[0].deliver(_answer(nodes[0], link, question), drop=1) == 400
    assert nodes[0].call("deliver", b"\0" * 8)[0] == 400
    assert nodes[0].call("deliver", b"\xff" * 64)[0] == 400
    assert nodes[0].call("fetch", b"\xff")[0] == 400
    assert nodes[0].call("get-fab", b"")[0] == 400


def test_an_object_that_was_not_announced_is_refused(link, nodes):
    (question,) = _ask(link, nodes[0])
    nodes[0].fetch()
    flat = flatten([_answer(nodes[0], link, question)])
    request = PushMessagesRequest(
        node=Node(node_id=nodes[0].number),
        messages_list=[ProtoMessage.FromString(flat.messages[0])],
        message_object_trees=[ObjectTree.FromString(flat.trees[0])],
    )
    parts = [request.SerializeToString(), *flat.objects.values(), b"a stowaway"]
    assert nodes[0].call("deliver", b"".join(map(bytes, write_frames(parts))))[0] == 400


def test_a_node_that_was_taken_away_is_answered_for_and_gets_nothing(link, nodes):
    (question,) = _ask(link, nodes[0])
    link.delete_node("a")
    (reply,) = link.pull([question], 2)
    assert ProtoMessage.FromString(reply.message).HasField("error")
    assert nodes[0].fetch()[0] == 410


def test_an_admission_that_ended_meanwhile_gets_no_message(link, nodes):
    _ask(link, nodes[0])
    nodes[0].live = False
    with pytest.raises(AdmissionDenied):
        nodes[0].fetch()


def test_a_node_that_lost_its_connections_is_back_with_its_next_question(link, nodes):
    link.absent("a")
    assert [site for _, site in link.online()] == ["b"]
    assert nodes[0].fetch()[0] == 204
    assert [site for _, site in link.online()] == ["a", "b"]


def test_a_node_that_left_is_not_brought_back_by_a_late_question(link, nodes):
    request = DeactivateNodeRequest(node_id=nodes[0].number)
    assert nodes[0].call("deactivate-node", request.SerializeToString())[0] == 200
    assert nodes[0].fetch()[0] == 204
    assert [site for _, site in link.online()] == ["b"]


def _leave(node: Node_, link: JobLink, how: str) -> None:
    if how == "absent":
        link.absent("a")
        return
    request = DeactivateNodeRequest(node_id=node.number)
    assert node.call("deactivate-node", request.SerializeToString())[0] == 200


@pytest.mark.parametrize("how", ["leaves", "absent"])
def test_what_a_node_sent_before_it_left_counts(link, nodes, how):
    """A client that is told to stop answers what it has in hand, and goes at once."""
    (question,) = _ask(link, nodes[0])
    nodes[0].fetch()
    assert nodes[0].deliver(_answer(nodes[0], link, question)) == 200
    _leave(nodes[0], link, how)
    (reply,) = link.pull([question], 2)
    assert not ProtoMessage.FromString(reply.message).HasField("error")
    assert reply.size > 0
    assert [site for _, site in link.online()] == ["b"]


def test_a_node_that_left_without_an_answer_has_none(link, nodes):
    (question,) = _ask(link, nodes[0])
    nodes[0].fetch()
    _leave(nodes[0], link, "leaves")
    (reply,) = link.pull([question], 2)
    assert ProtoMessage.FromString(reply.message).HasField("error")


def test_a_node_that_is_back_before_its_answer_was_taken_stays(link, nodes):
    (question,) = _ask(link, nodes[0])
    nodes[0].fetch()
    nodes[0].deliver(_answer(nodes[0], link, question))
    link.absent("a")
    assert nodes[0].fetch()[0] == 204
    assert len(link.pull([question], 2)) == 1
    assert [site for _, site in link.online()] == ["a", "b"]


def test_a_closed_link_lets_everybody_go(link, nodes):
    link.close(completed=True)
    assert nodes[0].fetch()[0] == 410
    assert link.pull(["x"], 5) == []


# What a strategy holds


def test_the_state_of_a_strategy_goes_and_comes_back_to_the_bit():
    strategy = FedAdam(eta=0.1 + 0.2)
    strategy.m_t = {"0": np.random.default_rng(1).random(3).astype(np.float32)}
    strategy.odd = {"x": (1, 2.5, None, "t"), 3: [b"\0\xff", float("inf")]}
    strategy.rng = np.random.default_rng(4)
    strategy.rng.random(3)
    strategy.record = ArrayRecord([np.zeros(2)])
    state, tensors = capture({"strategy": strategy})
    expected = strategy.rng.random()

    other = FedAdam()
    other.rng = np.random.default_rng()
    restore({"strategy": other}, (state, tensors))
    assert other.eta == strategy.eta
    assert other.m_t["0"].tobytes() == strategy.m_t["0"].tobytes()
    assert other.odd == strategy.odd
    assert other.rng.random() == expected
    assert other.train_metrics_aggr_fn is not None


def test_what_cannot_be_written_down_is_named():
    strategy = FedAdam()
    strategy.socket = object()
    with pytest.raises(NotCaptured, match=r"strategy/socket: builtins\.object"):
        capture({"strategy": strategy})


def test_a_plan_that_cannot_work_is_refused():
    for wrong in (
        {"quorum": 3},
        {"quorum": 0},
        {"sites": ()},
        {"sites": ("a", "a")},
        {"digest": b"short"},
        {"seconds": 0.0},
        {"rounds": 0},
        {"seed": -1},
        {"strategy": "magic"},
    ):
        with pytest.raises(JobError):
            _plan(**wrong)


def test_flower_is_told_what_is_missing():
    with pytest.raises(FlowerMismatch, match="list has no nothing"):
        flower.has(list, "nothing")


def test_every_strategy_that_a_job_may_name_can_be_made():
    for name in STRATEGIES:
        options = {"client_learning_rate": 0.1} if name == "qfedavg" else {}
        rounds = loop.Rounds(None, _plan(strategy=name, options=options))
        made = rounds._chosen(FedAvg())
        assert isinstance(made, FedAvg), name


def test_a_strategy_without_what_it_needs_is_refused():
    with pytest.raises(JobError, match="client_learning_rate"):
        loop.Rounds(None, _plan(strategy="qfedavg"))._chosen(FedAvg())


def test_noise_is_refused_where_it_would_not_be_on_a_mean():
    spec = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=1.0, delta=1e-5)
    for name, given in (("fedadam", FedAvg()), ("app", FedAdam())):
        plan = _plan(strategy=name, privacy=spec, noise_secret=bytes(32))
        with pytest.raises(PrivacyError, match="more than a mean"):
            loop.Rounds(None, plan)._chosen(given)
    exact = loop.Rounds(None, _plan(privacy=spec, noise_secret=bytes(32)))._chosen(FedAvg())
    assert exact.privacy is not None


def test_a_plan_crosses_the_pipe_whole():
    spec = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=1.0, delta=1e-5)
    plan = _plan(privacy=spec, noise_secret=bytes(32), run_config={"a": 1}, stragglers="fail")
    visible = _plan(updates="visible-to-app")
    header, blobs = to_record(visible)
    assert from_record(header, [bytearray(blob) for blob in blobs]) == visible
    with pytest.raises(JobError, match="'shown' is not what an app may receive"):
        _plan(updates="shown")
    ours, theirs = socket.socketpair()
    header, blobs = to_record(plan)
    Pipe(ours, limit=1000).send(header, blobs)
    received = Pipe(theirs, limit=1000).receive()
    assert received is not None
    assert from_record(*received) == plan
    Pipe(ours, limit=1000).close()
    assert Pipe(theirs, limit=1000).receive() is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02{}",
        b"\0\0\0\x02[]",
        b'\0\0\0\x0e{"blobs":[-1]}',
        b'\0\0\0\x10{"blobs":[9999]}',
        b'\0\0\0\x0d{"blobs":[5]}abc',
    ],
)
def test_a_record_that_is_not_one_is_refused(data):
    ours, theirs = socket.socketpair()
    ours.sendall(data)
    ours.close()
    with pytest.raises(TransportError):
        Pipe(theirs, limit=1000).receive()
