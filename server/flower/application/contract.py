"""Checks that Flower's ``Strategy.start`` is one that the rounds of a job can replace.

Flower is used by its public interface, except here: :mod:`server.flower.aggregation.rounds`
replaces this function, and the checks compare the installed function with the replaced one.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from typing import Any, Final

from flwr.serverapp.strategy import Strategy

from fedlearn.app.flower import FlowerMismatch, mismatch

__all__ = ["FlowerMismatch", "check", "check_start"]

_PARAMETERS: Final = (
    "self",
    "grid",
    "initial_arrays",
    "num_rounds",
    "timeout",
    "train_config",
    "evaluate_config",
    "evaluate_fn",
)
_BODIES: Final = frozenset({"ce8c9834e592a755"})
"""The first digits of the SHA-256 of the source with these parameters, in 1.41 and 1.42."""

_ADDED: Final = frozenset({"should_stop"})
"""Parameters of later releases that the rounds support too. ``should_stop(server_round, result)``
came with 1.43: called after each round, it ends the run when it returns true."""


def check() -> None:
    """Check the ``Strategy.start`` of the installed Flower.

    :raises FlowerMismatch: when it is not one of the known versions.
    """
    check_start(Strategy.start)


def check_start(start: Callable[..., Any]) -> None:
    """Check that the rounds of a job can replace a ``Strategy.start``.

    A source with the parameters of 1.41 must be the source that was reviewed. A release that adds
    parameters has another source; it may add only the parameters that are known, and as options.

    :raises FlowerMismatch: when it is a different one.
    """
    found = inspect.signature(start).parameters
    added = [name for name in found if name in _ADDED]
    if tuple(name for name in found if name not in _ADDED) != _PARAMETERS:
        raise mismatch(f"Strategy.start takes {', '.join(found)}")
    for name in added:
        if found[name].default is not None:
            raise mismatch(f"Strategy.start needs {name}")
    if not added:
        digest = hashlib.sha256(inspect.getsource(start).encode()).hexdigest()[:16]
        if digest not in _BODIES:
            raise mismatch(f"the body of Strategy.start is not the reviewed one ({digest})")
