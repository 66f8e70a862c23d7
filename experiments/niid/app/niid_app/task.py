"""The model, the data, one round of local training, and evaluation."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

CLASSES = 10
_BATCH = 1000


class SimpleCNN(nn.Module):
    """Two convolutions of 5x5 with 6 and 16 channels, each with pooling, and three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (n, 10) scores of (n, 1, 28, 28) images."""
        found = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        found = functional.max_pool2d(functional.relu(self.conv2(found)), 2).flatten(1)
        found = functional.relu(self.fc2(functional.relu(self.fc1(found))))
        return self.fc3(found)


def new_model() -> SimpleCNN:
    """Return the network, in the layout of memory in which convolutions are fastest here."""
    return SimpleCNN().to(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=16)
def load(path: str, most: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images from 0 to 1, (n, 1, 28, 28), and labels (n,). Read once for all rounds.

    ``most`` is how many, from the first; 0: all.
    """
    with np.load(Path(path)) as found:
        images, labels = found["x"][: most or None], found["y"][: most or None]
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    pixels = torch.from_numpy(images.astype(np.float32).reshape(-1, 1, 28, 28) / scale)
    return (
        pixels.contiguous(memory_format=torch.channels_last),
        torch.from_numpy(labels.astype(np.int64)),
    )


def new_optimizer(
    model: nn.Module, *, rate: float, momentum: float, decay: float
) -> torch.optim.SGD:
    """Return SGD as NIID-Bench has it; ``fused`` is one pass over memory, with the same result."""
    return torch.optim.SGD(
        model.parameters(), lr=rate, momentum=momentum, weight_decay=decay, fused=True
    )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int,
    batch: int,
) -> float:
    """Train for so many epochs over batches in a random order; return the loss of the last."""
    model.train()
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(labels)).split(batch):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
    return total / len(labels)


@torch.no_grad()
def judge(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return the mean loss and the accuracy."""
    model.eval()
    right, total = 0, 0.0
    for start in range(0, len(labels), _BATCH):
        scores = model(images[start : start + _BATCH])
        wanted = labels[start : start + _BATCH]
        total += float(functional.cross_entropy(scores, wanted, reduction="sum"))
        right += int((scores.argmax(1) == wanted).sum())
    return {"loss": total / len(labels), "accuracy": right / len(labels)}
