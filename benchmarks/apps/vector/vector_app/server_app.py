"""Plain FedAvg that writes down when each round begins and ends."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Stamped(FedAvg):
    """FedAvg with a stop watch. A round begins where it is configured."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begun: list[float] = []

    def configure_train(self, server_round: int, *args: Any, **kwargs: Any) -> Any:
        """Note the time, then do what FedAvg does."""
        self.begun.append(time.time())
        return super().configure_train(server_round, *args, **kwargs)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and write when each began, and the sum of the weights."""
    config = context.run_config
    sites = int(config["min-sites"])
    strategy = Stamped(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({"weights": Array(np.zeros(int(config["size"]), np.float32))}),
        num_rounds=int(config["num-server-rounds"]),
    )
    ended = time.time()
    total = float(result.arrays["weights"].numpy().sum())
    document = {"begun": strategy.begun, "ended": ended, "sum": total}
    Path(str(config["stamps"])).write_text(json.dumps(document))
