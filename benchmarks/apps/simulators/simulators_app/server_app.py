"""FedAvg over all clients, for Flower and for fedlearn."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from simulators_app import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and test the model."""
    chosen = task.settings()
    first = task.first_arrays()
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=chosen.clients,
        min_available_nodes=chosen.clients,
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(value) for name, value in first.items()}),
        num_rounds=chosen.rounds,
    )
    task.finish({name: array.numpy() for name, array in result.arrays.items()})
