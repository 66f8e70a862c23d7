"""The sealed logs of apps at the coordinator: bounded, kept in order, and named when altered."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.errors import StoreError
from fedlearn.job.app_log import SealedAppLog
from fedlearn.sealing.app_log import MAX_SEALED_BYTES
from server.jobs.records.app_log_store import APP_LOGS_FILE, MAX_SITE_BYTES, AppLogStore

KEY = bytes(range(32))
STREAM = b"s" * 16


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AppLogStore]:
    made = AppLogStore(tmp_path, key=KEY)
    yield made
    made.close()


def log(sequence: int, *, size: int = 100) -> SealedAppLog:
    return SealedAppLog(
        client="c1", stream=STREAM, round=1, sequence=sequence, sealed=bytes([sequence]) * size
    )


def sequences(store: AppLogStore, job: str, site: str) -> list[int]:
    return [each.sequence for each in store.of_site(job, site)]


def test_logs_come_back_as_they_were_added(store: AppLogStore, tmp_path: Path) -> None:
    for sequence in range(3):
        store.add("alpha", "north", log(sequence), sites=2)
    store.add("alpha", "south", log(7), sites=2)
    store.add("beta", "north", log(8), sites=2)
    assert list(store.of_site("alpha", "north")) == [log(0), log(1), log(2)]
    store.close()
    again = AppLogStore(tmp_path, key=KEY)
    again.add("alpha", "north", log(3), sites=2)
    assert sequences(again, "alpha", "north") == [0, 1, 2, 3]
    again.forget("alpha")
    assert sequences(again, "alpha", "north") == sequences(again, "alpha", "south") == []
    assert sequences(again, "beta", "north") == [8]
    again.close()


def test_what_is_forgotten_is_not_left_in_the_file(store: AppLogStore, tmp_path: Path) -> None:
    for sequence in range(20):
        store.add("alpha", "north", log(sequence, size=5000), sites=1)
        store.add("beta", "north", log(100 + sequence, size=5000), sites=1)
    store.forget("alpha")
    store.close()
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert bytes([100]) * 1000 in data
    assert not any(bytes([sequence]) * 1000 in data for sequence in range(1, 20))


def test_a_site_has_its_part_and_takes_none_of_another(store: AppLogStore) -> None:
    store.add("alpha", "south", log(0), sites=2)
    most = MAX_SITE_BYTES // MAX_SEALED_BYTES
    for sequence in range(most + 3):
        store.add("alpha", "north", log(sequence, size=MAX_SEALED_BYTES), sites=2)
    # The newest stay: a crash is at the end.
    assert sequences(store, "alpha", "north") == list(range(3, most + 3))
    assert sequences(store, "alpha", "south") == [0]


def test_with_many_sites_each_keeps_at_least_one_log(store: AppLogStore) -> None:
    for sequence in range(2):
        store.add("alpha", "north", log(sequence, size=MAX_SEALED_BYTES), sites=1000)
    assert sequences(store, "alpha", "north") == [1]


def test_a_log_that_was_altered_on_the_disk_is_named(store: AppLogStore, tmp_path: Path) -> None:
    for sequence in range(3):
        store.add("alpha", "north", log(sequence), sites=2)
    with sqlite3.connect(tmp_path / APP_LOGS_FILE) as db:
        db.execute("UPDATE app_logs SET sealed = x'00' WHERE sequence = 1")
        db.execute("UPDATE app_logs SET site = 'south' WHERE sequence = 2")
    db.close()
    found = list(store.of_site("alpha", "north"))
    assert found[0] == log(0)
    assert (found[1].sealed, found[1].fault) == (b"", "it was altered on the coordinator's disk")
    # What was moved to another site is not taken for one of its logs.
    assert [each.fault != "" for each in store.of_site("alpha", "south")] == [True]


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / APP_LOGS_FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"app-logs\.sqlite"):
        AppLogStore(tmp_path, key=KEY)
