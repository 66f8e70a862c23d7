"""A small convolutional network in torch, on one thread so that its sums have one order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

__all__ = ["Net", "load", "measure", "right", "tensors", "train", "unload"]

torch.set_num_threads(1)

Arrays = Mapping[str, npt.NDArray[np.float32]]


class Net(nn.Module):
    """Two convolutions with pooling, two dense layers; see ``initial.shapes``."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.dense1 = nn.Linear(16 * (size // 4) ** 2, 64)
        self.dense2 = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (n, 10) for ``images`` (n, 1, size, size)."""
        hidden = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        hidden = functional.max_pool2d(functional.relu(self.conv2(hidden)), 2)
        hidden = functional.relu(self.dense1(hidden.flatten(1)))
        logits: torch.Tensor = self.dense2(hidden)
        return logits


def load(net: Net, arrays: Arrays) -> None:
    """Copy ``arrays`` into ``net``; names and shapes must match exactly."""
    net.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in arrays.items()})


def unload(net: Net) -> dict[str, npt.NDArray[np.float32]]:
    """Return a copy of the weights of ``net``."""
    return {name: tensor.detach().numpy().copy() for name, tensor in net.state_dict().items()}


def tensors(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (n, 1, size, size) in [0, 1] and labels (n,) as torch wants them."""
    return (
        torch.from_numpy(images.astype(np.float32) / 255.0).unsqueeze(1),
        torch.from_numpy(labels.astype(np.int64)),
    )


def train(
    net: Net,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int,
    batch: int,
    rate: float,
    momentum: float,
    rng: np.random.Generator,
) -> float:
    """Train ``net`` in place for ``epochs`` passes; return the mean loss of the last one."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=momentum)
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        order = torch.from_numpy(rng.permutation(len(labels)))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(images[rows]), labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
    return total / len(labels)


def measure(net: Net, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Return the mean loss and the number of images that ``net`` got right."""
    net.eval()
    with torch.no_grad():
        logits = net(images)
        loss = functional.cross_entropy(logits, labels).item()
        return loss, int((logits.argmax(1) == labels).sum())


def right(net: Net, images: torch.Tensor, labels: torch.Tensor) -> npt.NDArray[np.bool_]:
    """Return for each image whether ``net`` gets it right."""
    net.eval()
    with torch.no_grad():
        found: npt.NDArray[np.bool_] = (net(images).argmax(1) == labels).numpy()
        return found
