"""The faults of a running coordinator, reported by the parts that detect them, for ``/readyz``.

A thread that has to run as long as the coordinator is started by :meth:`Health.thread`: when it
ends early, that is a fault. A disk that cannot be written is a fault until it
can.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

__all__ = ["Health"]

_LOG = logging.getLogger(__name__)
_MOST_CHARS = 300


class Health:
    """The present faults by name. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: dict[str, str] = {}
        self._checks: dict[str, Callable[[], str]] = {}

    def fault(self, name: str, reason: str) -> None:
        """Note a fault, which lasts until :meth:`clear`."""
        with self._lock:
            known = self._faults.get(name)
            self._faults[name] = reason[:_MOST_CHARS]
        if known is None:
            _LOG.error("%s: %s", name, reason)

    def clear(self, name: str) -> None:
        """Note that a fault is over, if there was one."""
        with self._lock:
            known = self._faults.pop(name, None)
        if known is not None:
            _LOG.warning("%s: works again", name)

    def check(self, name: str, look: Callable[[], str]) -> None:
        """Call ``look`` for a fault whenever :meth:`faults` is called; ``""`` is none."""
        with self._lock:
            self._checks[name] = look

    def faults(self) -> Mapping[str, str]:
        """Return what is wrong now, by name; empty when nothing is."""
        with self._lock:
            found, checks = dict(self._faults), dict(self._checks)
        for name, look in checks.items():
            try:
                reason = look()
            except Exception as error:  # noqa: BLE001 (a check that fails is a fault)
                reason = f"cannot be looked at: {error}"
            if reason:
                found[name] = reason[:_MOST_CHARS]
        return found

    def thread(
        self, name: str, body: Callable[[], object], *, over: Callable[[], bool]
    ) -> threading.Thread:
        """Return a thread, not started, whose end is a fault unless ``over()`` is true then."""

        def run() -> None:
            reason = "it returned"
            try:
                body()
            except BaseException as error:  # noqa: BLE001 (it is reported as a fault)
                reason = f"{type(error).__name__}: {error}"
                _LOG.exception("thread %s ended", name)
            if not over():
                self.fault(f"thread {name}", f"the thread ended: {reason}")

        return threading.Thread(target=run, name=name, daemon=True)
