"""The names by which a strategy and the ClientApp's part of it find each other's values."""

from __future__ import annotations

from typing import Final

__all__ = [
    "FEDDYN_ALPHA",
    "FEDNOVA_NORM",
    "PROXIMAL_MU",
    "SCAFFOLD_CONTROL",
    "SCAFFOLD_STEP_SUM",
]

PROXIMAL_MU: Final = "proximal-mu"
"""In the configuration of a message to train: ``mu`` of FedProx, as Flower calls it."""

FEDDYN_ALPHA: Final = "feddyn-alpha"
"""In the configuration of a message to train: ``alpha`` of FedDyn."""

SCAFFOLD_CONTROL: Final = "fedlearn.scaffold"
"""The ArrayRecord of a message to train with the control variate of the server, by the names of the
model's floating-point arrays."""

SCAFFOLD_STEP_SUM: Final = "fedlearn.scaffold.step-sum"
"""The metric of a reply with the sum of the learning rates of the steps that made the update."""

FEDNOVA_NORM: Final = "fedlearn.fednova.norm"
"""The metric of a reply with the norm of the weights of the gradients that made the update."""
