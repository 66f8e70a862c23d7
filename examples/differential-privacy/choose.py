"""Simulates the job on its public rows, to choose epsilon, noise and clip without private data.

    python choose.py

The public rows are divided among four invented sites. Each line is the AUC on the same rows, the
median and the lowest of a hundred runs; the noise is what pays for the rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fedlearn.privacy import PrivacySpec, noise_multiplier_for

sys.path.insert(0, str(Path(__file__).with_name("app")))
from private_app import task

ROUNDS = 4
SITES = 4
RUNS = 100


def main() -> None:
    """Print a table of epsilon and clip."""
    features, labels = task.public()
    draw = np.random.default_rng(1)
    print(f"median norm of an update in round 1: {norm(features, labels):.2f}")
    print("epsilon  noise_multiplier  clip  median AUC  lowest AUC")
    for epsilon in (1.0, 2.0, 4.0, 8.0, 16.0):
        spec = PrivacySpec(clip=1.0, noise_multiplier=1.0, epsilon=epsilon, delta=1e-5)
        multiplier = noise_multiplier_for(spec, rounds=ROUNDS)
        for clip in (0.25, 0.5, 1.0, 2.0):
            found = [run(features, labels, multiplier, clip, draw) for _ in range(RUNS)]
            print(
                f"{epsilon:7g}  {multiplier:16g}  {clip:4g}  "
                f"{np.median(found):10.3f}  {min(found):10.3f}"
            )


def norm(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the median norm of the first updates."""
    zero = task.new_model()
    return float(np.median([np.linalg.norm(flat(zero, *part)) for part in parts(features, labels)]))


def run(
    features: np.ndarray,
    labels: np.ndarray,
    multiplier: float,
    clip: float,
    draw: np.random.Generator,
) -> float:
    """Return the AUC after all rounds, with clipping and noise as in the job."""
    model = np.zeros(task.FEATURES + 1)
    for _ in range(ROUNDS):
        updates = [flat([model[:-1], model[-1:]], *part) for part in parts(features, labels)]
        clipped = [each * min(1, clip / np.linalg.norm(each)) for each in updates]
        noise = draw.normal(scale=multiplier * clip, size=model.size)
        model = model + (np.sum(clipped, axis=0) + noise) / SITES
    return task.auc([model[:-1], model[-1:]], features, labels)


def parts(features: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of each invented site."""
    return [(features[site::SITES], labels[site::SITES]) for site in range(SITES)]


def flat(weights: list[np.ndarray], features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the update of a site as one vector."""
    found = task.train(weights, features, labels, epochs=10, rate=1.0)
    return np.concatenate([new - old for new, old in zip(found, weights, strict=True)])


if __name__ == "__main__":
    main()
