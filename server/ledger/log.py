"""The ledger on disk: one SQLite table, one writer, any number of readers.

An entry is durable when :meth:`Ledger.append` returns: the database is in WAL mode with
``synchronous=FULL``, and an entry is one transaction. A process killed while it appends
leaves every entry that was returned, and at most one more; never half of one.

One process writes at a time, held by a lock on ``<ledger>.lock`` that the kernel drops with
the process. Readers open the file for themselves, read-only, and see a snapshot.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time as clock
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedlearn.errors import LedgerError
from server.ledger.contributions import Contribution, contributions
from server.ledger.entry import (
    KINDS,
    MAX_SEQUENCE,
    Entry,
    Json,
    LedgerHead,
    canonical_body,
    entry_hash,
    entry_of_row,
    genesis,
    key_fingerprint,
    parse_body,
    require_p256,
    sign_hash,
    verify_signature,
)
from server.ledger.verification import VerifiedLedger, verify

__all__ = ["LEDGER_FILE", "PUBLIC_KEY_FILE", "Ledger", "LedgerReader", "load_public_key"]

LEDGER_FILE: Final = "ledger.sqlite"
PUBLIC_KEY_FILE: Final = "ledger.pub.pem"

_APPLICATION_ID: Final = 0x464C4C31  # "FLL1"
_LARGEST_VALUE: Final = 1 << 20
_MAX_KEY_BYTES: Final = 16 * 1024
_SCHEMA: Final = """
CREATE TABLE entry (
  sequence  INTEGER PRIMARY KEY,
  time      INTEGER NOT NULL,
  kind      TEXT NOT NULL,
  body      BLOB NOT NULL,
  previous  BLOB NOT NULL,
  hash      BLOB NOT NULL,
  signature BLOB NOT NULL
) STRICT;
CREATE INDEX entry_kind ON entry (kind, sequence);
CREATE TRIGGER entry_is_not_changed BEFORE UPDATE ON entry
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entry_is_not_deleted BEFORE DELETE ON entry
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_COLUMNS: Final = "sequence, time, kind, body, previous, hash, signature"


class LedgerReader:
    """Reads a ledger, without its private key; safe to use from several threads.

    Raises :class:`fedlearn.errors.LedgerError`: with ``entry`` set when an entry is damaged,
    with ``entry`` None when there is no ledger to read at ``path``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise LedgerError(
                f"there is no ledger at {path}",
                hint=f"name the coordinator's state directory, which holds {LEDGER_FILE}",
            )

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Open a read-only connection that sees one moment of the ledger."""
        connection = _open_read_only(self.path)
        try:
            _require_ledger(connection, self.path)
            connection.execute("BEGIN")
            yield connection
        finally:
            connection.close()

    def entries(
        self, after: int = 0, kind: str | None = None, limit: int | None = None
    ) -> Iterator[Entry]:
        """Yield the entries with a sequence above ``after``, oldest first.

        They stream from one snapshot; memory does not grow with the ledger. Hashes and
        signatures are not checked here: that is :meth:`verify`.
        """
        if not 0 <= after <= MAX_SEQUENCE or (limit is not None and limit < 0):
            raise LedgerError("after and limit are whole numbers from 0")
        query = f"SELECT {_COLUMNS} FROM entry WHERE sequence > ?"  # noqa: S608 constants
        values: list[int | str] = [after]
        if kind is not None:
            query += " AND kind = ?"
            values.append(kind)
        query += " ORDER BY sequence"
        if limit is not None:
            query += " LIMIT ?"
            values.append(min(limit, MAX_SEQUENCE))
        reached = after
        with self.snapshot() as connection:
            try:
                for row in connection.execute(query, values):
                    entry = entry_of_row(row, expected=reached + 1)
                    reached = entry.sequence
                    yield entry
            except sqlite3.Error as error:
                raise _damaged(error, reached + 1) from error

    def head(self) -> LedgerHead | None:
        """Return where the ledger ends now; None when it is empty."""
        with self.snapshot() as connection:
            last = _last_entry(connection)
        return None if last is None else LedgerHead.of(last)

    def verify(
        self, public_key: ec.EllipticCurvePublicKey, *, expect_head: LedgerHead | None = None
    ) -> VerifiedLedger:
        """Check every entry; see :func:`server.ledger.verification.verify`."""
        with self.snapshot() as connection:
            return verify(connection, public_key, expect_head=expect_head)

    def contributions(
        self,
        job: str,
        *,
        version: int | None = None,
        round: int | None = None,  # noqa: A002
    ) -> list[Contribution]:
        """List who made a model; see :func:`server.ledger.contributions.contributions`."""
        return contributions(self.entries, job, version=version, round=round)


