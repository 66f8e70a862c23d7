"""What runs at the coordinator."""

# mypy: disable-error-code="import-not-found, untyped-decorator, no-any-return"
from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from images_app import initial

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average the sites' weights, round by round.

    Accuracy is a mean over images, so its mean weighted by the sites' images is the
    accuracy over all of them.
    """
    config = context.run_config
    sites = int(config["min-sites"])
    start = initial.weights(int(config["image-size"]), int(config["seed"]))
    strategy = FedAvg(min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({name: Array(array) for name, array in start.items()}),
        num_rounds=int(config["num-server-rounds"]),
    )
