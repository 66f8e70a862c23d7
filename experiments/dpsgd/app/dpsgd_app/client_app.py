"""One site: DP-SGD over its own examples, within the budget of the whole job."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dpsgd_app import private, task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train from the model of the round; report what was spent so far."""
    config = context.run_config
    name = str(config["model"])
    inputs, labels = task.load(f"{context.node_config['data']}/data.npz", name)
    rounds, epochs = int(config["num-server-rounds"]), int(config["local-epochs"])
    batch = int(config["batch-size"])
    steps = epochs * max(1, len(labels) // batch)
    accounting = private.Accounting(
        examples=len(labels),
        batch=batch,
        steps=steps * rounds,
        epsilon=float(config["epsilon"]),
        delta=float(config["delta"]),
    )
    model = task.new_model(name)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    private.train(
        model,
        inputs,
        labels,
        steps=steps,
        batch=batch,
        rate=float(config["learning-rate"]),
        momentum=float(config["momentum"]),
        clip=float(config["clip"]),
        noise_multiplier=accounting.noise_multiplier,
    )
    found: dict[str, float] = {"num-examples": len(labels)}
    if accounting.noise_multiplier:
        so_far = int(message.content["config"]["server-round"]) * steps
        found["epsilon"] = accounting.spent(so_far)
        found["noise-multiplier"] = accounting.noise_multiplier
    content = RecordDict(
        {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(found)}
    )
    return Message(content, reply_to=message)
