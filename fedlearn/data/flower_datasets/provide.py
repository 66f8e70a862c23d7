"""Makes ``flwr_datasets`` importable, and names of the Hub local, in this process."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fedlearn import extras
from fedlearn.data.flower_datasets import partitioner
from fedlearn.data.flower_datasets.federated_dataset import FederatedDataset
from fedlearn.data.flower_datasets.local import loader
from fedlearn.errors import ConfigError

__all__ = ["VARIABLE", "provide", "provide_as_asked"]

VARIABLE = "FEDLEARN_DATASETS"
"""The environment variable that names the folder for simulated apps."""

_NAME = "flwr_datasets"


def provide(folder: Path) -> None:
    """Let apps in this process load data sets by their names on the Hub from below ``folder``.

    ``flwr_datasets`` becomes the drop-in where the original is not installed, and
    ``datasets.load_dataset`` reads local files, for both. Call it before the app is imported; a
    second call with another folder replaces the first.

    :raises ConfigError: when there is no such folder, or ``datasets`` is not installed.
    """
    if not folder.is_dir():
        raise ConfigError("is no folder of data sets", where=str(folder))
    datasets: Any = extras.load("datasets", needed_for="data sets by their names on the Hub")
    before = datasets.load_dataset
    original = getattr(before, "original", before)
    replaced: Any = loader(folder.absolute(), original)
    replaced.original = original
    datasets.load_dataset = replaced
    if _NAME not in sys.modules and importlib.util.find_spec(_NAME) is None:
        module = ModuleType(_NAME, "fedlearn's drop-in for Flower Datasets.")
        module.__dict__.update(
            FederatedDataset=FederatedDataset, partitioner=partitioner, __path__=[]
        )
        sys.modules[_NAME] = module
        sys.modules[f"{_NAME}.partitioner"] = partitioner


def provide_as_asked() -> None:
    """Call :func:`provide` where the environment variable ``FEDLEARN_DATASETS`` names a folder.

    :raises ConfigError: as :func:`provide` does.
    """
    if folder := os.environ.get(VARIABLE):
        provide(Path(folder))
