"""What runs at a site. Only the arrays of the body leave it."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from layers_app import task

app = ClientApp()
HEAD = "head"


def layers(message: Message, context: Context) -> tuple[nn.Module, nn.Module]:
    """Return the body that came with the message, and the head that this site kept."""
    body, head = task.new_body(), task.new_head()
    body.load_state_dict(message.content["arrays"].to_torch_state_dict())
    if HEAD in context.state:
        head.load_state_dict(context.state[HEAD].to_torch_state_dict())
    return body, head


def rows(context: Context, *, held_out: bool):
    """Return the site's rows: four of five to train on, or the others."""
    features, labels = task.load(str(context.node_config["data"]))
    cut = len(labels) * 4 // 5
    part = slice(cut, None) if held_out else slice(cut)
    return features[part], labels[part]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train body and head; keep the head, and send the body."""
    body, head = layers(message, context)
    features, labels = rows(context, held_out=False)
    config = context.run_config
    loss = task.train(
        body,
        head,
        features,
        labels,
        epochs=int(config["local-epochs"]),
        rate=float(config["learning-rate"]),
    )
    context.state[HEAD] = ArrayRecord(head.state_dict())
    metrics = MetricRecord({"num-examples": len(labels), "loss": loss})
    content = {"arrays": ArrayRecord(body.state_dict()), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the shared body with the head of this site."""
    body, head = layers(message, context)
    features, labels = rows(context, held_out=True)
    metrics = MetricRecord(
        {"num-examples": len(labels), **task.judge(body, head, features, labels)}
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
