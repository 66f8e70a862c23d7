"""Updates that lie in files, from the exchange to the sum: what is wrong with one, and when they
are freed."""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.app.flower import PACKED, flatten, packed
from fedlearn.app.message import Flat, Head
from fedlearn.sandbox.memory_file import FilePart, MemoryFile, gathered
from fedlearn.update import arrays as update
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.grid import JobGrid
from server.flower.aggregation.round_updates import Rules
from server.flower.exchange.job_exchange import JobExchange
from server.flower.exchange.nodes import Delivered
from tests.fakes.exchange import COORDINATOR, message
from tests.fakes.job_requests import JobRequests
from tests.harness.job_plans import job_plan

SITES = ("a", "b", "c", "d", "e", "f")
LARGE = 200_000
MODEL: dict[str, update.Array] = {
    "w": np.zeros(LARGE, np.float32),
    "b": np.zeros((2, 3), np.float64),
}
Fault = Callable[[dict[str, update.Array]], bytes | None]


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def trained(seed: int) -> dict[str, update.Array]:
    chance = np.random.default_rng(seed)
    return {
        "w": chance.standard_normal(LARGE).astype(np.float32),
        "b": chance.standard_normal((2, 3)),
    }


class Sites:
    """Clients that answer every question at once, with the documents that they are given."""

    def __init__(self, documents: Mapping[str, bytes]) -> None:
        self._link = JobExchange(job_plan(sites=SITES))
        self._nodes = {site: self._link.create_node(site, b"key") for site in SITES}
        for number in self._nodes.values():
            self._link.beat(number, 30.0)
        self._documents = documents
        self.requests = JobRequests(self._link)
        self._push, client = self.requests.client.push, self.requests.client
        client.push = self.push  # type: ignore[method-assign]

    def push(self, flat: Flat) -> list[str]:
        found = self._push(flat)
        for site, number in self._nodes.items():
            self._answer(site, number)
        return found

    def _answer(self, site: str, number: int) -> None:
        frames = self._link.next_question(number)
        if frames is None or site not in self._documents:
            return
        asked = Head.from_bytes(frames[0])
        document = gathered([self._documents[site]])
        assert isinstance(document, FilePart)
        content = RecordDict(
            {"arrays": packed(document, PACKED), "m": MetricRecord({"num-examples": 3})}
        )
        flat = flatten([message(content, to=COORDINATOR, by=number, reply_to=asked.id)])
        head, *parts = flat.frames(0)
        given = Delivered(
            head=replace(Head.from_bytes(head)).with_parts(len(parts)),
            parts=tuple(parts),
            digest=hashlib.sha256(self._documents[site]).hexdigest(),
        )
        assert self._link.accept(number, given, size=1, key=b"k")

    def close(self) -> None:
        self.requests.close()
        self._link.close(completed=False)


def round_of(
    documents: Mapping[str, bytes], watch: Callable[[], object] = lambda: None, **rules: Any
) -> tuple[dict[str, update.Array], dict[str, str]]:
    """Run a round; return its model, and the reasons for which updates were refused."""
    sites = Sites(documents)
    try:
        grid = JobGrid(
            sites.requests.client,
            Rules(
                sites=SITES,
                quorum=2,
                seconds=1.0,
                stragglers="drop",
                max_update_bytes=10**7,
                **rules,
            ),
        )
        options = {"min_train_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0}
        strategy = BuiltIn("fedavg", options)
        grid.begin_round(1, streams=True)
        model = record_of(MODEL)
        grid.validator.remember_types(model)
        messages = list(strategy.configure_train(1, model, ConfigRecord(), grid))

        def watched(replies: Any) -> Iterator[Message]:
            for reply in replies:
                watch()
                yield reply
                del reply

        found, _ = strategy.aggregate_train(1, watched(grid.send_and_receive(messages)))
        sites.requests.client.traffic()  # what was noted is reported with it
        assert found is not None
        refused = {
            fields["site"]: fields["reason"]
            for kind, fields in sites.requests.channel.events
            if kind == "update.rejected"
        }
        received = {
            fields["site"]
            for kind, fields in sites.requests.channel.events
            if kind == "update.received"
        }
        assert received == documents.keys() - refused.keys()
        return arrays_of(found), refused
    finally:
        sites.close()


def changed(name: str, place: Any, value: float) -> Fault:
    def change(arrays: dict[str, update.Array]) -> None:
        arrays[name][place] = value

    return change


FAULTS: dict[str, tuple[Fault, str]] = {
    "NaN at the end": (changed("w", -1, np.nan), "w: contains NaN or infinity"),
    "infinity at the start": (changed("w", 0, np.inf), "w: contains NaN or infinity"),
    "NaN in a small array": (changed("b", (1, 2), np.nan), "b: contains NaN or infinity"),
    "too large": (changed("b", (1, 2), 1e300), "is beyond 2^190"),
    "another shape": (
        lambda arrays: arrays.update(w=np.zeros((2, LARGE // 2), np.float32)),
        "w: has shape",
    ),
    "another type": (lambda arrays: arrays.update(w=np.zeros(LARGE)), "w: is float64"),
    "an array less": (lambda arrays: arrays.__delitem__("b"), "the array 'b' is"),
    "an array more": (lambda arrays: arrays.update(x=np.zeros(1)), "the array 'x' is"),
    "cut off": (lambda arrays: update.encode(arrays)[:-1], "out of range"),
    "a byte more": (lambda arrays: update.encode(arrays) + b"x", "1 bytes belong to no array"),
    "noise": (lambda arrays: b"\xff" * 100_000, "a header of"),
}


ARRAYS = {site: trained(number) for number, site in enumerate(SITES)}
GOOD = {site: update.encode(each) for site, each in ARRAYS.items() if site != "c"}


@pytest.fixture(scope="module")
def expected() -> bytes:
    """The model of a round in which site c does not answer."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    found, refused = round_of(GOOD)
    assert refused == {"c": "no answer within 1 s"}
    return update.encode(found)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_update_is_refused_and_the_mean_is_that_of_the_others(
    fault: str, expected: bytes
) -> None:
    break_, reason = FAULTS[fault]
    arrays = {name: array.copy() for name, array in ARRAYS["c"].items()}
    data = break_(arrays)
    found, refused = round_of({**GOOD, "c": update.encode(arrays) if data is None else data})
    assert list(refused) == ["c"]
    assert reason in refused["c"]
    assert update.encode(found) == expected


def test_an_update_is_freed_as_soon_as_it_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    files: list[weakref.ref[MemoryFile]] = []
    adopt = MemoryFile.adopt

    def noted(descriptor: int) -> MemoryFile:
        found = adopt(descriptor)
        files.append(weakref.ref(found))
        return found

    monkeypatch.setattr(MemoryFile, "adopt", noted)
    held: list[int] = []
    mapped: list[int] = []
    documents = {site: update.encode(trained(n)) for n, site in enumerate(SITES)}

    def watch() -> None:
        # The files of questions, too, are open in this process: it is the coordinator as well.
        held.append(sum(each() is not None for each in files))
        maps = Path("/proc/self/maps").read_text().splitlines()
        mapped.append(sum("/memfd:part" in line for line in maps))

    gc.collect()
    gc.disable()
    try:
        round_of(documents, watch)
    finally:
        gc.enable()
    assert len(held) == len(SITES)
    assert held == sorted(held, reverse=True)
    assert held[0] - held[-1] >= len(SITES) - 2
    assert mapped == [1] * len(SITES)
