"""Rounds of the aggregator's strategies with clients in this process: quadratic objectives.

Site ``i`` has ``F_i(w) = a_i / 2 |w - b_i|^2``, so the minimum of the sum of all is known:
``sum(a_i b_i) / sum(a_i)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from server.flower.aggregation.builtin import BuiltIn

FEW = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
CURVATURE = (1.0, 4.0, 0.5)
CENTER = (-2.0, 1.0, 6.0)
BEST = sum(a * b for a, b in zip(CURVATURE, CENTER, strict=True)) / sum(CURVATURE)


class Quadratic(nn.Module):
    """One parameter ``w``; its value is the loss of a site."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, site: int) -> torch.Tensor:
        return CURVATURE[site] / 2 * (self.w - CENTER[site]).square().sum()


class Nodes:
    """The grid of a job with three sites, as a strategy sees it."""

    def __init__(self, asked: Sequence[int] = (1, 2, 3)) -> None:
        self.asked = list(asked)
        self.refused: dict[int, str] = {}

    def get_node_ids(self) -> list[int]:
        return self.asked

    def place(self, node: int) -> int:
        return node

    def refuse(self, node: int, reason: str) -> None:
        self.refused[node] = reason

    def note(self, node: int, line: str) -> None:
        raise AssertionError(line)

    def check_quorum(self, count: int, asked: int) -> None:
        pass


def context() -> Context:
    return Context(0, 0, {}, RecordDict(), {})


Client = Callable[[Message, Context, Quadratic, int], dict[str, float]]
"""Trains the model for a site; returns the metrics that it adds."""


def run(
    strategy: BuiltIn,
    client: Client,
    *,
    rounds: int,
    asked: Callable[[int], Sequence[int]] = lambda number: (1, 2, 3),
    examples: Sequence[int] = (1, 1, 1),
    backwards: bool = False,
) -> Any:
    """Return ``w`` after some rounds; sites are numbered from 1 in messages."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    contexts = {node: context() for node in (1, 2, 3)}
    arrays = ArrayRecord(Quadratic().state_dict())
    for number in range(1, rounds + 1):
        grid = Nodes(asked(number))
        replies = []
        for message in strategy.configure_train(number, arrays, ConfigRecord(), grid):
            node = message.metadata.dst_node_id
            model = Quadratic()
            model.load_state_dict(message.content["arrays"].to_torch_state_dict())
            more = client(message, contexts[node], model, node - 1)
            metrics = MetricRecord({"num-examples": examples[node - 1], **more})
            content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
            replies.append(Message(content, reply_to=message))
        made, _ = strategy.aggregate_train(number, replies[::-1] if backwards else replies)
        assert made is not None
        assert grid.refused == {}
        arrays = made
    return np.array(arrays["w"].numpy())


def descend(model: Quadratic, optimizer: torch.optim.Optimizer, site: int, steps: int) -> None:
    """Make full gradient steps."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(site).backward()
        optimizer.step()
