"""Handwritten digits, 8 by 8 pixels, as installed with scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedlearn import extras
from fedlearn.demo import images
from fedlearn.demo.data import DemoData

__all__ = ["load"]


def load(*, sites: int, seed: int) -> DemoData:
    """Return 1,797 digits, divided among ``sites`` sites. Pixels are scaled to 0..255."""
    datasets = extras.load("sklearn.datasets", needed_for="the data set 'digits'")
    digits: Any = datasets.load_digits()
    pixels = np.round(digits.images * (255.0 / 16.0)).astype(np.uint8)
    return DemoData(
        name="digits",
        title="Handwritten digits",
        task="recognise ten handwritten digits",
        source="scikit-learn's copy of the UCI optical digits: 1,797 images of 8 by 8 pixels",
        licence="CC BY 4.0 (UCI); installed with scikit-learn",
        app="images",
        metric="accuracy",
        unit="images",
        partition=f"labels skewed by a Dirichlet draw, concentration {images.ALPHA}",
        seed=seed,
        sites=images.deal(pixels, digits.target.astype(np.uint8), sites=sites, seed=seed),
        settings={"image-size": 8},
    )
