"""What runs at the coordinator: it knows of the body only."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from layers_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average the bodies, round by round."""
    FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord(task.new_body().state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
