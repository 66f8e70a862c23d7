"""An update in fewer bytes: what it decodes to, and what is refused."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.compression.bounded import encode_within
from fedlearn.compression.codec import Encoded, decode, encode
from fedlearn.compression.kinds import BLOCK
from fedlearn.compression.spec import CompressionSpec
from fedlearn.errors import PrivacyError, UpdateRejected
from fedlearn.privacy import ClientPrivacy, PrivacySpec, ServerPrivacy
from fedlearn.update import arrays as wire
from fedlearn.update.arrays import BF16, Array, to_bfloat16, to_float32

SPECS = {
    "none": CompressionSpec(arrays=("*",)),
    "bf16": CompressionSpec(update="bf16"),
    "bf16-feedback": CompressionSpec(update="bf16", error_feedback=True),
    "bf16-weights": CompressionSpec(update="bf16", delta=False),
    "fp16": CompressionSpec(update="fp16"),
    "int8": CompressionSpec(update="int8"),
    "int8-weights": CompressionSpec(update="int8", delta=False),
    "topk-offsets": CompressionSpec(update="topk", fraction=0.02),
    "topk-bitmap": CompressionSpec(update="topk", fraction=0.3),
    "topk-all": CompressionSpec(update="topk", fraction=1.0),
}
LOSSY = [name for name in SPECS if name != "none"]
TYPES = ["<f2", "<f4", "<f8", "bf16"]


def typed(values: Array, dtype: str) -> Array:
    if dtype == "bf16":
        return to_bfloat16(values.astype(np.float32)).reshape(values.shape)
    return values.astype(dtype)


def wide(array: Array) -> Array:
    return np.asarray(to_float32(array) if array.dtype == BF16 else array, np.float64)


def models(size: int, dtype: str, seed: int = 0, spread: float = 1.0) -> tuple[Any, Any]:
    """Return an update and the model that it started from."""
    draw = np.random.default_rng(seed)
    base = draw.standard_normal(size)
    moved = base + 0.01 * spread * draw.standard_normal(size)
    seen = np.array([3, 4])
    return (
        {"weight": typed(moved, dtype), "seen": seen + 1},
        {"weight": typed(base, dtype), "seen": seen},
    )


def travelled(encoded: Encoded) -> dict[str, Array]:
    """Return the parts as they arrive: read-only views of a document."""
    return wire.decode(wire.encode(encoded.arrays))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [0, 1, 4097, BLOCK + 4105])
@pytest.mark.parametrize("name", SPECS)
def test_what_decodes_is_near_and_what_is_lost_is_kept(name: str, size: int, dtype: str) -> None:
    spec = SPECS[name]
    update, model = models(size, dtype)
    encoded = encode(update, model, spec)
    found = decode(travelled(encoded), model, spec)
    assert list(found) == list(model)
    assert found["seen"].tolist() == [4, 5]
    assert (found["weight"].dtype, found["weight"].shape) == (model["weight"].dtype, (size,))
    target, base = wide(update["weight"]), wide(model["weight"])
    ulp = {"<f2": 2.0**-10, "<f4": 2.0**-22, "<f8": 2.0**-51, "bf16": 2.0**-7}[dtype] * 5
    error = np.abs(wide(found["weight"]) - target)
    change = np.abs(target - base) if spec.delta else np.abs(target)
    most = change.max(initial=0.0)
    bound = {"none": 0.0, "bf16": 2.0**-8, "fp16": 2.0**-11, "int8": 1 / 127}
    kind = name.partition("-")[0]
    if kind == "topk":
        kept = np.count_nonzero(error <= ulp)
        assert kept >= sum(
            math.ceil((spec.fraction or 0) * min(BLOCK, size - start))
            for start in range(0, size, BLOCK)
        )
        assert (error <= change + ulp).all()
    else:
        assert (error <= bound[kind] * most + (2.0**-24 if kind == "fp16" else 0) + ulp).all()
    if spec.error_feedback:
        lost = np.asarray(encoded.residual["weight"], np.float64)
        np.testing.assert_allclose(wide(found["weight"]) + lost, target, atol=ulp)
    else:
        assert not encoded.residual


@pytest.mark.parametrize("name", LOSSY)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_any_finite_numbers_decode_to_finite_ones(name: str, data: st.DataObject) -> None:
    spec = SPECS[name]
    limit = 30_000.0 if name == "fp16" else 2.0**126
    numbers = st.floats(-limit, limit, width=32)
    size = data.draw(st.integers(1, 40))
    rows = [data.draw(st.lists(numbers, min_size=size, max_size=size)) for _ in range(2)]
    update, model = ({"w": np.array(row, np.float32)} for row in rows)
    first = encode(update, model, spec)
    found = decode(travelled(first), model, spec)["w"]
    assert np.isfinite(found).all()
    # The same bytes decode to the same bits, and the same update encodes to the same bytes.
    again = encode(update, model, spec)
    assert wire.encode(again.arrays) == wire.encode(first.arrays)
    assert decode(travelled(again), model, spec)["w"].tobytes() == found.tobytes()


@pytest.mark.parametrize("name", ["int8", "topk-offsets", "topk-bitmap", "bf16-feedback"])
def test_with_feedback_nothing_is_lost_for_good(name: str) -> None:
    """The sum of what was decoded and the residual is the sum of all updates."""
    spec, residual = SPECS[name], None
    draw = np.random.default_rng(3)
    base = {"w": np.zeros(1000, np.float32)}
    total, arrived = np.zeros(1000), np.zeros(1000)
    for _ in range(40):
        step = {"w": draw.standard_normal(1000).astype(np.float32)}
        encoded = encode(step, base, spec, residual=residual)
        residual = encoded.residual
        total += step["w"]
        arrived += decode(travelled(encoded), base, spec)["w"]
    assert residual is not None
    np.testing.assert_allclose(arrived + residual["w"], total, atol=1e-4)


def test_the_residual_that_was_given_is_not_changed() -> None:
    update, model = models(100, "<f4")
    first = encode(update, model, SPECS["int8"])
    before = {name: array.copy() for name, array in first.residual.items()}
    second = encode(update, model, SPECS["int8"], residual=first.residual)
    assert (first.residual["weight"] == before["weight"]).all()
    assert (second.residual["weight"] != before["weight"]).any()


def test_of_equal_magnitudes_the_first_travel() -> None:
    model = {"w": np.zeros(10, np.float32)}
    update = {"w": np.array([1, -2, 2, -2, 2, 2, 0, 1, 1, -1], np.float32)}
    spec = CompressionSpec(update="topk", fraction=0.25, error_feedback=False)
    found = decode(encode(update, model, spec).arrays, model, spec)["w"]
    assert found.tolist() == [0, -2, 2, -2, 0, 0, 0, 0, 0, 0]


def test_only_the_named_arrays_travel() -> None:
    spec = CompressionSpec(update="fp16", arrays=("lora_*", "head"))
    model: dict[str, Array] = {
        "body": np.ones(9),
        "lora_a": np.ones(4, np.float32),
        "head": np.ones(2, np.float32),
    }
    update = {name: array + 1 for name, array in model.items()}
    encoded = encode(update, model, spec)
    assert sorted(encoded.arrays) == ["1.values", "2.values"]
    found = decode(travelled(encoded), model, spec)
    assert found["body"] is model["body"]
    assert found["lora_a"].tolist() == [2] * 4
    assert found["head"].tolist() == [2] * 2
    del update["body"]  # an app may return its adapter only
    assert wire.encode(encode(update, model, spec).arrays) == wire.encode(encoded.arrays)
    with pytest.raises(UpdateRejected, match=r"no array of the model matches 'lara\*'"):
        encode(update, model, CompressionSpec(update="fp16", arrays=("lara*",)))


def test_integers_are_read_as_the_numbers_of_a_model_that_was_averaged() -> None:
    model = {"count": np.array([1.5, 2.5])}
    found = encode({"count": np.array([3, 4])}, model, SPECS["fp16"])
    assert decode(found.arrays, model, SPECS["fp16"])["count"].tolist() == [3, 4]


def test_bytes_are_what_the_documentation_states() -> None:
    update, model = models(1_000_000, "<f4")
    sizes = {
        name: sum(array.nbytes for array in encode(update, model, spec).arrays.values()) - 16
        for name, spec in SPECS.items()
    }
    assert sizes["bf16"] == sizes["fp16"] == 2_000_000
    assert sizes["int8"] == 1_000_000 + 4 * 245
    assert sizes["topk-offsets"] == pytest.approx(0.02 * 1_000_000 * 6, rel=0.001)
    assert sizes["topk-bitmap"] == pytest.approx(0.3 * 1_000_000 * 4 + 125_000, rel=0.001)


@pytest.mark.parametrize(
    ("update", "stated"),
    [
        ({}, "the array 'w' of the model is not in the update"),
        ({"w": np.ones(3, np.float32), "x": np.ones(3)}, "'x' of the update is not in the model"),
        ({"w": np.ones(3)}, "w: is F64, the model has F32"),
        ({"w": np.ones((3, 1), np.float32)}, r"w: has shape \(3, 1\), the model has \(3,\)"),
        ({"w": np.array([1, np.nan, 1], np.float32)}, "w: contains NaN or infinity"),
        ({"w": np.array([1, np.inf, 1], np.float32)}, "w: contains NaN or infinity"),
        ({"w": np.array([1, 70_000, 1], np.float32)}, "w: a number is beyond float16"),
    ],
)
def test_an_update_that_cannot_be_encoded_is_refused(update: dict[str, Array], stated: str) -> None:
    with pytest.raises(UpdateRejected, match=stated):
        encode(update, {"w": np.zeros(3, np.float32)}, SPECS["fp16"])


def test_a_number_beyond_bfloat16_is_refused() -> None:
    far = {"w": np.array([3.4e38], np.float32)}
    with pytest.raises(UpdateRejected, match="beyond bfloat16"):
        encode(far, {"w": np.zeros(1, np.float32)}, SPECS["bf16"])


SIZE = BLOCK + 1000


def broken(name: str, part: str, change: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the parts of an encoded update, one of them changed, and its model."""
    update, model = models(SIZE, "<f4")
    parts = {key: array.copy() for key, array in encode(update, model, SPECS[name]).arrays.items()}
    changed = change(parts.pop(f"0.{part}"))
    if changed is not None:
        parts[f"0.{part}"] = changed
    return parts, model


