"""The requests of an aggregator: what lies in files passes through the coordinator unmapped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from fedlearn.app.array_records import record_of
from fedlearn.app.flower import Packer, flatten
from fedlearn.app.message import Head
from fedlearn.sandbox.memory_file import FilePart, MemoryFile, gathered
from fedlearn.sandbox.process_channel import MAX_FILES
from server.flower.exchange.job_exchange import JobExchange
from server.flower.exchange.nodes import Delivered
from server.flower.job_plan import Checkpoint
from tests.fakes.exchange import FakeNode, message
from tests.fakes.job_requests import JobRequests

MODEL = RecordDict({"arrays": record_of({"w": np.arange(50_000, dtype=np.float32)})})


@pytest.fixture
def job(link: JobExchange) -> Iterator[JobRequests]:
    job = JobRequests(link)
    yield job
    job.close()


@pytest.fixture(autouse=True)
def unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: MemoryFile) -> memoryview:
        raise AssertionError("the coordinator maps a file")

    monkeypatch.setattr(MemoryFile, "map", refuse)


def inode(part: object) -> int:
    assert isinstance(part, FilePart)
    return os.fstat(part.file.fileno()).st_ino


def test_models_pass_through_by_their_files(
    job: JobRequests, link: JobExchange, nodes: list[FakeNode]
) -> None:
    packed = Packer().content(MODEL)
    flat = flatten([message(packed, to=node.number) for node in nodes[:2]])
    (model,) = (part for part in flat.objects.values() if isinstance(part, FilePart))
    asked = job.client.push(flat)
    sent: list[int] = []
    for node, question in zip(nodes, asked, strict=False):
        frames = link.next_question(node.number)
        assert frames is not None
        assert inode(frames[2]) == inode(model)
        head = Head.from_bytes(frames[0])
        update = gathered([node.site.encode() * 70_000])
        sent.append(inode(update))
        reply = replace(head, id="r", reply_to=question, sender=node.number, parts=("0", "1"))
        given = Delivered(head=reply, parts=(bytes(frames[1]), update), digest="ab")
        assert link.accept(node.number, given, size=100, key=b"")
    replies = job.client.pull(asked, 5)
    assert [inode(reply.objects["1"]) for reply in replies] == sent
    assert bytes(replies[0].objects["1"]) == nodes[0].site.encode() * 70_000


def test_what_the_coordinator_handed_over_is_freed(
    job: JobRequests, link: JobExchange, nodes: list[FakeNode]
) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    asked = job.client.push(flatten([message(Packer().content(MODEL), to=nodes[0].number)]))
    frames = link.next_question(nodes[0].number)
    assert frames is not None
    head = Head.from_bytes(frames[0])
    reply = replace(head, id="r", reply_to=asked[0], sender=nodes[0].number)
    parts = (bytes(frames[1]), gathered([bytes(70_000)]))
    assert link.accept(
        nodes[0].number, Delivered(head=reply, parts=parts, digest="ab"), size=100, key=b""
    )
    del frames, parts
    replies = job.client.pull(asked, 5)
    assert len(replies) == 1
    replies.clear()
    job.client.traffic()  # an answer to it shows that the last one is done
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_call_returns_no_more_answers_than_a_record_has_files(
    job: JobRequests, link: JobExchange, nodes: list[FakeNode]
) -> None:
    node, count = nodes[0], MAX_FILES + 5
    packed = Packer().content(RecordDict())
    asked = job.client.push(flatten([message(packed, to=node.number) for _ in range(count)]))
    for number in range(count):
        frames = link.next_question(node.number)
        assert frames is not None
        head = Head.from_bytes(frames[0])
        reply = replace(head, id="r", reply_to=head.id, sender=node.number, parts=("0", "1"))
        given = Delivered(
            head=reply, parts=(b"[]", gathered([bytes([number]) * 70_000])), digest="ab"
        )
        assert link.accept(node.number, given, size=100, key=b"")
    waiting = dict.fromkeys(asked)
    first = job.client.pull(waiting, 5)
    assert [each.question for each in first] == asked[:MAX_FILES]
    for each in first:
        del waiting[each.question]
    second = job.client.pull(waiting, 5)
    assert [each.question for each in second] == asked[MAX_FILES:]
    numbers = [bytes(each.objects["1"])[0] for each in (*first, *second)]
    assert numbers == list(range(count))


def test_a_checkpoint_passes_through_as_documents(job: JobRequests) -> None:
    assert job.client.load() is None
    model = gathered([b"m" * 100_000])
    job.client.save(Checkpoint(round=3, model=model, state={"a": 1}))
    saved = job.channel.saved[0]
    assert inode(saved.model) == inode(model)
    found = job.client.load()
    assert found is not None
    assert (found.round, found.state, bytes(found.tensors)) == (3, {"a": 1}, bytes(saved.tensors))
    assert inode(found.model) == inode(model)


@pytest.mark.parametrize(
    ("header", "blobs"),
    [
        ({"ask": "push", "count": 1, "ids": ["0", "1"]}, [b"{}", b"0"]),
        ({"ask": "push", "count": 1, "ids": []}, [b"{}", b"0"]),
        ({"ask": "push"}, []),
        ({"ask": "save", "round": 1, "state": {}}, [b"model"]),
        ({"ask": "save", "round": 1, "state": {}}, [b"model", b"tensors", b"more"]),
        ({"ask": "files", "names": ["a"]}, []),
        ({"ask": "pull", "ids": None}, []),
    ],
)
def test_a_request_that_is_not_one_ends_the_job(
    job: JobRequests, header: dict[str, Any], blobs: list[bytes]
) -> None:
    job.end.send(header, blobs)
    assert job.end.receive(timeout=10) is None
    job.close()
    assert "a request that is not one" in str(job.failed[0])
    assert job.channel.saved == []
