"""The one form of a result: rows with ours, peers, floors, spread and target.

A script measures, makes a ``Row`` for each measure with ``measured()``, and ends with ``show()``:
``--json`` prints one JSON document on one line, the last one of standard output; otherwise a table
is printed for people.

    {"rows": [{
        "row": "weighted mean, 20 x 5M float32",
        "unit": "s",
        "ours": 0.058,
        "peers": {"stock Flower": 0.131},
        "floor": {"torch add_": 0.023},
        "spread": {"ours": [0.055, 0.063], "stock Flower": [0.128, 0.140], "torch add_": [...]},
        "target": [{"at_most": 0.06}, {"at_most": 0.5, "of": "stock Flower"}],
        "how": "wall time; medians of 9 interleaved runs"
    }]}

``ours``, and each value of ``peers`` and ``floor``, is the median of what was measured; ``spread``
has the lowest and the highest value of each. ``target`` is a list of limits, all of which must
hold: ``at_most`` or ``at_least`` is compared with ``ours``, or, with ``of``, with ours divided by
the value of that peer or floor. An empty list states no target. ``how`` is one sentence: what was
timed, how often, and what a reader must know to repeat it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

__all__ = ["Limit", "Row", "at_least", "at_most", "interleave", "measured", "options", "show"]

OURS: Final = "ours"

Samples = float | Sequence[float]


class Limit(TypedDict, total=False):
    """One limit: ``at_most`` or ``at_least``, of ours alone or of its ratio to ``of``."""

    at_most: float
    at_least: float
    of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measure; the module's docstring states each field."""

    row: str
    unit: str
    ours: float
    peers: dict[str, float]
    floor: dict[str, float]
    spread: dict[str, list[float]]
    target: list[Limit]
    how: str

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Row:
        """Read a row. :raises ValueError: unless it has these fields and its limits can be met."""
        fields = {name: document.get(name) for name in cls.__dataclass_fields__}
        if set(document) != set(fields):
            raise ValueError(f"a row has {sorted(document)}, not {sorted(fields)}")
        row = cls(**fields)  # type: ignore[arg-type]
        row.check()
        return row

    def to_json(self) -> dict[str, Any]:
        """Return the row JSON-ready."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def check(self) -> None:
        """:raises ValueError: when a field has another type, or a limit names no value."""
        series = {OURS: self.ours, **self.peers, **self.floor}
        if not (self.row and self.unit and self.how):
            raise ValueError(f"{self.row!r} must state its name, its unit and how it was measured")
        for name, value in series.items():
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{self.row}: {name} is {value!r}, not a number from 0 up")
            lowest, highest = self.spread.get(name, [value, value])
            if not lowest <= value <= highest:
                raise ValueError(f"{self.row}: {name} {value} is not in [{lowest}, {highest}]")
        for limit in self.target:
            if ("at_most" in limit) == ("at_least" in limit):
                raise ValueError(f"{self.row}: a limit is at_most or at_least, not {limit}")
            if limit.get("of", OURS) not in series:
                raise ValueError(f"{self.row}: {limit} names none of {sorted(series)}")

    def ratio(self, name: str) -> float:
        """Return ours divided by the peer or floor ``name``; infinite when that is 0."""
        other = {**self.peers, **self.floor}[name]
        return self.ours / other if other else float("inf")

    def met(self) -> bool | None:
        """Return whether all limits hold; None without a limit."""
        if not self.target:
            return None
        return all(self._holds(limit) for limit in self.target)

    def _holds(self, limit: Limit) -> bool:
        value = self.ratio(limit["of"]) if "of" in limit else self.ours
        if "at_most" in limit:
            return value <= limit["at_most"]
        return value >= limit["at_least"]


def at_most(value: float, of: str | None = None) -> Limit:
    """Return the limit that ours, or its ratio to the series ``of``, is at most ``value``."""
    return {"at_most": value} if of is None else {"at_most": value, "of": of}


def at_least(value: float, of: str | None = None) -> Limit:
    """Return the limit that ours, or its ratio to the series ``of``, is at least ``value``."""
    return {"at_least": value} if of is None else {"at_least": value, "of": of}


def measured(
    row: str,
    *,
    unit: str,
    ours: Samples,
    peers: Mapping[str, Samples] | None = None,
    floor: Mapping[str, Samples] | None = None,
    target: Sequence[Limit] = (),
    how: str,
) -> Row:
    """Return a row from what was measured: each series is one number, or all its samples."""
    peers, floor = dict(peers or {}), dict(floor or {})
    series = {OURS: ours, **peers, **floor}
    several = {name: value for name, value in series.items() if isinstance(value, Sequence)}
    found = Row(
        row=row,
        unit=unit,
        ours=_median(ours),
        peers={name: _median(value) for name, value in peers.items()},
        floor={name: _median(value) for name, value in floor.items()},
        spread={name: [_short(min(v)), _short(max(v))] for name, v in several.items()},
        target=list(target),
        how=how,
    )
    found.check()
    return found


def interleave(
    tasks: Mapping[str, Callable[[], float]], *, repeat: int, warm: int = 1
) -> dict[str, list[float]]:
    """Call all tasks in turns, ``repeat`` times after ``warm`` unrecorded turns.

    A task does its work once and returns the number that it measured (seconds, bytes per second).
    The order is reversed in every second turn, so that no task always follows the same other one.
    """
    samples: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(-warm, repeat):
        order = list(tasks) if turn % 2 == 0 else list(reversed(tasks))
        for name in order:
            value = tasks[name]()
            if turn >= 0:
                samples[name].append(value)
    return samples


def options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with ``--json`` and ``--quick``, which every script takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--quick", action="store_true", help="seconds and small sizes: a test that it runs"
    )
    return parser


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print the rows, as one JSON document or for people."""
    if as_json:
        print(json.dumps({"rows": [row.to_json() for row in rows]}), flush=True)
        return
    for row in rows:
        verdict = {None: "", True: "   target met", False: "   TARGET MISSED"}[row.met()]
        print(f"{row.row}: {row.ours:.4g} {row.unit}{verdict}")
        for name, value in {**row.peers, **row.floor}.items():
            kind = "floor" if name in row.floor else "peer"
            print(f"    {kind} {name}: {value:.4g} {row.unit}   ours / it {row.ratio(name):.3g}")
    sys.stdout.flush()


def _median(samples: Samples) -> float:
    return _short(statistics.median(samples) if isinstance(samples, Sequence) else samples)


def _short(value: float) -> float:
    """Return the value with five significant digits, so that a committed file stays readable."""
    return float(f"{value:.5g}")
