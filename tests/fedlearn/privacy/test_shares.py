"""Noise that clients add: each share is what it claims, and their sum is exact."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedlearn.errors import PrivacyError, UpdateRejected
from fedlearn.privacy import ClientPrivacy, PrivacySpec, ServerPrivacy, l2_norm, noise_secret
from fedlearn.privacy.difference import difference
from fedlearn.privacy.shares import ClientNoise, GridSum, norm_of_noise
from fedlearn.update.arrays import Array, to_bfloat16

SIZE = 20_000
SITES = ("north", "south", "east", "west")


def spec(mechanism: str = "distributed-gaussian", **changes: Any) -> PrivacySpec:
    values: dict[str, Any] = {
        "mechanism": mechanism,
        "clip": 1.0,
        "noise_multiplier": 1.5,
        "epsilon": 1e3,
        "delta": 1e-5,
    }
    if mechanism == "distributed-gaussian":
        values["shares"] = 4
    return PrivacySpec(**{**values, **changes})


def model(dtype: Any = np.float32) -> dict[str, Array]:
    values = np.random.default_rng(1).standard_normal(SIZE) / 4
    return {"w": values.astype(dtype), "steps": np.array(7)}


def update(number: int, base: dict[str, Array]) -> dict[str, Array]:
    direction = np.random.default_rng(number).standard_normal(SIZE)
    moved = base["w"] + direction / np.linalg.norm(direction) * 0.9
    return base | {"w": moved.astype(base["w"].dtype)}


def noised(promise: PrivacySpec, base: dict[str, Array], round_: int = 1) -> list[dict[str, Array]]:
    return [
        ClientPrivacy.from_spec(promise, noise_secret(promise, seed=5, site=site)).outgoing(
            update(number, base), base, round=round_
        )
        for number, site in enumerate(SITES)
    ]


def in_chi_square(values: NDArray[np.float64], deviation: float) -> bool:
    """Whether the sum of squares is where 99.9999 % of a normal sample's are (normal limit)."""
    statistic = float(np.sum(np.square(values / deviation)))
    return abs(statistic - values.size) < 4.9 * math.sqrt(2 * values.size)


FIXED: dict[str, Any] = {"insecure_deterministic_noise": True}


