"""What runs at a site: local training by the algorithm that the job's ``[config]`` names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import cross_entropy

from algorithms_app import task
from fedlearn.training import (
    Ditto,
    FedDyn,
    FedNova,
    Moon,
    PersonalLayers,
    Proximal,
    Scaffold,
    batch_norm,
    matching,
    only,
)

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model of the message; reply with an update."""
    config = context.run_config
    x, y = task.load(str(context.node_config["data"]))
    model = task.new_model(config)
    name = str(config["algorithm"])
    received = message.content["arrays"]
    metrics: dict[str, float] = {"num-examples": len(y)}
    arrays = None

    def optimizer_of(parameters: list[nn.Parameter]) -> torch.optim.SGD:
        rate, momentum = float(config["learning-rate"]), float(config["momentum"])
        return torch.optim.SGD(parameters, lr=rate, momentum=momentum)

    def epochs(
        trained: nn.Module,
        optimizer: torch.optim.Optimizer,
        more: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        trained.train()
        for _ in range(int(config["local-epochs"])):
            for batch in torch.randperm(len(y)).split(int(config["batch"])):
                if len(batch) < 2:
                    continue  # one example has no variance
                optimizer.zero_grad()
                z = trained.features(x[batch])
                loss = cross_entropy(trained.head(z), y[batch])
                if more is not None:
                    loss = loss + more(x[batch], z)
                loss.backward()
                optimizer.step()
                metrics["loss"] = loss.item()

    if name in {"fedbn", "fedper", "fedrep"}:
        names = batch_norm(model) if name == "fedbn" else matching(model, "head.*")
        personal = PersonalLayers(context, names)
        personal.load(model, received)
        if name == "fedrep":
            with only(model, names) as parameters:
                epochs(model, optimizer_of(parameters))
            with only(model, set(model.state_dict()) - names) as parameters:
                epochs(model, optimizer_of(parameters))
        else:
            epochs(model, optimizer_of(list(model.parameters())))
        arrays = personal.shared(model)
    else:
        model.load_state_dict(received.to_torch_state_dict())
        optimizer = optimizer_of(list(model.parameters()))
        match name:
            case "fedavg":
                epochs(model, optimizer)
            case "fedprox":
                Proximal.of_job(message, model).attach(optimizer)
                epochs(model, optimizer)
            case "scaffold":
                scaffold = Scaffold(message, context, model)
                scaffold.attach(optimizer)
                epochs(model, optimizer)
                metrics |= scaffold.finish()
            case "fednova":
                nova = FedNova()
                nova.attach(optimizer)
                epochs(model, optimizer)
                metrics |= nova.finish()
            case "feddyn":
                dyn = FedDyn(message, context, model)
                dyn.attach(optimizer)
                epochs(model, optimizer)
                dyn.finish()
            case "moon":
                moon = Moon(context, model, mu=1.0, temperature=0.5)
                epochs(model, optimizer, lambda x, z: moon.loss(lambda each: each.features(x), z))
                moon.keep(model)
            case "ditto":
                ditto = Ditto(context, model, weight=0.1)
                epochs(model, optimizer)
                own = optimizer_of(list(ditto.model.parameters()))
                ditto.attach(own)
                epochs(ditto.model, own)
                ditto.keep()
            case other:
                raise ValueError(f"the algorithm {other!r} is not one of this app")
    content = {
        "arrays": ArrayRecord(model.state_dict()) if arrays is None else arrays,
        "metrics": MetricRecord(metrics),
    }
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the model that a site would use: with its personal layers, or its own."""
    config = context.run_config
    x, y = task.load(str(context.node_config["data"]))
    model = task.new_model(config)
    name, received = str(config["algorithm"]), message.content["arrays"]
    if name in {"fedbn", "fedper", "fedrep"}:
        names = batch_norm(model) if name == "fedbn" else matching(model, "head.*")
        PersonalLayers(context, names).load(model, received)
    else:
        model.load_state_dict(received.to_torch_state_dict())
    if name == "ditto":
        model = Ditto(context, model, weight=0.1).model
    metrics = MetricRecord({"num-examples": len(y), **task.judge(model, x, y)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
