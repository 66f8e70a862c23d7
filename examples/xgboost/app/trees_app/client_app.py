"""What runs at a site, inside the trusted environment."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from trees_app import task

app = ClientApp()


def rows(context: Context, *, held_out: bool):
    """Return the site's rows: four of five to train on, or the others."""
    features, labels = task.load(str(context.node_config["data"]))
    cut = len(labels) * 4 // 5
    part = slice(cut, None) if held_out else slice(cut)
    return features[part], labels[part]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Grow some trees on the site's rows. They alone are sent, not the whole ensemble."""
    features, labels = rows(context, held_out=False)
    config = context.run_config
    trees = task.grow(
        message.content["arrays"].to_numpy_ndarrays()[0],
        features,
        labels,
        trees=int(config["trees-per-round"]),
        max_depth=int(config["max-depth"]),
        learning_rate=float(config["learning-rate"]),
    )
    metrics = MetricRecord({"num-examples": len(labels)})
    content = {"arrays": ArrayRecord([trees]), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the ensemble on rows that it was not grown on."""
    features, labels = rows(context, held_out=True)
    packed = message.content["arrays"].to_numpy_ndarrays()[0]
    metrics = MetricRecord(
        {"num-examples": len(labels), "auc": task.judge(packed, features, labels)}
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
