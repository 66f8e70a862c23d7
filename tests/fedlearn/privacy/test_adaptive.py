"""The clip follows the quantile of Andrew et al. 2021, and both releases cost what is counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedlearn.errors import PrivacyError, UpdateRejected
from fedlearn.privacy import ClientPrivacy, PrivacySpec, ServerPrivacy
from fedlearn.privacy.adaptive import WITHIN, checked_clip, next_clip, taken_bit
from fedlearn.privacy.composition import Cost, composed

SECRET = bytes(range(32))


def spec(**changes: Any) -> PrivacySpec:
    values: dict[str, Any] = {
        "clip": 1.0,
        "noise_multiplier": 1.0,
        "epsilon": 1e3,
        "delta": 1e-5,
        "clip_quantile": 0.5,
        "clip_noise": 5.0,
    }
    return PrivacySpec(**{**values, **changes})


def moved(promise: PrivacySpec, clip: float, within: int, answered: int, divisor: float) -> float:
    return next_clip(
        promise,
        clip,
        within=within,
        answered=answered,
        divisor=divisor,
        secret=SECRET,
        purpose=b"t",
    )


@pytest.mark.parametrize(
    ("within", "factor"),
    [
        # exp(-0.2 * (b - 0.5)) by hand: b = 1, 0.5, 0.25 and 0.
        (1_000_000, 0.9048374180359595),
        (500_000, 1.0),
        (250_000, 1.0512710963760241),
        (0, 1.1051709180756477),
    ],
)
def test_the_recurrence_is_that_of_a_computation_by_hand(within: int, factor: float) -> None:
    # With a million sites, noise of 5 on the count moves the clip by a millionth.
    found = moved(spec(), 2.0, within, 1_000_000, 1e6)
    assert found == pytest.approx(2.0 * factor, rel=2e-5)


def test_a_quarter_of_the_sites_is_a_quarter_and_silence_counts_as_a_half() -> None:
    found = moved(spec(clip_quantile=0.25, clip_rate=1.0), 1.0, 1_000_000, 1_000_000, 1e6)
    assert found == pytest.approx(math.exp(-0.75), rel=1e-4)
    # Of a million sites that were asked, none answered: the estimate is 1/2.
    assert moved(spec(), 1.0, 0, 0, 1e6) == pytest.approx(1.0, rel=1e-4)


def test_the_clip_comes_to_the_quantile_of_the_norms() -> None:
    norms = np.random.default_rng(4).lognormal(1.0, 0.5, 400)
    promise = spec(clip=0.05, clip_quantile=0.8, clip_noise=20.0)
    server = ServerPrivacy.from_spec(promise, SECRET)
    clip = server.first_clip
    assert clip == 0.05
    for number in range(1, 121):
        within = int(np.sum(norms <= clip))
        clip = server.next_clip(clip, within=within, answered=400, asked=400, round=number)
    assert np.mean(norms <= clip) == pytest.approx(0.8, abs=0.05)


def test_both_releases_cost_what_one_with_the_noise_multiplier_costs() -> None:
    promise = spec(noise_multiplier=1.3, clip_noise=0.9)
    assert promise.update_multiplier == pytest.approx((1.3**-2 - 1.8**-2) ** -0.5)
    both = {Cost(promise.update_multiplier): 20, Cost(2 * 0.9): 20}
    one = composed({Cost(1.3): 20}, "rdp", 1e-5)
    assert composed(both, "rdp", 1e-5) == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize("adjacency", ["zero-out", "replace-one"])
def test_the_noise_on_the_count_and_on_the_updates_is_what_it_claims(adjacency: str) -> None:
    promise = spec(adjacency=adjacency)
    server = ServerPrivacy.from_spec(promise, SECRET)
    scale = 2.0 if adjacency == "replace-one" else 1.0
    draws = []
    for number in range(1, 1201):
        clip = server.next_clip(1.0, within=50, answered=100, asked=100, round=number)
        draws.append(-math.log(clip) / 0.2 * 100)  # the noise on the count of 50 of 100
    statistic = float(np.sum(np.square(np.array(draws) / (5.0 * scale * (1 + 2.0**-10)))))
    assert abs(statistic - 1200) < 4.9 * math.sqrt(2400)
    base = {"w": np.zeros(20_000)}
    made = server.after_mean(base, base, 4, 1, asked=4, clip=3.0)["w"] * 4
    deviation = promise.update_multiplier * 3.0 * scale * (1 + 2.0**-10)
    assert promise.update_multiplier > promise.noise_multiplier
    statistic = float(np.sum(np.square(made / deviation)))
    assert abs(statistic - 20_000) < 4.9 * math.sqrt(40_000)


def test_noise_cannot_move_the_clip_out_of_its_bounds() -> None:
    wild = spec(clip_noise=1e6, clip_rate=10.0)
    clips = [moved(wild, 1.0, 0, 1, 1.0)]
    for _ in range(50):
        clips.append(moved(wild, clips[-1], 0, 1, 1.0))
    assert all(2.0**-40 <= clip <= 2.0**40 for clip in clips)


def test_a_client_clips_to_the_clip_of_the_round_and_reports_one_bit() -> None:
    client = ClientPrivacy.from_spec(spec())
    base = {"w": np.zeros(4, np.float32)}
    update = {"w": np.full(4, 1.0, np.float32)}  # a norm of 2
    assert client.within(update, base, 2.0)
    assert not client.within(update, base, 1.9)
    assert np.linalg.norm(client.outgoing(update, base, clip=0.5)["w"]) <= 0.5
    assert np.array_equal(client.outgoing(update, base, clip=3.0)["w"], update["w"])
    with pytest.raises(UpdateRejected, match=r"norm of 2; clip is 1\.5"):
        ServerPrivacy.from_spec(spec(), SECRET).check(update, base, clip=1.5)


@pytest.mark.parametrize(
    "value", [None, 0.0, -1.0, 1, "1", float("nan"), float("inf"), 2.0**41, True]
)
def test_a_clip_that_no_round_has_is_refused(value: object) -> None:
    with pytest.raises(PrivacyError, match="not the clip of a round"):
        checked_clip(spec(), value)
    assert checked_clip(spec(), 0.25) == 0.25


def test_a_job_with_a_fixed_clip_takes_no_other_one() -> None:
    fixed = spec(clip_quantile=None, clip_noise=None)
    assert checked_clip(fixed, None) == 1.0
    with pytest.raises(PrivacyError, match="does not follow"):
        checked_clip(fixed, 2.0)
    with pytest.raises(PrivacyError, match="does not follow"):
        moved(fixed, 1.0, 1, 2, 2.0)
    with pytest.raises(PrivacyError, match="3 of 2 updates"):
        moved(spec(), 1.0, 3, 2, 2.0)


@pytest.mark.parametrize(
    "records",
    [
        {},
        {"m": {}},
        {"m": {WITHIN: 2}},
        {"m": {WITHIN: 1.0}},
        {"m": {WITHIN: True}},
        {"m": {WITHIN: [1]}},
        {"a": {WITHIN: 1}, "b": {WITHIN: 1}},
    ],
)
def test_a_bit_is_one_bit(records: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(UpdateRejected, match="0 or 1"):
        taken_bit(records)


def test_a_bit_is_taken_out_of_the_metrics() -> None:
    records: dict[str, dict[str, Any]] = {"m": {WITHIN: 1, "num-examples": 1}}
    assert taken_bit(records) == 1
    assert records == {"m": {"num-examples": 1}}
