"""Clipping holds exactly, and noise is what the accountant was given."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from fedlearn.errors import PrivacyError, UpdateRejected
from fedlearn.privacy import (
    Chain,
    ClientPrivacy,
    Clip,
    GridNoise,
    PrivacySpec,
    ServerPrivacy,
    l2_norm,
    noise_secret,
)
from fedlearn.privacy.chain import GRID_SLACK
from fedlearn.privacy.noise import GaussianStream, inverse_normal
from fedlearn.update.arrays import BF16, to_bfloat16, to_float32

SECRET = bytes(range(32))


def spec(**changes: object) -> PrivacySpec:
    values: dict[str, Any] = {"clip": 1.0, "noise_multiplier": 1.0, "epsilon": 1e3, "delta": 1e-5}
    return PrivacySpec(**{**values, **changes})


def exact_square(array: NDArray[np.float64]) -> Fraction:
    return sum((Fraction(float(x)) ** 2 for x in array.reshape(-1)), Fraction(0))


def wide(array: NDArray[Any]) -> NDArray[np.float64]:
    return (to_float32(array) if array.dtype == BF16 else array).astype(np.float64)


# --- the norm and the clip ---------------------------------------------------------------


def test_the_norm_is_that_of_all_arrays_together() -> None:
    assert l2_norm({"a": np.array([3.0]), "b": np.array([[0.0, 4.0]])}) == 5.0
    assert l2_norm({"a": np.zeros(3), "b": np.zeros(0)}) == 0.0
    assert l2_norm({}) == 0.0


def test_the_norm_is_close_to_the_exact_one() -> None:
    values = np.random.default_rng(1).standard_normal(20_000) * 10.0 ** np.linspace(-9, 3, 20_000)
    exact = exact_square(values)
    got = Fraction(l2_norm({"a": values})) ** 2
    assert abs(got / exact - 1) < Fraction(1, 2**45)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_the_norm_neither_overflows_nor_vanishes(size: float) -> None:
    assert l2_norm({"a": np.array([3.0, 4.0]) * size}) == pytest.approx(5 * size)


def test_a_difference_within_the_bound_is_left_to_the_bit() -> None:
    values = np.random.default_rng(2).standard_normal(100)
    values /= np.linalg.norm(values) * 1.001
    out = Clip(1.0).apply({"a": values.copy()})["a"]
    assert np.array_equal(out, values)


def test_a_clipped_difference_keeps_its_direction() -> None:
    delta = {"a": np.array([3.0, 0.0]), "b": np.array([4.0])}
    out = Chain((Clip(1.0),)).apply(delta)
    np.testing.assert_allclose(out["a"], [0.6, 0.0], rtol=1e-12)
    np.testing.assert_allclose(out["b"], [0.8], rtol=1e-12)


def test_differences_beyond_float64_norms_are_clipped() -> None:
    out = Clip(2.0).apply({"a": np.full(4, 1.5e308)})["a"]
    np.testing.assert_allclose(out, np.ones(4), rtol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_difference_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    with pytest.raises(PrivacyError, match="layer: contains NaN or infinity"):
        Clip(1.0).apply({"fine": np.ones(2), "layer": np.array([0.0, bad])})


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_norm_is_refused(norm: float) -> None:
    with pytest.raises(PrivacyError, match="positive"):
        Clip(norm)


@settings(deadline=None, max_examples=150)
@given(
    arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e200, 1e200)),
    st.floats(1e-12, 1e12),
)
def test_no_norm_ever_exceeds_the_bound(values: NDArray[np.float64], bound: float) -> None:
    out = Clip(bound).apply({"a": values.copy()})["a"]
    assert exact_square(out) <= Fraction(bound) ** 2


# --- the client --------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    st.data(),
    st.sampled_from([np.dtype("f2"), np.dtype("f4"), np.dtype("f8"), BF16]),
    st.floats(1e-6, 100),
)
def test_what_leaves_is_within_the_bound_in_every_type(
    data: st.DataObject, dtype: np.dtype[Any], clip: float
) -> None:
    shape = data.draw(st.integers(1, 12))
    element = st.floats(-1000, 1000, width=16)
    values = [data.draw(arrays.arrays(np.float32, shape, elements=element)) for _ in range(2)]
    if dtype == BF16:
        reference, update = (to_bfloat16(item) for item in values)
    else:
        reference, update = (item.astype(dtype) for item in values)
    out = ClientPrivacy.from_spec(spec(clip=clip)).outgoing({"w": update}, {"w": reference})["w"]
    assert out.dtype == dtype
    moved = [
        Fraction(float(a)) - Fraction(float(b))
        for a, b in zip(wide(out), wide(reference), strict=True)
    ]
    assert sum((m * m for m in moved), Fraction(0)) <= Fraction(clip) ** 2
    # Nothing goes beyond what the update wanted, and nothing turns around.
    wanted = wide(update) - wide(reference)
    for want, got in zip(wanted, moved, strict=True):
        assert abs(got) <= abs(Fraction(float(want)))
        assert got == 0 or (got > 0) == (want > 0)


def test_a_small_update_leaves_as_it_is() -> None:
    reference = {"w": np.ones((2, 2), np.float32), "b": np.zeros((), np.float32)}
    update = {"w": reference["w"] + np.float32(0.25), "b": np.float32(0.125) + reference["b"]}
    update["b"] = np.asarray(update["b"])
    before = {name: array.copy() for name, array in update.items()}
    out = ClientPrivacy.from_spec(spec()).outgoing(update, reference)
    for name in update:
        assert np.array_equal(out[name], update[name])
        assert np.array_equal(before[name], update[name])
        assert out[name].shape == reference[name].shape


def test_integers_leave_as_they_came() -> None:
    reference = {"w": np.zeros(2, np.float32), "n": np.array(7), "m": np.array([True])}
    update = {"w": np.ones(2, np.float32), "n": np.array(12), "m": np.array([False])}
    out = ClientPrivacy.from_spec(spec()).outgoing(update, reference)
    assert out["n"] == 7
    assert out["m"][0]
    assert np.linalg.norm(out["w"]) <= 1


def test_an_update_of_another_shape_is_refused() -> None:
    client = ClientPrivacy.from_spec(spec())
    with pytest.raises(UpdateRejected, match="shape"):
        client.outgoing({"w": np.ones(3)}, {"w": np.ones(2)})
    with pytest.raises(UpdateRejected, match="missing"):
        client.outgoing({}, {"w": np.ones(2)})
    with pytest.raises(PrivacyError, match="NaN"):
        client.outgoing({"w": np.array([np.nan])}, {"w": np.ones(1)})


def test_weights_are_uniform_and_metrics_stay() -> None:
    client = ClientPrivacy.from_spec(spec())
    assert client.outgoing_weight(12_345) == 1
    assert client.outgoing_metrics({"loss": 0.5}) == {}
    open_client = ClientPrivacy.from_spec(spec(insecure_exact_metrics=True))
    assert open_client.outgoing_metrics({"loss": 0.5}) == {"loss": 0.5}


# --- the noise stream --------------------------------------------------------------------


def test_the_inverse_normal_agrees_with_tables() -> None:
    p = np.array([0.5, 0.25, 0.05, 0.025, 1e-3, 1e-10, 1e-19])
    expected = [
        0.0,
        -0.6744897501960817,
        -1.6448536269514729,
        -1.9599639845400545,
        -3.090232306167813,
        -6.361340902404056,
        -9.013271153126675,
    ]
    np.testing.assert_allclose(inverse_normal(p), expected, rtol=1e-14, atol=1e-300)


def test_the_stream_is_standard_normal() -> None:
    count = 400_000
    values = GaussianStream(SECRET, b"test").standard_normal(count)
    assert abs(values.mean()) < 5 / math.sqrt(count)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((values**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / count)
    ordered = np.sort(values)
    at = 0.5 * np.array([1 + math.erf(x / math.sqrt(2)) for x in ordered[::100]])
    distance = np.max(np.abs(at - np.arange(0, count, 100) / count))
    assert distance < 1.95 / math.sqrt(count) + 1 / count
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / math.sqrt(count)


def test_the_stream_has_the_same_bits_however_it_is_cut() -> None:
    whole = GaussianStream(SECRET, b"a").standard_normal(100_000)
    stream = GaussianStream(SECRET, b"a")
    parts = [stream.standard_normal(n) for n in (1, 40_000, 0, 59_999)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_the_stream_is_known_bit_for_bit() -> None:
    got = GaussianStream(SECRET, b"a", b"b").standard_normal(3)
    assert [x.hex() for x in got.tolist()] == KNOWN


KNOWN = ["-0x1.391f07add5e10p+0", "-0x1.b05fca53690ccp-6", "-0x1.8edff0a47d617p+0"]


def test_another_secret_or_purpose_gives_another_stream() -> None:
    streams = [
        GaussianStream(SECRET, b"ab"),
        GaussianStream(SECRET, b"a", b"b"),
        GaussianStream(SECRET, b""),
        GaussianStream(SECRET),
        GaussianStream(SECRET[::-1], b"ab"),
    ]
    first = {float(stream.standard_normal(1)[0]) for stream in streams}
    assert len(first) == len(streams)


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(PrivacyError, match="32 bytes"):
        GaussianStream(bytes(31))
    with pytest.raises(PrivacyError, match="32 bytes"):
        ServerPrivacy.from_spec(spec(), b"short")


# --- noise on a sum ----------------------------------------------------------------------


def grid_noise(**changes: object) -> GridNoise:
    values: dict[str, Any] = {
        "multiplier": 2.0,
        "sensitivity": 0.5,
        "secret": SECRET,
        "purpose": b"p",
    }
    return GridNoise(**{**values, **changes})


def test_the_noise_has_the_promised_deviation() -> None:
    count = 200_000
    out = grid_noise().apply({"a": np.zeros(count)})["a"]
    sigma = 2.0 * 0.5 * (1 + GRID_SLACK)
    assert out.std() == pytest.approx(sigma, rel=5 / math.sqrt(2 * count))
    assert abs(out.mean()) < 5 * sigma / math.sqrt(count)


def test_sum_and_noise_lie_on_one_grid() -> None:
    values = np.random.default_rng(3).standard_normal(1000)
    out = grid_noise().apply({"a": values.copy()})["a"]
    grid = 2.0 ** math.floor(math.log2(0.5 * GRID_SLACK / math.sqrt(1000)))
    assert np.array_equal(out / grid, np.rint(out / grid))
    assert not np.array_equal(values / grid, np.rint(values / grid))


def test_the_same_sum_gets_the_same_noise_and_another_sum_other_noise() -> None:
    first = grid_noise().apply({"a": np.zeros(100)})["a"]
    again = grid_noise().apply({"a": np.zeros(100)})["a"]
    negative = grid_noise().apply({"a": -np.zeros(100)})["a"]
    assert np.array_equal(first, again)
    assert np.array_equal(first, negative)
    other = grid_noise().apply({"a": np.full(100, 0.25)})["a"] - 0.25
    assert np.abs(np.corrcoef(first, other)[0, 1]) < 0.5
    renamed = grid_noise().apply({"b": np.zeros(100)})["b"]
    assert not np.array_equal(first, renamed)


def test_a_sum_too_large_for_the_grid_is_refused() -> None:
    with pytest.raises(PrivacyError, match="too large"):
        grid_noise(sensitivity=1e-12).apply({"a": np.full(4, 1e6)})
    with pytest.raises(PrivacyError, match="nothing"):
        grid_noise().apply({})


def test_impossible_noise_is_refused() -> None:
    for change in ({"multiplier": 0.0}, {"sensitivity": math.nan}, {"multiplier": -1.0}):
        with pytest.raises(PrivacyError, match="positive"):
            grid_noise(**change)


# --- the coordinator ---------------------------------------------------------------------


def server(**changes: object) -> ServerPrivacy:
    return ServerPrivacy.from_spec(spec(**changes), SECRET)


def model(count: int, dtype: str = "f4") -> dict[str, NDArray[Any]]:
    return {"w": np.random.default_rng(4).standard_normal(count).astype(dtype)}


@pytest.mark.parametrize(
    ("changes", "divisor", "sensitivity"),
    [
        ({}, 4.0, 1.0),
        ({"adjacency": "replace-one"}, 4.0, 2.0),
        ({"adjacency": "add-or-remove", "expected_cohort": 8.0}, 8.0, 1.0),
        ({"clip": 0.25}, 4.0, 0.25),
    ],
)
def test_the_mean_gets_the_noise_of_its_adjacency(
    changes: dict[str, Any], divisor: float, sensitivity: float
) -> None:
    count = 100_000
    reference = model(count)
    out = server(**changes).after_mean(reference, reference, 4, 1)
    noise = out["w"].astype(float) - reference["w"]
    assert out["w"].dtype == np.float32
    assert noise.std() == pytest.approx(sensitivity / divisor, rel=0.02)


def test_the_mean_itself_comes_through() -> None:
    reference = {"w": np.zeros(10_000)}
    step = np.full(10_000, 0.009)
    out = server(expected_cohort=8.0).after_mean({"w": step}, reference, 4, 1)
    # Four sites of the eight that are expected: half of the mean, with noise of 1/8.
    assert out["w"].mean() == pytest.approx(0.0045, abs=5 * 0.125 / 100)


def test_a_round_run_again_gives_the_same_bits() -> None:
    reference = model(50)
    mean = {"w": reference["w"] + np.float32(0.01)}
    first = server().after_mean(mean, reference, 3, 5)
    assert np.array_equal(first["w"], server().after_mean(mean, reference, 3, 5)["w"])
    assert not np.array_equal(first["w"], server().after_mean(mean, reference, 3, 6)["w"])
    other = ServerPrivacy.from_spec(spec(), SECRET[::-1]).after_mean(mean, reference, 3, 5)
    assert not np.array_equal(first["w"], other["w"])


def test_an_empty_poisson_round_is_noise_alone() -> None:
    reference = model(1000)
    private = server(sampling="poisson", sampling_rate=0.1, expected_cohort=2.0)
    out = private.after_mean(reference, reference, 0, 1)
    assert (out["w"] - reference["w"]).std() == pytest.approx(0.5, rel=0.1)
    with pytest.raises(PrivacyError, match="no site"):
        server().after_mean(reference, reference, 0, 1)


def test_a_mean_of_updates_that_were_not_clipped_is_refused() -> None:
    reference = {"w": np.zeros(4, np.float32)}
    with pytest.raises(PrivacyError, match="cannot add up"):
        server().after_mean({"w": np.ones(4, np.float32)}, reference, 3, 1)
    server().after_mean({"w": np.full(4, 0.5, np.float32)}, reference, 3, 1)


def test_a_mean_of_another_model_is_refused() -> None:
    reference = model(3)
    for mean in ({}, {"v": reference["w"]}, {"w": np.ones(4)}, {"w": np.ones(3, int)}):
        with pytest.raises(PrivacyError):
            server().after_mean(mean, reference, 2, 1)
    with pytest.raises(PrivacyError, match="round"):
        server().after_mean(reference, reference, 2, -1)
    with pytest.raises(PrivacyError, match="cohort"):
        server().after_mean(reference, reference, -1, 1)
    with pytest.raises(PrivacyError, match="NaN"):
        server().after_mean({"w": np.full(3, np.nan)}, reference, 2, 1)


def test_integers_stay_as_they_are_in_the_model() -> None:
    reference = {"w": np.zeros(3, np.float32), "n": np.array([4])}
    out = server().after_mean({"w": np.zeros(3), "n": np.array([9])}, reference, 2, 1)
    assert out["n"][0] == 4


def test_bfloat16_models_get_noise_for_their_rounding() -> None:
    reference = {"w": to_bfloat16(np.ones(1000, np.float32))}
    out = server().after_mean(reference, reference, 2, 1)["w"]
    assert out.dtype == BF16
    assert (to_float32(out) - 1).std() > 0.5


def test_an_update_that_was_not_clipped_is_refused() -> None:
    reference = {"w": np.zeros(4, np.float32)}
    server().check({"w": np.full(4, 0.5, np.float32)}, reference)
    with pytest.raises(UpdateRejected, match="norm of 2"):
        server().check({"w": np.ones(4, np.float32)}, reference)


def test_what_a_client_sends_always_passes_the_check() -> None:
    chance = np.random.default_rng(5)
    for scale in (1e-3, 1.0, 1e4):
        reference = model(5000)
        update = {"w": reference["w"] + chance.standard_normal(5000).astype("f4") * scale}
        out = ClientPrivacy.from_spec(spec()).outgoing(update, reference)
        server().check(out, reference)


# --- the draw and the secret -------------------------------------------------------------

SITES = tuple(f"site-{n}" for n in range(40))


def test_full_participation_draws_everybody() -> None:
    assert server().cohort(SITES[::-1], 1) == tuple(sorted(SITES))


def test_poisson_draws_at_its_rate() -> None:
    private = server(sampling="poisson", sampling_rate=0.25, expected_cohort=10.0)
    sizes = [len(private.cohort(SITES, n)) for n in range(400)]
    assert np.mean(sizes) == pytest.approx(10, abs=5 * math.sqrt(7.5 / 400))
    assert np.var(sizes) == pytest.approx(7.5, rel=0.4)
    assert private.cohort(SITES, 7) == private.cohort(SITES[::-1], 7)
    assert len({private.cohort(SITES, n) for n in range(20)}) > 15
    everybody = server(sampling="poisson", sampling_rate=1.0, expected_cohort=40.0)
    assert len(everybody.cohort(SITES, 1)) == 40


def test_a_fixed_sample_has_its_size_and_is_fair() -> None:
    private = server(sampling="fixed", sample_size=10, population=40, adjacency="replace-one")
    draws = [private.cohort(SITES, n) for n in range(400)]
    assert {len(draw) for draw in draws} == {10}
    counts = np.array([sum(site in draw for draw in draws) for site in SITES])
    assert np.abs(counts - 100).max() < 5 * math.sqrt(75)
    with pytest.raises(PrivacyError, match="population"):
        private.cohort(SITES[:5], 1)
    with pytest.raises(PrivacyError, match="cohort of 11"):
        private.after_mean(model(3), model(3), 11, 1)


def test_the_secret_is_fresh_unless_asked_for_by_name() -> None:
    assert noise_secret(spec(), seed=1) != noise_secret(spec(), seed=1)
    insecure = spec(insecure_deterministic_noise=True)
    assert noise_secret(insecure, seed=1) == noise_secret(insecure, seed=1)
    assert noise_secret(insecure, seed=1) != noise_secret(insecure, seed=2)
    with pytest.raises(PrivacyError, match="seed"):
        noise_secret(insecure)


def test_the_secret_is_in_no_representation() -> None:
    private = server()
    for text in (repr(private), repr(grid_noise()), str(private)):
        assert repr(SECRET)[2:-1] not in text
        assert "secret" not in text


def test_groups_take_turns_and_nobody_takes_part_twice() -> None:
    private = server(sampling="cyclic", groups=3)
    turns = [private.cohort(SITES[::-1], number) for number in range(1, 7)]
    assert sorted(site for turn in turns[:3] for site in turn) == sorted(SITES)
    assert turns[:3] == turns[3:]
    assert {len(turn) for turn in turns} == {13, 14}
