"""Rows of a database that is not sealed, each with a MAC under a key that is.

``mac = HMAC-SHA-256(key, canonical JSON of [table, column, column, ...])``, bytes as hexadecimal.
An altered or forged row is detected when it is read. A removed row is not: the caller detects it
by a record elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedlearn.errors import StoreError
from server.disk import DATABASE_ERRORS, DISK_HINT, disk_failed, store_error, transaction

__all__ = ["Cell", "Database", "RowKey"]

Cell = str | int | float | bytes
_RESTORE = "restore the file from a backup of the same time as the ledger's"


class RowKey:
    """Makes and checks the MACs of rows."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("a key of rows has 32 bytes")
        self._key = key

    def mac(self, table: str, cells: Sequence[Cell]) -> bytes:
        """Return the MAC of a row (32 bytes)."""
        plain = [cell.hex() if isinstance(cell, bytes) else cell for cell in cells]
        data = json.dumps([table, *plain], separators=(",", ":"), ensure_ascii=True).encode()
        return hmac.digest(self._key, data, hashlib.sha256)

    def genuine(self, table: str, cells: Sequence[object], mac: object) -> bool:
        """Return whether a row, as it was read, was written with this key."""
        if not isinstance(mac, bytes) or not all(isinstance(cell, Cell) for cell in cells):
            return False
        return hmac.compare_digest(mac, self.mac(table, [c for c in cells if isinstance(c, Cell)]))


class Database:
    """One SQLite file with authenticated rows. Safe to use from many threads.

    ``key`` makes and checks the MACs.
    """

    def __init__(self, path: Path, *, key: bytes, schema: Sequence[str], application: int) -> None:
        """Open or create the file; see :func:`_open_database`."""
        self.key = RowKey(key)
        self._path = path
        self._lock = threading.RLock()
        self._db = _open_database(path, schema=schema, application=application)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection for single statements.

        :raises DiskError: when the disk failed.
        :raises StoreError: when SQLite reports another error.
        """
        with self._lock, _reading(self._path):
            yield self._db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection for one transaction.

        :raises StoreError: when it cannot be written.
        """
        with self._lock, transaction(self._db, f"{self._path}: cannot be written") as db:
            yield db


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error of SQLite into one that names the file.

    :raises DiskError: when the disk failed.
    :raises StoreError: when SQLite reports another error.
    """
    try:
        yield
    except DATABASE_ERRORS as error:
        hint = DISK_HINT if disk_failed(error) else _RESTORE
        raise store_error(
            f"{path}: cannot be read or written: {error}", error, hint=hint
        ) from error


def _open_database(path: Path, *, schema: Sequence[str], application: int) -> sqlite3.Connection:
    """Open or make a database that holds exactly the tables of ``schema``, with mode 0600.

    The whole structure is checked, so that a lost page is detected here.

    :raises StoreError: when it is damaged, or was not written by this version.
    """
    try:
        path.touch(mode=0o600)
    except OSError as error:
        reason = (error.strerror or "cannot be opened").lower()
        raise store_error(f"{path}: {reason}", error) from error
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        with _reading(path):
            db.execute("PRAGMA trusted_schema = OFF")
            db.execute("PRAGMA cell_size_check = ON")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA secure_delete = ON")  # what is deleted is not left in free pages
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                made = "; ".join((*schema, f"PRAGMA application_id = {application}"))
                db.executescript(f"BEGIN IMMEDIATE; {made}; COMMIT")
            faults = [str(row[0]) for row in db.execute("PRAGMA quick_check(1)")]
            if faults != ["ok"]:
                raise StoreError(f"{path}: is damaged: {faults[0][:200]}", hint=_RESTORE)
            found = {str(sql) for (sql,) in db.execute("SELECT sql FROM sqlite_master")}
            number = db.execute("PRAGMA application_id").fetchone()[0]
            if found != set(schema) or number != application:
                raise StoreError(
                    f"{path}: is not a database of this version",
                    hint="use the version that wrote it, or a backup of the file",
                )
    except BaseException:
        db.close()
        raise
    return db