def put(place: int, value: float) -> Any:
    def change(array: Array) -> Array:
        array[place] = value
        return array

    return change


def swap(array: Array) -> Array:
    array[[3, 4]] = array[[4, 3]]
    return array


def twice(array: Array) -> Array:
    array[4] = array[3]
    return array


def flip(array: Array) -> Array:
    array[0] ^= 1
    return array


@pytest.mark.parametrize(
    ("name", "part", "change", "stated"),
    [
        ("int8", "scales", put(1, np.nan), "weight: a scale is not a finite number from 0"),
        ("int8", "scales", put(1, np.inf), "weight: a scale is not a finite number from 0"),
        ("int8", "scales", put(1, -1.0), "weight: a scale is not a finite number from 0"),
        ("int8", "scales", put(1, 3e38), "weight: a number is beyond the range of F32"),
        ("int8", "scales", lambda a: a.astype(np.float64), "its scales are F64 of the shape"),
        ("int8", "scales", lambda a: a[1:], r"its scales are F32 of the shape \(16,\)"),
        ("int8", "scales", lambda a: None, "weight: its scales are missing"),
        ("int8", "values", put(9, -128), "weight: a value is -128"),
        ("int8", "values", lambda a: a.view("u1"), "its values are U8 of the shape"),
        ("int8", "values", lambda a: a.reshape(-1, 4), "its values are I8 of the shape"),
        ("bf16", "values", lambda a: np.array(a["bfloat16"]), "its values are U16"),
        ("bf16", "values", lambda a: put(5, 0x7F80)(a.view("<u2")).view(BF16), "contains NaN"),
        ("bf16", "values", lambda a: put(5, 0xFFC1)(a.view("<u2")).view(BF16), "contains NaN"),
        ("bf16", "values", lambda a: put(5, 0x7F7F)(a.view("<u2")).view(BF16), None),
        ("fp16", "values", put(5, np.inf), "weight: contains NaN or infinity"),
        ("topk-offsets", "values", put(0, np.nan), "weight: contains NaN or infinity"),
        ("topk-offsets", "values", lambda a: np.append(a, a), "its values are F32 of the shape"),
        ("topk-offsets", "offsets", twice, "the offsets of the block at 0 do not increase"),
        ("topk-offsets", "offsets", swap, "the offsets of the block at 0 do not increase"),
        ("topk-offsets", "offsets", put(-1, 1000), "an offset of the block at 65536 is 1000"),
        ("topk-offsets", "offsets", lambda a: a.astype("<u4"), "its offsets are U32"),
        ("topk-offsets", "offsets", lambda a: a[:-1], "its offsets are U16 of the shape"),
        ("topk-bitmap", "bitmap", flip, "the bitmap of the block at 0 has"),
        ("topk-bitmap", "bitmap", lambda a: np.append(a, a), "its bitmap are U8 of the shape"),
    ],
)
def test_parts_that_no_client_writes_are_refused(
    name: str, part: str, change: Any, stated: str | None
) -> None:
    parts, model = broken(name, part, change)
    if stated is None:  # the largest number that is allowed
        assert decode(parts, model, SPECS[name])["weight"][5] == np.float32(3.3895314e38)
        return
    with pytest.raises(UpdateRejected, match=stated):
        decode(parts, model, SPECS[name])


