"""Verification finds every change of a ledger's file, and names the entry."""

from __future__ import annotations

import itertools
import os
import sqlite3
from pathlib import Path

import pytest

from fedlearn.errors import LedgerError
from server.ledger import (
    LEDGER_FILE,
    Ledger,
    LedgerHead,
    LedgerReader,
)
from server.ledger.entry import canonical_body
from tests.fakes.ledger_file import KEY, OTHER, damage

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def fails(path: Path, head: LedgerHead | None = None) -> LedgerError:
    with pytest.raises(LedgerError) as caught:
        LedgerReader(path).verify(KEY.public_key(), expect_head=head)
    return caught.value


@pytest.mark.parametrize(
    "change",
    [
        "time = time + 1",
        "kind = 'policy'",
        'body = CAST(\'{"job":"else"}\' AS BLOB)',
        "body = CAST(replace(CAST(body AS TEXT), '0.5', '0.4') AS BLOB)",
        "previous = zeroblob(32)",
        "hash = zeroblob(32)",
        "signature = zeroblob(64)",
        "hash = zeroblob(31)",
        "signature = zeroblob(1)",
        "body = zeroblob(300000)",
        "body = CAST('[]' AS BLOB)",
        "body = CAST('{ }' AS BLOB)",
        "body = CAST('{\"loss\":NaN}' AS BLOB)",
        'body = CAST(\'{"a":1,"a":1}\' AS BLOB)',
        "body = x'ff'",
        "kind = 'No Kind'",
        "time = -1",
    ],
)
@pytest.mark.parametrize("number", [1, 4, 7])
def test_an_edit_is_found_and_the_entry_named(filled: Path, change: str, number: int) -> None:
    damage(filled, f"UPDATE entry SET {change} WHERE sequence = {number}")
    error = fails(filled)
    assert error.entry == number
    assert f"entry {number}:" in str(error)


def test_an_edit_with_its_hash_redone_is_found(filled: Path) -> None:
    entry = list(LedgerReader(filled).entries())[3]
    from server.ledger.entry import entry_hash

    body = canonical_body({"job": "demo", "round": 4, "loss": 0.0})
    digest = entry_hash(
        sequence=4, time=entry.time, kind=entry.kind, body=body, previous=entry.previous
    )
    damage(
        filled,
        f"UPDATE entry SET body = x'{body.hex()}', hash = x'{digest.hex()}' WHERE sequence = 4",
    )
    error = fails(filled)
    assert error.entry == 4
    assert "signature" in str(error)


def test_the_twin_of_a_signature_is_found(filled: Path) -> None:
    entry = list(LedgerReader(filled).entries())[2]
    s = ORDER - int.from_bytes(entry.signature[32:], "big")
    twin = entry.signature[:32] + s.to_bytes(32, "big")
    damage(filled, f"UPDATE entry SET signature = x'{twin.hex()}' WHERE sequence = 3")
    assert fails(filled).entry == 3


@pytest.mark.parametrize("number", [1, 2, 6])
def test_a_deletion_is_found(filled: Path, number: int) -> None:
    damage(filled, f"DELETE FROM entry WHERE sequence = {number}")
    assert fails(filled).entry == number


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_deletion_with_the_rest_renumbered_is_found(filled: Path, number: int) -> None:
    renumber = [
        f"UPDATE entry SET sequence = {later - 1} WHERE sequence = {later}"
        for later in range(number + 1, 8)
    ]
    damage(filled, f"DELETE FROM entry WHERE sequence = {number}", *renumber)
    assert fails(filled).entry == number


def test_reordering_is_found(filled: Path) -> None:
    for first, second in itertools.combinations((2, 4, 6), 2):
        copy = filled.with_name(f"copy-{first}-{second}.sqlite")
        copy.write_bytes(filled.read_bytes())
        damage(
            copy,
            f"UPDATE entry SET sequence = 99 WHERE sequence = {first}",
            f"UPDATE entry SET sequence = {first} WHERE sequence = {second}",
            f"UPDATE entry SET sequence = {second} WHERE sequence = 99",
        )
        assert fails(copy).entry == first


def test_an_insertion_is_found(filled: Path) -> None:
    damage(
        filled,
        *(f"UPDATE entry SET sequence = {n + 1} WHERE sequence = {n}" for n in range(7, 3, -1)),
        "INSERT INTO entry SELECT 4, time, kind, body, previous, hash, signature "
        "FROM entry WHERE sequence = 3",
    )
    assert fails(filled).entry == 4


def test_a_genuine_entry_appended_again_is_found(filled: Path) -> None:
    damage(
        filled,
        "INSERT INTO entry SELECT 8, time, kind, body, previous, hash, signature "
        "FROM entry WHERE sequence = 2",
    )
    assert fails(filled).entry == 8


