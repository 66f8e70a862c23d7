"""The values that a site adds in a round: no two rounds, sites or blocks have the same bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 18
"""Numbers in a block of 1 MiB."""


def add_values(weights: npt.NDArray[np.float32], *, site: int, server_round: int) -> None:
    """Add to each block of ``weights`` the site's random block, times the block's own factor.

    A drawn number for each weight would take longer than a round. The factors differ, so nothing
    can be compressed and no piece of an update equals another one, of this round or an earlier one.
    """
    block = np.random.default_rng(site).random(BLOCK, np.float32)
    for number, start in enumerate(range(0, len(weights), BLOCK)):
        piece = weights[start : start + BLOCK]
        piece += block[: len(piece)] * np.float32(factor(number, server_round))


def factor(number: int, server_round: int) -> float:
    """Return the factor of a block in a round, from 1 to 2."""
    return 1.0 + ((number + 1) * 0.6180339887 + server_round * 0.4142135624) % 1.0


def expected_sum(size: int, *, sites: int, rounds: int) -> float:
    """Return the sum of the weights after all rounds, from zeros and by an unweighted mean."""
    total = 0.0
    for site in range(1, sites + 1):
        block = np.random.default_rng(site).random(BLOCK, np.float32).astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(block)])
        for number, start in enumerate(range(0, size, BLOCK)):
            piece = sums[min(BLOCK, size - start)]
            total += piece * sum(factor(number, one) for one in range(1, rounds + 1))
    return total / sites
