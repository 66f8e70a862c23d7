"""What runs at a site, inside the trusted environment."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tumours_app import task

app = ClientApp()


def rows(context: Context, *, held_out: bool):
    """Return the site's rows: four of five to train on, or the others."""
    features, labels = task.load(f"{context.node_config['data']}/data.csv")
    cut = len(labels) * 4 // 5
    part = slice(cut, None) if held_out else slice(cut)
    return features[part], labels[part]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the site's rows, from the weights that came with the message."""
    features, labels = rows(context, held_out=False)
    weights = task.train(
        message.content["arrays"].to_numpy_ndarrays(),
        features,
        labels,
        epochs=int(context.run_config["local-epochs"]),
        rate=float(context.run_config["learning-rate"]),
    )
    metrics = MetricRecord({"num-examples": len(labels), **task.judge(weights, features, labels)})
    content = RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model of the round on rows that it was not trained on."""
    features, labels = rows(context, held_out=True)
    found = task.judge(message.content["arrays"].to_numpy_ndarrays(), features, labels)
    metrics = MetricRecord({"num-examples": len(labels), **found})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
