"""How a message of an application travels, and what is not taken for one."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.app.array_records import ArrayView, arrays_of, record_of
from fedlearn.app.flower import Packer, flatten, inflate, metadata_of, unpack
from fedlearn.app.message import MAX_CONTENT_BYTES, Head, read_content, write_content
from fedlearn.errors import TransportError, UpdateRejected
from tests.fakes.exchange import message, model


def _round_trip(content: RecordDict) -> RecordDict:
    flat = flatten([message(content, to=5)])
    return inflate(flat.messages[0], flat.objects).content


def test_a_packed_message_comes_back_as_it_was() -> None:
    content = model()
    found = unpack(_round_trip(Packer().content(content)), max_bytes=10_000)
    for name, array in content["arrays"].items():
        assert found["arrays"][name].numpy().tobytes() == array.numpy().tobytes()
        assert found["arrays"][name].data == array.data
    assert found["config"] == content["config"]
    assert found["arrays"].object_id == content["arrays"].object_id


def test_every_type_of_value_comes_back_with_its_type() -> None:
    metrics = {"int": 1, "float": 1.0, "ints": [1, -(2**63)], "floats": [0.1, float("inf")]}
    config = {
        **metrics,
        "large": 2**64 - 1,
        "text": "ä\0\n",
        "like a part": "{'part': 0}",
        "yes": True,
        "flags": [True, False],
        "bytes": b"\0\xff",
        "more bytes": [b"", b"x" * 100],
        "texts": ["a", "b"],
        "none": [],
    }
    content = RecordDict({"m": MetricRecord(metrics), "c": ConfigRecord(config)})
    found = _round_trip(content)
    assert found["m"] == content["m"]
    assert found["c"] == content["c"]
    assert list(map(type, found["c"].values())) == list(map(type, config.values()))
    assert np.isnan(_round_trip(RecordDict({"m": MetricRecord({"x": float("nan")})}))["m"]["x"])


def test_arrays_that_cannot_be_packed_travel_as_they_are() -> None:
    other = Array("thing", (2,), "my.type", b"\0\1\2")
    content = RecordDict({"a": ArrayRecord({"x": other}), "empty": ArrayRecord()})
    found = unpack(_round_trip(Packer().content(content)), max_bytes=1000)
    assert found["a"]["x"] == other
    assert len(found["empty"]) == 0


def test_an_error_comes_back_with_its_metadata() -> None:
    asked = message(model(), to=5)
    reply = Message(Error(code=2, reason="it broke"), reply_to=asked)
    flat = flatten([reply])
    found = inflate(flat.messages[0], flat.objects)
    assert (found.error.code, found.error.reason) == (2, "it broke")
    assert flat.objects == {}
    metadata = metadata_of(flat.messages[0])
    assert (metadata.src_node_id, metadata.dst_node_id, metadata.group_id) == (5, 1, "1")
    assert (metadata.run_id, metadata.message_type) == (9, "train")


def test_what_messages_share_is_there_once() -> None:
    content, packer = model(), Packer()
    flat = flatten([message(packer.content(content), to=node) for node in (5, 6, 7)])
    assert len(set(flat.ids)) == 3
    assert len(flat.objects) == 2  # the content, and one document

    own = [RecordDict({"arrays": content["arrays"], "n": ConfigRecord({"n": n})}) for n in (1, 2)]
    flat = flatten([message(packer.content(each), to=5) for each in own])
    assert len(flat.objects) == 3

    twice = RecordDict({"a": content["arrays"], "b": content["arrays"]})
    flat = flatten([message(packer.content(twice), to=5)])
    assert len(flat.objects) == 2
    assert len(flat.frames(0)) == 4
    found = unpack(inflate(flat.messages[0], flat.objects).content, max_bytes=10_000)
    assert found["a"] == found["b"]


def test_a_view_may_be_read_only_and_a_copy_may_not_be() -> None:
    view = ArrayView(np.frombuffer(b"\0" * 8, np.float32))
    copy = view.numpy()
    copy += 1
    assert view.numpy().tolist() == [0, 0]


def test_a_record_of_views_copies_nothing() -> None:
    array = np.ones(10, np.float32)
    record = record_of({"w": array})
    assert arrays_of(record)["w"] is array


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (MetricRecord({"n": 2**70}), "more than 64 bits"),
        (ConfigRecord({"n": [-(2**63) - 1]}), "more than 64 bits"),
        (ConfigRecord({"text": "\ud800"}), "not Unicode"),
        (MetricRecord({"many": [0.123456789] * 400_000}), "at most 4194304 are sent"),
    ],
)
def test_what_nobody_would_take_is_not_sent(content: object, match: str) -> None:
    with pytest.raises(TransportError, match=match):
        flatten([message(RecordDict({"x": content}), to=5)])


def test_parts_that_are_not_there_are_missed() -> None:
    flat = flatten([message(model(), to=5)])
    with pytest.raises(TransportError, match="part of the message is missing"):
        inflate(flat.messages[0], {})


def _npy(header: str, data: bytes) -> Array:
    text = header.encode()
    head = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    return Array("float32", (2,), "numpy.ndarray", head + data)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float32),
        np.float32(3),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([True, False]),
        np.array(["text"]),
    ],
)
def test_an_array_in_numpys_format_is_read_as_numpy_does(array: object) -> None:
    stored = Array(np.asarray(array))
    found = arrays_of(ArrayRecord({"w": stored}))["w"]
    assert (found.dtype, found.shape) == (stored.numpy().dtype, stored.numpy().shape)
    assert found.tolist() == stored.numpy().tolist()


@pytest.mark.parametrize(
    ("header", "data"),
    [
        # More than the memory of any machine, and more than there is.
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }", b""),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", b"\0" * 8),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", b"\0" * 8),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", b"\0" * 8),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\0" * 8),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (", b""),
        ("(" * 5000, b""),
        ("", b""),
    ],
)
def test_bytes_that_are_no_array_are_refused(header: str, data: bytes) -> None:
    with pytest.raises(UpdateRejected, match="w: is not a numpy array"):
        arrays_of(ArrayRecord({"w": _npy(header, data)}))
    with pytest.raises(UpdateRejected, match="of the type 'my"):
        arrays_of(ArrayRecord({"w": Array("float32", (2,), "my.type", b"")}))


_HEAD: dict[str, Any] = json.loads(flatten([message(RecordDict(), to=5)]).messages[0])


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"id": 5},
        {"run": -1},
        {"run": 2**64},
        {"run": True},
        {"sender": 1.0},
        {"receiver": "1"},
        {"group": "x" * 5000},
        {"created": float("nan")},
        {"created": float("-inf")},
        {"ttl": 10**400},
        {"ttl": "60"},
        {"parts": []},
        {"parts": "ab"},
        {"parts": [1]},
        {"parts": ["0"] * 200_001},
        {"failure": {"code": 1, "reason": "both"}},
        {"parts": [], "failure": {"code": 1}},
        {"parts": [], "failure": {"code": -1, "reason": ""}},
        {"parts": [], "failure": {"code": 1, "reason": "x" * 5000}},
        {"more": 1},
    ],
)
def test_a_head_that_is_not_one_is_refused(
    change: dict[str, Any]
    | dict[str, bool]
    | dict[str, dict[str, int | str]]
    | dict[str, float]
    | dict[str, int]
    | dict[str, str],
) -> None:
    Head.from_bytes(json.dumps(_HEAD).encode())
    with pytest.raises(TransportError):
        Head.from_bytes(json.dumps(_HEAD | change).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"id":"a","id":"a"}', b" " * 5_000_000],
)
def test_bytes_that_are_no_head_are_refused(data: bytes) -> None:
    with pytest.raises(TransportError):
        Head.from_bytes(data)


def test_text_that_is_not_unicode_is_refused_where_it_comes_in() -> None:
    text = json.dumps(_HEAD | {"group": "G"})
    with pytest.raises(TransportError, match="not Unicode"):
        Head.from_bytes(text.replace('"G"', '"\\ud800"').encode())
    assert Head.from_bytes(text.replace('"G"', r'"\\ud800"').encode()).group == r"\ud800"


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ("{}", 0),
        ("[1]", 0),
        ('[["a","metrics"]]', 0),
        ('[["a","other",{}]]', 0),
        ('[[1,"metrics",{}]]', 0),
        ('[["a","metrics",[]]]', 0),
        ('[["a","metrics",{}],["a","metrics",{}]]', 0),
        ('[["a","metrics",{"x":true}]]', 0),
        ('[["a","metrics",{"x":"text"}]]', 0),
        ('[["a","metrics",{"x":null}]]', 0),
        ('[["a","metrics",{"x":[[1]]}]]', 0),
        ('[["a","metrics",{"x":{"part":0}}]]', 1),
        ('[["a","metrics",{"x":18446744073709551616}]]', 0),
        ('[["a","metrics",{"x":1,"x":2}]]', 0),
        ('[["a","config",{"x":{"part":0,"more":1}}]]', 1),
        ('[["a","config",{"x":{"part":0}}]]', 0),
        ('[["a","config",{"x":{"part":0}}]]', 2),
        ('[["a","config",{"x":{"part":false}}]]', 1),
        ('[["a","config",{"x":{"part":0},"y":{"part":0}}]]', 1),
        ('[["a","config",{"x":{"part":1},"y":{"part":0}}]]', 2),
        ('[["a","arrays",{}]]', 0),
        ('[["a","arrays",[["w","f",[1],"s"]]]]', 0),
        ('[["a","arrays",[["w","f",[-1],"s",0]]]]', 1),
        ('[["a","arrays",[["w","f",[true],"s",0]]]]', 1),
        ('[["a","arrays",[["w","f",[],"s",0],["w","f",[],"s",1]]]]', 2),
        ("[" * 100_000, 0),
        (" " * (MAX_CONTENT_BYTES + 1), 0),
    ],
)
def test_a_content_that_is_not_one_is_refused(content: str, count: int) -> None:
    with pytest.raises(TransportError):
        read_content(content.encode(), count)


@given(st.binary(max_size=200), st.integers(0, 3))
def test_no_bytes_break_the_reader(data: bytes, count: int) -> None:
    for read in (lambda: read_content(data, count), lambda: Head.from_bytes(data)):
        try:
            read()
        except TransportError:
            continue


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(st.tuples(st.text(), st.sampled_from(["arrays", "metrics", "config"]), _json)))
def test_what_is_read_is_written_again_the_same(records: list[Any]) -> None:
    data = json.dumps(records, separators=(",", ":"), ensure_ascii=False)
    try:
        found = read_content(data.encode(), 0)
    except TransportError:
        return
    assert read_content(write_content(found), 0) == found
