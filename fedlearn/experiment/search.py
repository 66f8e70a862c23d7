"""A search by Optuna (Akiba et al. 2019), whose draws are a function of the file and the results.

Trials are drawn in batches of the size that the file states, and a batch is reported to the sampler
in the order of its numbers when all of it has ended. So a search that was interrupted draws the
same trials again, finds the results of those that have finished, and goes on.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedlearn import extras
from fedlearn.experiment.spec import ExperimentSpec, Search, Variable
from fedlearn.job.tables import Scalar

__all__ = ["Trial", "run_search"]

Trial = tuple[int, Mapping[str, Scalar]]
"""The number of a trial and its values."""


def run_search(
    spec: ExperimentSpec, search: Search, values: Callable[[Sequence[Trial]], Sequence[float]]
) -> list[Trial]:
    """Draw all trials of a search and return them in their order.

    :param values: returns the metric of each trial of a batch, NaN for one that failed.
    :raises ConfigError: when optuna is not installed.
    """
    optuna = extras.load("optuna", needed_for="the search of an experiment")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=spec.direction, sampler=_sampler(optuna, search))
    done: list[Trial] = []
    while len(done) < search.trials:
        count = min(search.batch, search.trials - len(done))
        asked = [study.ask() for _ in range(count)]
        batch = [
            (trial.number, {key: _drawn(trial, key, v) for key, v in search.variables.items()})
            for trial in asked
        ]
        for trial, value in zip(asked, values(batch), strict=True):
            if math.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
        done += batch
    return done


def _sampler(optuna: Any, search: Search) -> Any:
    samplers = optuna.samplers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match search.sampler:
            case "random":
                return samplers.RandomSampler(seed=search.seed)
            case "cmaes":
                return samplers.CmaEsSampler(seed=search.seed)
            case _:
                # In a batch, a trial that runs counts as a bad one: the next is drawn elsewhere.
                return samplers.TPESampler(seed=search.seed, constant_liar=search.batch > 1)


def _drawn(trial: Any, key: str, variable: Variable) -> Scalar:
    if variable.choices:
        return trial.suggest_categorical(key, list(variable.choices))  # type: ignore[no-any-return]
    low, high = variable.low, variable.high
    if low is None or high is None:
        raise ValueError(f"{key}: has neither bounds nor choices")
    if variable.whole:
        return int(trial.suggest_int(key, int(low), int(high), log=variable.log))
    return float(trial.suggest_float(key, low, high, log=variable.log))
