"""One site: SGD on its images, evaluation on its test images."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from attacks_app import task

app = ClientApp()


def _model(message: Message) -> nn.Module:
    model = task.new_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    return model


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the model of the round."""
    config = context.run_config
    images, labels = task.load(f"{context.node_config['data']}/data.npz")
    model = _model(message)
    task.train(
        model,
        images,
        labels,
        epochs=int(config["local-epochs"]),
        batch=int(config["batch-size"]),
        rate=float(config["learning-rate"]),
    )
    metrics = MetricRecord({"num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model of the round on images that the site does not train on."""
    images, labels = task.load(f"{context.node_config['data']}/test.npz")
    found = task.judge(_model(message), images, labels)
    metrics = MetricRecord({"num-examples": len(labels), **found})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
