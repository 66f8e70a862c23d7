"""The client of Flower and of fedlearn."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from simulators_app import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the data of the partition."""
    arrays, count = task.train(
        {name: array.numpy() for name, array in message.content["arrays"].items()},
        int(context.node_config["partition-id"]),
        int(message.content["config"]["server-round"]),
    )
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(value) for name, value in arrays.items()}),
            "metrics": MetricRecord({"num-examples": count}),
        }
    )
    return Message(content, reply_to=message)
