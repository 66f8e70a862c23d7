"""The network's weights before the first round, in numpy.

The coordinator needs no torch: it makes these arrays once and averages what comes back.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["shapes", "weights"]

CLASSES = 10


def shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array for square images of ``size`` pixels a side.

    :raises ValueError: for a size that two poolings do not divide.
    """
    if size < 4 or size % 4:
        raise ValueError(f"the size must be a multiple of 4, not {size}")
    flat = 16 * (size // 4) ** 2
    return {
        "conv1.weight": (8, 1, 3, 3),
        "conv1.bias": (8,),
        "conv2.weight": (16, 8, 3, 3),
        "conv2.bias": (16,),
        "dense1.weight": (64, flat),
        "dense1.bias": (64,),
        "dense2.weight": (CLASSES, 64),
        "dense2.bias": (CLASSES,),
    }


def weights(size: int, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """Return arrays drawn as He et al. (ICCV 2015, section 2.2) suggest; biases are zero."""
    rng = np.random.default_rng([seed, 0])
    arrays = {}
    for name, shape in shapes(size).items():
        scale = np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) > 1 else 0.0
        arrays[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
    return arrays
