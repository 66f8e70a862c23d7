"""What malicious sites send in place of their updates.

An update is here the difference to the model of the round, as one vector. Each attack gets the
updates of the honest sites of the round (the attacker is assumed to know them, the strongest case
of the literature), what the malicious sites would have sent, and returns what they send.

============= =================================================================================
sign flip     the own update, times ``-strength``
gaussian      normal noise of ``strength`` times the mean norm of the honest updates (Blanchard et
              al. 2017, arXiv:1703.02757, section 5)
ALIE          mean minus ``z`` standard deviations of each coordinate, where ``z`` is the largest
              with which enough honest sites are farther from the mean (Baruch et al. 2019,
              arXiv:1902.06156, algorithm 3)
inner product the mean of the honest updates, times ``-strength`` (Xie et al. 2020,
              arXiv:1903.03936)
============= =================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from fedlearn.errors import ConfigError

__all__ = ["STRENGTHS", "UPDATE_ATTACKS", "alie_deviations", "flip_labels", "malicious_updates"]

Matrix = NDArray[np.float64]

STRENGTHS: Final[Mapping[str, float]] = MappingProxyType(
    {"sign-flip": 4.0, "gaussian": 10.0, "alie": 0.0, "inner-product": 1.0}
)
"""The strength of each attack unless another is asked for. 0 for ALIE: its own bound."""


def alie_deviations(sites: int, malicious: int) -> float:
    """Return ``z`` of ALIE for so many sites in all, of which some are malicious.

    ``s = floor(n / 2 + 1) - m`` honest sites have to be farther from the mean than the malicious
    ones; ``z`` is the quantile of the normal distribution at ``(n - m - s) / (n - m)``. With so few
    malicious sites that this is not positive, the attack has no room and ``z`` is 0.

    >>> round(alie_deviations(50, 24), 4)  # 24 of 50 workers, the setting of the paper
    1.4261
    """
    honest = sites - malicious
    supporters = sites // 2 + 1 - malicious
    if supporters <= 0:
        # The malicious sites are a majority by themselves: no bound holds them back.
        supporters = 1
    share = (honest - supporters) / honest
    return max(0.0, float(norm.ppf(share))) if 0 < share < 1 else 0.0


def _sign_flip(honest: Matrix, own: Matrix, strength: float, rng: np.random.Generator) -> Matrix:
    return -strength * own


def _gaussian(honest: Matrix, own: Matrix, strength: float, rng: np.random.Generator) -> Matrix:
    deviation = strength * np.linalg.norm(honest, axis=1).mean() / math.sqrt(honest.shape[1])
    return np.asarray(deviation * rng.standard_normal(own.shape))


def _alie(honest: Matrix, own: Matrix, strength: float, rng: np.random.Generator) -> Matrix:
    deviations = strength or alie_deviations(len(honest) + len(own), len(own))
    sent = honest.mean(axis=0) - deviations * honest.std(axis=0)
    return np.broadcast_to(sent, own.shape).copy()


def _inner_product(
    honest: Matrix, own: Matrix, strength: float, rng: np.random.Generator
) -> Matrix:
    return np.broadcast_to(-strength * honest.mean(axis=0), own.shape).copy()


UPDATE_ATTACKS: Final[
    Mapping[str, Callable[[Matrix, Matrix, float, np.random.Generator], Matrix]]
] = MappingProxyType(
    {
        "sign-flip": _sign_flip,
        "gaussian": _gaussian,
        "alie": _alie,
        "inner-product": _inner_product,
    }
)


def malicious_updates(
    attack: str, honest: Matrix, own: Matrix, *, strength: float, rng: np.random.Generator
) -> Matrix:
    """Return what the malicious sites send, one row each, in the shape of ``own``.

    :param honest: the updates of the honest sites, one row each; at least one.
    :param own: what the malicious sites would have sent.
    :raises ConfigError: for an unknown attack, without an honest site, or for NaN in an update.
    """
    if attack not in UPDATE_ATTACKS:
        raise ConfigError(
            f"no attack {attack!r} on updates", hint=f"one of {', '.join(UPDATE_ATTACKS)}"
        )
    if not len(honest):
        raise ConfigError(
            f"the attack {attack!r} needs the update of an honest site, and the round has none",
            hint="lower the share of attackers",
        )
    if not (np.isfinite(honest).all() and np.isfinite(own).all()):
        raise ConfigError(
            "an update contains NaN or infinity before any attack",
            hint="training diverged; lower the learning rate",
        )
    return UPDATE_ATTACKS[attack](honest, own, strength, rng)


def flip_labels(labels: NDArray[np.integer], classes: int) -> NDArray[np.integer]:
    """Return ``classes - 1 - label`` for each label (Fang et al. 2020, arXiv:1911.11815).

    >>> flip_labels(np.array([0, 1, 9]), 10).tolist()
    [9, 8, 0]
    """
    return classes - 1 - labels
