"""Canary sites: sites whose update moves one number of the model, or none.

They run in a copy of the job's app in which the module of the ClientApp is replaced, so that model,
ServerApp and everything after the app (clipping, noise, aggregation) are the job's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.app.checks import check_folder
from fedlearn.audit.target import AuditTarget
from fedlearn.errors import ConfigError

__all__ = ["canary_app", "canary_places", "write_canary"]

_FILE: Final = "canary.json"
_CLIENT: Final = '''\
"""A canary in place of the ClientApp of the job, written by fedlearn audit epsilon."""

import json

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

{name} = ClientApp()


@{name}.train()
def train(message, context):
    with open(f"{{context.node_config['data']}}/canary.json") as file:
        canary = json.load(file)
    arrays = {{key: value.numpy() for key, value in message.content["arrays"].items()}}
    count = sum(a.size for a in arrays.values() if np.issubdtype(a.dtype, np.floating))
    places = np.random.default_rng([canary["seed"], 5]).permutation(count)
    place = int(places[canary["number"]]) if canary["number"] < count else -1
    for key, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        if 0 <= place < array.size:
            arrays[key] = array.copy()
            arrays[key].reshape(-1)[place] += canary["step"]
        place -= array.size
    record = ArrayRecord({{key: _array(value) for key, value in arrays.items()}})
    content = {{"arrays": record, "metrics": MetricRecord({{"num-examples": 1}})}}
    return Message(RecordDict(content), reply_to=message)


def _array(values):
    from flwr.app import Array

    return Array(values)
'''
"""The ClientApp of a canary. It places the canary as :func:`canary_places` does."""


def canary_places(numbers: int, seed: int) -> NDArray[np.int64]:
    """Return an order of a model's floating-point numbers: the first is the first canary's."""
    return np.random.default_rng([seed, 5]).permutation(numbers)


def canary_app(target: AuditTarget, folder: Path) -> Path:
    """Write a copy of the job's app whose ClientApp is a canary, and return it.

    :raises ConfigError: when the app is a bundle, or its two parts share a module.
    """
    source = target.app_folder()
    application = check_folder(source)
    module, _, name = application.clientapp.partition(":")
    if module == application.serverapp.partition(":")[0]:
        raise ConfigError(
            f"ClientApp and ServerApp are in one module, {module}, and canaries replace that of "
            "the ClientApp alone",
            where=str(source),
            hint="part them",
        )
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder.joinpath(*module.split(".")).with_suffix(".py")
    if not file.is_file():
        file = folder.joinpath(*module.split("."), "__init__.py")
    file.write_text(_CLIENT.format(name=name))
    return folder


def write_canary(folder: Path, *, number: int, step: float, seed: int) -> None:
    """Write the data of a canary: by how much it moves its number of the model."""
    folder.mkdir(parents=True)
    text = json.dumps({"number": number, "step": step, "seed": seed})
    (folder / _FILE).write_text(text)
