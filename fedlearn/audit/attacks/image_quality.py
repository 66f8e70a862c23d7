"""How close a reconstruction is to the original: PSNR, SSIM, and which belongs to which."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.optimize import linear_sum_assignment

__all__ = ["match", "psnr", "ssim"]

Image = NDArray[np.float64]

_WINDOW: Final = 7
_K1: Final = 0.01
_K2: Final = 0.03


def psnr(original: Image, found: Image, *, span: float = 1.0) -> float:
    """Return ``10 log10(span^2 / MSE)`` in decibels; infinity for equal images.

    :param span: largest minus smallest value that a pixel can have.

    >>> round(psnr(np.zeros((8, 8)), np.full((8, 8), 0.1)), 6)
    20.0
    """
    error = float(np.mean((original - found) ** 2))
    return math.inf if error == 0 else 10 * math.log10(span**2 / error)


def ssim(original: Image, found: Image, *, span: float = 1.0) -> float:
    """Return the mean structural similarity, 1 for equal images.

    Wang et al. 2004 with a uniform window of 7 by 7 pixels (smaller where the image is), sample
    covariances, and only windows that are inside of the image: the defaults of scikit-image. The
    first axis of an array of three axes is the channel; the channels are averaged.

    :param span: largest minus smallest value that a pixel can have.
    """
    if original.ndim == 3:
        pairs = zip(original, found, strict=True)
        return float(np.mean([ssim(a, b, span=span) for a, b in pairs]))
    size = min(_WINDOW, *original.shape)
    size -= 1 - size % 2
    count = size**2
    unbiased = count / (count - 1) if count > 1 else 1.0

    def mean(values: Image) -> Image:
        return np.asarray(uniform_filter(values, size=size), dtype=np.float64)

    mean_a, mean_b = mean(original), mean(found)
    var_a = unbiased * (mean(original * original) - mean_a * mean_a)
    var_b = unbiased * (mean(found * found) - mean_b * mean_b)
    both = unbiased * (mean(original * found) - mean_a * mean_b)
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    similarity = ((2 * mean_a * mean_b + c1) * (2 * both + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    edge = size // 2
    inside = similarity[edge : similarity.shape[0] - edge, edge : similarity.shape[1] - edge]
    return float(inside.mean())


def match(originals: Image, found: Image) -> list[int]:
    """Return for each original the index of its reconstruction, with the least squared error.

    The order in a batch does not change a gradient, so a reconstruction has none.
    """
    a, b = (array.reshape(len(array), -1) for array in (originals, found))
    costs = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    return [int(index) for index in linear_sum_assignment(costs)[1]]
