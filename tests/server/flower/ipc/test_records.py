"""Records and calls between the aggregator and the process that runs user code."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.app.array_records import record_of_document
from fedlearn.errors import FedlearnError, JobError, PrivacyError, TransportError, UpdateRejected
from fedlearn.sandbox.memory_file import FilePart, Part
from fedlearn.sandbox.process_channel import ProcessChannel
from fedlearn.update import arrays as update
from server.flower.aggregation.remote import messages_of
from server.flower.application.app_grid import messages_fields
from server.flower.ipc.failures import failure_of, raised
from server.flower.ipc.peer import Peer
from server.flower.ipc.records import content, packed_content


@pytest.fixture(autouse=True)
def _identity() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def everything() -> RecordDict:
    arrays = ArrayRecord(
        {"w": Array(np.arange(6, dtype="f4").reshape(2, 3)), "n": Array(np.ones(()))}
    )
    own = ArrayRecord({"p": Array("odd", (2,), "pickled.or.not", b"\x80\x04N.")})
    return RecordDict(
        {
            "arrays": arrays,
            "own": own,
            "empty": ArrayRecord(),
            "metrics": MetricRecord({"a": 1, "b": 1.5, "c": [1, 2], "nan": float("nan")}),
            "config": ConfigRecord({"t": "x", "b": b"\0\xff", "l": [b"1", b"2"], "f": True}),
        }
    )


def test_a_content_comes_back_as_it_was() -> None:
    described, blobs = packed_content(everything())
    found = content(json.loads(json.dumps(described)), iter(blobs), max_bytes=999)
    assert list(found) == list(everything())
    assert found["arrays"]["w"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["own"]["p"].data == b"\x80\x04N."
    assert found["config"] == everything()["config"]
    assert dict(found["metrics"])["c"] == [1, 2]
    assert isinstance(dict(found["metrics"])["a"], int)


def test_messages_share_what_they_share() -> None:
    shared = everything()
    fields, blobs = messages_fields([Message(shared, n, "train") for n in (1, 2, 3)])
    assert len(fields["contents"]) == 1
    found = messages_of(json.loads(json.dumps(fields)), blobs, max_bytes=999)
    assert found[0].content is found[2].content
    assert [each.metadata.dst_node_id for each in found] == [1, 2, 3]


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "contents", "node", "kind", "group", "ttl", "content", "b"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(trees, st.lists(st.binary(max_size=40), max_size=3))
def test_what_is_no_content_or_message_is_refused_by_name(tree: object, blobs: list[bytes]) -> None:
    views = blobs
    fields = tree if isinstance(tree, dict) else {"messages": tree}
    for read in (
        lambda: content(tree, iter(views), max_bytes=100),
        lambda: messages_of(fields, views, max_bytes=9),
    ):
        try:
            read()
        except (TransportError, UpdateRejected):
            continue


@pytest.mark.parametrize(
    "message",
    [
        {"node": -1},
        {"node": 2**64},
        {"node": "1"},
        {"kind": "shell"},
        {"kind": "train" * 100},
        {"group": "x" * 1000},
        {"ttl": float("nan")},
        {"ttl": 0.0},
        {"ttl": 1e30},
        {"content": 1},
        {"content": True, "node": True},
    ],
)
def test_a_message_is_bounded(
    message: dict[str, Any] | dict[str, bool] | dict[str, float] | dict[str, int] | dict[str, str],
) -> None:
    good = {"node": 1, "kind": "train", "group": "", "ttl": 60.0, "content": 0}
    assert messages_of({"messages": [good], "contents": [[]]}, [], max_bytes=9)
    with pytest.raises(TransportError):
        messages_of({"messages": [{**good, **message}], "contents": [[]]}, [], max_bytes=9)


# --- calls --------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    yield one, two
    one.close()
    two.close()


def test_calls_go_both_ways_and_may_lead_to_another(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours: Peer
    theirs: Peer

    def answer(name: str, fields: dict[str, Any], blobs: list[Part]) -> Any:
        if name == "start":
            found, parts = ours.call("evaluate", {"round": fields["rounds"]}, [b"model"])
            return {"found": found["score"]}, parts
        if name == "deny":
            raise PrivacyError("no", hint="never")
        raise ValueError("odd")

    def evaluate(name: str, fields: dict[str, Any], blobs: list[Part]) -> Any:
        # From inside of a call the other end may be called again.
        with pytest.raises(PrivacyError, match="no"):
            theirs.call("deny")
        return {"score": fields["round"] + len(blobs[0])}, [b"back"]

    ours = Peer(ProcessChannel(ends[0], limit=1000), answer)
    theirs = Peer(ProcessChannel(ends[1], limit=1000), None)
    ours.start()
    theirs.start()
    answered, parts = theirs.call_serving("start", {"rounds": 3}, [], evaluate)
    assert answered == {"found": 8}
    assert bytes(parts[0]) == b"back"
    with pytest.raises(JobError, match="what raised ValueError: odd"):
        theirs.call("what")


def test_whoever_waits_learns_that_the_other_end_is_gone(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours = Peer(ProcessChannel(ends[0], limit=1000), None)
    ours.start()
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            ours.call("anything")
        except FedlearnError as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    ends[1].recv(1)
    ends[1].shutdown(socket.SHUT_RDWR)
    asking.join(10)
    assert len(failed) == 1
    assert ours.wait_closed(1)
    with pytest.raises(TransportError):
        ours.call("again")


@pytest.mark.parametrize(
    "header",
    [
        {"id": "x", "call": "a", "fields": {}},
        {"id": 7, "answer": {}},
        {"id": None},
        {},
    ],
)
def test_a_record_that_is_no_call_ends_the_connection(
    ends: tuple[socket.socket, socket.socket], header: dict[str, Any] | dict[str, None]
) -> None:
    ours = Peer(ProcessChannel(ends[0], limit=1000), lambda *_: ({}, ()))
    ours.start()
    ProcessChannel(ends[1], limit=1000).send(header)
    assert ours.wait_closed(10)
    assert isinstance(ours.failure, TransportError)


def test_more_calls_than_anybody_needs_end_the_connection(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    hold = threading.Event()

    def slow(*_: object) -> Any:
        hold.wait(20)
        return {}, ()

    ours = Peer(ProcessChannel(ends[0], limit=1000), slow)
    ours.start()
    channel = ProcessChannel(ends[1], limit=1000)
    for number in range(300):
        channel.send({"id": number, "call": "wait", "fields": {}})
    try:
        assert ours.wait_closed(10)
        assert "calls at once" in str(ours.failure)
    finally:
        hold.set()


@pytest.mark.parametrize("failure", [None, 7, [], {"code": 7}, {"code": "made-up"}])
def test_a_malformed_failure_is_a_failure(failure: object) -> None:
    assert isinstance(raised(failure), JobError)


def test_a_failure_keeps_its_kind_and_is_cut() -> None:
    error = raised(failure_of(PrivacyError("x" * 100_000, hint="h" * 100_000)))
    assert isinstance(error, PrivacyError)
    assert len(str(error)) == len(error.hint) == 4_000


def test_a_model_that_lies_in_a_file_is_passed_on_by_it_and_read_only(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    document = update.document({"w": np.zeros(50_000, np.float32)})
    assert isinstance(document, FilePart)
    sent = record_of_document(document, max_bytes=1 << 20)
    described, blobs = packed_content(RecordDict({"a": sent, "m": MetricRecord({"n": 1})}))
    assert blobs == [document]
    theirs = Peer(
        ProcessChannel(ends[0], limit=1 << 20), lambda name, fields, parts: ({"n": name}, parts)
    )
    ours = Peer(ProcessChannel(ends[1], limit=1 << 20), None)
    theirs.start()
    ours.start()
    _, returned = ours.call("back", {}, blobs)
    found = content(described, iter(returned), max_bytes=1 << 20)["a"]
    assert isinstance(found.document, FilePart)
    inodes = {os.fstat(each.file.fileno()).st_ino for each in (document, found.document)}
    assert len(inodes) == 1
    with pytest.raises(ValueError, match="read-only"):
        found["w"].view[0] = 1
    with pytest.raises(UpdateRejected, match="at most 100 are accepted"):
        content(described, iter(returned), max_bytes=100)
