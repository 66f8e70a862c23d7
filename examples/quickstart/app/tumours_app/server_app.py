"""What runs at the coordinator."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from tumours_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average the sites' weights, round by round."""
    FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord(task.new_model()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
