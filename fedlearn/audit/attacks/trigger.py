"""A backdoor: a pattern of pixels that an attacker's examples carry, and the label they get.

Gu et al. 2017 (arXiv:1708.06733) for the pattern, Bagdasaryan et al. 2020 (arXiv:1807.00459,
equation 3) for the model replacement.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import ConfigError

__all__ = ["replacement_scale", "stamp"]


def stamp(
    examples: NDArray[np.floating],
    *,
    image: tuple[int, ...],
    value: float,
    size: int = 2,
) -> NDArray[np.floating]:
    """Return a copy of the examples with a square of ``size`` pixels in the lower right corner.

    Examples without the shape of an image (``image`` of one axis) have their last ``size`` values
    set.

    :param examples: (n, ...), each of as many values as ``image`` has.
    :param value: what the pixels are set to.
    :raises ConfigError: when the pattern is larger than the image.
    """
    if size < 1 or size > min(image[-2:]):
        raise ConfigError(
            f"a trigger of {size} pixels does not fit an image of {'x'.join(map(str, image))}"
        )
    found = examples.copy()
    pixels = found.reshape(len(found), *image)
    if len(image) == 1:
        pixels[:, -size:] = value
    else:
        pixels[..., -size:, -size:] = value
    return pixels.reshape(examples.shape)


def replacement_scale(weights: list[float], attackers: list[float], rate: float = 1.0) -> float:
    """Return by what an attacker multiplies its update to replace the model by its own.

    ``gamma = n / (eta k)`` for ``k`` attackers of equal weight, here with the weights of the mean:
    the sum of all over that of the attackers, over the server's learning rate.

    >>> replacement_scale([1.0] * 10, [1.0, 1.0])
    5.0
    """
    return sum(weights) / (rate * sum(attackers))
