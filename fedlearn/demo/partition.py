"""The division of records among sites. Every function is pure."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from fedlearn.errors import ConfigError

__all__ = ["contiguous", "dirichlet", "split"]

Labels = npt.NDArray[np.integer]
Rows = npt.NDArray[np.int64]

_ATTEMPTS: Final = 200


def contiguous(groups: int, sites: int) -> Rows:
    """Return the site of each of ``groups`` ordered groups, in numbers as equal as possible."""
    if not 1 <= sites <= groups:
        raise ConfigError(
            f"{sites} sites cannot share {groups} groups",
            where="--sites",
            hint=f"choose 1 to {groups}",
        )
    return np.arange(groups, dtype=np.int64) * sites // groups


def dirichlet(
    labels: Labels, *, sites: int, alpha: float, minimum: int, rng: np.random.Generator
) -> list[Rows]:
    """Divide rows so that each class is spread over the sites by a Dirichlet draw.

    Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural
    Networks", ICML 2019, section 4. Small ``alpha`` means strong skew. The draw is repeated
    until each site has at least ``minimum`` rows.

    :raises ConfigError: when ``minimum`` was not reached in 200 draws.
    """
    for _ in range(_ATTEMPTS):
        parts: list[list[Rows]] = [[] for _ in range(sites)]
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(sites, alpha))
            cuts = np.floor(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        dealt = [np.sort(np.concatenate(part)) for part in parts]
        if min(len(rows) for rows in dealt) >= minimum:
            return dealt
    raise ConfigError(
        f"{len(labels)} records cannot be divided among {sites} sites with {minimum} each",
        where="--sites",
        hint="choose fewer sites",
    )


def split(rows: Rows, *, test: float, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Split ``rows`` into training and test rows; ``test`` is the share of the second."""
    shuffled = rng.permutation(rows)
    cut = round(len(rows) * test)
    return np.sort(shuffled[cut:]), np.sort(shuffled[:cut])
