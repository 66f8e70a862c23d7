"""The grid of a job takes each reply by itself: an odd one is refused, and the others count."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Set
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedlearn.app.array_records import record_of
from fedlearn.app.flower import CALL, STATE, Flat, Packer, flatten, inflate
from fedlearn.errors import QuorumNotReached
from server.flower.aggregation.grid import JobGrid
from server.flower.aggregation.round_updates import Rules
from server.flower.exchange.coordinator import Coordinator, Node
from server.flower.ipc.task import enter_run
from server.flower.job_plan import Reply
from tests.fakes.exchange import message as make_message

MODEL: dict[str, npt.NDArray[Any]] = {"w": np.zeros(8, np.float32), "n": np.zeros((), np.int64)}
SITES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _run() -> None:
    enter_run(9)


class FakeCoordinator:
    """Answers each site's question with the content that a test gives it."""

    def __init__(self, contents: dict[str, Any], most: dict[str, int]) -> None:
        self.contents = contents
        self.most = most
        self.reported: list[tuple[str, dict[str, Any]]] = []
        self.asked: dict[str, str] = {}
        self.gone: set[str] = set()

    def online(self, count: int = 0, seconds: float = 0.0) -> list[Node]:
        return [Node(number=n + 1, site=site) for n, site in enumerate(SITES)]

    def live_sites(self) -> dict[str, int]:
        return self.most

    def event(self, kind: str, **fields: object) -> None:
        self.reported.append((kind, fields))

    note = event

    def push(self, flat: Flat) -> list[str]:
        sent = [site for site in SITES if site not in self.gone]
        ids = iter(flat.ids)
        found = []
        for site in SITES:
            id_ = next(ids)
            if site in sent:
                self.asked[id_] = site
            found.append(id_ if site in sent else "")
        return found

    def forget(self, ids: Iterable[str]) -> None:
        return None

    def pull(self, ids: Iterable[str], seconds: float) -> deque[Reply]:
        return deque(self.reply(id_, self.asked.pop(id_)) for id_ in ids if id_ in self.asked)

    def reply(self, question: str, site: str) -> Reply:
        node = SITES.index(site) + 1
        content = self.contents[site]
        packed = content if isinstance(content, bytes) else Packer().content(content)
        if isinstance(packed, bytes):
            packed = RecordDict({"m": MetricRecord({"num-examples": 5})})
        message = make_message(packed, to=1, by=node, reply_to=question)
        flat = flatten([message])
        objects = dict(flat.objects)
        if isinstance(content, bytes):
            objects = dict.fromkeys(objects, content)
        return Reply(
            question=question,
            site=site,
            node=node,
            message=flat.messages[0],
            objects=objects,
            size=100,
            key="ab",
            digest="cd" * 32,
        )


def content(value: float = 1.0, *, arrays: object = None, **metrics: object) -> RecordDict:
    model: dict[str, npt.NDArray[Any]] = {
        "w": np.full(8, value, np.float32),
        "n": np.zeros((), np.int64),
    }
    found = {"num-examples": 5, "loss": value, **metrics}
    return RecordDict(
        {"arrays": record_of(model) if arrays is None else arrays, "m": MetricRecord(found)}
    )


def run(
    contents: dict[str, Any], *, gone: Set[str] = frozenset(), **rules: object
) -> tuple[FakeCoordinator, JobGrid, list[Message]]:
    coordinator = FakeCoordinator(contents, dict.fromkeys(SITES, 90))
    coordinator.gone = set(gone)
    values: dict[str, Any] = {"sites": SITES, "quorum": 2, "seconds": 5.0, "stragglers": "drop"}
    grid = JobGrid(
        cast("Coordinator", coordinator),
        Rules(**{**values, "max_update_bytes": 10**6, **rules}),
    )
    nodes = list(grid.get_node_ids())
    grid.begin_round(1, streams=False)
    record = RecordDict({"arrays": record_of(MODEL), "config": ConfigRecord({})})
    messages = [Message(record, node, "train") for node in nodes]
    return coordinator, grid, list(grid.send_and_receive(messages))


def broken(data: bytes) -> ArrayRecord:
    return ArrayRecord({name: Array("float32", (8,), "numpy.ndarray", data) for name in ("w", "n")})


HEAD = b"\x93NUMPY\x01\x00"
HUGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % 2**60
HUGE = HUGE.ljust(117) + b"\n"
ODD: dict[str, tuple[Any, str]] = {
    "twelve thousand metrics": (content(**{f"m{i}": 1.0 for i in range(12_000)}), "metric values"),
    "a metric with a long name": (content(**{"m" * 300: 1.0}), "characters"),
    "a list of many": (content(extra=[1.0] * 2_000), "metric values"),
    "1e300 examples": (content(**{"num-examples": 1e300}), "from 0 to 90"),
    "more examples than it committed to": (content(**{"num-examples": 91}), "from 0 to 90"),
    "examples below 0": (content(**{"num-examples": -1}), "from 0 to 90"),
    "examples that are NaN": (content(**{"num-examples": float("nan")}), "from 0 to 90"),
    "a list of examples": (content(1.0, **{"num-examples": [5]}), "from 0 to 90"),
    "an npy without an end": (content(arrays=broken(HEAD + b"\xff\xff{")), ""),
    "an npy with a bad head": (content(arrays=broken(HEAD + b"\x05\x00{'d\n]")), ""),
    "an npy with a deep head": (
        content(arrays=broken(HEAD + b"\x10\x27" + b"(" * 10_000)),
        "",
    ),
    "an npy of 2^60 numbers": (content(arrays=broken(HEAD + b"\x76\x00" + HUGE)), ""),
    "pickled objects": (content(arrays=broken(b"\x80\x04N.")), ""),
    "NaN": (content(float("nan")), "NaN"),
    "another shape": (content(arrays=ArrayRecord([np.ones(3, "f4")])), "in the model or in the"),
    "bytes that are no content": (b"\xff" * 50, ""),
}


