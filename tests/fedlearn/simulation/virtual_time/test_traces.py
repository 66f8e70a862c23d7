"""Traces in CSV files: what they mean, and that each fault is named with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlearn.errors import ConfigError
from fedlearn.simulation.virtual_time.availability import availability_of
from fedlearn.simulation.virtual_time.durations import Durations
from fedlearn.simulation.virtual_time.setup import TimeSetup
from fedlearn.simulation.virtual_time.traces import availability_trace, of_sites, speed_trace


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_calls_of_a_site_take_the_seconds_of_its_rows_in_turn(tmp_path: Path) -> None:
    path = written(tmp_path, "site,seconds\nnorth, 3\n\nsouth,10.5\nnorth,4\n")
    assert speed_trace(path) == {"north": (3.0, 4.0), "south": (10.5,)}
    setup = TimeSetup(speed="trace", speed_trace=path, evaluation=0.5)
    found = Durations.of(setup, 7, ("south", "north"), lambda site: 0)
    assert [found.seconds("north", n, "train", 0) for n in (1, 2, 3)] == [3.0, 4.0, 3.0]
    assert found.seconds("south", 9, "evaluate", 0) == 5.25


def test_a_site_is_there_in_its_intervals_and_the_trace_repeats(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufeffsite,start_s,end_s\nnorth,50,100\nnorth,0,10\nsouth,20,120\n")
    model = availability_of(
        TimeSetup(availability="trace", availability_trace=path), 7, ("north", "south")
    )
    moments = [0, 9.9, 10, 49, 50, 99, 100, 119, 120, 129, 130, 171]
    assert [model.online("north", now) for now in moments] == [
        *(True, True, False, False, True, True, False, False, True, True, False, True),
    ]
    assert [model.changes("north", now) for now in (0, 10, 99, 100, 130)] == [10, 50, 100, 120, 170]
    assert model.changes("south", 120) == 140


def test_devices_are_drawn_where_a_trace_is_of_others(tmp_path: Path) -> None:
    path = written(tmp_path, "site,seconds\nd1,1\nd2,2\nd3,3\n")
    sites = [f"client-{n:04}" for n in range(300)]
    devices = speed_trace(path)
    found = of_sites(devices, sites, drawn=True, seed=7, path=path)
    counts = [list(found.values()).count(value) for value in devices.values()]
    assert min(counts) > 60
    assert found == of_sites(devices, sites, drawn=True, seed=7, path=path)
    with pytest.raises(ConfigError, match=r"no row for client-0000, one of 300 sites.*") as caught:
        of_sites(devices, sites, drawn=False, seed=7, path=path)
    assert 'trace_sites = "drawn"' in caught.value.hint


FAULTS: dict[str, tuple[str | bytes, str]] = {
    "another header": ("site,time\na,1\n", ":1: the header must be site,seconds, not site,time"),
    "no rows": ("site,seconds\n", ":1: has no rows"),
    "an empty file": ("", ":1: has no rows"),
    "a value too many": ("site,seconds\na,1\nb,1,2\n", ":3: a row has 2 values"),
    "text for a number": ("site,seconds\na,1\nb,fast\n", ":3: seconds must be a number of seconds"),
    "NaN": ("site,seconds\na,nan\n", ":2: seconds must be"),
    "infinity": ("site,seconds\na,inf\n", ":2: seconds must be"),
    "below 0": ("site,seconds\na,-1\n", ":2: seconds must be a number of seconds from 0, not '-1'"),
    "no name": ("site,seconds\n,1\n", ":2: site must be a name"),
    "a long name": ("site,seconds\n" + "x" * 300 + ",1\n", ":2: site must be a name of 1 to 256"),
    "an open quote": ('site,seconds\na,1\n"b,1\n', ": is not CSV"),
    "no text": (b"site,seconds\na,1\n\xff\xfe,2\n", ":3: is not UTF-8 text"),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_what_is_wrong_is_named_with_file_and_line(tmp_path: Path, name: str) -> None:
    text, words = FAULTS[name]
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        speed_trace(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


INTERVALS = {
    "an end before its start": ("a,10,5\n", ":2: end_s must be above start_s, 10, not 5"),
    "an empty interval": ("a,10,10\n", ":2: end_s must be above"),
    "two at once": ("a,0,10\nb,0,5\na,9,12\n", ":4: a is there already from an earlier row"),
}


@pytest.mark.parametrize("name", sorted(INTERVALS))
def test_intervals_that_cannot_be_are_named(tmp_path: Path, name: str) -> None:
    rows, words = INTERVALS[name]
    with pytest.raises(ConfigError) as caught:
        availability_trace(written(tmp_path, "site,start_s,end_s\n" + rows))
    assert words in str(caught.value)


def test_a_file_that_is_missing_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="the trace does not exist"):
        speed_trace(tmp_path / "trace.csv")
    monkeypatch.setattr("fedlearn.simulation.virtual_time.traces._MAX_ROWS", 3)
    rows = "".join(f"a,{n}\n" for n in range(4))
    with pytest.raises(ConfigError, match=":5: at most 3 rows are read"):
        speed_trace(written(tmp_path, "site,seconds\n" + rows))
    monkeypatch.setattr("fedlearn.simulation.virtual_time.traces._MAX_BYTES", 10)
    with pytest.raises(ConfigError, match="is larger than the 10 bytes"):
        speed_trace(tmp_path / "trace.csv")
