"""The user's modules in the process of a simulation, and how many threads arithmetic has there."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedlearn.extras import load

__all__ = ["app_modules", "threads"]


@contextlib.contextmanager
def app_modules(folder: Path) -> Iterator[None]:
    """A context in which modules of an unpacked app are imported, and after which they are gone.

    So the next simulation in this process imports its own app, also where that has modules of the
    same names. Modules of these names that were imported before are back afterwards.
    """
    names = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    before = {name: sys.modules.pop(name) for name in _of(names)}
    path = list(sys.path)
    try:
        yield
    finally:
        for name in _of(names):
            del sys.modules[name]
        sys.modules.update(before)
        sys.path[:] = path
        importlib.invalidate_caches()


def _of(names: set[str]) -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] in names]


@contextlib.contextmanager
def threads(environment: Mapping[str, str]) -> Iterator[None]:
    """A context in which numerical libraries of this process use one thread.

    The number of threads determines the order of additions, and so the last bits of sums; it must
    not be that of this machine. In the field the aggregator has one thread, and an app as many as
    the job's ``resources.cpu``.

    :param environment: variables for the libraries that the app imports.
    :raises ConfigError: when threadpoolctl is not installed.
    """
    threadpoolctl = load("threadpoolctl", needed_for="a simulation")
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    torch: Any = sys.modules.get("torch")
    had = None if torch is None else torch.get_num_threads()
    try:
        with threadpoolctl.threadpool_limits(limits=1):
            if torch is not None:
                torch.set_num_threads(1)
            yield
    finally:
        if torch is not None:
            torch.set_num_threads(had)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
