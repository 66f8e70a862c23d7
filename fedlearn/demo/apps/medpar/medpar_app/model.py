"""Logistic regression on a fixed basis of six facts, in plain numpy.

The basis is fixed in advance, with round constants that were not estimated from anybody's
data, so that no site has to publish a mean or a variance.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["FEATURES", "design", "initial", "loss", "predict", "train"]

Floats = npt.NDArray[np.float64]

FEATURES = (
    "intercept",
    "log stay",
    "health maintenance organisation",
    "white",
    "80 or older",
    "urgent",
    "emergency",
    "log stay, squared",
    "left or died within a day",
    "log stay, 80 or older",
    "log stay, urgent",
    "log stay, emergency",
)


def design(stays: npt.NDArray[np.int16]) -> tuple[Floats, Floats]:
    """Return features (n, 12) and outcome (n,) of ``stays`` (n, 7).

    Columns of ``stays``: days, hmo, white, age80, type2, type3, died.
    """
    days, hmo, white, old, urgent, emergency, died = stays.T.astype(np.float64)
    stay = np.log(days) - 2.0
    features = np.stack(
        [
            np.ones_like(stay),
            stay,
            hmo - 0.15,
            white - 0.9,
            old - 0.2,
            urgent - 0.2,
            emergency - 0.05,
            stay * stay - 1.0,
            (days == 1.0) - 0.1,
            stay * old,
            stay * urgent,
            stay * emergency,
        ],
        axis=1,
    )
    return features, died


def initial() -> Floats:
    """Return the weights before the first round: all zero."""
    return np.zeros(len(FEATURES))


def predict(weights: Floats, features: Floats) -> Floats:
    """Return the probability of death, (n,)."""
    return 1.0 / (1.0 + np.exp(-(features @ weights)))


def loss(weights: Floats, features: Floats, outcome: Floats) -> float:
    """Return the mean cross-entropy in nats."""
    score = features @ weights
    return float(np.mean(np.logaddexp(0.0, score) - outcome * score))


def train(
    weights: Floats,
    features: Floats,
    outcome: Floats,
    *,
    epochs: int,
    batch: int,
    rate: float,
    l2: float,
    rng: np.random.Generator,
) -> Floats:
    """Return ``weights`` after ``epochs`` passes of stochastic gradient descent."""
    weights = weights.copy()
    for _ in range(epochs):
        order = rng.permutation(len(outcome))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            error = predict(weights, features[rows]) - outcome[rows]
            weights -= rate * (features[rows].T @ error / len(rows) + l2 * weights)
    return weights
