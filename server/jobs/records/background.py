"""Work of a job that its next step does not wait for: one at a time, and no error is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

__all__ = ["BackgroundWork"]


class BackgroundWork:
    """Does one thing after the other in a thread. Safe to use from many threads.

    What it raised is raised once, by the next call of any method.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._last: Future[None] | None = None

    def begin(self, work: Callable[[], object]) -> None:
        """Begin ``work`` when what was begun before has ended; return at once then.

        Raises what the work before raised; ``work`` is not begun then.
        """
        self.settle()
        done: Future[None] = Future()

        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 (it is raised by the next call)
                done.set_exception(error)
            else:
                done.set_result(None)

        with self._lock:
            self._last = done
        threading.Thread(target=run, name=self._name, daemon=True).start()

    def check(self) -> None:
        """Raise what the last work raised, if it has ended."""
        with self._lock:
            ended = self._last is not None and self._last.done()
        if ended:
            self.settle()

    def settle(self) -> None:
        """Wait for the end of the last work; raises what it raised."""
        with self._lock:
            last = self._last
        if last is None:
            return
        try:
            last.result()
        finally:
            with self._lock:
                if self._last is last:
                    self._last = None
