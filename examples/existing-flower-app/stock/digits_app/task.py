"""A small network for images of handwritten digits, and the rows of one client."""

from __future__ import annotations

import torch
from flwr.app import Context
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)


def new_model() -> nn.Module:
    """Return the network before the first round."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def load(context: Context, *, held_out: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and digits: four of five rows to train on, or the others."""
    part, parts = int(context.node_config["partition-id"]), context.node_config["num-partitions"]
    pixels, labels = load_digits(return_X_y=True)
    pixels, labels = pixels[part :: int(parts)], labels[part :: int(parts)]
    cut = len(labels) * 4 // 5
    part = slice(cut, None) if held_out else slice(cut)
    images = torch.tensor(pixels[part], dtype=torch.float32) / 16
    return images, torch.tensor(labels[part], dtype=torch.int64)


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, rate: float) -> float:
    """Train for one epoch, in place; return the loss of the last batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    loss = torch.tensor(0.0)
    for batch in torch.randperm(len(labels)).split(32):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
    return loss.item()


def judge(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """Return loss and accuracy."""
    with torch.no_grad():
        found = model(images)
        loss = functional.cross_entropy(found, labels).item()
        return loss, (found.argmax(dim=1) == labels).float().mean().item()
