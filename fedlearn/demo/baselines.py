"""The baselines for the federated model, trained by the code that the sites run.

``alone``    a site trains on its own rows, with as many passes over them as in the job
``member``   the same for one hospital of a site; where a site is a group of owners
``pooled``   all rows in one place, which the sites do not allow: the upper reference

:func:`federate` is federated averaging without Flower, in one process: the expected result of the
deployed job, and fast enough to repeat over many splits.

Every model is evaluated on the test rows of all sites, because the model should work for new
patients everywhere; the figures on a site's own test rows are given in addition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from fedlearn.demo import app
from fedlearn.demo.data import Arrays, DemoData, SiteData
from fedlearn.demo.significance import Gain, gain_in_area, gain_in_share

__all__ = [
    "Baselines",
    "Judge",
    "SiteBaseline",
    "compare",
    "federate",
    "judge",
    "settings_of",
]

Weights = Mapping[str, npt.NDArray[Any]]
Settings = Mapping[str, int | float | str]

_ALONE: Final = 1_000_003
_MEMBER: Final = 1_000_033
_POOLED: Final = 1_000_037


class Judge(Protocol):
    """Trains and evaluates models with an app's own code."""

    def start(self) -> Weights:
        """Return the weights before the first round."""
        ...

    def train(
        self,
        rows: Arrays,
        *,
        epochs: int,
        rng: np.random.Generator,
        weights: Weights | None = None,
    ) -> Weights:
        """Return weights after ``epochs`` passes over ``rows``.

        :param weights: the initial weights; :meth:`start` by default.
        """
        ...

    def score(self, weights: Weights, rows: Arrays) -> float:
        """Return the metric of ``weights`` on ``rows``; NaN where it is not defined."""
        ...

    def gain(self, weights: Weights, others: Sequence[Weights], rows: Arrays) -> Gain:
        """Return the metric of ``weights`` less the mean of the ``others``, on ``rows``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteBaseline:
    """One site that trains alone. ``own``: metric on its own test rows, ``all``: on all."""

    site: str
    all: float
    own: float
    weights: Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """``member`` is the mean over single owners; None where sites have no owners inside.

    ``test`` are the test rows of all sites.
    """

    test: Arrays
    sites: tuple[SiteBaseline, ...]
    pooled: float
    member: float | None
    members: int


def settings_of(data: DemoData, *, rounds: int | None = None) -> dict[str, int | float | str]:
    """Return the ``run_config`` that a job on ``data`` runs with."""
    config = {**app.settings(data.app), **data.settings, "seed": data.seed}
    if rounds is not None:
        config["num-server-rounds"] = rounds
    return config


def judge(data: DemoData, settings: Settings) -> Judge:
    """Return the trainer for the app of ``data``."""
    model = app.module(data.app, "model")
    if data.app == "medpar":
        return _Medpar(settings, model, app.module("medpar", "ranking"))
    return _Images(settings, model, app.module("images", "initial"))


def compare(data: DemoData, settings: Settings) -> Baselines:
    """Train every baseline on ``data`` and evaluate it."""
    court = judge(data, settings)
    epochs = int(settings["num-server-rounds"]) * int(settings["local-epochs"])
    pooled = data.pooled()
    sites = []
    for number, site in enumerate(data.sites):
        rng = np.random.default_rng([data.seed, _ALONE, number])
        weights = court.train(site.train, epochs=epochs, rng=rng)
        sites.append(
            SiteBaseline(
                site=site.name,
                all=court.score(weights, pooled.test),
                own=court.score(weights, site.test),
                weights=weights,
            )
        )
    rng = np.random.default_rng([data.seed, _POOLED])
    members = _members(court, data, epochs)
    return Baselines(
        test=pooled.test,
        sites=tuple(sites),
        pooled=court.score(court.train(pooled.train, epochs=epochs, rng=rng), pooled.test),
        member=float(np.mean(members)) if members else None,
        members=len(members),
    )


def federate(data: DemoData, settings: Settings) -> list[Weights]:
    """Return the global model after each round of federated averaging.

    Seeds, order of the sites and 32-bit weights are those of the apps.
    """
    court = judge(data, settings)
    rows = np.array([site.train_rows for site in data.sites], dtype=np.float64)
    model = court.start()
    models: list[Weights] = []
    for number in range(1, int(settings["num-server-rounds"]) + 1):
        updates = [
            court.train(
                site.train,
                epochs=int(settings["local-epochs"]),
                rng=np.random.default_rng([int(settings["seed"]), number, index]),
                weights=model,
            )
            for index, site in enumerate(data.sites)
        ]
        model = {
            name: np.average(
                [np.asarray(update[name], np.float32) for update in updates],
                axis=0,
                weights=rows,
            ).astype(np.float32)
            for name in model
        }
        models.append(model)
    return models


def _members(court: Judge, data: DemoData, epochs: int) -> list[float]:
    pooled = data.pooled()
    scores = []
    for number, site in enumerate(data.sites):
        for member in range(len(site.members)):
            rows = _select(site, member)
            if not _any(rows):
                continue
            rng = np.random.default_rng([data.seed, _MEMBER, number, member])
            scores.append(court.score(court.train(rows, epochs=epochs, rng=rng), pooled.test))
    return scores


def _select(site: SiteData, member: int) -> Arrays:
    mine = site.train_members == member
    return {name: array[mine] for name, array in site.train.items()}


def _any(rows: Arrays) -> bool:
    return len(next(iter(rows.values()))) > 0


class _Medpar:
    def __init__(self, settings: Settings, model: ModuleType, ranking: ModuleType) -> None:
        self._settings, self._model, self._ranking = settings, model, ranking

    def start(self) -> Weights:
        return {"weights": self._model.initial()}

    def train(
        self,
        rows: Arrays,
        *,
        epochs: int,
        rng: np.random.Generator,
        weights: Weights | None = None,
    ) -> Weights:
        features, outcome = self._model.design(rows["stays"])
        first = weights if weights is not None else self.start()
        trained = self._model.train(
            np.asarray(first["weights"], np.float64),
            features,
            outcome,
            epochs=epochs,
            batch=int(self._settings["batch-size"]),
            rate=float(self._settings["learning-rate"]),
            l2=float(self._settings["l2"]),
            rng=rng,
        )
        return {"weights": trained}

    def score(self, weights: Weights, rows: Arrays) -> float:
        scores, outcome = self._predict(weights, rows)
        if outcome.min() == outcome.max():
            return float("nan")
        return float(self._ranking.area(*self._ranking.histogram(scores, outcome)).value)

    def gain(self, weights: Weights, others: Sequence[Weights], rows: Arrays) -> Gain:
        scores, outcome = self._predict(weights, rows)
        every = [self._predict(other, rows)[0] for other in others]
        # As in score(): what falls into one bin is not ordered.
        bins = self._ranking.BINS
        return gain_in_area(
            np.floor(scores * bins), [np.floor(each * bins) for each in every], outcome > 0.5
        )

    def _predict(self, weights: Weights, rows: Arrays) -> tuple[Any, Any]:
        features, outcome = self._model.design(rows["stays"])
        return self._model.predict(np.asarray(weights["weights"], np.float64), features), outcome


class _Images:
    def __init__(self, settings: Settings, model: ModuleType, initial: ModuleType) -> None:
        self._settings, self._model, self._initial = settings, model, initial

    def start(self) -> Weights:
        size, seed = int(self._settings["image-size"]), int(self._settings["seed"])
        weights: Weights = self._initial.weights(size, seed)
        return weights

    def train(
        self,
        rows: Arrays,
        *,
        epochs: int,
        rng: np.random.Generator,
        weights: Weights | None = None,
    ) -> Weights:
        net = self._net(weights if weights is not None else self.start())
        self._model.train(
            net,
            *self._model.tensors(rows["images"], rows["labels"]),
            epochs=epochs,
            batch=int(self._settings["batch-size"]),
            rate=float(self._settings["learning-rate"]),
            momentum=float(self._settings["momentum"]),
            rng=rng,
        )
        trained: Weights = self._model.unload(net)
        return trained

    def score(self, weights: Weights, rows: Arrays) -> float:
        right = self._right(weights, rows)
        return float(right.mean()) if len(right) else float("nan")

    def gain(self, weights: Weights, others: Sequence[Weights], rows: Arrays) -> Gain:
        every = [self._right(other, rows) for other in others]
        return gain_in_share(self._right(weights, rows), every)

    def _right(self, weights: Weights, rows: Arrays) -> npt.NDArray[np.bool_]:
        images, labels = self._model.tensors(rows["images"], rows["labels"])
        right: npt.NDArray[np.bool_] = self._model.right(self._net(weights), images, labels)
        return right

    def _net(self, weights: Weights) -> Any:
        net = self._model.Net(int(self._settings["image-size"]))
        self._model.load(net, weights)
        return net
