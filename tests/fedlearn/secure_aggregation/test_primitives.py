"""Shares, masks, fixed point and messages by themselves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.config import InconsistentValues
from attestation.length_prefixed import pack
from fedlearn.errors import UpdateRejected
from fedlearn.secure_aggregation import keys, messages, shamir
from fedlearn.secure_aggregation.fixed_point import encoded, length, mean, word, zeros
from fedlearn.secure_aggregation.roster import PublicKeys
from fedlearn.secure_aggregation.spec import SecAggSpec
from fedlearn.update.arrays import to_bfloat16

# --- Shamir ---------------------------------------------------------------------------


def test_shares_of_a_polynomial_with_known_values() -> None:
    """The example of en.wikipedia.org/wiki/Shamir%27s_secret_sharing, over the integers."""
    polynomial = [1234, 166, 94]
    values = {point: shamir.evaluate(polynomial, point) for point in range(1, 7)}
    assert values == {1: 1494, 2: 1942, 3: 2578, 4: 3402, 5: 4414, 6: 5614}
    for points in itertools.combinations(values, 3):
        assert shamir.combine({point: values[point] for point in points}) == 1234
    assert shamir.combine({2: 1942, 4: 3402}) != 1234


def test_the_modulus_is_the_least_prime_above_two_to_the_256() -> None:
    def composite(number: int) -> bool:
        return any(pow(base, number - 1, number) != 1 for base in (2, 3, 5, 7, 11, 13))

    assert [each for each in range(2**256 + 1, shamir.PRIME + 1) if not composite(each)] == [
        shamir.PRIME
    ]


@given(secret=st.binary(min_size=32, max_size=32), threshold=st.integers(1, 6), data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_shares_that_are_enough_recover_the_secret(
    secret: bytes, threshold: int, data: st.DataObject
) -> None:
    points = data.draw(st.lists(st.integers(1, 2**13), min_size=threshold, max_size=9, unique=True))
    shares = shamir.split(secret, points, threshold)
    chosen = data.draw(
        st.lists(st.sampled_from(points), min_size=threshold, unique=True), label="chosen"
    )
    found, wrong = shamir.recover(
        {point: shares[point] for point in chosen}, threshold, lambda each: each == secret
    )
    assert found == secret
    assert wrong == []


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    shares = shamir.split(bytes(32), [1, 2, 3], 3)
    two = {point: int.from_bytes(shares[point], "big") for point in (1, 2)}
    # A third value makes any secret of them: the two disclose nothing.
    for secret in (0, 7, 2**255):
        third = shamir.combine({0: secret, **two}, at=3)
        assert shamir.combine({**two, 3: third}) == secret


@pytest.mark.parametrize(
    ("secret", "points", "threshold"),
    [
        (bytes(31), [1, 2], 1),
        (bytes(32), [1, 2], 3),
        (bytes(32), [1, 1], 1),
        (bytes(32), [0, 1], 1),
        (bytes(32), [], 0),
    ],
)
def test_shares_that_cannot_be_made_are_refused(
    secret: bytes, points: list[int], threshold: int
) -> None:
    with pytest.raises(ValueError, match=r"secret|point"):
        shamir.split(secret, points, threshold)


# --- keys and masks -------------------------------------------------------------------


def test_a_mask_is_the_key_stream_of_aes_and_comes_off_again() -> None:
    key = bytes(range(32))
    stream = Cipher(AES256(key), CTR(bytes(16))).encryptor().update(bytes(8 * 300_000))
    for kind in (np.uint32, np.uint64):
        vector = np.zeros(300_000, kind)
        keys.add_mask(vector, key)
        assert vector.tobytes() == stream[: vector.nbytes]
        keys.add_mask(vector, key, subtract=True)
        assert not vector.any()


def test_two_clients_agree_on_a_key_for_each_purpose_and_round() -> None:
    ours, theirs = bytes(range(32)), bytes(range(1, 33))
    pairs = [
        (
            keys.agreed(ours, keys.public(theirs), purpose, context),
            keys.agreed(theirs, keys.public(ours), purpose, context),
        )
        for purpose in (keys.CHANNEL, keys.MASK)
        for context in (b"one", b"two")
    ]
    assert all(first == second for first, second in pairs)
    assert len({first for first, _ in pairs}) == 4
    with pytest.raises(UpdateRejected, match="not usable"):
        keys.agreed(ours, bytes(32), keys.MASK, b"")  # a point of low order


def test_sealed_shares_open_with_their_key_and_about_their_subject_only() -> None:
    sealed = keys.sealed(bytes(32), b"shares", b"from 1 to 2")
    assert keys.opened(bytes(32), sealed, b"from 1 to 2") == b"shares"
    for key, data, about in (
        (bytes(31) + b"\1", sealed, b"from 1 to 2"),
        (bytes(32), sealed, b"from 2 to 1"),
        (bytes(32), sealed[:-1], b"from 1 to 2"),
        (bytes(32), b"", b"from 1 to 2"),
        (bytes(32), bytes(513), b"from 1 to 2"),
    ):
        with pytest.raises(UpdateRejected, match="sealed shares"):
            keys.opened(key, data, about)


# --- fixed point ----------------------------------------------------------------------

MODEL = {
    "w": np.asarray([[1.0, -2.0], [0.5, 0.25]], np.float32),
    "half": to_bfloat16(np.asarray([1.0], np.float32)),
    "count": np.asarray(3),
    "wide": np.asarray([0.0, 100.0]),
}


def moved(by: float) -> dict[str, Any]:
    return {
        "w": MODEL["w"] + np.float32(by),
        "half": to_bfloat16(np.asarray([1.0 + by], np.float32)),
        "count": np.asarray(99),
        "wide": MODEL["wide"] + by,
    }


@pytest.mark.parametrize("modulus", [32, 64])
def test_the_sum_is_that_of_the_quantised_updates_bit_for_bit(modulus: int) -> None:
    spec = SecAggSpec(clip_range=1.0, bits=16, max_weight=1000, modulus_bits=modulus)
    draw = np.random.default_rng(1)
    updates = [
        {
            "w": MODEL["w"] + draw.normal(0, 0.4, (2, 2)).astype("f4"),
            "half": MODEL["half"],
            "count": np.asarray(0),
            "wide": MODEL["wide"] + draw.normal(0, 5, 2),
        }
        for _ in range(7)
    ]
    weights = draw.integers(1, 1000, 7).tolist()
    total = zeros(spec, MODEL)
    by_hand = [0] * length(MODEL)
    for update, weight in zip(updates, weights, strict=True):
        total += encoded(spec, update, MODEL, weight)
        apart = [
            *(update["w"].astype("f8") - MODEL["w"]).reshape(-1),
            0.0,
            *(update["wide"] - MODEL["wide"]),
        ]
        whole = [round(min(1, max(-1, each)) / spec.step) * weight for each in apart]
        by_hand = [have + add for have, add in zip(by_hand, [*whole, weight], strict=True)]
    assert [each % 2**modulus for each in by_hand] == total.tolist()
    found, weight = mean(spec, total, MODEL, 7)
    assert weight == sum(weights)
    np.testing.assert_allclose(
        found["w"].reshape(-1),
        MODEL["w"].reshape(-1) + np.asarray(by_hand[:4]) * spec.step / weight,
        rtol=1e-6,
    )
    assert {name: array.dtype for name, array in found.items()} == {
        name: array.dtype for name, array in MODEL.items()
    }


def test_the_mean_is_within_half_a_step_and_clipped_to_the_range() -> None:
    spec = SecAggSpec(clip_range=0.5, bits=20)
    total = encoded(spec, moved(0.3), MODEL, 10) + encoded(spec, moved(7.0), MODEL, 30)
    found, weight = mean(spec, total, MODEL, 2)
    assert weight == 40
    expected = MODEL["wide"] + (0.3 * 10 + 0.5 * 30) / 40
    np.testing.assert_allclose(found["wide"], expected, atol=spec.step / 2)
    assert found["count"] == 3  # not floating-point: as in the model
    assert found["half"].dtype == MODEL["half"].dtype


def test_the_order_of_the_updates_does_not_matter() -> None:
    spec = SecAggSpec()
    parts = [encoded(spec, moved(by), MODEL, 3) for by in (0.1, -5.0, 1e-6)]
    sums = {sum(order, zeros(spec, MODEL)).tobytes() for order in itertools.permutations(parts)}
    assert len(sums) == 1


@pytest.mark.parametrize(
    ("update", "weight", "words"),
    [
        (moved(float("nan")), 1, "w: contains NaN or infinity"),
        (moved(float("inf")), 1, "w: contains NaN or infinity"),
        (moved(0.1), 2**20 + 1, "weighs 1048577, and .* max_weight is 1048576"),
        (moved(0.1), -1, "weighs -1"),
        ({"w": MODEL["w"]}, 1, "half"),
    ],
)
def test_an_update_that_cannot_be_in_a_sum_is_refused(update: Any, weight: int, words: str) -> None:
    with pytest.raises(UpdateRejected, match=words):
        encoded(SecAggSpec(), update, MODEL, weight)


def test_a_sum_that_no_honest_clients_make_is_refused() -> None:
    spec = SecAggSpec()
    total = encoded(spec, moved(0.1), MODEL, 5)
    for place, value, words in (
        (-1, 0, "sum to 0, which must be from 1"),
        (-1, 2**64 - 7, "sum to -7"),
        (-1, 2**21, "must be from 1 to 1048576"),
        (0, 2**40, "a number of the sum is 1099511627776"),
        (0, 2**64 - 2**40, "a number of the sum is -1099511627776"),
    ):
        odd = total.copy()
        odd[place] = value
        with pytest.raises(UpdateRejected, match=words):
            mean(spec, odd, MODEL, 1)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"neighbours": 3}, "neighbours"),
        ({"neighbours": 2}, "neighbours"),
        ({"threshold": 0.5}, "threshold"),
        ({"modulus_bits": 48}, "modulus_bits"),
        ({"modulus_bits": 32}, "bits"),
        ({"bits": 48, "max_weight": 2**20}, "bits"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(InconsistentValues, match=key):
        SecAggSpec(**options)
    assert word(SecAggSpec(modulus_bits=32, bits=8, max_weight=100)) == np.uint32


# --- messages -------------------------------------------------------------------------


def test_messages_come_back_as_they_were() -> None:
    one = PublicKeys(site="a", channel=bytes(32), mask=bytes(32), chain=b"c", signature=b"s")
    assert messages.read_keys(messages.write_keys(one), "a") == one
    bare = PublicKeys(site="a", channel=bytes(32), mask=bytes(32), chain=b"", signature=b"")
    assert messages.read_roster(messages.write_roster([one], ["a"])) == [one]
    assert messages.read_roster(messages.write_roster([one], [])) == [bare]
    shares = {4: b"x", 1: b""}
    assert messages.read_shares(messages.write_shares(shares, b"c")) == ({1: b"", 4: b"x"}, b"c")
    assert messages.read_numbered(messages.write_numbered(shares)) == shares
    assert messages.read_numbers(messages.write_numbers({3, 1})) == [1, 3]


@pytest.mark.parametrize(
    ("read", "data"),
    [
        (messages.read_numbers, b"\0"),
        (messages.read_numbers, pack(b"\0\0\0\1")[:-1]),
        (messages.read_numbers, pack(b"\0\0\0\1", b"\0\0\0\1")),
        (messages.read_numbers, pack(b"\1")),
        (messages.read_numbered, pack(b"\0\0\0\1")),
        (messages.read_numbered, pack(b"\0\0\0\2", b"", b"\0\0\0\1", b"")),
        (messages.read_shares, b""),
        (messages.read_roster, pack(b"a", bytes(32))),
        (messages.read_roster, pack(b"\xff", bytes(32), bytes(32), b"", b"")),
        (messages.read_roster, pack(b"a", bytes(31), bytes(32), b"", b"")),
        (lambda data: messages.read_keys(data, "a"), pack(bytes(32))),
        (messages.read_numbers, b"\xff\xff\xff\xff"),
    ],
)
def test_malformed_messages_are_refused(read: Any, data: bytes) -> None:
    with pytest.raises(UpdateRejected):
        read(data)


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    for read in (
        messages.read_numbers,
        messages.read_numbered,
        messages.read_shares,
        messages.read_roster,
    ):
        try:
            read(data)
        except UpdateRejected:
            continue
