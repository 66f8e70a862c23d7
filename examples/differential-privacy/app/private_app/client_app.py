"""What runs at a site, inside the trusted environment."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from private_app import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the site's rows. The client clips what this returns, and sends no metric of it."""
    features, labels = task.load(f"{context.node_config['data']}/data.csv")
    weights = task.train(
        message.content["arrays"].to_numpy_ndarrays(),
        features,
        labels,
        epochs=int(context.run_config["local-epochs"]),
        rate=float(context.run_config["learning-rate"]),
    )
    metrics = MetricRecord({"num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics})
    return Message(content, reply_to=message)
