"""What runs at the coordinator: the strategy of this app, and its evaluation on public rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from median_app import task
from median_app.strategy import GeometricMedian

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate the model of a round on the public rows that are part of the app."""
    rows = np.array(json.loads(Path(__file__).with_name("public.json").read_text())["rows"])
    found = task.judge(arrays.to_numpy_ndarrays(), rows[:, :-1], rows[:, -1])
    return MetricRecord({f"public-{name}": value for name, value in found.items()})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run our own strategy."""
    strategy = GeometricMedian(min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(task.new_model()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
