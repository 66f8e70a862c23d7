"""The ledger keeps what was written, and one writer appends to it."""

from __future__ import annotations

import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import LedgerError, StoreError
from server.ledger import (
    LEDGER_FILE,
    MAX_BODY_BYTES,
    PUBLIC_KEY_FILE,
    Ledger,
    LedgerHead,
    LedgerReader,
    load_public_key,
)
from server.ledger.entry import canonical_body, parse_body
from tests.fakes.ledger_file import KEY, OTHER, damage


def test_entries_come_back_in_order_and_verify(filled: Path) -> None:
    reader = LedgerReader(filled)
    assert [entry.sequence for entry in reader.entries()] == list(range(1, 8))
    assert [entry.sequence for entry in reader.entries(after=2, kind="round")] == [3, 5, 7]
    assert [entry.sequence for entry in reader.entries(after=1, limit=2)] == [2, 3]
    verified = reader.verify(KEY.public_key())
    assert verified.entries == 7
    assert verified.kinds == {"round": 4, "update": 3}
    assert not verified.head_checked
    assert verified.head == reader.head()
    assert verified.first_time <= verified.last_time


def test_an_empty_ledger_is_intact(path: Path) -> None:
    Ledger.open(path, KEY).close()
    verified = LedgerReader(path).verify(KEY.public_key())
    assert (verified.entries, verified.head) == (0, None)


def test_it_goes_on_where_it_ended(filled: Path) -> None:
    with Ledger.open(filled, KEY) as ledger:
        entry = ledger.append("export", {"model": "demo", "version": 1})
        assert entry.sequence == 8
        assert ledger.verify(KEY.public_key()).entries == 8


def test_an_entry_is_json_ready(filled: Path) -> None:
    entry = next(LedgerReader(filled).entries())
    assert entry.to_json()["hash"] == entry.hash.hex()
    assert entry.to_json()["body"] == {"job": "demo", "round": 1, "loss": 0.5}


def test_a_missing_ledger_states_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as caught:
        LedgerReader(tmp_path / LEDGER_FILE)
    assert LEDGER_FILE in caught.value.hint


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"loss": float("nan")}, "body.loss"),
        ({"a": [1, {"b": b"bytes"}]}, r"body.a\[1\].b"),
        ({"n": 2**63}, "64 bits"),
        ({1: 2}, "not a string"),
        ({"s": "\ud800"}, "not JSON"),
        ({"x": "y" * (MAX_BODY_BYTES + 1)}, "at most"),
    ],
)
def test_a_body_that_json_cannot_hold_is_refused_and_nothing_appended(
    path: Path, body: dict[str, object], word: str
) -> None:
    with Ledger.open(path, KEY) as ledger:
        with pytest.raises(LedgerError, match=word):
            ledger.append("round", body)  # type: ignore[arg-type]
        assert ledger.head() is None


def test_a_deep_body_is_refused(path: Path) -> None:
    body: dict[str, object] = {}
    for _ in range(40):
        body = {"a": body}
    with Ledger.open(path, KEY) as ledger, pytest.raises(LedgerError, match="deeper"):
        ledger.append("round", body)  # type: ignore[arg-type]


def test_an_unknown_kind_is_refused(path: Path) -> None:
    with Ledger.open(path, KEY) as ledger, pytest.raises(LedgerError, match="gossip"):
        ledger.append("gossip", {})


def test_threads_append_without_a_gap(path: Path) -> None:
    with Ledger.open(path, KEY) as ledger:

        def work(name: int) -> None:
            for number in range(20):
                ledger.append("update", {"thread": name, "n": number})

        threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
        for thread in threads:
            thread.start()
        reads = 0
        while any(thread.is_alive() for thread in threads):
            reads = ledger.verify(KEY.public_key()).entries
        for thread in threads:
            thread.join()
        assert reads <= 120
        assert ledger.verify(KEY.public_key()).entries == 120
        for name in range(6):
            own = [e.body["n"] for e in ledger.entries() if e.body["thread"] == name]
            assert own == list(range(20))


