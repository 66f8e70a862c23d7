"""What runs at the coordinator. The model of the job is the adapter, not the transformer."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from adapter_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average the adapters, round by round."""
    FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord(task.adapter(task.new_model())),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
