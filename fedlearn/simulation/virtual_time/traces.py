"""Traces of devices as CSV files: how long each takes, and when it is there.

A file has a header and one row for each value; lines that are empty are skipped. What is wrong is
named with the file and the line.
"""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeVar

from fedlearn import config
from fedlearn.errors import ConfigError
from fedlearn.simulation.virtual_time.draws import uniform

__all__ = ["Intervals", "availability_trace", "of_sites", "speed_trace"]

_MAX_BYTES: Final = 64 * 1024 * 1024
_MAX_ROWS: Final = 2_000_000
_MAX_NAME: Final = 256
_LONGEST: Final = 100 * 366 * 86_400.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Intervals:
    """When a device is there: ``starts`` and ``ends`` rise, and it repeats after ``period``."""

    starts: Sequence[float]
    ends: Sequence[float]
    period: float

    def online(self, now: float) -> bool:
        """Return whether it is there at a moment; an interval has its start and not its end."""
        place = now % self.period
        index = bisect_right(self.starts, place) - 1
        return index >= 0 and place < self.ends[index]

    def changes(self, now: float) -> float:
        """Return the first moment after ``now`` at which it may come or go."""
        place = now % self.period
        base = now - place
        later = [
            sequence[index]
            for sequence in (self.starts, self.ends)
            if (index := bisect_right(sequence, place)) < len(sequence)
        ]
        return base + min(later, default=self.period + self.starts[0])


def speed_trace(path: Path) -> dict[str, tuple[float, ...]]:
    """Return the seconds of each device of a trace; its calls take them in turn.

    :raises ConfigError: naming file and line of what is wrong.
    """
    found: dict[str, list[float]] = {}
    for line, (site, seconds) in _rows(path, ("site", "seconds")):
        found.setdefault(_name(path, line, site), []).append(
            _number(path, line, "seconds", seconds)
        )
    return {site: tuple(values) for site, values in found.items()}


def availability_trace(path: Path) -> dict[str, Intervals]:
    """Return when each device of a trace is there. All repeat after the last end in the file.

    :raises ConfigError: naming file and line of what is wrong.
    """
    found: dict[str, list[tuple[float, float, int]]] = {}
    for line, (site, start, end) in _rows(path, ("site", "start_s", "end_s")):
        first, last = _number(path, line, "start_s", start), _number(path, line, "end_s", end)
        if last <= first:
            raise _wrong(path, line, f"end_s must be above start_s, {first:g}, not {last:g}")
        found.setdefault(_name(path, line, site), []).append((first, last, line))
    period = max((end for each in found.values() for _, end, _ in each), default=0.0)
    devices = {}
    for site, each in found.items():
        each.sort()
        for (_, before, _), (begins, _, again) in pairwise(each):
            if begins < before:
                raise _wrong(path, again, f"{site} is there already from an earlier row")
        starts, ends, _ = zip(*each, strict=True)
        devices[site] = Intervals(starts, ends, period)
    return devices


def of_sites(
    devices: Mapping[str, T], sites: Sequence[str], *, drawn: bool, seed: int, path: Path
) -> dict[str, T]:
    """Return what a trace has for each site of a job.

    :param drawn: whether the devices are others, of which each site gets one by the seed.
    :raises ConfigError: naming a site that is not in the trace.
    """
    if drawn:
        names = sorted(devices)
        return {
            site: devices[names[int(uniform(seed, "device", site) * len(names))]] for site in sites
        }
    missing = [site for site in sites if site not in devices]
    if missing:
        raise ConfigError(
            f"has no row for {missing[0]}, one of {len(missing)} sites of the job that it lacks",
            where=str(path),
            hint='add rows for them, or set trace_sites = "drawn" in [time] to draw one of the '
            f"{len(devices)} devices of the trace for each site",
        )
    return {site: devices[site] for site in sites}


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    data = config.file_bytes(path, limit=_MAX_BYTES, what="the trace")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _wrong(path, line, "is not UTF-8 text") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    count = 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if header is None:
                header = cells
                if tuple(header) != columns:
                    raise _wrong(
                        path,
                        reader.line_num,
                        f"the header must be {','.join(columns)}, not {','.join(header)[:100]}",
                    )
                continue
            count += 1
            if count > _MAX_ROWS:
                raise _wrong(path, reader.line_num, f"at most {_MAX_ROWS} rows are read")
            if len(cells) != len(columns):
                raise _wrong(
                    path,
                    reader.line_num,
                    f"a row has {len(columns)} values ({','.join(columns)}), not {len(cells)}",
                )
            yield reader.line_num, cells
    except csv.Error as error:
        raise _wrong(path, reader.line_num, f"is not CSV: {error}") from None
    if not count:
        raise _wrong(path, 1, f"has no rows; it needs the header {','.join(columns)} and some")


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= _LONGEST:
        raise _wrong(path, line, f"{column} must be a number of seconds from 0, not {text[:40]!r}")
    return value


def _name(path: Path, line: int, text: str) -> str:
    if not 0 < len(text) <= _MAX_NAME:
        raise _wrong(path, line, f"site must be a name of 1 to {_MAX_NAME} characters")
    return text


def _wrong(path: Path, line: int, message: str) -> ConfigError:
    return ConfigError(message, where=f"{path}:{line}")
