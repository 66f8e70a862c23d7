"""The classes of the strategies that a job may name: Flower's, and ours for what Flower lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import flwr.serverapp.strategy as strategies

from fedlearn.app.flower import has
from server.flower.aggregation.robust.classes import FLTrust, GeometricMedian, NormClipping
from server.flower.aggregation.strategies.feddyn import FedDyn
from server.flower.aggregation.strategies.fednova import FedNova
from server.flower.aggregation.strategies.scaffold import Scaffold

__all__ = ["CLASSES", "check_classes", "class_of", "name_of"]

CLASSES: Final[Mapping[str, str]] = {
    "bulyan": "Bulyan",
    "fedadagrad": "FedAdagrad",
    "fedadam": "FedAdam",
    "fedavg": "FedAvg",
    "fedavgm": "FedAvgM",
    "feddyn": "FedDyn",
    "fedmedian": "FedMedian",
    "fednova": "FedNova",
    "fedprox": "FedProx",
    "fedtrimmedavg": "FedTrimmedAvg",
    "fedyogi": "FedYogi",
    "fltrust": "FLTrust",
    "geomedian": "GeometricMedian",
    "krum": "Krum",
    "multikrum": "MultiKrum",
    "normclip": "NormClipping",
    "qfedavg": "QFedAvg",
    "scaffold": "Scaffold",
}
"""Classes by the names that a job may use: Flower's, and our own for what Flower does not have."""

_OWN: Final[Mapping[str, Any]] = {
    "FedDyn": FedDyn,
    "FLTrust": FLTrust,
    "FedNova": FedNova,
    "GeometricMedian": GeometricMedian,
    "NormClipping": NormClipping,
    "Scaffold": Scaffold,
}


def check_classes() -> None:
    """Check that Flower still has every strategy that a job may name.

    :raises FlowerMismatch: naming the first that is missing.
    """
    for name in CLASSES:
        class_of(name)


def name_of(strategy: object) -> str | None:
    """Return the name of a strategy that is one of Flower's, unchanged; None for another one."""
    return next((name for name in CLASSES if type(strategy) is class_of(name)), None)


def class_of(name: str) -> Any:
    """Return the class of one of :data:`CLASSES`; raises FlowerMismatch where it is missing."""
    title = CLASSES[name]
    if title in _OWN:
        return _OWN[title]
    has(strategies, title)
    return getattr(strategies, title)
