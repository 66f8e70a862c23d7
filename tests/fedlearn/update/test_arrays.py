"""Updates: one encoding, one digest, read in place, and every broken one refused."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import UpdateRejected
from fedlearn.update.arrays import (
    BF16,
    DTYPES,
    Update,
    check_like,
    decode,
    digest,
    encode,
    to_bfloat16,
    to_float32,
)


def document(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(start: int, end: int, dtype: str = "U8", shape: list[int] | None = None) -> Any:
    shape = [end - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    return {
        "z.bias": np.arange(3, dtype=np.float32),
        "a.flag": np.array([True, False, True]),
        "count": np.array(7, dtype=np.int64),
        "empty": np.empty((0, 4), dtype=np.float64),
        "half": np.ones((2, 3), dtype=np.float16),
        "brain": to_bfloat16(np.linspace(-2, 2, 5, dtype=np.float32)),
    }


def test_round_trip_keeps_order_types_shapes_and_bits() -> None:
    before = arrays()
    after = decode(encode(before))
    assert list(after) == list(before)
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        assert after[name].shape == array.shape
        assert after[name].tobytes() == array.tobytes()


def test_decoding_shares_memory_and_is_aligned() -> None:
    data = encode(arrays())
    for array in decode(data).values():
        assert array.flags.aligned
        assert not array.flags.writeable
        assert np.shares_memory(array, np.frombuffer(data, np.uint8)) or array.size == 0


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_element_type_travels(name: str) -> None:
    dtype = DTYPES[name]
    array = np.zeros((2, 2), dtype=dtype)
    assert decode(encode({"x": array}))["x"].dtype == dtype


def test_the_safetensors_library_reads_ours_and_we_read_its() -> None:
    mine = {name: array for name, array in arrays().items() if array.dtype != BF16}
    theirs = safetensors.numpy.load(encode(mine))
    for name, array in mine.items():
        np.testing.assert_array_equal(theirs[name], array)
    ours = decode(safetensors.numpy.save(mine, metadata={"format": "np"}))
    for name, array in mine.items():
        np.testing.assert_array_equal(ours[name], array)


def test_views_and_foreign_byte_order_are_encoded_by_value() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert encode({"x": base.T}) == encode({"x": base.T.copy()})
    assert encode({"x": base.astype(">f4")}) == encode({"x": base})


def test_the_digest_names_content_order_and_names() -> None:
    one, two = np.ones(2, np.float32), np.zeros(2, np.float32)
    seen = {
        digest({"a": one, "b": two}),
        digest({"b": two, "a": one}),
        digest({"a": two, "b": one}),
        digest({"a": one, "c": two}),
        digest({"a": one.view(np.int32), "b": two}),
    }
    assert len(seen) == 5
    assert Update({"a": one, "b": two}).digest == digest({"a": one, "b": two})


def test_bfloat16_rounds_to_nearest_even_and_refuses_arithmetic() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -0.0, np.inf, np.nan], dtype=np.float32)
    packed = to_bfloat16(values)
    np.testing.assert_array_equal(
        to_float32(packed), np.array([1.0, 1.0, 1.015625, -0.0, np.inf, np.nan], np.float32)
    )
    with pytest.raises(TypeError):
        packed + packed


def test_an_update_cannot_hold_objects() -> None:
    for bad in (np.array([object()]), np.array(["x"]), np.array([1j])):
        with pytest.raises(UpdateRejected, match="cannot be sent"):
            Update({"x": bad})
    with pytest.raises(UpdateRejected, match="not a numpy array"):
        Update({"x": [1, 2]})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", ["", "__metadata__", "x" * 513, "\ud800"])
def test_names_are_bounded(name: str) -> None:
    with pytest.raises(UpdateRejected):
        encode({name: np.zeros(1)})


BROKEN = {
    "empty": (b"", "no header length"),
    "short": (struct.pack("<Q", 10) + b"{}", "not complete"),
    "huge": (struct.pack("<Q", 2**63) + b"{}", "at most"),
    "no json": (document(b"nope"), "JSON"),
    "deep": (document(b"[" * 100_000), "JSON"),
    "list": (document([]), "JSON object"),
    "twice": (document(b'{"a":1,"a":1}'), "JSON"),
    "entry": (document({"a": 1}), "a: needs exactly"),
    "extra key": (document({"a": {**entry(0, 0), "b": 1}}), "needs exactly"),
    "dtype": (document({"a": entry(0, 1, "F8_E4M3")}, b"x"), "F8_E4M3"),
    "dtype type": (document({"a": {**entry(0, 1), "dtype": []}}, b"x"), "element type"),
    "shape": (document({"a": entry(0, 4, "F32", [2])}, b"1234"), "do not match"),
    "negative": (document({"a": entry(0, 4, "F32", [-1])}, b"1234"), "out of range"),
    "bool shape": (document({"a": entry(0, 1, "U8", [True])}, b"1"), "list of integers"),
    "dimensions": (document({"a": entry(0, 1, "U8", [1] * 17)}, b"1"), "dimensions"),
    "beyond": (document({"a": entry(0, 4, "F32", [1])}, b"123"), "out of range"),
    "backwards": (document({"a": entry(4, 0, "U8", [0])}, b"1234"), "start and an end"),
    "gap": (document({"a": entry(1, 2)}, b"12"), "starts at 1"),
    "overlap": (document({"a": entry(0, 2), "b": entry(1, 3)}, b"123"), "starts at 1"),
    "rest": (document({"a": entry(0, 1)}, b"12"), "belong to no array"),
    "bool": (document({"a": entry(0, 1, "BOOL")}, b"\x02"), "neither 0 nor 1"),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_broken_documents_are_refused(case: str) -> None:
    data, reason = BROKEN[case]
    with pytest.raises(UpdateRejected, match=reason):
        decode(data)


def test_bounds_are_enforced() -> None:
    data = encode(arrays())
    with pytest.raises(UpdateRejected, match="at most"):
        decode(data, max_bytes=len(data) - 1)
    with pytest.raises(UpdateRejected, match="at most 2"):
        decode(data, max_tensors=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["F16", "F32", "F64", "BF16"])
def test_values_that_are_not_finite_are_refused_when_asked(value: float, name: str) -> None:
    array = np.array([0, value], np.float32)
    sent = to_bfloat16(array) if name == "BF16" else array.astype(DTYPES[name])
    assert len(decode(encode({"x": sent}))) == 1
    with pytest.raises(UpdateRejected, match="x: contains NaN"):
        decode(encode({"x": sent}), finite=True)


def test_check_like_names_the_first_difference() -> None:
    model = {"w": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    check_like(model, model)
    cases: tuple[tuple[Mapping[str, npt.NDArray[Any]], str], ...] = (
        ({"w": model["w"]}, "'b' is missing"),
        ({**model, "x": model["b"]}, "'x' is not part"),
        ({"b": model["b"], "w": model["w"]}, "another order"),
        ({**model, "b": np.zeros(2)}, "b: is F64, the model has F32"),
        ({**model, "w": np.zeros((4,), np.float32)}, "w: has shape"),
    )
    for other, reason in cases:
        with pytest.raises(UpdateRejected, match=reason):
            check_like(other, model)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_flipped_byte_is_read_or_refused_but_never_crashes(data: st.DataObject) -> None:
    raw = bytearray(encode(arrays()))
    where = data.draw(st.integers(0, len(raw) - 1))
    raw[where] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(UpdateRejected):
        decode(raw, finite=True)
