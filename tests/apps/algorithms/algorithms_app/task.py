"""A network with batch normalisation, and a site's data: ``data.npz`` with ``x`` and ``y``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)


class Model(nn.Module):
    """``features`` makes a representation of 16 numbers, ``head`` the classes."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(features, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def new_model(config: Mapping[str, object]) -> Model:
    """Return the first model; the same at every site."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Model(int(config["features"]), int(config["classes"]))


def load(folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the site's data: features (n, features) and labels (n,)."""
    with np.load(f"{folder}/data.npz") as data:
        x, y = data["x"], data["y"]
    return torch.from_numpy(x.reshape(len(x), -1).astype(np.float32)), torch.from_numpy(
        y.astype(np.int64)
    )


def judge(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Return loss and accuracy."""
    model.eval()
    with torch.no_grad():
        found = model(x)
    loss = nn.functional.cross_entropy(found, y).item()
    return {"loss": loss, "accuracy": (found.argmax(dim=1) == y).float().mean().item()}
