"""Ctrl-C, once this process waits for an event of a job."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

from tests.fakes.lone_coordinator import Coordinator


@contextlib.contextmanager
def interrupted(coordinator: Coordinator) -> Iterator[None]:
    """A context in which this process gets SIGINT, as by Ctrl-C, once it waits for an event."""
    coordinator.waits.clear()
    over = threading.Event()

    def interrupt() -> None:
        coordinator.waits.wait(60)
        time.sleep(0.2)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        over.set()
        coordinator.waits.set()
        thread.join()
