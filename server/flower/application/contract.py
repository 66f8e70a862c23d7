"""What is known of Flower's ``Strategy.start``, whose place the rounds of a job take.

Flower is used by its public interface; this is the one place where behaviour is replaced, so
it is checked that the replaced behaviour is the one that :mod:`server.flower.aggregation.rounds`
imitates.
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
"""The start of the SHA-256 of the source with these parameters: that of 1.41 and 1.42."""

_ADDED: Final = frozenset({"should_stop"})
"""Parameters of later releases that the rounds know too. ``should_stop(server_round, result)``
came with 1.43: called after each round, it ends the run when it returns true."""


def check() -> None:
    """Check the ``Strategy.start`` of the installed Flower.

    :raises FlowerMismatch: when it is not one of the known versions.
    """
    check_start(Strategy.start)


def check_start(start: Callable[..., Any]) -> None:
    """Check that a ``Strategy.start`` does what the rounds of a job do in its place.

    A source with the parameters of 1.41 has to be one that was read. A release that adds
    parameters has another source; it may only add those that are known, and as options.

    :raises FlowerMismatch: when it is another one.
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
            raise mismatch(f"the body of Strategy.start is another one ({digest})")
