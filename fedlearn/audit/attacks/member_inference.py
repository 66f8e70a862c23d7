"""Was this example in the training data? Scores of two attacks, larger for members.

Both compare the model that is attacked with shadow models, each trained on a random half of the
same examples, so that every example was in the training data of some and not of others.

LiRA  Carlini et al. 2022 (arXiv:2112.03570): for each example one normal distribution of the
      logit-scaled confidence over the models that were trained on it and one over the others; the
      score is the log of the likelihood ratio. Offline: only the others, and the score is the
      probability that a model without the example is less confident
RMIA  Zarifzadeh et al. 2024 (arXiv:2312.03262): the example's confidence over its mean confidence
      in the shadow models, compared with the same ratio of each example of a population; the score
      is the share of the population that it exceeds by the factor ``gamma``
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from fedlearn.errors import ConfigError

__all__ = ["confidences", "lira", "logit_scaled", "rmia"]

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

_EPS: Final = 1e-12
_LEAST_MODELS: Final = 16
"""With fewer shadow models of a kind all examples share one variance, as the paper does."""


def _log_softmax(logits: Matrix) -> Matrix:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def confidences(logits: Matrix, labels: NDArray[np.integer]) -> Vector:
    """Return the probability of each example's label.

    :param logits: (n, classes).
    :raises ConfigError: for NaN, or a label that is no class.
    """
    _check(logits, labels)
    return np.asarray(np.exp(_log_softmax(logits)[np.arange(len(labels)), labels]))


def logit_scaled(logits: Matrix, labels: NDArray[np.integer]) -> Vector:
    """Return ``log(p / (1 - p))`` of each example's label, computed in a stable way.

    ``log p_y - log sum_{c != y} p_c`` (Carlini et al. 2022, section VI-A and appendix).
    """
    _check(logits, labels)
    rows = np.arange(len(labels))
    logs = _log_softmax(logits)
    others = logs.copy()
    others[rows, labels] = -np.inf
    top = others.max(axis=1, keepdims=True)
    rest = (top + np.log(np.exp(others - top).sum(axis=1, keepdims=True)))[:, 0]
    return np.asarray(logs[rows, labels] - rest)


def lira(observed: Vector, shadows: Matrix, members: Mask, *, offline: bool = False) -> Vector:
    """Return the score of each example.

    :param observed: logit-scaled confidences of the attacked model, (n,).
    :param shadows: those of the shadow models, (models, n).
    :param members: which examples each shadow model was trained on, (models, n).
    :raises ConfigError: when an example has fewer than two shadow models of a kind that is needed.
    """
    _need(~members, 2, "without it")
    mean_out, deviation_out = _normal(shadows, ~members)
    if offline:
        return np.asarray(norm.logcdf(observed, mean_out, deviation_out))
    _need(members, 2, "trained on it")
    mean_in, deviation_in = _normal(shadows, members)
    return np.asarray(
        norm.logpdf(observed, mean_in, deviation_in)
        - norm.logpdf(observed, mean_out, deviation_out)
    )


def rmia(
    observed: Vector,
    shadows: Matrix,
    members: Mask,
    population: Vector,
    population_shadows: Matrix,
    *,
    offline: bool = False,
    gamma: float = 2.0,
    offline_a: float = 0.3,
) -> Vector:
    """Return the score of each example, a share from 0 to 1.

    The probability of an example is its mean over models with and without it, half each. Offline
    there are none with it, and the mean is ``((1 + a) p_out + (1 - a)) / 2`` (section 3 of the
    paper).

    :param observed: probabilities of the labels in the attacked model, (n,).
    :param shadows: the same in the shadow models, (models, n).
    :param members: which examples each shadow model was trained on, (models, n).
    :param population: the same of examples that no model was trained on, (p,).
    :param population_shadows: theirs in the shadow models, (models, p).
    :raises ConfigError: without a population, or when an example has no shadow model of a kind that
        is needed.
    """
    if not len(population):
        raise ConfigError(
            "RMIA compares with a population, and no example is left for it",
            hint="leave examples out of training: `held-out` data of the sites is used",
        )
    _need(~members, 1, "without it")
    without = _mean(shadows, ~members)
    if offline:
        expected = ((1 + offline_a) * without + (1 - offline_a)) / 2
        # Nobody trained on the population, so its models are all without it.
        expected_population = (
            (1 + offline_a) * population_shadows.mean(axis=0) + (1 - offline_a)
        ) / 2
    else:
        _need(members, 1, "trained on it")
        expected = (_mean(shadows, members) + without) / 2
        expected_population = population_shadows.mean(axis=0)
    ratio = observed / np.maximum(expected, _EPS)
    ratio_population = np.sort(population / np.maximum(expected_population, _EPS))
    exceeded = np.searchsorted(ratio_population, ratio / gamma, side="right")
    return np.asarray(exceeded / len(population), dtype=np.float64)


def _check(logits: Matrix, labels: NDArray[np.integer]) -> None:
    if not np.isfinite(logits).all():
        raise ConfigError(
            "the model's answers contain NaN or infinity",
            hint="training diverged; lower the learning rate",
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ConfigError(
            f"the labels go from {labels.min()} to {labels.max()}, and the model has "
            f"{logits.shape[1]} classes"
        )


def _need(models: Mask, least: int, kind: str) -> None:
    fewest = int(models.sum(axis=0).min()) if models.size else 0
    if fewest < least:
        raise ConfigError(
            f"an example has {fewest} shadow models {kind}, and the attack needs {least}",
            hint="raise --shadows",
        )


def _mean(values: Matrix, mask: Mask) -> Vector:
    return np.asarray(np.where(mask, values, 0).sum(axis=0) / mask.sum(axis=0))


def _normal(values: Matrix, mask: Mask) -> tuple[Vector, Vector]:
    """Return mean and standard deviation of each column over the masked rows."""
    mean = _mean(values, mask)
    squares = np.where(mask, (values - mean) ** 2, 0)
    counts = mask.sum(axis=0)
    variance = squares.sum(axis=0) / np.maximum(counts - 1, 1)
    if counts.min() < _LEAST_MODELS:
        pooled = squares.sum() / max(1, int((counts - 1).sum()))
        variance = np.full_like(mean, pooled)
    return mean, np.sqrt(variance + _EPS)
