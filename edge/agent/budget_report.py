"""The output of ``fedlearn-edge budget show``: a row for each data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edge.agent.data_budget import BudgetAccounts, Charge, Limit, limits
from edge.config.site import SiteConfig
from fedlearn.privacy.spec import UNITS

__all__ = ["Row", "rows", "sentences"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One data set. ``limit`` is None where the site sets none.

    ``epsilon``  what all charges cost together, reserved rounds of running jobs included, at
                 ``delta``: that of the limit, or without one the smallest of the jobs'
    ``unit``     what it is for: that of the limit, or without one the smallest of the jobs'
    """

    name: str
    place: str
    limit: Limit | None
    epsilon: float
    delta: float
    unit: str
    charges: tuple[Charge, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready values; ``limit`` and ``left`` are null without one."""
        limit = None if self.limit is None else self.limit.epsilon
        return {
            "name": self.name,
            "place": self.place,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "limit": limit,
            "left": None if limit is None else max(limit - self.epsilon, 0.0),
            "jobs": [
                {
                    "name": charge.job,
                    "digest": charge.digest,
                    "running": bool(charge.assignment),
                    "bounded": charge.privacy is not None,
                    "reserved": charge.reserved,
                    "spent": charge.spent,
                    "counted": charge.rounds,
                }
                for charge in self.charges
            ],
        }


def rows(config: SiteConfig, book: BudgetAccounts) -> tuple[Row, ...]:
    """Return a row for each data set of the site, and for each other place that jobs have used."""
    limited = {limit.name: limit for limit in limits(config)}
    places = {name: data.place for name, data in sorted(config.data.items())}
    known = set(places.values())
    places |= {charge.place: charge.place for charge in book.charges if charge.place not in known}
    return tuple(_row(name, place, limited.get(name), book) for name, place in places.items())


def _row(name: str, place: str, limit: Limit | None, book: BudgetAccounts) -> Row:
    charges = book.concerning(name, place)
    deltas = [charge.privacy.delta for charge in charges if charge.privacy is not None]
    delta = limit.delta if limit is not None else min(deltas, default=1e-6)
    units = [charge.privacy.unit for charge in charges if charge.privacy is not None]
    least = min(units, key=UNITS.index, default="site")
    asked = limit or Limit(name=name, place=place, epsilon=0.0, delta=delta, unit=least)
    return Row(
        name=name,
        place=place,
        limit=limit,
        epsilon=book.epsilon(asked),
        delta=delta,
        unit=asked.unit,
        charges=charges,
    )


def sentences(row: Row) -> Iterator[str]:
    """Yield the lines for the terminal."""
    of = "no limit" if row.limit is None else f"of {row.limit.epsilon:g}"
    yield (
        f"{row.name}  epsilon {row.epsilon:.4g} {of} at delta {row.delta:g}, unit {row.unit}  "
        f"({row.place})"
    )
    for charge in row.charges:
        running = ", running" if charge.assignment else ""
        if charge.privacy is None:
            yield f"  {charge.job}  no epsilon bounds what it revealed{running}"
            continue
        yield (
            f"  {charge.job}  {charge.rounds} rounds counted, {charge.spent} updates left, "
            f"{charge.reserved} reserved{running}"
        )