def test_a_bit_beyond_the_array_is_refused() -> None:
    spec, model = SPECS["topk-bitmap"], {"w": np.zeros(10, np.float32)}
    parts = encode({"w": np.arange(10, dtype=np.float32)}, model, spec).arrays
    first = int(np.flatnonzero(np.unpackbits(parts["0.bitmap"], bitorder="little"))[0])
    parts["0.bitmap"][first // 8] ^= 1 << first % 8
    parts["0.bitmap"][1] |= 0x80
    with pytest.raises(UpdateRejected, match="a bit beyond the 10 numbers"):
        decode(parts, model, spec)


def test_parts_of_other_names_are_refused() -> None:
    update, model = models(10, "<f4")
    parts = encode(update, model, SPECS["int8"]).arrays
    with pytest.raises(UpdateRejected, match=r"a part '2\.values', which is none of its model"):
        decode({**parts, "2.values": np.ones(3)}, model, SPECS["int8"])
    with pytest.raises(UpdateRejected, match="seen: is missing"):
        decode({k: v for k, v in parts.items() if k != "1.raw"}, model, SPECS["int8"])
    with pytest.raises(UpdateRejected, match="its values are missing"):
        decode(update, model, SPECS["int8"])


# --- privacy --------------------------------------------------------------------------

PRIVACY = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=8.0, delta=1e-5)
BOUNDED = [
    CompressionSpec(update="none", arrays=("*",)),
    CompressionSpec(update="bf16"),
    CompressionSpec(update="fp16"),
    CompressionSpec(update="int8", error_feedback=False),
    CompressionSpec(update="topk", fraction=0.5, error_feedback=False),
    CompressionSpec(update="topk", fraction=1.0, error_feedback=False),
]


