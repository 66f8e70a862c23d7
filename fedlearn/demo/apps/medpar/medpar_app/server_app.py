"""What runs at the coordinator."""

# mypy: disable-error-code="import-not-found, untyped-decorator, no-any-return"
from __future__ import annotations

import math

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from medpar_app import model, ranking

app = ServerApp()


def pool(replies: list[RecordDict], weight: str) -> MetricRecord:
    """Add up what the sites counted; the result does not depend on their order."""
    records = [next(iter(reply.metric_records.values())) for reply in replies]
    examples = [int(record[weight]) for record in records]
    total = sum(examples)
    losses = [n * float(record["loss"]) for n, record in zip(examples, records, strict=True)]
    area = ranking.area(
        *(
            np.sum([record[outcome] for record in records], axis=0, dtype=np.int64)
            for outcome in ("positives", "negatives")
        )
    )
    return MetricRecord(
        {
            weight: total,
            "loss": math.fsum(losses) / total,
            "auc": area.value,
            "auc-low": area.low,
            "auc-high": area.high,
            "auc-error": area.error,
        }
    )


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Average the sites' weights, round by round."""
    sites = int(context.run_config["min-sites"])
    strategy = FedAvg(
        min_train_nodes=sites,
        min_evaluate_nodes=sites,
        min_available_nodes=sites,
        evaluate_metrics_aggr_fn=pool,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord({"weights": Array(model.initial().astype(np.float32))}),
        num_rounds=int(context.run_config["num-server-rounds"]),
    )
