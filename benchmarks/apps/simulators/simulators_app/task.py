"""The training that every simulator runs, with torch and numpy only.

Settings come in the environment variable ``SIMULATORS``, as JSON, because not every simulator hands
on a configuration. What a client computes depends on model, client and round alone, so that all
simulators reach the same accuracy up to the order of additions.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)
BATCH = 64


@dataclass(frozen=True)
class Settings:
    """``data`` has a folder ``client-0000`` and so on for each client, and ``test.npz``.

    ``stamp`` is written when the first client begins to train, ``result`` when the job is over.
    """

    model: str
    clients: int
    rounds: int
    epochs: int
    data: str
    stamp: str
    result: str


@functools.cache
def settings() -> Settings:
    """Return the settings of this process."""
    return Settings(**json.loads(os.environ["SIMULATORS"]))


class Net(nn.Sequential):
    """The model."""

    def __init__(self) -> None:
        super().__init__(*_layers())


def _layers() -> list[nn.Module]:
    if settings().model == "linear":
        return [nn.Flatten(), nn.Linear(784, 10)]
    return [  # LeNet-5 (LeCun et al. 1998) with ReLU and max pooling
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    ]


def first_arrays() -> dict[str, np.ndarray]:
    """Return the values of the first model, the same each time."""
    torch.manual_seed(1)
    return to_arrays(Net())


def to_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Return the values of a model by name."""
    return {name: value.numpy(force=True).copy() for name, value in model.state_dict().items()}


def from_arrays(arrays: dict[str, np.ndarray]) -> nn.Module:
    """Return a model with these values."""
    model = Net()
    model.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in arrays.items()})
    return model


def read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images from 0 to 1, (n, 1, 28, 28), and labels."""
    with np.load(path) as file:
        return torch.from_numpy(file["x"][:, None]).float() / 255, torch.from_numpy(file["y"])


def train(
    arrays: dict[str, np.ndarray], client: int, server_round: int
) -> tuple[dict[str, np.ndarray], int]:
    """Train on one client's data; return the values and the number of its examples."""
    chosen = settings()
    with contextlib.suppress(FileExistsError), Path(chosen.stamp).open("x") as file:
        file.write(str(time.time()))
    x, y = read(Path(chosen.data, f"client-{client:04d}", "data.npz"))
    model = from_arrays(arrays)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    order = np.random.default_rng([client, server_round])
    for _ in range(chosen.epochs):
        for rows in np.array_split(order.permutation(len(y)), max(1, round(len(y) / BATCH))):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return to_arrays(model), len(y)


def finish(arrays: dict[str, np.ndarray]) -> None:
    """Test the final model, and write its accuracy."""
    x, y = read(Path(settings().data, "test.npz"))
    model = from_arrays(arrays)
    with torch.no_grad():
        # In batches: the memory of a pass over all images would be the peak of a small job.
        right = sum(
            int((model(images).argmax(1) == labels).sum())
            for images, labels in zip(x.split(500), y.split(500), strict=True)
        )
    Path(settings().result).write_text(json.dumps({"accuracy": right / len(y)}))
