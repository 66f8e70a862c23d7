"""One party: local SGD, with what its algorithm adds."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedlearn.training import FedNova, Proximal, Scaffold
from niid_app import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the model of the round, on all rows of the party."""
    config = context.run_config
    images, labels = task.load(f"{context.node_config['data']}/data.npz")
    model = task.new_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = task.new_optimizer(
        model,
        rate=float(config["learning-rate"]),
        momentum=float(config["momentum"]),
        decay=float(config["weight-decay"]),
    )
    parts: list[Scaffold | FedNova] = []
    match config["algorithm"]:
        case "fedavg":
            pass
        case "fedprox":
            Proximal.of_job(message, model).attach(optimizer)
        case "scaffold":
            parts.append(Scaffold(message, context, model))
        case "fednova":
            parts.append(FedNova())
        case other:
            raise ValueError(f"the algorithm {other!r} is not fedavg, fedprox, scaffold or fednova")
    for part in parts:
        part.attach(optimizer)
    loss = task.train(
        model,
        optimizer,
        images,
        labels,
        epochs=int(config["local-epochs"]),
        batch=int(config["batch-size"]),
    )
    found: dict[str, float] = {"num-examples": len(labels), "train_loss": loss}
    for part in parts:
        found |= part.finish()
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(found)}
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model of the round on the party's own training rows."""
    images, labels = task.load(f"{context.node_config['data']}/data.npz")
    model = task.new_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    found = {f"client_{name}": value for name, value in task.judge(model, images, labels).items()}
    metrics = MetricRecord({"num-examples": len(labels), **found})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
