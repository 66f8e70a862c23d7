"""What runs at a site."""

# mypy: disable-error-code="import-not-found, untyped-decorator, no-any-return"
from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from medpar_app import model, ranking

app = ClientApp()


@functools.lru_cache(maxsize=4)
def stays(folder: str, part: str) -> tuple[model.Floats, model.Floats]:
    """Return features and outcome of one part of the site's data; read once a process."""
    with np.load(Path(folder) / f"{part}.npz", allow_pickle=False) as arrays:
        return model.design(arrays["stays"])


def generator(message: Message, context: Context) -> np.random.Generator:
    """Return a generator that depends on seed, round and site, and on nothing else."""
    config = message.content["config"]
    if not isinstance(config, ConfigRecord):
        raise TypeError("the message carries no configuration")
    seed = int(context.run_config["seed"])
    return np.random.default_rng(
        [seed, int(config["server-round"]), int(context.node_config["partition-id"])]
    )


def weights_of(message: Message) -> model.Floats:
    """Return the weights that came with ``message``."""
    arrays = message.content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise TypeError("the message carries no arrays")
    return np.asarray(arrays["weights"].numpy(), dtype=np.float64)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the site's own stays and reply with the weights, as 32-bit floats."""
    features, outcome = stays(str(context.node_config["data"]), "train")
    config = context.run_config
    weights = model.train(
        weights_of(message),
        features,
        outcome,
        epochs=int(config["local-epochs"]),
        batch=int(config["batch-size"]),
        rate=float(config["learning-rate"]),
        l2=float(config["l2"]),
        rng=generator(message, context),
    )
    metrics = MetricRecord(
        {"num-examples": len(outcome), "loss": model.loss(weights, features, outcome)}
    )
    arrays = ArrayRecord({"weights": Array(weights.astype(np.float32))})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the weights on the site's test stays and reply with counts."""
    features, outcome = stays(str(context.node_config["data"]), "test")
    weights = weights_of(message)
    positives, negatives = ranking.histogram(model.predict(weights, features), outcome)
    metrics = MetricRecord(
        {
            "num-examples": len(outcome),
            "loss": model.loss(weights, features, outcome),
            "positives": [int(count) for count in positives],
            "negatives": [int(count) for count in negatives],
        }
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
