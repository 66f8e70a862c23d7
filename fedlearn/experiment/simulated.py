"""One cell in the simulator: the order as its arguments, its history as a result."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedlearn import config as reading
from fedlearn.errors import ConfigError
from fedlearn.experiment.orders import Order
from fedlearn.experiment.store import RoundResult
from fedlearn.results.run_folder import RunFolder
from fedlearn.simulation import SimulatedRun, SimulationSetup, simulate
from fedlearn.simulation.hooks import Call, Hook
from fedlearn.simulation.result import SimulatedRound

__all__ = ["Simulated", "rounds_of", "run_simulated"]

EPSILON: Final = "epsilon"
"""The metric with which clients report what they spent, in jobs whose clients add the noise."""

_PARTS: Final = ("server", "evaluate", "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What the simulator did: the rounds, and the clients' metrics in their last evaluation.

    A metric has its name with ``server.``, ``evaluate.`` or ``train.`` before it, after who
    reports it, and without, from the first of these that reports it in any round.
    """

    rounds: tuple[RoundResult, ...]
    clients: Mapping[str, Mapping[str, float]]
    insecure: str


def run_simulated(order: Order, folder: Path) -> Simulated:
    """Run a cell below ``folder``; one that was interrupted there goes on.

    :raises FedlearnError: when the simulation fails.
    """
    setup = None
    if order.setup is not None:
        setup = reading.read(
            SimulationSetup, order.setup, where="simulation.toml", base=order.setup_base
        )
    run_folder = folder / "run"
    observer = _Observer(folder / "progress", order.rounds)
    run = simulate(
        order.job,
        data=order.data,
        setup=setup,
        seed=order.cell.seed,
        overrides=dict(order.overrides),
        folder=run_folder,
        resume=run_folder.exists(),
        hooks=[*_hooks(order), observer],
    )
    return Simulated(
        rounds=rounds_of(run.history, _spent(run)),
        clients=observer.clients(),
        insecure=run.insecure,
    )


class _Observer(Hook):
    """Counts the rounds, and keeps what each client last evaluated."""

    def __init__(self, progress: Path, planned: int) -> None:
        self._progress = progress
        self._planned = planned
        self._round = 0
        self._evaluated: dict[str, dict[str, float]] = {}

    def answered(self, call: Call, asked: Any, arrays: Any, metrics: Mapping[str, float]) -> Any:
        """Keep the metrics of an evaluation; change nothing."""
        if call.kind == "evaluate":
            self._evaluated[call.site] = _numbers(metrics)
        elif call.kind == "train":
            self._begun(call.round)
        return arrays

    def _begun(self, round_: int) -> None:
        """A round has begun, so that the rounds before it are done."""
        if round_ != self._round:
            self._round = round_
            self._progress.write_text(f"{round_ - 1}/{self._planned}", encoding="ascii")

    def clients(self) -> dict[str, dict[str, float]]:
        """Return by metric the value of each client."""
        found: dict[str, dict[str, float]] = {}
        for site, metrics in sorted(self._evaluated.items()):
            for name, value in metrics.items():
                found.setdefault(name, {})[site] = value
        return found


def _hooks(order: Order) -> Sequence[Hook]:
    """Return the hooks of the experiment.

    :raises ConfigError: when they cannot be loaded.
    """
    if not order.hooks:
        return ()
    place, _, name = order.hooks.rpartition(":")
    try:
        if place.endswith(".py"):
            path = order.job.parent / place
            found = importlib.util.spec_from_file_location(path.stem, path)
            if found is None or found.loader is None:
                raise ImportError(f"{path} is not a Python file")
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        make: Callable[..., Sequence[Hook]] = getattr(module, name)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise ConfigError(f"cannot be loaded: {error}", key="hooks") from None
    return make(order.cell.hook_keys, tuple(order.content["job"]["sites"]), order.cell.seed)


def rounds_of(
    history: Sequence[SimulatedRound], spent: Mapping[int, float]
) -> tuple[RoundResult, ...]:
    """Return the rounds of a history.

    :param spent: by round, the epsilon spent so far, where the aggregator charges it.
    """
    preferred = _preferred(history)
    timed = any(each.virtual_seconds is not None for each in history)
    found, clock = [], 0.0
    for each in history:
        clock += each.virtual_seconds or 0.0
        metrics = {
            f"{part}.{name}": value
            for part in _PARTS
            for name, value in _numbers(getattr(each, part)).items()
        }
        short = {name: metrics[long] for name, long in preferred.items() if long in metrics}
        found.append(
            RoundResult(
                round=each.number,
                seconds=each.seconds,
                virtual_seconds=clock if timed else None,
                bytes_down=each.bytes_sent,
                bytes_up=each.bytes_received,
                epsilon=spent.get(each.number, short.get(EPSILON)),
                metrics={**metrics, **short},
            )
        )
    return tuple(found)


def _spent(run: SimulatedRun) -> dict[int, float]:
    rounds = RunFolder.load(run.folder).history().rounds
    return {each.number: each.privacy.epsilon for each in rounds if each.privacy is not None}


def _preferred(history: Sequence[SimulatedRound]) -> dict[str, str]:
    """Return for each metric the first of server, evaluate and train that reports it."""
    found: dict[str, str] = {}
    for part in _PARTS:
        for each in history:
            for name in _numbers(getattr(each, part)):
                found.setdefault(name, f"{part}.{name}")
    return found


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
