"""Asking more sites than a round needs, so that slow ones hold up nothing.

Bonawitz et al. 2019 (arXiv:1902.01046) ask 1.3 times as many, and close a round when enough have
answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import FedAvg

__all__ = ["over_selected"]


@contextmanager
def over_selected(strategy: FedAvg, times: float, grid: Grid) -> Iterator[int | None]:
    """Let a strategy of Flower choose ``times`` as many nodes; yield how many it needs.

    None where it needs all that it chooses.
    """
    if times == 1:
        yield None
        return
    least, nodes = strategy.min_train_nodes, len(list(grid.get_node_ids()))
    needed = max(int(nodes * strategy.fraction_train), least)
    strategy.min_train_nodes = min(nodes, math.ceil(needed * times))
    try:
        yield needed
    finally:
        strategy.min_train_nodes = least
