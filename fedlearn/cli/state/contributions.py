"""The contributions to a model as a table, and below it what admitted the clients."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fedlearn.job.model_name import run_of_model
from fedlearn.terminal.plaintext import printable
from fedlearn.terminal.table import table_lines
from server.ledger import Contribution, Json
from server.ledger.contributions import EntrySource

__all__ = ["contribution_lines", "run_named"]

_HEAD: Final = ("ROUND", "SITE", "TEE", "EXAMPLES", "UPDATE", "POLICY", "MEASURED")
_OTHER: Final = "other/"
"""Begins the names of claims of other jobs; see :mod:`attestation.logs.runtime_events`."""

_UNUSED: Final = re.compile(r"0{40,}|f{40,}")
"""A register as it is after a reset: nothing was measured into it (TPM 2.0, PC Client)."""

_SHOWN: Final = 16


def contribution_lines(found: Sequence[Contribution]) -> Iterator[str]:
    """Yield a table with one update a row, then each set of measurements once."""
    sets: dict[tuple[tuple[str, str], ...], int] = {}
    rows = []
    for item in found:
        measured = _measured(item.measurements)
        number = sets.setdefault(measured, len(sets) + 1) if measured else 0
        rows.append(
            (
                str(item.round),
                item.site,
                item.tee or "no admission",
                "?" if item.examples is None else str(item.examples),
                item.digest[:_SHOWN],
                item.policy[:_SHOWN] or "-",
                f"[{number}]" if number else "-",
            )
        )
    yield from table_lines(_HEAD, rows, numbers=("ROUND", "EXAMPLES"))
    for measured, number in sets.items():
        yield ""
        yield f"[{number}]"
        width = max(len(name) for name, _ in measured)
        yield from (printable(f"  {name:<{width}}  {value}") for name, value in measured)


def run_named(entries: EntrySource, reference: str) -> str:
    """Return the id of the run that ``NAME`` (the newest one) or ``NAME@N`` names in a ledger.

    A run that nobody submitted is returned as it was named.
    """
    runs = {reference: 0}
    for entry in entries(kind="job"):
        job = str(entry.body.get("job"))
        runs[job] = run_of_model(job, reference)
    return max(runs, key=lambda job: runs[job])


def _measured(measurements: Mapping[str, Json]) -> tuple[tuple[str, str], ...]:
    """Return what was measured for this job, by name."""
    return tuple(
        (name, str(value))
        for name, value in sorted(measurements.items())
        if not name.startswith(_OTHER) and not _UNUSED.fullmatch(str(value))
    )
