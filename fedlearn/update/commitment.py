"""A client's commitment to its records, by which a change of the training data is detected.

Inside its TEE, before its first round, a client hashes its records into a Merkle tree and sends the
root and the number of records, which are recorded in the ledger. The tree is that of RFC 9162
(section 2.1) with a salt in each leaf::

    leaf_i = SHA-256(0x00 | salt_i | record_i)        salt_i: 32 bytes
    node   = SHA-256(0x01 | left | right)
    salt_i = HMAC-SHA-256(seed, "fedlearn-commitment/1\\0" | u64be i)

The left subtree of n leaves has the largest power of two below n leaves; no leaf is doubled, so
two lists of records never share a root. If SHA-256 is collision-free, at most one record can be
shown for each index. As long as the seed is secret, the root and the disclosures of other records
do not disclose a record, and a guess of a record cannot be confirmed.

>>> records, seed = [b"first", b"second", b"third"], bytes(32)
>>> commitment = commit(records, seed)
>>> shown = prove(records, seed, 1, commitment)
>>> shown.record
b'second'
>>> verify_disclosure(
...     commitment.root, commitment.count, shown.index, shown.record, shown.salt, shown.path
... )
>>> verify_disclosure(
...     commitment.root, commitment.count, shown.index, b"other", shown.salt, shown.path
... )
Traceback (most recent call last):
    ...
fedlearn.errors.CommitmentError: this is not record 1 of the commitment
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fedlearn.errors import CommitmentError

__all__ = [
    "MAX_RECORDS",
    "SEED_BYTES",
    "Commitment",
    "Disclosure",
    "commit",
    "prove",
    "verify_disclosure",
]

SEED_BYTES: Final = 32
MAX_RECORDS: Final = 2**48
_SALT_BYTES: Final = 32
_HASH_BYTES: Final = 32
_MAX_PATH: Final = 48
_DOMAIN: Final = b"fedlearn-commitment/1\0"
_FORMAT: Final = "fedlearn-disclosure/1"
_MAX_FILE_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """A commitment: the root (32 bytes) of the tree, and the number of leaves."""

    root: bytes
    count: int

    def __post_init__(self) -> None:
        if len(self.root) != _HASH_BYTES:
            raise CommitmentError(f"a root has {_HASH_BYTES} bytes, not {len(self.root)}")
        if not 1 <= self.count <= MAX_RECORDS:
            raise CommitmentError(f"a commitment is to 1 to {MAX_RECORDS} records")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure:
    """One record, and what is needed to check it against a commitment.

    ``index`` counts from 0; ``path`` is the siblings from the leaf to the root.
    """

    index: int
    record: bytes
    salt: bytes
    path: tuple[bytes, ...]

    def to_bytes(self) -> bytes:
        """Return the disclosure as a JSON file."""
        fields = {
            "format": _FORMAT,
            "index": self.index,
            "record": self.record.hex(),
            "salt": self.salt.hex(),
            "path": [item.hex() for item in self.path],
        }
        return (json.dumps(fields) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> Disclosure:
        """Read a disclosure file; raises CommitmentError stating what is wrong."""
        if len(data) > _MAX_FILE_BYTES:
            raise CommitmentError(f"a disclosure has at most {_MAX_FILE_BYTES} bytes")
        try:
            fields = json.loads(data)
            if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
                raise CommitmentError(f'not a disclosure: "format" is not "{_FORMAT}"')
            index, path = fields["index"], fields["path"]
            if type(index) is not int or not isinstance(path, list) or len(path) > _MAX_PATH:
                raise CommitmentError("not a disclosure: index or path is malformed")
            return cls(
                index=index,
                record=bytes.fromhex(fields["record"]),
                salt=bytes.fromhex(fields["salt"]),
                path=tuple(bytes.fromhex(item) for item in path),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CommitmentError(f"not a disclosure: {error}") from None


def commit(records: Iterable[bytes], seed: bytes) -> Commitment:
    """Commit to ``records`` in their order, streaming; memory grows with log n only.

    ``seed`` is secret, of at least 32 bytes. Keep it sealed: without it no record can be
    disclosed later. Raises :class:`fedlearn.errors.CommitmentError` when the
    seed is too short or there are no records.
    """
    return _build(records, seed, None)[0]


def prove(records: Iterable[bytes], seed: bytes, index: int, commitment: Commitment) -> Disclosure:
    """Return the disclosure of record ``index`` (from 0), which anybody can check.

    ``records`` and ``seed`` are those of :func:`commit`. Raises
    :class:`fedlearn.errors.CommitmentError` when they are not, or when there is no such index.
    """
    if not 0 <= index < commitment.count:
        raise CommitmentError(f"there is no record {index} among {commitment.count}")
    found, disclosure = _build(records, seed, index)
    if found != commitment or disclosure is None:
        raise CommitmentError("the records or the seed are not those committed to")
    return disclosure


def verify_disclosure(
    root: bytes, count: int, index: int, record: bytes, salt: bytes, path: tuple[bytes, ...]
) -> None:
    """Check that ``record`` is number ``index`` of the ``count`` records under ``root``.

    ``root`` and ``count`` come from the ledger, the rest from a :class:`Disclosure`. The
    procedure is that of RFC 9162, section 2.1.3.2. Raises
    :class:`fedlearn.errors.CommitmentError` stating what does not match.
    """
    Commitment(root=root, count=count)
    if not 0 <= index < count:
        raise CommitmentError(f"there is no record {index} among {count}")
    if len(salt) != _SALT_BYTES:
        raise CommitmentError(f"a salt has {_SALT_BYTES} bytes, not {len(salt)}")
    if len(path) > _MAX_PATH or any(len(item) != _HASH_BYTES for item in path):
        raise CommitmentError("the path is not a list of 32-byte hashes")
    position, last = index, count - 1
    value = _leaf(salt, record)
    for sibling in path:
        if last == 0:
            raise CommitmentError(f"the path is too long for {count} records")
        if position & 1 or position == last:
            value = _node(sibling, value)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            value = _node(value, sibling)
        position >>= 1
        last >>= 1
    if last != 0:
        raise CommitmentError(f"the path is too short for {count} records")
    if not hmac.compare_digest(value, root):
        raise CommitmentError(
            f"this is not record {index} of the commitment",
            hint="the record, its salt or its path was altered, or the root is another client's",
        )


def _salt(seed: bytes, index: int) -> bytes:
    return hmac.digest(seed, _DOMAIN + struct.pack(">Q", index), "sha256")


def _leaf(salt: bytes, record: bytes) -> bytes:
    state = hashlib.sha256(b"\x00")
    state.update(salt)
    state.update(record)
    return state.digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(slots=True)
class _Subtree:
    size: int
    hash: bytes
    holds_target: bool


def _join(left: _Subtree, right: _Subtree, path: list[bytes]) -> _Subtree:
    if left.holds_target:
        path.append(right.hash)
    elif right.holds_target:
        path.append(left.hash)
    return _Subtree(
        size=left.size + right.size,
        hash=_node(left.hash, right.hash),
        holds_target=left.holds_target or right.holds_target,
    )


def _build(
    records: Iterable[bytes], seed: bytes, target: int | None
) -> tuple[Commitment, Disclosure | None]:
    """Hash the records with a stack of complete subtrees; note the path of ``target``."""
    if len(seed) < SEED_BYTES:
        raise CommitmentError(f"a seed has at least {SEED_BYTES} bytes, not {len(seed)}")
    stack: list[_Subtree] = []
    path: list[bytes] = []
    shown: tuple[bytes, bytes] | None = None
    count = 0
    for record in records:
        if count >= MAX_RECORDS:
            raise CommitmentError(f"at most {MAX_RECORDS} records can be committed to")
        salt = _salt(seed, count)
        if count == target:
            shown = bytes(record), salt
        node = _Subtree(1, _leaf(salt, record), count == target)
        while stack and stack[-1].size == node.size:
            node = _join(stack.pop(), node, path)
        stack.append(node)
        count += 1
    if not stack:
        raise CommitmentError(
            "there are no records to commit to", hint="check whether the data mount is empty"
        )
    node = stack.pop()
    while stack:
        node = _join(stack.pop(), node, path)
    disclosure = None
    if target is not None and shown is not None:
        record, salt = shown
        disclosure = Disclosure(index=target, record=record, salt=salt, path=tuple(path))
    return Commitment(root=node.hash, count=count), disclosure
