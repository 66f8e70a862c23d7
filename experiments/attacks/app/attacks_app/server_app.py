"""The server: the job's strategy, from a new model."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from attacks_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds of the job."""
    FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord(task.new_model().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