def test_reading_sees_one_moment_while_entries_are_appended(path: Path) -> None:
    with Ledger.open(path, KEY) as ledger:
        for number in range(5):
            ledger.append("round", {"round": number})
        entries = ledger.entries()
        next(entries)
        ledger.append("round", {"round": 5})
        assert len(list(entries)) == 4


def test_a_second_writer_is_refused(path: Path) -> None:
    with Ledger.open(path, KEY):
        with pytest.raises(LedgerError, match="another process"):
            Ledger.open(path, KEY)
    Ledger.open(path, KEY).close()


def test_another_key_does_not_open_it(filled: Path) -> None:
    with pytest.raises(LedgerError, match="another key"):
        Ledger.open(filled, OTHER)
    (filled.parent / PUBLIC_KEY_FILE).unlink()
    with pytest.raises(LedgerError, match="entry 1"):
        Ledger.open(filled, OTHER)


def test_a_damaged_end_is_not_appended_to(filled: Path) -> None:
    damage(filled, "UPDATE entry SET time = 1 WHERE sequence = 7")
    with pytest.raises(LedgerError, match="entry 7") as caught:
        Ledger.open(filled, KEY)
    assert "verify" in caught.value.hint


def test_a_gap_is_not_appended_to(filled: Path) -> None:
    damage(filled, "DELETE FROM entry WHERE sequence = 3")
    with pytest.raises(LedgerError, match="entry 3: missing"):
        Ledger.open(filled, KEY)


def test_a_closed_ledger_takes_nothing(path: Path) -> None:
    ledger = Ledger.open(path, KEY)
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.append("round", {})


def test_plain_sql_cannot_change_an_entry_by_accident(filled: Path) -> None:
    connection = sqlite3.connect(filled)
    for statement in ("UPDATE entry SET time = 0", "DELETE FROM entry"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_files_are_for_the_coordinator_only(filled: Path) -> None:
    assert stat.S_IMODE(filled.stat().st_mode) == 0o600
    public = load_public_key(filled.parent / PUBLIC_KEY_FILE)
    assert public.public_numbers() == KEY.public_key().public_numbers()


def test_a_public_key_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / PUBLIC_KEY_FILE
    with pytest.raises(LedgerError, match="cannot be read"):
        load_public_key(path)
    for content in (b"", b"not a key", b"x" * 20000):
        path.write_bytes(content)
        with pytest.raises(LedgerError):
            load_public_key(path)


def test_a_key_of_another_kind_is_refused(path: Path, filled: Path) -> None:
    other = rsa.generate_private_key(65537, 2048).public_key()
    with pytest.raises(LedgerError, match="P-256"):
        LedgerReader(filled).verify(other)  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match="P-256"):
        LedgerReader(filled).verify(ec.generate_private_key(ec.SECP384R1()).public_key())


def test_a_full_disk_appends_nothing_and_states_it(path: Path) -> None:
    with Ledger.open(path, KEY) as ledger:
        ledger.append("round", {})
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(LedgerError, match="full") as caught:
            ledger.append("round", {"x": "y" * 20000})
        assert "disk" in caught.value.hint
        assert ledger.append("round", {}).sequence == 2
        assert ledger.verify(KEY.public_key()).entries == 2


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), json_values, max_size=4))
def test_a_body_has_one_canonical_form(body: dict[str, object]) -> None:
    data = canonical_body(body)  # type: ignore[arg-type]
    assert canonical_body(parse_body(data)) == data
    assert parse_body(data) == body


def test_the_writer_checks_the_whole_chain_when_it_opens(filled: Path) -> None:
    for number in (1, 3, 7):
        copy = filled.with_name(f"copy-{number}") / LEDGER_FILE
        copy.parent.mkdir()
        copy.write_bytes(filled.read_bytes())
        damage(copy, f"UPDATE entry SET kind = 'policy' WHERE sequence = {number}")
        with pytest.raises(LedgerError, match=f"entry {number}: altered"):
            Ledger.open(copy, KEY)


