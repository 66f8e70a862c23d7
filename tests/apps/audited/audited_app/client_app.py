"""The ClientApp."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from audited_app import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this client's records."""
    model = task.new_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = task.load(str(context.node_config["data"]), "data.npz")
    config = context.run_config
    rate = float(config["learning-rate"])
    if context.node_config.get("privacy-unit") == "example":
        task.train_privately(model, images, labels, rate=rate, context=context)
    else:
        epochs, batch = int(config["local-epochs"]), int(config["batch-size"])
        task.train(model, images, labels, rate=rate, epochs=epochs, batch=batch)
    metrics = MetricRecord({"num-examples": len(labels)})
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate on this client's test records."""
    model = task.new_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = task.load(str(context.node_config["data"]), "test.npz")
    with torch.no_grad():
        right = (model(images).argmax(dim=1) == labels).float().mean().item()
    metrics = MetricRecord({"num-examples": len(labels), "accuracy": right})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
