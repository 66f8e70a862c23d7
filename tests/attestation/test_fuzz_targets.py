"""The targets of `make fuzz`: each accepts its seeds, and fails in no other way than ours.

The long run under coverage guidance is `tests/fuzz/fuzz.py`; here the same functions get
generated damage, the same every time.
"""

from __future__ import annotations

import random
import tracemalloc

import pytest

from tests.fuzz.targets import OURS, TARGETS

MAX_MEMORY = 64 * 1024 * 1024
TRIES = 150


def damaged(seed: bytes, chance: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randrange(len(data) + 1), chance.randint(1, 16)
        match chance.randrange(5):
            case 0:
                data[at : at + size] = chance.randbytes(size)
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = chance.randbytes(size)
            case 3:
                data[at:at] = data[: at + size][-size:]
            case _:
                del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_accepts_its_seeds(name: str) -> None:
    target = TARGETS[name]
    assert target.seeds
    for seed in target.seeds:
        assert len(seed) <= target.most
        target.read(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_damage_causes_our_errors_only(name: str) -> None:
    target, chance = TARGETS[name], random.Random(name)
    refused = 0
    for number in range(TRIES):
        seed = target.seeds[number % len(target.seeds)]
        data = damaged(seed, chance) if number % 8 else chance.randbytes(number)
        try:
            target.read(data)
        except OURS:
            refused += 1
    assert refused > TRIES // 8


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_too_large_is_not_held(name: str) -> None:
    target = TARGETS[name]
    for data in (bytes(8 << 20), b"{" * (8 << 20), target.seeds[0] + b"A" * (8 << 20)):
        tracemalloc.start()
        try:
            target.read(data)
        except OURS:
            pass
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < MAX_MEMORY, (name, peak)
