"""What runs at a site."""

# mypy: disable-error-code="import-not-found, untyped-decorator, no-any-return"
from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from images_app import model

app = ClientApp()


@functools.lru_cache(maxsize=4)
def pictures(folder: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels of one part of the site's data; read once a process."""
    with np.load(Path(folder) / f"{part}.npz", allow_pickle=False) as arrays:
        return model.tensors(arrays["images"], arrays["labels"])


@functools.lru_cache(maxsize=2)
def network(size: int) -> model.Net:
    """Return the network that this process keeps between rounds."""
    return model.Net(size)


def net_of(message: Message, context: Context) -> model.Net:
    """Return the network with the weights that came with ``message``."""
    arrays = message.content["arrays"]
    if not isinstance(arrays, ArrayRecord):
        raise TypeError("the message carries no arrays")
    net = network(int(context.run_config["image-size"]))
    model.load(net, {name: array.numpy() for name, array in arrays.items()})
    return net


def generator(message: Message, context: Context) -> np.random.Generator:
    """Return a generator that depends on seed, round and site, and on nothing else."""
    config = message.content["config"]
    if not isinstance(config, ConfigRecord):
        raise TypeError("the message carries no configuration")
    seed = int(context.run_config["seed"])
    return np.random.default_rng(
        [seed, int(config["server-round"]), int(context.node_config["partition-id"])]
    )


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on the site's own images and reply with the weights."""
    images, labels = pictures(str(context.node_config["data"]), "train")
    net = net_of(message, context)
    config = context.run_config
    loss = model.train(
        net,
        images,
        labels,
        epochs=int(config["local-epochs"]),
        batch=int(config["batch-size"]),
        rate=float(config["learning-rate"]),
        momentum=float(config["momentum"]),
        rng=generator(message, context),
    )
    arrays = ArrayRecord({name: Array(array) for name, array in model.unload(net).items()})
    metrics = MetricRecord({"num-examples": len(labels), "loss": loss})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge the weights on the site's test images."""
    images, labels = pictures(str(context.node_config["data"]), "test")
    loss, right = model.measure(net_of(message, context), images, labels)
    metrics = MetricRecord(
        {"num-examples": len(labels), "loss": loss, "accuracy": right / len(labels)}
    )
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
