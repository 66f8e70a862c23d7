"""Records a run from its events: while it runs, or after its end."""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, get_args

from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.extras import require
from fedlearn.job.events import Event, RoundStarted
from fedlearn.results.history import RunHistory
from fedlearn.tracking.tracker import RunId, Tracker, TrackingError, round_values

__all__ = ["TRACKERS", "Recorded", "TrackerName", "record"]

TrackerName = Literal["mlflow", "tensorboard", "wandb", "trackio"]
TRACKERS: Final[tuple[str, ...]] = get_args(TrackerName)

_REPORT: Final = "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What was recorded. ``place`` is where; ``rounds`` how many rounds are there now.

    ``status`` is that of the run, as in :class:`fedlearn.results.history.RunHistory`.
    """

    to: str
    place: str
    run: str
    rounds: int
    status: str


def record(
    events: Iterable[tuple[Event, int]],
    *,
    to: str,
    name: str,
    project: str,
    at: str = "",
    parameters: Mapping[str, str] = MappingProxyType({}),
    page: Callable[[RunHistory], str],
    show: Callable[[Event, int], object] = lambda event, unix_ms: None,
) -> Recorded:
    """Record a run; what is recorded already is not recorded again.

    A round is recorded once the next one begins, or the run or ``events`` ends. The report is
    recorded at the end of ``events``.

    :param events: those of the run from the first on, each with its time (Unix ms).
    :param to: one of :data:`TRACKERS`.
    :param name: the name of the run for people.
    :param project: the experiment (MLflow) or project that the run is part of.
    :param at: where the tracker keeps its data; each tracker has a default.
    :param parameters: what the run was started with.
    :param page: makes the report.
    :param show: is called with each event.
    :raises ConfigError: when the package of the tracker is not installed, or there is no event.
    :raises TrackingError: when the tracker does not record something. The run is not affected;
        recording it again continues.
    """
    require(to, needed_for=f"--to {to}")
    history = RunHistory()
    with contextlib.ExitStack() as stack:
        tracker: Tracker | None = None
        for event, unix_ms in events:
            history.add(event, unix_ms=unix_ms)
            if tracker is None:
                with _explained(to, at, None):
                    run = RunId.of(name, history.job or name, unix_ms)
                    tracker = _open(to, run, project=project, at=at)
                stack.callback(_close, to, tracker)
                with _explained(to, tracker.place, tracker):
                    tracker.parameters(parameters)
            show(event, unix_ms)
            if isinstance(event, RoundStarted) or event.final:
                _rounds(to, tracker, history)
        if tracker is None:
            raise ConfigError("has no event yet", where=name, hint="follow it when it has begun")
        _rounds(to, tracker, history)
        with _explained(to, tracker.place, tracker), _report(page(history)) as file:
            tracker.artifact(file)
            if history.ended:
                tracker.end(history.status, history.ended_unix_ms)
        return Recorded(
            to=to,
            place=tracker.place,
            run=name,
            rounds=tracker.recorded,
            status=history.status,
        )


def _open(to: str, run: RunId, *, project: str, at: str) -> Tracker:
    module = importlib.import_module(f"fedlearn.tracking.{to}")
    tracker: Tracker = module.open_tracker(run, project=project, at=at)
    return tracker


def _rounds(to: str, tracker: Tracker, history: RunHistory) -> None:
    """Record the finished rounds that are not recorded."""
    for step, each in enumerate(history.finished, 1):
        if step > tracker.recorded:
            with _explained(to, tracker.place, tracker):
                tracker.round(step, round_values(each), each.finished_unix_ms)


def _close(to: str, tracker: Tracker) -> None:
    with _explained(to, tracker.place, tracker):
        tracker.close()


@contextlib.contextmanager
def _report(page: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fedlearn-track-") as scratch:
        file = Path(scratch) / _REPORT
        file.write_text(page, encoding="utf-8")
        yield file


@contextlib.contextmanager
def _explained(to: str, place: str, tracker: Tracker | None) -> Iterator[None]:
    """Turn an error of the tracker's library into one that states what is recorded.

    :raises TrackingError: in its place.
    """
    try:
        yield
    except FedlearnError:
        raise
    except Exception as error:
        done = f"rounds up to {tracker.recorded} are recorded" if tracker else "nothing is recorded"
        first = next(iter(str(error).splitlines()), "")
        raise TrackingError(
            f"{to}{f' at {place}' if place else ''}: {type(error).__name__}: {first[:500]}",
            hint=f"{done}, and the job is not affected; once {to} answers, run the same command "
            "again: it continues",
        ) from error
