"""What runs at a site. Only the adapter leaves it."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from adapter_app import task

app = ClientApp()


def rows(context: Context, *, held_out: bool):
    """Return the site's rows: four of five to train on, or the others."""
    tokens, labels = task.load(str(context.node_config["data"]))
    cut = len(labels) * 4 // 5
    part = slice(cut, None) if held_out else slice(cut)
    return tokens[part], labels[part]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the adapter on the site's rows."""
    model = task.with_adapter(message.content["arrays"].to_torch_state_dict())
    tokens, labels = rows(context, held_out=False)
    loss = task.train(
        model,
        tokens,
        labels,
        epochs=int(context.run_config["local-epochs"]),
        rate=float(context.run_config["learning-rate"]),
    )
    metrics = MetricRecord({"num-examples": len(labels), "loss": loss})
    content = {"arrays": ArrayRecord(task.adapter(model)), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the transformer with the adapter on rows that it was not trained on."""
    model = task.with_adapter(message.content["arrays"].to_torch_state_dict())
    tokens, labels = rows(context, held_out=True)
    metrics = MetricRecord({"num-examples": len(labels), **task.judge(model, tokens, labels)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
