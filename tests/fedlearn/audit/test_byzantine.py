"""The attacks on updates: what each sends, against the formula of its paper."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.audit.attacks.byzantine import (
    UPDATE_ATTACKS,
    alie_deviations,
    flip_labels,
    malicious_updates,
)
from fedlearn.errors import ConfigError

RNG = np.random.default_rng(3)
HONEST = RNG.normal(loc=1.0, size=(8, 500))
OWN = RNG.normal(loc=1.0, size=(2, 500))


def sent(attack: str, strength: float = 1.0) -> np.ndarray:
    return malicious_updates(attack, HONEST, OWN, strength=strength, rng=np.random.default_rng(1))


def test_sign_flip_sends_the_own_update_backwards() -> None:
    np.testing.assert_array_equal(sent("sign-flip", 4.0), -4.0 * OWN)


def test_the_inner_product_with_the_honest_mean_is_negative() -> None:
    mean = HONEST.mean(axis=0)
    for row in sent("inner-product", 0.5):
        np.testing.assert_allclose(row, -0.5 * mean)
        assert row @ mean < 0


def test_gaussian_noise_has_the_asked_norm() -> None:
    norm = np.linalg.norm(HONEST, axis=1).mean()
    found = np.linalg.norm(sent("gaussian", 10.0), axis=1)
    np.testing.assert_allclose(found, 10 * norm, rtol=0.15)


@pytest.mark.parametrize(
    ("sites", "malicious", "expected"),
    [
        (50, 24, 1.4261),  # s = 2, quantile at 24/26
        (51, 12, 0.3612),  # s = 14, quantile at 25/39
    ],
)
def test_alie_stays_within_the_deviations_of_enough_honest_sites(
    sites: int, malicious: int, expected: float
) -> None:
    assert alie_deviations(sites, malicious) == pytest.approx(expected, abs=1e-4)


def test_alie_has_no_room_with_one_attacker_of_ten() -> None:
    assert alie_deviations(10, 1) == 0.0


def test_alie_sends_the_mean_minus_its_deviations() -> None:
    honest = np.vstack([HONEST] * 3)
    own = np.vstack([OWN] * 5)
    z = alie_deviations(len(honest) + len(own), len(own))
    assert z > 0
    found = malicious_updates("alie", honest, own, strength=0.0, rng=np.random.default_rng(1))
    np.testing.assert_allclose(found[0], honest.mean(axis=0) - z * honest.std(axis=0))
    np.testing.assert_array_equal(found, np.broadcast_to(found[0], found.shape))


@pytest.mark.parametrize("attack", UPDATE_ATTACKS)
def test_a_seed_gives_the_same_bits(attack: str) -> None:
    np.testing.assert_array_equal(sent(attack), sent(attack))


def test_labels_are_mirrored() -> None:
    assert flip_labels(np.array([0, 3, 9]), 10).tolist() == [9, 6, 0]


@pytest.mark.parametrize(
    ("attack", "honest", "text"),
    [
        ("magic", HONEST, "no attack 'magic'"),
        ("alie", HONEST[:0], "needs the update of an honest site"),
        ("alie", np.full_like(HONEST, np.nan), "NaN"),
    ],
)
def test_what_cannot_be_attacked_is_refused(attack: str, honest: np.ndarray, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        malicious_updates(attack, honest, OWN, strength=1.0, rng=np.random.default_rng(1))