def test_a_doubled_sequence_in_a_table_made_anew_is_found(filled: Path) -> None:
    damage(
        filled,
        "CREATE TABLE fresh AS SELECT * FROM entry",
        "INSERT INTO fresh SELECT * FROM entry WHERE sequence = 5",
        "DROP TABLE entry",
        "ALTER TABLE fresh RENAME TO entry",
    )
    error = fails(filled)
    assert error.entry == 5
    assert "twice" in str(error)


def test_a_cut_tail_is_found_only_with_a_head(filled: Path) -> None:
    head = LedgerReader(filled).head()
    damage(filled, "DELETE FROM entry WHERE sequence >= 6")
    assert LedgerReader(filled).verify(KEY.public_key()).entries == 5
    error = fails(filled, head)
    assert error.entry == 6
    assert "missing" in str(error)


def test_an_older_head_still_holds_after_the_ledger_grew(filled: Path) -> None:
    head = LedgerReader(filled).head()
    with Ledger.open(filled, KEY) as ledger:
        ledger.append("export", {})
    assert LedgerReader(filled).verify(KEY.public_key(), expect_head=head).head_checked


def test_a_ledger_written_anew_by_the_key_holder_is_found_with_a_head(
    filled: Path, tmp_path: Path
) -> None:
    head = LedgerReader(filled).head()
    anew = tmp_path / "anew"
    anew.mkdir()
    with Ledger.open(anew / LEDGER_FILE, KEY) as ledger:
        for number in range(9):
            ledger.append("round", {"round": number})
    assert fails(anew / LEDGER_FILE, head).entry == 7


def test_a_head_travels_as_a_file_and_as_one_word(filled: Path) -> None:
    head = LedgerReader(filled).head()
    assert head is not None
    assert LedgerHead.parse(head.to_bytes()) == head
    short = LedgerHead.parse(f" {head}\n".encode())
    assert (short.sequence, short.hash, short.signature) == (7, head.hash, b"")
    LedgerReader(filled).verify(KEY.public_key(), expect_head=short)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"format": "fedlearn-ledger-head/1"}',
        b'{"format": "fedlearn-ledger-head/1", "sequence": "1", "time": 0}',
        b'{"format": "fedlearn-ledger-head/1", "sequence": 1, "time": 0, "hash": "zz"}',
        b"[" * 4000,
        b"0:" + b"0" * 64,
        b"99999999999999999999:" + b"0" * 64,
        b"x" * 5000,
    ],
)
def test_a_broken_head_is_refused(data: bytes) -> None:
    with pytest.raises(LedgerError):
        LedgerHead.parse(data)


def test_a_head_signed_by_another_key_is_refused(filled: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with Ledger.open(other / LEDGER_FILE, OTHER) as ledger:
        ledger.append("round", {})
    error = fails(filled, LedgerReader(other / LEDGER_FILE).head())
    assert error.entry is None
    assert "head" in str(error)


def test_another_key_does_not_verify_it(filled: Path) -> None:
    with pytest.raises(LedgerError, match="entry 1") as caught:
        LedgerReader(filled).verify(OTHER.public_key())
    assert caught.value.entry == 1


def test_other_tables_and_triggers_do_not_matter(filled: Path) -> None:
    damage(
        filled,
        "CREATE TABLE notes (text)",
        "CREATE TRIGGER noise AFTER INSERT ON notes BEGIN DELETE FROM notes; END",
    )
    LedgerReader(filled).verify(KEY.public_key())


def test_a_view_in_place_of_the_table_is_refused(filled: Path) -> None:
    damage(
        filled,
        "ALTER TABLE entry RENAME TO hidden",
        "CREATE VIEW entry AS SELECT * FROM hidden",
    )
    assert "plain table" in str(fails(filled))


def test_a_file_overwritten_in_the_middle_is_found(path: Path) -> None:
    with Ledger.open(path, KEY) as ledger:
        for number in range(40):
            ledger.append("round", {"job": "demo", "filler": "x" * 2000, "round": number})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = os.urandom(4096)
    path.write_bytes(data)
    error = fails(path)
    assert error.entry is not None
    assert 1 < error.entry <= 40


@pytest.mark.parametrize("content", [b"", b"not a database, only text" * 400])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / LEDGER_FILE
    path.write_bytes(content)
    assert fails(path).entry is None
    if content:
        with pytest.raises(LedgerError):
            Ledger.open(path, KEY)


def test_another_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE entry (x)")
    connection.close()
    assert "not a ledger" in str(fails(path))
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger.open(path, KEY)
