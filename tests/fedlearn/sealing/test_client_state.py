"""The sealed state of a client opens with its key, its name and its bytes, and not otherwise."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.errors import UnsealError
from fedlearn.sealing.client_state import (
    StateName,
    open_secret,
    open_state,
    release_secret,
    seal_state,
    state_key,
    state_name,
)

KEY = bytes(range(32))
NAME = StateName(job="alpha", site="north", round=3, phase=0)
LARGE = bytes(range(256)) * 4096 * 2  # two chunks, and a third with what is around them


@pytest.mark.parametrize("parts", [[], [b""], [b"one", b"", b"three"], [LARGE, b"end"]])
def test_a_state_comes_back(parts: list[bytes]) -> None:
    data = seal_state(parts, NAME, KEY)
    assert state_name(data) == NAME
    assert open_state(data, NAME, KEY) == parts
    assert seal_state(parts, NAME, KEY) != data  # nobody can compare two states


@pytest.mark.parametrize("place", [0, 30, 60, 120, 200, 1_000_000, 1_500_000, -1])
def test_an_altered_byte_is_found(place: int) -> None:
    data = bytearray(seal_state([LARGE], NAME, KEY))
    data[place] ^= 1
    with pytest.raises(UnsealError):
        open_state(bytes(data), NAME, KEY)


def test_a_cut_and_an_exchange_of_chunks_are_found() -> None:
    data = seal_state([LARGE], NAME, KEY)
    step, last = 1024 * 1024 + 16, 12 + 16
    head = len(data) - 2 * step - last
    for odd in (
        data[:-1],
        data[:-last],
        data[:head],
        data + b"\0",
        data[:head] + data[head + step : head + 2 * step] + data[head : head + step] + data[-last:],
    ):
        with pytest.raises(UnsealError):
            open_state(odd, NAME, KEY)


@pytest.mark.parametrize("change", [{"job": "beta"}, {"site": "south"}, {"round": 2}, {"phase": 2}])
def test_the_state_of_another_name_is_refused_and_named(change: dict[str, object]) -> None:
    other = dataclasses.replace(NAME, **change)  # type: ignore[arg-type]
    with pytest.raises(UnsealError, match="it is the state of job alpha, site north, round 3"):
        open_state(seal_state([b"x"], NAME, KEY), other, KEY)


def test_a_name_that_was_rewritten_does_not_open() -> None:
    data = seal_state([b"x"], NAME, KEY).replace(b'"north"', b'"south"')
    with pytest.raises(UnsealError, match="altered, or sealed for another job or site"):
        open_state(data, dataclasses.replace(NAME, site="south"), KEY)


@pytest.mark.parametrize(
    "data", [b"", b"fedlearn-client-state/1\n", b"fedlearn-client-state/1\n\xff\xff\xff\xff", b"{}"]
)
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(UnsealError, match="not a sealed state"):
        state_name(data)


def test_the_key_needs_the_coordinators_secret_and_the_sites_seed() -> None:
    inside, stranger = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    public = inside.public_key().public_bytes_raw()
    names = {"job": "alpha", "site": "north"}
    wrapped = release_secret(KEY, public, **names)
    secret = open_secret(wrapped, inside, **names)
    assert secret == open_secret(release_secret(KEY, public, **names), inside, **names)
    key = state_key(secret, b"seed", **names)
    other = {"job": "alpha", "site": "south"}
    theirs = open_secret(release_secret(KEY, public, **other), inside, **other)
    another = open_secret(release_secret(bytes(32), public, **names), inside, **names)
    found = {
        key,
        state_key(secret, b"another seed", **names),
        state_key(secret, b"seed", **other),
        state_key(theirs, b"seed", **names),
        state_key(another, b"seed", **names),
    }
    assert len(found) == 5
    with pytest.raises(UnsealError):
        open_secret(wrapped, stranger, **names)
    with pytest.raises(UnsealError):
        open_secret(wrapped, inside, **other)
    with pytest.raises(UnsealError, match="the seed of its site is missing"):
        state_key(secret, b"", **names)
