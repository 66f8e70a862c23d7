"""Runs cells, each in a process of its own, so many at a time as there are cores for.

A process ends with the command that started it, whatever ends that. A cell that was interrupted has
no result and no failure: the next run continues it from its last checkpoint. Each process computes
in one thread, so that a result does not depend on how many run at the same time.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fedlearn.errors import Interrupted, StoreError
from fedlearn.experiment.orders import Order
from fedlearn.experiment.store import Failure, Store
from fedlearn.local.children import Child, Children

__all__ = ["COMMAND", "Progress", "ShowProgress", "cores", "duration_text", "run_orders"]

COMMAND: Final = (sys.executable, "-m", "fedlearn.experiment.cell_main")
"""What runs a cell."""

_EVERY_SECONDS: Final = 0.2
_REPORT_SECONDS: Final = 10.0
_TAIL_LINES: Final = 20
_INTERRUPTED: Final = 130
_SIGNALS: Final = 128

_ENVIRONMENT: Final[Mapping[str, str]] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What has happened.

    ``kind``          ``started``, ``finished`` and ``failed`` are about ``cell``; ``running`` is
                      reported now and then
    ``done``          cells that have finished or failed in this run, of ``total``
    ``seconds``       that the cell took, for ``finished``
    ``left_seconds``  estimate until the last cell ends, from the rounds so far; None at the start
    ``rounds``        rounds done in this run, of ``planned_rounds``
    """

    kind: Literal["started", "finished", "failed", "running"]
    cell: str
    done: int
    total: int
    failed: int
    rounds: int
    planned_rounds: int
    seconds: float = 0.0
    left_seconds: float | None = None
    error: str = ""


ShowProgress = Callable[[Progress], object]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def duration_text(seconds: float) -> str:
    """Return a duration in words, coarser the longer it is.

    >>> duration_text(7.4), duration_text(190), duration_text(40_000)
    ('7 s', '3 min', '11 h 7 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def run_orders(
    store: Store,
    orders: Sequence[Order],
    *,
    jobs: int,
    show: ShowProgress = lambda _: None,
    command: Sequence[str] = (),
) -> int:
    """Run cells and return how many failed; each has a result or a failure in ``store`` then.

    The caller holds the lock of the store.

    :param jobs: how many run at the same time, from 1.
    :param command: of the process of a cell, instead of :data:`COMMAND`; the folder of the cell
        is added.
    :raises Interrupted: at Ctrl-C, when all processes have ended. Results are kept.
    """
    with Children(store.folder / "logs", _ENVIRONMENT) as children:
        running = _Running(store, orders, children, command or COMMAND, show)
        try:
            while running.step(jobs):
                time.sleep(_EVERY_SECONDS)
        except KeyboardInterrupt:
            children.stop()
            running.collect()
            raise Interrupted(
                f"{running.done} of {len(orders)} cells ended; their results are kept, and "
                f"{len(orders) - running.done} are not finished",
                hint="`fedlearn experiment resume` goes on",
            ) from None
        return running.failed


class _Running:
    def __init__(
        self,
        store: Store,
        orders: Sequence[Order],
        children: Children,
        command: Sequence[str],
        show: ShowProgress,
    ) -> None:
        self._store = store
        self._orders = orders
        self._children = children
        self._command = command
        self._show = show
        self._waiting = list(orders)
        self._active: dict[str, tuple[Order, Child, float]] = {}
        self._ended_rounds = 0
        self._before = {order.key: store.progress(order.key)[0] for order in orders}
        self._began = self._shown = time.monotonic()
        self.done = 0
        self.failed = 0

    def step(self, jobs: int) -> bool:
        """Take in what has ended and start what may; return whether anything is left to do."""
        self.collect()
        while self._waiting and len(self._active) < jobs:
            self._start(self._waiting.pop(0))
        if time.monotonic() - self._shown > _REPORT_SECONDS:
            self._report("running", "")
        return bool(self._active)

    def collect(self) -> None:
        """Take in the cells whose processes have ended."""
        for key, (order, child, began) in list(self._active.items()):
            if child.status is not None:
                del self._active[key]
                self._end(order, child, time.monotonic() - began)

    def _start(self, order: Order) -> None:
        folder = self._store.cell_folder(order.key)
        order.write(folder)
        self._store.forget_failure(order.key)
        child = self._children.start(order.key, [*self._command, str(folder)])
        self._active[order.key] = (order, child, time.monotonic())
        self._report("started", order.cell.name)

    def _end(self, order: Order, child: Child, seconds: float) -> None:
        error = ""
        try:
            finished = self._store.result(order.key) is not None
        except StoreError as damaged:
            finished, error = False, str(damaged)
        if not finished and child.status == _INTERRUPTED:
            return  # it was interrupted, with this process
        self.done += 1
        self._ended_rounds += order.rounds - self._before[order.key]
        if finished:
            self._report("finished", order.cell.name, seconds=seconds)
            return
        self.failed += 1
        failure = self._store.failure(order.key)
        if failure is None:
            how = error or f"the process of the cell {_how(child.status)}"
            tail = child.tail(_TAIL_LINES)
            failure = Failure(error=how, tail=tail, unix_ms=int(time.time() * 1000))
            self._store.write_failure(order.key, failure)
        self._report("failed", order.cell.name, seconds=seconds, error=failure.error)

    def _report(
        self,
        kind: Literal["started", "finished", "failed", "running"],
        cell: str,
        *,
        seconds: float = 0.0,
        error: str = "",
    ) -> None:
        self._shown = time.monotonic()
        planned = sum(order.rounds - self._before[order.key] for order in self._orders)
        rounds = self._ended_rounds + sum(
            max(0, self._store.progress(key)[0] - self._before[key]) for key in self._active
        )
        passed = time.monotonic() - self._began
        self._show(
            Progress(
                kind=kind,
                cell=cell,
                done=self.done,
                total=len(self._orders),
                failed=self.failed,
                rounds=rounds,
                planned_rounds=planned,
                seconds=seconds,
                left_seconds=passed / rounds * (planned - rounds) if rounds else None,
                error=error,
            )
        )


def _how(status: int | None) -> str:
    # The shell that watches over the process adds 128 to the number of a signal.
    if status is not None and status > _SIGNALS:
        return f"was killed by signal {status - _SIGNALS}; was there enough memory?"
    return f"ended with status {status} and left no result"
