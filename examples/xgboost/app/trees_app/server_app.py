"""What runs at the coordinator. It needs no XGBoost: Flower's strategy joins the JSON of trees."""

from __future__ import annotations

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedXgbBagging

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Collect the trees of all sites, round by round."""
    sites = 3
    strategy = FedXgbBagging(
        min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(0, dtype=np.uint8)]),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
