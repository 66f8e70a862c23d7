"""A small network, and the records of one client."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Context
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fedlearn.training.private import make_private

torch.set_num_threads(1)


def new_model() -> nn.Module:
    """Return the network before the first round."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def load(folder: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images, from 0 to 1, and digits."""
    with np.load(f"{folder}/{name}") as archive:
        return torch.tensor(archive["x"] / 16, dtype=torch.float32), torch.tensor(archive["y"])


def train(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    rate: float,
    epochs: int,
    batch: int,
) -> None:
    """Train in place by plain stochastic gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(batch):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()


def train_privately(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, *, rate: float, context: Context
) -> None:
    """Train in place by DP-SGD, with the numbers of the job."""
    loader = DataLoader(TensorDataset(images, labels), batch_size=len(labels))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    private, optimizer, loader = make_private(model, optimizer, loader, context)
    for some, theirs in loader:
        optimizer.zero_grad()
        functional.cross_entropy(private(some), theirs).backward()
        optimizer.step()
