"""What each tracker does, and the names and values that it gets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from fedlearn.errors import FedlearnError
from fedlearn.results.history import Round

__all__ = ["RunId", "Tracker", "TrackingError", "flat", "round_values"]

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_\-. ]")
_MAX_NAME: Final = 200
_MAX_VALUE: Final = 500


class TrackingError(FedlearnError):
    """A tracker did not record something. The job is not affected."""

    code = "tracking"


@dataclass(frozen=True, slots=True)
class RunId:
    """Which run a tracker records.

    ``name`` is for people. ``id`` is the same whenever the same run is recorded, and another for
    each other run: 16 hexadecimal digits.
    """

    name: str
    id: str
    started_unix_ms: int

    @classmethod
    def of(cls, name: str, job: str, started_unix_ms: int) -> RunId:
        """Return the id of the run of ``job`` whose first event is of ``started_unix_ms``."""
        digest = hashlib.sha256(f"fedlearn run/1\0{job}\0{started_unix_ms}".encode())
        return cls(name, digest.hexdigest()[:16], started_unix_ms)


class Tracker(Protocol):
    """One run with a tracker; opening it again for the same :class:`RunId` continues it.

    A method may raise any error of the tracker's library.
    """

    @property
    def place(self) -> str:
        """Where the run is recorded, for people."""
        ...

    @property
    def recorded(self) -> int:
        """The step of the last round that is recorded; 0 for none."""
        ...

    def parameters(self, values: Mapping[str, str]) -> None:
        """Record what the run was started with; the same again changes nothing."""
        ...

    def round(self, step: int, values: Mapping[str, float], unix_ms: int) -> None:
        """Record the numbers of one round; each call has a larger ``step``."""
        ...

    def artifact(self, file: Path) -> None:
        """Keep a file with the run; one of the same name is replaced."""
        ...

    def end(self, status: str, unix_ms: int) -> None:
        """Record how the run ended: ``finished``, ``failed``, ``cancelled`` or ``interrupted``."""
        ...

    def close(self) -> None:
        """Hand over everything that was recorded. It is called once, and last."""
        ...


def round_values(each: Round) -> dict[str, float]:
    """Return the numbers of a finished round by name: its metrics, and those of fedlearn."""
    values: dict[str, float] = {_name(name): value for name, value in each.metrics.items()}
    values["round/number"] = float(each.number)
    values["round/seconds"] = each.seconds
    values["round/sites"] = float(each.sites)
    values["round/bytes"] = float(each.bytes)
    if each.privacy is not None:
        values["privacy/epsilon"] = each.privacy.epsilon
    return values


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested tables as one level of dotted names, with values as text of 500 characters.

    >>> flat({"rounds": 3, "sites": ["north", "south"], "strategy": {"name": "fedavg"}})
    {'rounds': '3', 'sites': 'north, south', 'strategy.name': 'fedavg'}
    """
    found: dict[str, str] = {}
    for key, value in table.items():
        name = f"{prefix}{_name(key)}"
        if isinstance(value, Mapping):
            found.update(flat(value, f"{name}."))
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            found[name] = text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"
    return found


def _name(text: str) -> str:
    """Return a name that every tracker takes; names of metrics come from an app."""
    parts = (_NOT_IN_NAMES.sub("_", part)[:_MAX_NAME].strip(".") for part in text.split("/"))
    return "/".join(part or "_" for part in parts)[:_MAX_NAME]
