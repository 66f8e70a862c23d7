"""Malicious sites for `shares.toml`: they send their update times -4."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from fedlearn.simulation import Call, Hook

FACTOR = -4.0


class SignFlip(Hook):
    """Replaces what the attackers send after training."""

    def __init__(self, attackers: frozenset[str]) -> None:
        self.attackers = attackers

    def answered(self, call: Call, asked, arrays, metrics):
        """Return the model of the round plus the flipped update."""
        if call.kind != "train" or call.site not in self.attackers:
            return arrays
        return {
            name: (asked[name] + FACTOR * (value - asked[name])).astype(value.dtype)
            for name, value in arrays.items()
        }


def make(values: Mapping[str, object], sites: Sequence[str], seed: int) -> list[Hook]:
    """Return the hooks of a cell; `hook.share` is the attackers' share of the sites."""
    count = round(float(values["share"]) * len(sites))
    return [SignFlip(frozenset(random.Random(seed).sample(sorted(sites), count)))]
