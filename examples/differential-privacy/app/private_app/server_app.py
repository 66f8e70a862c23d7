"""What runs at the coordinator: it sees the noised model of each round, and public rows."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from private_app import task

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Evaluate a released model on public rows. What is computed from it costs no budget."""
    return MetricRecord({"public-auc": task.auc(arrays.to_numpy_ndarrays(), *task.public())})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average the clipped updates. The sites evaluate nothing, for it could not leave them."""
    FedAvg(fraction_evaluate=0.0).start(
        grid=grid,
        initial_arrays=ArrayRecord(task.new_model()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