def test_a_ledger_that_must_exist_is_not_made_anew(path: Path) -> None:
    with pytest.raises(LedgerError, match="there was one") as caught:
        Ledger.open(path, KEY, create=False)
    assert caught.value.entry == 1
    assert list(path.parent.iterdir()) == []


def test_a_trigger_that_is_not_ours_is_refused(filled: Path) -> None:
    connection = sqlite3.connect(filled)
    connection.execute(
        "CREATE TRIGGER noise AFTER INSERT ON entry BEGIN INSERT INTO entry VALUES "
        "(99, 0, 'round', x'', x'', x'', x''); END"
    )
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="'noise' is not what a ledger has"):
        Ledger.open(filled, KEY)


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE entry SET body = x'7b7d' WHERE sequence = 4", "entry 4: not the one"),
        ("UPDATE entry SET kind = 'export' WHERE sequence = 4", "entry 4: not the one"),
        ("DELETE FROM entry WHERE sequence = 4", "entry 4: missing"),
        ("DELETE FROM entry WHERE sequence >= 4", "entry 4: missing"),
    ],
)
def test_an_edit_beside_the_running_writer_is_found_where_it_is_read(
    filled: Path, statement: str, found: str
) -> None:
    with Ledger.open(filled, KEY) as ledger:
        assert [e.sequence for e in ledger.entries(kind="update")] == [2, 4, 6]
        assert [e.sequence for e in ledger.entries(after=2, kind="update", limit=1)] == [4]
        damage(filled, statement)
        with pytest.raises(LedgerError, match=found):
            list(ledger.entries(kind="update"))
        with pytest.raises(LedgerError, match=found):
            list(ledger.entries())


def test_an_entry_slipped_in_beside_the_running_writer_is_not_read(filled: Path) -> None:
    with Ledger.open(filled, KEY) as ledger:
        damage(
            filled,
            "INSERT INTO entry SELECT 8, time, kind, body, previous, hash, signature "
            "FROM entry WHERE sequence = 2",
        )
        assert len(list(ledger.entries())) == 7
        with pytest.raises(LedgerError, match="could not be written"):
            ledger.append("export", {})
        with pytest.raises(LedgerError, match="entry 8: altered"):
            ledger.append("export", {})


def test_the_head_is_sealed_before_an_append_returns(filled: Path) -> None:
    sealed: list[LedgerHead] = []
    with Ledger.open(filled, KEY, seal=sealed.append) as ledger:
        entry = ledger.append("export", {})
        assert sealed[-1] == LedgerHead(sequence=8, hash=entry.hash) == ledger.head()
        with pytest.raises(LedgerError):
            ledger.append("gossip", {})
        assert len(sealed) == 1


def test_an_entry_whose_disk_refused_and_kept_it_is_followed(filled: Path) -> None:
    with Ledger.open(filled, KEY) as ledger:
        connection = ledger._connection

        class Failing:
            in_transaction = False

            def execute(self, statement: str, values: tuple[object, ...] = ()) -> None:
                connection.execute(statement, values)
                if statement == "COMMIT":
                    raise sqlite3.OperationalError("disk I/O error")

        ledger._connection = Failing()  # type: ignore[assignment]
        with pytest.raises(LedgerError, match="disk I/O error"):
            ledger.append("export", {})
        ledger._connection = connection
        assert ledger.append("export", {}).sequence == 9
        assert ledger.verify(KEY.public_key()).entries == 9


def test_a_head_that_was_not_sealed_is_sealed_before_anything_is_appended(filled: Path) -> None:
    sealed: list[int] = []
    broken = True

    def seal(head: LedgerHead) -> None:
        if broken:
            raise StoreError("no space left")
        sealed.append(head.sequence)

    with Ledger.open(filled, KEY, seal=seal) as ledger:
        for _ in range(2):
            with pytest.raises(LedgerError, match="entry 8 was appended, and its head"):
                ledger.append("export", {})
        assert ledger.verify(KEY.public_key()).entries == 8
        broken = False
        assert ledger.append("export", {}).sequence == 9
        assert sealed == [8, 9]
