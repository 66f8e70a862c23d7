"""A commitment holds a client to its records, and shows one without the others."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import CommitmentError
from fedlearn.update.commitment import (
    Commitment,
    Disclosure,
    commit,
    prove,
    verify_disclosure,
)

SEED = bytes(range(32))


def check(commitment: Commitment, shown: Disclosure) -> None:
    verify_disclosure(
        commitment.root, commitment.count, shown.index, shown.record, shown.salt, shown.path
    )


def by_definition(leaves: list[bytes]) -> bytes:
    """The recursive definition of RFC 9162, section 2.1.1, over finished leaves."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    left, right = by_definition(leaves[:split]), by_definition(leaves[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


@pytest.mark.parametrize("count", [*range(1, 20), 31, 32, 33, 100])
def test_the_root_is_that_of_the_definition_and_every_record_can_be_shown(count: int) -> None:
    records = [f"record {n}".encode() * (n % 4) for n in range(count)]
    found = commit(iter(records), SEED)
    leaves = []
    for index, record in enumerate(records):
        shown = prove(records, SEED, index, found)
        check(found, shown)
        assert shown.record == record
        leaves.append(hashlib.sha256(b"\x00" + shown.salt + record).digest())
    assert found == Commitment(root=by_definition(leaves), count=count)
    assert len(set(leaves)) == count


def test_a_disclosure_travels_as_a_file() -> None:
    records = [b"a", b"b", b"c"]
    found = commit(records, SEED)
    shown = prove(records, SEED, 1, found)
    assert Disclosure.parse(shown.to_bytes()) == shown
    check(found, Disclosure.parse(shown.to_bytes()))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b'{"format": "fedlearn-disclosure/1"}',
        b'{"format": "fedlearn-disclosure/1", "index": "1", "path": []}',
        b'{"format": "fedlearn-disclosure/1", "index": 1, "path": {}}',
        b'{"format": "fedlearn-disclosure/1", "index": 1, "path": [1], "record": "", "salt": ""}',
        b'{"format": "fedlearn-disclosure/1", "index": 1, "path": [], "record": "x", "salt": ""}',
        b"\xff\xfe",
    ],
)
def test_a_broken_disclosure_is_refused(data: bytes) -> None:
    with pytest.raises(CommitmentError, match="disclosure"):
        Disclosure.parse(data)


def test_any_change_of_a_disclosure_is_refused() -> None:
    records = [f"{n}".encode() for n in range(11)]
    found = commit(records, SEED)
    for index in range(11):
        shown = prove(records, SEED, index, found)
        flipped = bytes([shown.path[0][0] ^ 1]) + shown.path[0][1:]
        changed = [
            replace(shown, record=shown.record + b"!"),
            replace(shown, index=(index + 1) % 11),
            replace(shown, index=11),
            replace(shown, index=-1),
            replace(shown, salt=bytes(32)),
            replace(shown, salt=shown.salt[:-1]),
            # The boundary of salt and record cannot be moved.
            replace(shown, salt=shown.salt[:-1], record=shown.salt[-1:] + shown.record),
            replace(shown, path=shown.path[:-1]),
            replace(shown, path=(*shown.path, bytes(32))),
            replace(shown, path=(flipped, *shown.path[1:])),
            replace(shown, path=shown.path[::-1][: len(shown.path) - 1]),
            replace(shown, path=(shown.path[0][:-1], *shown.path[1:])),
            replace(shown, path=(bytes(32),) * 1000),
        ]
        for item in changed:
            with pytest.raises(CommitmentError):
                check(found, item)
        for other in (
            replace(found, root=bytes(32)),
            replace(found, count=64),
            replace(found, count=1),
        ):
            with pytest.raises(CommitmentError):
                check(other, shown)


def test_an_inner_node_is_no_record() -> None:
    records = [b"a", b"b", b"c", b"d"]
    found = commit(records, SEED)
    first, third = (prove(records, SEED, index, found) for index in (0, 2))
    # Were leaves and nodes hashed alike, the two children would pass for salt and record.
    left = third.path[1]
    right = first.path[1]
    assert hashlib.sha256(b"\x01" + left + right).digest() == found.root
    with pytest.raises(CommitmentError):
        verify_disclosure(found.root, 1, 0, right, left, ())


def test_a_doubled_last_record_gives_another_root() -> None:
    roots = {commit([b"a", b"b", b"c"], SEED).root, commit([b"a", b"b", b"c", b"c"], SEED).root}
    assert len(roots) == 2


def test_changed_data_are_noticed() -> None:
    records = [f"{n}".encode() for n in range(9)]
    found = commit(records, SEED)
    with pytest.raises(CommitmentError, match="not those"):
        prove([b"x", *records[1:]], SEED, 3, found)
    with pytest.raises(CommitmentError, match="no record 9"):
        prove(records, SEED, 9, found)


def test_the_seed_hides_what_could_be_guessed() -> None:
    records = [b"yes", b"no", b"yes"]
    assert commit(records, SEED).root != commit(records, SEED[::-1]).root
    found = commit(records, SEED)
    salts = {prove(records, SEED, index, found).salt for index in range(3)}
    assert len(salts) == 3
    with pytest.raises(CommitmentError, match="32 bytes"):
        commit(records, SEED[:-1])


def test_nothing_cannot_be_committed_to() -> None:
    with pytest.raises(CommitmentError, match="no records"):
        commit([], SEED)
    for root, count in ((bytes(31), 1), (bytes(32), 0), (bytes(32), 2**60)):
        with pytest.raises(CommitmentError):
            Commitment(root=root, count=count)


def test_memory_does_not_grow_with_the_records() -> None:
    tracemalloc.start()
    commit((n.to_bytes(4, "big") * 64 for n in range(20_000)), SEED)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=40), st.data())
def test_only_the_committed_record_passes(records: list[bytes], data: st.DataObject) -> None:
    found = commit(records, SEED)
    index = data.draw(st.integers(0, len(records) - 1))
    shown = prove(records, SEED, index, found)
    check(found, shown)
    other = data.draw(st.binary(max_size=20))
    position = data.draw(st.integers(0, len(records) - 1))
    if (other, position) != (records[index], index):
        with pytest.raises(CommitmentError):
            check(found, replace(shown, record=other, index=position))