@pytest.mark.parametrize("name", sorted(ODD))
def test_an_odd_reply_is_refused_and_the_others_count(name: str) -> None:
    odd, reason = ODD[name]
    coordinator, grid, replies = run({"a": content(1.0), "b": odd, "c": content(3.0)})
    assert [each.has_content() for each in replies] == [True, False, True]
    assert grid.updates.contributors == {"a", "c"}
    ((_, refused),) = [each for each in coordinator.reported if each[0] == "update.rejected"]
    assert refused["site"] == "b"
    assert reason in refused["reason"]
    assert len(refused["reason"]) <= 500
    assert replies[1].error.reason == refused["reason"]


def test_under_privacy_a_refusal_states_nothing_and_inputs_are_keyed() -> None:
    odd = content(float("nan"))
    inputs: set[bytes] = set()
    for blind in (b"k" * 32, b"other" * 7):
        contents = {"a": content(1.0), "b": odd, "c": content(3.0)}
        coordinator, grid, replies = run(contents, blind=blind)
        ((_, refused),) = [each for each in coordinator.reported if each[0] == "update.rejected"]
        assert refused["reason"] == replies[1].error.reason
        assert "NaN" not in refused["reason"]
        assert "w" not in refused["reason"].split()
        received = [fields for kind, fields in coordinator.reported if kind == "update.received"]
        # The coordinator itself states what an update is.
        assert all(each.keys().isdisjoint({"digest", "key", "bytes"}) for each in received)
        assert len({each["question"] for each in received}) == 2
        # The loss that a client should not have sent is not passed on either.
        assert [dict(each["metrics"]) for each in received] == [{}, {}]
        assert all("loss" not in dict(m.content["m"]) for m in replies if m.has_content())
        inputs.add(grid.updates.inputs())
    assert {len(each) for each in inputs} == {32}
    assert len(inputs) == 2


def test_a_round_counts_the_sites_that_it_meant_to_ask() -> None:
    everybody = dict.fromkeys(SITES, content())
    with pytest.raises(QuorumNotReached, match="0 of 3 sites could be asked, 2 are needed"):
        run(everybody, gone={"a", "b", "c"})
    with pytest.raises(QuorumNotReached, match="1 of 3 sites could be asked, 2 are needed"):
        run(everybody, gone={"a", "b"})
    _, grid, replies = run(everybody, gone={"a"})
    assert len(replies) == 2
    assert grid.updates.contributors == {"b", "c"}
    contents = {"a": content(), "b": content(float("nan")), "c": content(float("nan"))}
    with pytest.raises(QuorumNotReached, match="1 of the 3 updates"):
        run(contents)


def test_an_application_that_judges_updates_itself_gets_other_models_and_no_nan() -> None:
    partial = content(arrays=ArrayRecord({"w": Array(np.ones(3, "f8"))}))
    contents = {"a": partial, "b": content(float("nan")), "c": content()}
    _, _, replies = run(contents, visible=True)
    assert [each.has_content() for each in replies] == [True, False, True]


def asked_for(coordinator: FakeCoordinator, grid: JobGrid) -> dict[str, dict[str, Any]]:
    """Ask every site once more; return what each question states of the call, by site."""
    found: dict[str, dict[str, Any]] = {}
    push = coordinator.push

    def pushed(flat: Flat) -> list[str]:
        for head, site in zip(flat.messages, SITES, strict=True):
            found[site] = dict(inflate(head, flat.objects).content[CALL])
        return push(flat)

    coordinator.push = pushed  # type: ignore[method-assign]
    record = RecordDict({"arrays": record_of(MODEL), "config": ConfigRecord({})})
    list(grid.send_and_receive([Message(record, node, "train") for node in grid.get_node_ids()]))
    return found


def test_a_question_names_the_state_that_its_site_reported_last_and_no_other_sites() -> None:
    contents = {site: content() for site in SITES}
    for site, byte in (("a", "aa"), ("b", "bb")):
        contents[site][STATE] = ConfigRecord({"digest": byte * 32})
    coordinator, grid, replies = run(contents)
    assert all(STATE not in reply.content for reply in replies)
    grid.clip = 2.0
    found = asked_for(coordinator, grid)
    assert {site: each.get("state") for site, each in found.items()} == {
        "a": "aa" * 32,
        "b": "bb" * 32,
        "c": None,
    }
    # The rest of it is for all sites.
    assert {(each["round"], each["clip"]) for each in found.values()} == {(1, 2.0)}


@pytest.mark.parametrize("digest", ["", "AA" * 32, "aa" * 31, 5, ["aa" * 32]])
def test_a_digest_that_is_none_is_refused(digest: Any) -> None:
    odd = content()
    odd[STATE] = ConfigRecord({"digest": digest})
    coordinator, grid, _ = run({"a": odd, "b": content(), "c": content()})
    assert grid.validator.states == {}
    reasons = [
        fields["reason"] for kind, fields in coordinator.reported if kind == "update.rejected"
    ]
    assert reasons == ["the digest of its state is not a SHA-256 in hexadecimal"]
