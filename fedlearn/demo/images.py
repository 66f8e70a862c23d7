"""Images with labels, divided among sites by a Dirichlet draw over the labels."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from fedlearn.demo import partition
from fedlearn.demo.data import SiteData

__all__ = ["ALPHA", "deal"]

ALPHA: Final = 0.5
"""Concentration of the draw: some sites have hardly any images of some classes."""

_TEST: Final = 0.25
_MINIMUM: Final = 16


def deal(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], *, sites: int, seed: int
) -> tuple[SiteData, ...]:
    """Divide ``images`` (n, size, size) and ``labels`` (n,) among ``sites`` sites.

    A quarter of the images of each site are set aside for testing.
    """
    rng = np.random.default_rng([seed, 2])
    dealt = partition.dirichlet(labels, sites=sites, alpha=ALPHA, minimum=_MINIMUM, rng=rng)
    width = len(str(sites))
    result = []
    for site, rows in enumerate(dealt):
        train, test = partition.split(rows, test=_TEST, rng=rng)
        result.append(
            SiteData(
                name=f"archive-{site + 1:0{width}d}",
                train={"images": images[train], "labels": labels[train]},
                test={"images": images[test], "labels": labels[test]},
            )
        )
    return tuple(result)
