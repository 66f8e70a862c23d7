"""Entries that arrive together are written together, and each is answered after its commit."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import DiskError, LedgerError, StoreError
from server.ledger import LEDGER_FILE, Ledger, LedgerHead, LedgerReader
from server.ledger.group_commit import MOST_AT_ONCE, GroupCommit
from tests.fakes.ledger_file import KEY

WRITER = """
import sys, threading
from pathlib import Path
from cryptography.hazmat.primitives import serialization
from server.ledger import Ledger

key = serialization.load_pem_private_key(Path(sys.argv[2]).read_bytes(), None)
ledger = Ledger.open(Path(sys.argv[1]), key)

def work(name):
    number = 0
    while True:
        number += 1
        entries = [("update", {"thread": name, "n": number, "part": part}) for part in range(3)]
        last = ledger.append_all(entries)[-1].sequence
        sys.stdout.write(f"{last} {name} {number}\\n")
        sys.stdout.flush()

for name in range(8):
    threading.Thread(target=work, args=(name,)).start()
"""


def together(works: Sequence[Callable[[], object]]) -> list[BaseException | None]:
    """Run each in a thread of its own; return what they raised."""
    raised: list[BaseException | None] = [None] * len(works)

    def run(index: int) -> None:
        try:
            works[index]()
        except BaseException as error:  # noqa: BLE001 (the test compares it)
            raised[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return raised


class Held:
    """A connection whose first commit waits until it is let go; ``fails`` is what it raises."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self.real = real
        self.commits = 0
        self.go = threading.Event()
        self.reached = threading.Event()
        self.fails: sqlite3.Error | None = None

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        if statement == "COMMIT":
            self.commits += 1
            self.reached.set()
            assert self.go.wait(30)
            if self.fails is not None and self.commits > 1:
                raise self.fails
        return self.real.execute(statement, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def waiting(ledger: Ledger) -> int:
    return len(ledger._bursts._waiting)


def burst(ledger: Ledger, held: Held, count: int) -> list[BaseException | None]:
    """Append ``count`` entries while the commit of one more runs; return what was raised."""
    ledger._connection = held  # type: ignore[assignment]
    first = threading.Thread(target=ledger.append, args=("round", {"n": -1}))
    first.start()
    assert held.reached.wait(30)

    def release() -> None:
        while waiting(ledger) < count:
            time.sleep(0.001)
        held.go.set()

    works = [lambda n=n: ledger.append("update", {"n": n}) for n in range(count)]
    raised = together([*works, release])
    first.join(30)
    ledger._connection = held.real
    return raised[:-1]


def test_what_arrives_during_a_commit_is_written_in_one(path: Path) -> None:
    sealed: list[LedgerHead] = []
    with Ledger.open(path, KEY, seal=sealed.append) as ledger:
        held = Held(ledger._connection)
        assert burst(ledger, held, 20) == [None] * 20
        assert held.commits == 2
        assert [head.sequence for head in sealed] == [1, 21]
        assert ledger.last_burst == 20
        entries = list(ledger.entries())
        assert {entry.body["n"] for entry in entries[1:]} == set(range(20))
        assert len({entry.time for entry in entries[1:]}) == 1
        assert ledger.verify(KEY.public_key()).entries == 21
    with Ledger.open(path, KEY) as again:
        assert again.last_burst == 20


def test_a_disk_that_fails_is_reported_to_each_of_a_burst_and_nothing_is_written(
    path: Path,
) -> None:
    with Ledger.open(path, KEY) as ledger:
        held = Held(ledger._connection)
        held.fails = sqlite3.OperationalError("database or disk is full")
        held.fails.sqlite_errorcode = sqlite3.SQLITE_FULL
        raised = burst(ledger, held, 8)
        assert all(isinstance(error, DiskError) for error in raised)
        assert "disk is full" in str(raised[0])
        assert [entry.body["n"] for entry in ledger.entries()] == [-1]
        assert ledger.append("round", {"n": 1}).sequence == 2
        assert ledger.verify(KEY.public_key()).entries == 2


def test_a_head_that_cannot_be_sealed_is_reported_to_each_of_a_burst(path: Path) -> None:
    def seal(head: LedgerHead) -> None:
        if head.sequence == 6:
            raise StoreError("no space left")

    with Ledger.open(path, KEY, seal=seal) as ledger:
        raised = burst(ledger, Held(ledger._connection), 5)
        assert all(isinstance(error, LedgerError) for error in raised)
        assert "entry 6 was appended" in str(raised[0])


def test_one_bad_entry_of_several_is_refused_with_all_of_them(path: Path) -> None:
    with Ledger.open(path, KEY) as ledger:
        for bad in (("gossip", {}), ("round", {"loss": float("nan")})):
            with pytest.raises(LedgerError):
                ledger.append_all([("round", {"n": 1}), bad])
        assert ledger.head() is None
        assert ledger.append_all([]) == []


def test_several_entries_of_one_caller_are_next_to_each_other(path: Path) -> None:
    with Ledger.open(path, KEY) as ledger:
        seen: list[int] = []
        ledger.subscribe(lambda entry: seen.append(entry.sequence))
        works = [
            lambda n=n: ledger.append_all([("update", {"n": n, "part": p}) for p in range(3)])
            for n in range(20)
        ]
        assert together(works) == [None] * 20
        bodies = [entry.body for entry in ledger.entries()]
        for start in range(0, 60, 3):
            assert [body["part"] for body in bodies[start : start + 3]] == [0, 1, 2]
            assert len({body["n"] for body in bodies[start : start + 3]}) == 1
        assert sorted(seen) == list(range(1, 61))


def test_entries_of_a_burst_that_change_places_are_found(path: Path) -> None:
    with Ledger.open(path, KEY) as ledger:
        ledger.append_all([("update", {"n": n}) for n in range(4)])
    with sqlite3.connect(path) as db:
        db.execute("DROP TRIGGER entry_is_not_changed")
        db.execute("UPDATE entry SET sequence = 99 WHERE sequence = 2")
        db.execute("UPDATE entry SET sequence = 2 WHERE sequence = 3")
        db.execute("UPDATE entry SET sequence = 3 WHERE sequence = 99")
    db.close()
    with pytest.raises(LedgerError) as caught:
        LedgerReader(path).verify(KEY.public_key())
    assert caught.value.entry == 2


def test_sigkill_in_a_burst_loses_only_what_nobody_was_answered_for(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    key_path, path = tmp_path / "key.pem", tmp_path / LEDGER_FILE
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    for answers in (3, 40):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(key_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            lines = [process.stdout.readline() for _ in range(answers)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.read().splitlines(keepends=True)
        finally:
            process.kill()
            process.wait(30)
        found = {entry.sequence: entry.body for entry in LedgerReader(path).entries()}
        answered = [tuple(map(int, line.split())) for line in lines if line.endswith(b"\n")]
        for last, thread, number in answered:
            assert (found[last]["thread"], found[last]["n"]) == (thread, number)
            assert [found[last - back]["part"] for back in (2, 1, 0)] == [0, 1, 2]
        assert LedgerReader(path).verify(key.public_key()).entries % 3 == 0


# --- the commit itself --------------------------------------------------------------------


def test_a_commit_takes_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    go, sizes = threading.Event(), list[int]()

    def commit(items: Sequence[int]) -> Sequence[int]:
        assert go.wait(30)
        sizes.append(len(items))
        return [2 * item for item in items]

    group = GroupCommit(commit)
    answers: dict[int, int] = {}
    count = MOST_AT_ONCE + 50

    def release() -> None:
        while len(group._waiting) < count - 1:
            time.sleep(0.001)
        go.set()

    works = [lambda n=n: answers.__setitem__(n, group.add(n)) for n in range(count)]
    assert together([*works, release]) == [None] * (count + 1)
    assert answers == {n: 2 * n for n in range(count)}
    assert sum(sizes) == count
    assert max(sizes) == MOST_AT_ONCE


def test_a_commit_without_an_answer_for_each_is_an_error_and_the_next_one_works() -> None:
    answers = [[], [1]]
    group: GroupCommit[str, int] = GroupCommit(lambda _: answers.pop(0))
    with pytest.raises(ValueError, match="shorter"):
        group.add("a")
    assert group.add("b") == 1