@pytest.mark.parametrize("spec", BOUNDED, ids=lambda spec: spec.title)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 300),
    magnitude=st.sampled_from([1e-3, 1.0, 100.0]),
    dtype=st.sampled_from(TYPES),
)
@settings(max_examples=15, deadline=None)
def test_a_clipped_update_stays_within_its_bound(
    spec: CompressionSpec, seed: int, size: int, magnitude: float, dtype: str
) -> None:
    draw = np.random.default_rng(seed)
    model = {"w": typed(magnitude * draw.standard_normal(size), dtype)}
    trained = {"w": typed(wide(model["w"]) + draw.standard_normal(size), dtype)}
    clipped = ClientPrivacy.from_spec(PRIVACY).outgoing(trained, model)
    encoded = encode_within(clipped, model, spec, PRIVACY.clip)
    found = decode(travelled(encoded), model, spec)
    ServerPrivacy.from_spec(PRIVACY, bytes(32)).check(found, model)


def test_rounding_alone_would_exceed_the_bound() -> None:
    spec, model = BOUNDED[1], {"w": np.zeros(1, np.float32)}
    clipped = {"w": np.array([0.9985], np.float32)}  # the next bfloat16 is 1.0
    plain = decode(encode(clipped, model, spec).arrays, model, spec)["w"]
    assert plain[0] == 1.0
    bounded = encode_within(clipped, model, spec, 0.9985)
    assert 0.9 < decode(bounded.arrays, model, spec)["w"][0] <= 0.9985


def test_a_bound_that_cannot_be_kept_is_refused() -> None:
    spec = CompressionSpec(update="bf16", delta=False)
    model = {"w": np.full(100, 1000.7, np.float32)}
    with pytest.raises(PrivacyError, match=r"has a norm of .* after 12 tries; clip is 0.001"):
        encode_within(model, model, spec, 0.001)


# --- the format -----------------------------------------------------------------------

GOLDEN = {
    "bf16": "ec7d1aab0d1ae520",
    "fp16": "6f2108f89da0b3b0",
    "int8": "0bee693b9d7a7be1",
    "topk-offsets": "6b84905c31925e8d",
    "topk-bitmap": "108755c6f7896368",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_stay_what_they_are(name: str) -> None:
    """The documents of ``fedlearn.compressed/1``: a change of them needs a new number."""
    steps = np.arange(BLOCK + 4100, dtype=np.float32)
    model = {"w": steps % 97 / 97, "n": np.array([7])}
    update = {
        "w": (model["w"] + (steps % 1009 - 504) / 4096).astype(np.float32),
        "n": np.array([8]),
    }
    encoded = wire.encode(encode(update, model, SPECS[name]).arrays)
    assert hashlib.sha256(encoded).hexdigest()[:16] == GOLDEN[name]