class Ledger(LedgerReader):
    """The ledger, open for writing by this process alone; thread-safe.

    Use :meth:`open`; close it, or use it as a context manager, when done.
    """

    def __init__(
        self,
        path: Path,
        signer: ec.EllipticCurvePrivateKey,
        connection: sqlite3.Connection,
        lock_fd: int,
    ) -> None:
        super().__init__(path)
        self._signer = signer
        self._public_key = signer.public_key()
        self._connection = connection
        self._lock_fd = lock_fd
        self._writer = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, path: Path, signer: ec.EllipticCurvePrivateKey) -> Ledger:
        """Open the ledger at ``path``, making it if there is none, with mode 0600.

        The public key is written next to it as ``ledger.pub.pem``. The last entry is
        verified; the whole chain only by :meth:`verify`. Raises
        :class:`fedlearn.errors.LedgerError` when another process writes to it, when it was
        written with another key, or when its end is damaged.
        """
        public_key = require_p256(signer.public_key())
        lock_fd = _lock(path)
        try:
            _publish_key(path.parent / PUBLIC_KEY_FILE, public_key)
            connection = _open_for_writing(path)
            try:
                last = _last_entry(connection)
                if last is not None:
                    _check_last(connection, last, public_key)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, signer, connection, lock_fd)

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key under which the entries verify."""
        return self._public_key

    def append(self, kind: str, body: Mapping[str, Json]) -> Entry:
        """Append one entry and return it when it is durable.

        Raises :class:`fedlearn.errors.LedgerError` and appends nothing when the kind is not
        one of :data:`server.ledger.KINDS`, the body is not JSON or is larger than 256 KiB,
        or the disk does not take it.
        """
        return self.append_all([(kind, body)])[0]

    def append_all(self, items: Iterable[tuple[str, Mapping[str, Json]]]) -> list[Entry]:
        """Append several entries in one transaction: all of them or none."""
        prepared = []
        for kind, body in items:
            if kind not in KINDS:
                raise LedgerError(f"{kind!r} is not a kind of ledger entry")
            prepared.append((kind, canonical_body(body)))
        with self._writer:
            if self._closed:
                raise LedgerError("the ledger is closed")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    entries = self._insert(prepared)
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise LedgerError(
                    f"the ledger could not be written: {error}",
                    hint="nothing was appended; see whether the disk of the state "
                    "directory is full or read-only",
                ) from error
        return entries

    def _insert(self, prepared: list[tuple[str, bytes]]) -> list[Entry]:
        row = self._connection.execute(
            "SELECT sequence, hash FROM entry ORDER BY sequence DESC LIMIT 1"
        ).fetchone()
        sequence, previous = row if row is not None else (0, genesis(self._public_key))
        entries = []
        for kind, body in prepared:
            sequence += 1
            time = clock.time_ns() // 1_000_000
            digest = entry_hash(
                sequence=sequence, time=time, kind=kind, body=body, previous=previous
            )
            signature = sign_hash(self._signer, digest)
            self._connection.execute(
                f"INSERT INTO entry ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
                (sequence, time, kind, body, previous, digest, signature),
            )
            entries.append(
                Entry(
                    sequence=sequence,
                    time=time,
                    kind=kind,
                    body=parse_body(body),
                    previous=previous,
                    hash=digest,
                    signature=signature,
                )
            )
            previous = digest
        return entries

    def close(self) -> None:
        """Close the ledger and let another process write to it. Closing twice is harmless."""
        with self._writer:
            if not self._closed:
                self._closed = True
                self._connection.close()
                os.close(self._lock_fd)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read the PEM public key of a ledger; raises LedgerError saying what is wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise LedgerError(
            f"the public key {path} cannot be read: {error.strerror}",
            hint=f"the coordinator writes {PUBLIC_KEY_FILE} into its state directory",
        ) from None
    if len(data) > _MAX_KEY_BYTES:
        raise LedgerError(f"{path} is too large for a public key")
    try:
        return require_p256(serialization.load_pem_public_key(data))
    except ValueError as error:
        raise LedgerError(f"{path} is not a PEM public key: {error}") from None


def _damaged(error: sqlite3.Error, entry: int) -> LedgerError:
    return LedgerError(f"entry {entry}: the file cannot be read: {error}", entry=entry)


def _last_entry(connection: sqlite3.Connection) -> Entry | None:
    query = f"SELECT {_COLUMNS} FROM entry ORDER BY sequence DESC LIMIT 1"  # noqa: S608
    try:
        row = connection.execute(query).fetchone()
    except sqlite3.Error as error:
        raise LedgerError(f"the end of the ledger cannot be read: {error}") from error
    return None if row is None else entry_of_row(row, expected=1)


def _check_last(
    connection: sqlite3.Connection, last: Entry, public_key: ec.EllipticCurvePublicKey
) -> None:
    count = connection.execute("SELECT count(*) FROM entry").fetchone()[0]
    digest = entry_hash(
        sequence=last.sequence,
        time=last.time,
        kind=last.kind,
        body=canonical_body(last.body),
        previous=last.previous,
    )
    try:
        if count != last.sequence:
            raise LedgerError(f"the ledger has {count} entries and ends with {last.sequence}")
        if digest != last.hash:
            raise LedgerError("its hash is not that of its content")
        verify_signature(public_key, last.hash, last.signature)
    except LedgerError as error:
        raise LedgerError(
            f"entry {last.sequence}: {error}",
            entry=last.sequence,
            hint="run: fedlearn ledger verify; nothing is appended to a damaged ledger",
        ) from None


def _lock(path: Path) -> int:
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(path.with_name(path.name + ".lock"), flags, 0o600)
    except OSError as error:
        raise LedgerError(
            f"the ledger cannot be opened in {path.parent}: {error.strerror}"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise LedgerError(
            f"another process writes to the ledger {path}",
            hint="only one coordinator runs on a state directory; stop the other one",
        ) from None
    return fd


def _publish_key(path: Path, public_key: ec.EllipticCurvePublicKey) -> None:
    if path.exists():
        stored = load_public_key(path)
        if key_fingerprint(stored) != key_fingerprint(public_key):
            raise LedgerError(
                f"the ledger in {path.parent} was started with another key",
                hint="open it with the key that it was started with",
            )
        return
    pem = public_key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise LedgerError(f"the public key {path} cannot be written: {error.strerror}") from None


def _configure(connection: sqlite3.Connection) -> None:
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_VALUE)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def _open_for_writing(path: Path) -> sqlite3.Connection:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise LedgerError(f"{path} cannot be opened as a ledger: {error.strerror}") from None
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        _configure(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            script = f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id = {_APPLICATION_ID}; COMMIT"
            connection.executescript(script)
        _require_ledger(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise LedgerError(f"{path} cannot be used as a ledger: {error}") from error
    except LedgerError:
        connection.close()
        raise
    return connection


def _open_read_only(path: Path) -> sqlite3.Connection:
    name = urllib.parse.quote(str(path.absolute()))
    # A database in WAL mode needs its -shm file; on a read-only medium without a -wal file
    # nothing can be missing, and SQLite may be told so.
    modes = ["mode=ro"]
    if not path.with_name(path.name + "-wal").exists():
        modes.append("mode=ro&immutable=1")
    problem: sqlite3.Error | None = None
    for mode in modes:
        connection = sqlite3.connect(
            f"file:{name}?{mode}", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            _configure(connection)
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            connection.close()
            problem = error
        else:
            return connection
    raise LedgerError(f"{path} cannot be read as a ledger: {problem}") from problem


def _require_ledger(connection: sqlite3.Connection, path: Path) -> None:
    try:
        found = connection.execute("PRAGMA application_id").fetchone()[0]
        row = connection.execute(
            "SELECT type, sql FROM sqlite_master WHERE name = 'entry'"
        ).fetchone()
    except sqlite3.Error as error:
        raise LedgerError(f"{path} cannot be read as a ledger: {error}") from error
    if found != _APPLICATION_ID or row is None:
        raise LedgerError(f"{path} is a database, but not a ledger")
    if row[0] != "table" or str(row[1]).upper().startswith("CREATE VIRTUAL"):
        raise LedgerError(f"{path}: its entries are not a plain table")
