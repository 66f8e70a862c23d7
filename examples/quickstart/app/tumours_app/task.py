"""A logistic regression in numpy: the model, the data, training and evaluation."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

FEATURES = 10

Weights = list[np.ndarray]


def new_model() -> Weights:
    """Return the weights and the bias before the first round."""
    return [np.zeros(FEATURES), np.zeros(1)]


@functools.lru_cache(maxsize=2)
def load(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, FEATURES) and labels (n,). Read once: the process stays warm."""
    table = np.loadtxt(Path(path), delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1]


def scores(weights: Weights, features: np.ndarray) -> np.ndarray:
    """Return the probability of each row to be of class 1."""
    return 1 / (1 + np.exp(-(features @ weights[0] + weights[1])))


def train(
    weights: Weights, features: np.ndarray, labels: np.ndarray, *, epochs: int, rate: float
) -> Weights:
    """Return the weights after so many steps of gradient descent on all rows."""
    weight, bias = (array.copy() for array in weights)
    for _ in range(epochs):
        error = scores([weight, bias], features) - labels
        weight -= rate * features.T @ error / len(labels)
        bias -= rate * error.mean()
    return [weight, bias]


def judge(weights: Weights, features: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the log loss and the accuracy."""
    found = np.clip(scores(weights, features), 1e-7, 1 - 1e-7)
    loss = -np.mean(labels * np.log(found) + (1 - labels) * np.log(1 - found))
    return {"loss": float(loss), "accuracy": float(np.mean((found > 0.5) == (labels > 0.5)))}
