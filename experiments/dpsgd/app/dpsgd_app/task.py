"""The two models, the data, and evaluation."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dpsgd_app.scattering import CHANNELS, scattering

SCATTER_LINEAR = "scatter-linear"
CNN = "cnn"
CLASSES = 10
GROUPS = 27
_PIECE = 500


def new_model(name: str) -> nn.Module:
    """Return a model by its name.

    ``scatter-linear``  a linear classifier of normalized scattering features (39,700 numbers)
    ``cnn``             two convolutions and two layers with tanh (26,010 numbers)
    """
    if name == SCATTER_LINEAR:
        return nn.Sequential(
            nn.GroupNorm(GROUPS, CHANNELS, affine=False),
            nn.Flatten(),
            nn.Linear(CHANNELS * 7 * 7, CLASSES),
        )
    if name == CNN:
        return nn.Sequential(
            nn.Conv2d(1, 16, 8, stride=2, padding=2),
            nn.Tanh(),
            nn.MaxPool2d(2, stride=1),
            nn.Conv2d(16, 32, 4, stride=2),
            nn.Tanh(),
            nn.MaxPool2d(2, stride=1),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 32),
            nn.Tanh(),
            nn.Linear(32, CLASSES),
        )
    raise ValueError(f"the model {name!r} is not {SCATTER_LINEAR} or {CNN}")


@functools.lru_cache(maxsize=16)
def load(path: str, name: str, most: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a model takes, (n, channels, h, w), and labels (n,). Computed once.

    ``most`` is how many, from the first; 0: all.
    """
    with np.load(Path(path)) as found:
        images, labels = found["x"][: most or None], found["y"][: most or None]
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    pixels = torch.from_numpy(images.astype(np.float32).reshape(-1, 28, 28) / scale)
    inputs = pixels[:, None]
    if name == SCATTER_LINEAR:
        inputs = torch.empty(len(pixels), CHANNELS, 7, 7)
        for piece, found in zip(pixels.split(_PIECE), inputs.split(_PIECE), strict=True):
            found.copy_(scattering(piece))
    return inputs, torch.from_numpy(labels.astype(np.int64))


@torch.no_grad()
def judge(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return the mean loss and the accuracy."""
    model.eval()
    right, total = 0, 0.0
    for piece, wanted in zip(inputs.split(1000), labels.split(1000), strict=True):
        scores = model(piece)
        total += float(functional.cross_entropy(scores, wanted, reduction="sum"))
        right += int((scores.argmax(1) == wanted).sum())
    return {"loss": total / len(labels), "accuracy": right / len(labels)}
