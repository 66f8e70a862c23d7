"""The ClientApp."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_app import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this client's rows."""
    model = task.new_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = task.load(context, held_out=False)
    loss = task.train(model, images, labels, float(context.run_config["learning-rate"]))
    metrics = MetricRecord({"num-examples": len(labels), "loss": loss})
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate on this client's held-out rows."""
    model = task.new_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = task.load(context, held_out=True)
    loss, accuracy = task.judge(model, images, labels)
    metrics = MetricRecord({"num-examples": len(labels), "loss": loss, "accuracy": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
