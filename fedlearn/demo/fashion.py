"""Fashion-MNIST from Debian's package ``dataset-fashion-mnist``."""

from __future__ import annotations

from typing import Final

import numpy as np

from fedlearn.data.sources.fashion import read_training
from fedlearn.demo import images
from fedlearn.demo.data import DemoData

__all__ = ["PER_SITE", "load"]

PER_SITE: Final = 600
"""Images of a site on average; with all 70,000 the demo would be slow."""


def load(*, sites: int, seed: int, per_site: int = PER_SITE) -> DemoData:
    """Return ``per_site`` images for each site on average, drawn without repetition.

    :raises ConfigError: when Debian's package is not installed.
    """
    pixels, labels = read_training()
    rng = np.random.default_rng([seed, 3])
    chosen = np.sort(rng.choice(len(labels), size=sites * per_site, replace=False))
    return DemoData(
        name="fashion",
        title="Fashion-MNIST",
        task="recognise ten kinds of clothing",
        source=f"Debian's dataset-fashion-mnist: {len(chosen):,} of its 60,000 training images",
        licence="MIT (Zalando Research); installed by apt",
        app="images",
        metric="accuracy",
        unit="images",
        partition=f"labels skewed by a Dirichlet draw, concentration {images.ALPHA}",
        seed=seed,
        sites=images.deal(pixels[chosen], labels[chosen], sites=sites, seed=seed),
        settings={"image-size": 28, "local-epochs": 1},
    )
