"""What a simulation returns: the model, and the history of its rounds."""

from __future__ import annotations

import dataclasses
import json
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flwr.serverapp.strategy import Result

from fedlearn.errors import StoreError
from fedlearn.job.events import RoundFinished
from fedlearn.update.arrays import Array

__all__ = ["INSECURE", "SimulatedRound", "SimulatedRun", "history_json", "history_of", "rounds_of"]

INSECURE: Final = "simulated: attestation, TLS and sealing were left out"
"""What every output of a simulation states."""

NOISE_FROM_SEED: Final = (
    "the noise of [privacy] is derived from the job's seed and is not secret: who knows the seed "
    "can remove it"
)
"""What the outputs of a simulation with privacy state besides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRound:
    """One round; round 0 is the model before the first one.

    ``train``            metrics of training, over the clients that trained
    ``evaluate``         metrics of the clients' evaluation
    ``server``           metrics of the ServerApp's own evaluation
    ``sites``            how many updates are in the model
    ``bytes_sent``       to clients, as they would cross the wire; ``bytes_received`` from them
    ``bytes_saved``      by how much compression made that smaller
    ``seconds``          that the round took on this machine
    ``virtual_seconds``  that it took by the virtual time; None without one
    """

    number: int
    train: Mapping[str, Any] = field(default_factory=dict)
    evaluate: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)
    sites: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_saved: int = 0
    seconds: float = 0.0
    virtual_seconds: float | None = None


@dataclass(slots=True, kw_only=True, weakref_slot=True)
class SimulatedRun:
    """A simulation that has finished.

    ``folder``    of the run, which ``fedlearn job metrics``, ``compare`` and ``report`` read
    ``model``     the final global model by name; empty when no round made one
    ``history``   its rounds, with round 0 where the ServerApp evaluated the first model
    ``insecure``  what the simulation left out, in words
    """

    folder: Path
    model: dict[str, Array] = field(repr=False)
    history: tuple[SimulatedRound, ...] = field(repr=False)
    insecure: str = INSECURE

    def removed_with_it(self) -> None:
        """Remove the folder when this object is gone."""
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def rounds_of(
    result: Result | None,
    finished: Mapping[int, RoundFinished],
    real: Mapping[int, float],
    *,
    timed: bool,
) -> tuple[SimulatedRound, ...]:
    """Return the rounds of a stage.

    :param finished: the events of the rounds, by number.
    :param real: the seconds of this machine, by number.
    :param timed: whether the seconds of the events are virtual ones.
    """
    train: Mapping[int, Any] = {} if result is None else result.train_metrics_clientapp
    evaluate: Mapping[int, Any] = {} if result is None else result.evaluate_metrics_clientapp
    server: Mapping[int, Any] = {} if result is None else result.evaluate_metrics_serverapp
    found = []
    for number in sorted({*train, *evaluate, *server, *finished}):
        made = SimulatedRound(
            number=number,
            train=dict(train.get(number, {})),
            evaluate=dict(evaluate.get(number, {})),
            server=dict(server.get(number, {})),
        )
        event = finished.get(number)
        if event is not None:
            made = dataclasses.replace(
                made,
                sites=event.sites,
                bytes_sent=event.bytes - event.bytes_received,
                bytes_received=event.bytes_received,
                bytes_saved=event.bytes_saved,
                seconds=real.get(number, 0.0) if timed else event.seconds,
                virtual_seconds=event.seconds if timed else None,
            )
        found.append(made)
    return tuple(found)


def history_json(rounds: tuple[SimulatedRound, ...]) -> bytes:
    """Return a history as JSON, as the folder of a run keeps it."""
    return json.dumps([dataclasses.asdict(each) for each in rounds]).encode()


def history_of(data: bytes) -> tuple[SimulatedRound, ...]:
    """Return the history that :func:`history_json` wrote.

    :raises StoreError: when it is not one.
    """
    try:
        return tuple(SimulatedRound(**each) for each in json.loads(data))
    except (ValueError, TypeError) as error:
        raise StoreError(f"the history of the run cannot be read: {error}") from None