@pytest.mark.parametrize("mechanism", ["distributed-gaussian", "local-gaussian"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_client_adds_the_noise_that_it_claims(mechanism: str, dtype: Any) -> None:
    promise = spec(mechanism, **FIXED)
    share = 1.5 / 2 if mechanism == "distributed-gaussian" else 1.5
    base = model(dtype)
    for number, sent in enumerate(noised(promise, base)):
        found = difference(sent, base)["w"] - difference(update(number, base), base)["w"]
        assert in_chi_square(found, share * (1 + 2.0**-10))
        assert not in_chi_square(found, share * 1.05)
        assert sent["w"].dtype == dtype
        assert sent["steps"] == 7


def test_the_shares_of_a_round_add_up_to_the_claim() -> None:
    promise = spec(**FIXED)
    base = model()
    total = GridSum(promise, base)
    for sent in noised(promise, base):
        total.add(sent)
    server = ServerPrivacy.from_spec(promise, bytes(32))
    made = server.after_sum(total, base, asked=4)
    exact = sum(difference(update(number, base), base)["w"] for number in range(4))
    noise = difference(made, base)["w"] * 4 - exact
    assert in_chi_square(noise, 1.5 * (1 + 2.0**-10))
    assert not in_chi_square(noise, 1.5 * 1.05)
    assert made["w"].dtype == np.float32


def test_the_sum_is_exact_and_the_same_in_any_order() -> None:
    promise = spec(**FIXED)
    base = model()
    sent = noised(promise, base)
    found = []
    for order in (sent, sent[::-1]):
        total = GridSum(promise, base)
        for each in order:
            total.add(each)
        found.append(total.total()["w"])
    assert np.array_equal(found[0], found[1])
    grid = ClientNoise.of(promise, base).grid
    # What float32 rounded is found again: every number of the sum is a multiple of the grid.
    assert np.array_equal(found[0], np.rint(found[0] / grid) * grid)
    exact = [np.rint(difference(each, base)["w"] / grid) for each in sent]
    assert np.array_equal(found[0] / grid, np.sum(exact, axis=0))


def test_fewer_clients_than_shares_release_nothing() -> None:
    promise = spec(**FIXED)
    base = model()
    total = GridSum(promise, base)
    for sent in noised(promise, base)[:3]:
        total.add(sent)
    server = ServerPrivacy.from_spec(promise, bytes(32))
    with pytest.raises(PrivacyError, match=r"3 of 4 clients .* needs 4"):
        server.after_sum(total, base, asked=4)
    with pytest.raises(PrivacyError, match="3 updates of 2 sites"):
        server.after_sum(total, base, asked=2)
    # The noise of one client is enough where each adds all of it.
    local = spec("local-gaussian", **FIXED)
    one = GridSum(local, base)
    one.add(noised(local, base)[0])
    ServerPrivacy.from_spec(local, bytes(32)).after_sum(one, base, asked=4)


def test_an_update_beyond_clip_and_noise_is_refused_and_leaves_the_sum_alone() -> None:
    promise = spec(**FIXED)
    base = model()
    total = GridSum(promise, base)
    server = ServerPrivacy.from_spec(promise, bytes(32))
    bound = ClientNoise.of(promise, base).bound
    large = base | {"w": base["w"] + np.float32(bound / math.sqrt(SIZE) * 1.01)}
    with pytest.raises(UpdateRejected, match=r"clip and noise is"):
        server.check(large, base)
    server.check(noised(promise, base)[0], base)
    for values in (np.full(SIZE, np.nan, np.float32), np.full(SIZE, np.float32(3e38))):
        with pytest.raises((UpdateRejected, PrivacyError)):
            server.check(base | {"w": values}, base)
        with pytest.raises(UpdateRejected, match="contains NaN"):
            total.add(base | {"w": values})
    with pytest.raises(UpdateRejected):
        total.add({"w": base["w"]})
    with pytest.raises(UpdateRejected, match="weighs 1"):
        total.add(base, 2)
    assert total.updates == 0
    assert not total.total()["w"].any()


def test_a_norm_of_noise_is_hardly_ever_exceeded() -> None:
    draws = np.random.default_rng(3).standard_normal((2000, 50))
    assert np.linalg.norm(draws, axis=1).max() < norm_of_noise(1.0, 50)
    promise = spec("local-gaussian", **FIXED)
    base = model()
    bound = ClientNoise.of(promise, base).bound
    for sent in noised(promise, base):
        assert 0.9 * bound < l2_norm(difference(sent, base)) < bound


def test_noise_is_fresh_for_each_client_round_and_job_unless_the_job_is_insecure() -> None:
    base, promise = model(), spec()
    fresh = [
        ClientPrivacy.from_spec(promise, noise_secret(promise)).outgoing(base, base)["w"]
        for _ in range(2)
    ]
    assert not np.array_equal(fresh[0], fresh[1])
    promise = spec(**FIXED)
    one, two = noised(promise, base)[0], noised(promise, base)[0]
    assert one["w"].tobytes() == two["w"].tobytes()
    assert not np.array_equal(one["w"], noised(promise, base, round_=2)[0]["w"])
    assert noise_secret(promise, seed=5, site="north") != noise_secret(promise, seed=5)
    assert noise_secret(promise, seed=5, site="north") != noise_secret(
        promise, seed=5, site="south"
    )


def test_a_model_that_is_too_coarse_for_the_noise_is_refused() -> None:
    coarse = {"w": to_bfloat16(np.full(SIZE, 300.0, np.float32))}
    with pytest.raises(PrivacyError, match="too coarse"):
        ClientNoise.of(spec(), coarse)
    with pytest.raises(PrivacyError, match="no floating-point"):
        ClientNoise.of(spec(), {"steps": np.array(7)})


def test_a_client_needs_a_secret_where_it_adds_noise() -> None:
    with pytest.raises(PrivacyError, match="at least 32 bytes"):
        ClientPrivacy.from_spec(spec(), b"short")
    with pytest.raises(PrivacyError, match="contains NaN"):
        ClientPrivacy.from_spec(spec(), bytes(32)).outgoing(
            {"w": np.full(3, np.nan, np.float32)}, {"w": np.zeros(3, np.float32)}
        )
