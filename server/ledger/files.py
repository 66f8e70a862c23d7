"""The files of a ledger: the database and how it is opened, the lock, the public key."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import urllib.parse
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.durable import write_durably
from fedlearn.errors import LedgerError
from server.disk import DATABASE_ERRORS, ledger_error
from server.ledger.entry import key_fingerprint, require_p256

__all__ = [
    "LEDGER_FILE",
    "PUBLIC_KEY_FILE",
    "check_objects",
    "load_public_key",
    "lock",
    "open_for_writing",
    "open_read_only",
    "publish_key",
    "require_ledger",
]

LEDGER_FILE: Final = "ledger.sqlite"
PUBLIC_KEY_FILE: Final = "ledger.pub.pem"

_APPLICATION_ID: Final = 0x464C4C31  # "FLL1"
_LARGEST_VALUE: Final = 1 << 20
_MAX_KEY_BYTES: Final = 16 * 1024
_TABLE: Final = """CREATE TABLE entry (
  sequence  INTEGER PRIMARY KEY,
  time      INTEGER NOT NULL,
  kind      TEXT NOT NULL,
  body      BLOB NOT NULL,
  previous  BLOB NOT NULL,
  hash      BLOB NOT NULL,
  signature BLOB NOT NULL
) STRICT"""
_UNCHANGED: Final = """CREATE TRIGGER entry_is_not_changed BEFORE UPDATE ON entry
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"""
_UNDELETED: Final = """CREATE TRIGGER entry_is_not_deleted BEFORE DELETE ON entry
  BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"""
_OBJECTS: Final = {
    ("table", "entry", _TABLE),
    ("trigger", "entry_is_not_changed", _UNCHANGED),
    ("trigger", "entry_is_not_deleted", _UNDELETED),
}
"""Everything that the database of a ledger contains. A further trigger could undo an append."""


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read the PEM public key of a ledger; raises LedgerError with the reason."""
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


def lock(path: Path) -> int:
    """Take the writer's lock of a ledger and return its descriptor; LedgerError if taken."""
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


def publish_key(path: Path, public_key: ec.EllipticCurvePublicKey) -> None:
    """Write the public key next to the ledger; LedgerError if another one is there."""
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
    try:
        write_durably(path, pem, mode=0o644)
    except OSError as error:
        raise LedgerError(f"the public key {path} cannot be written: {error.strerror}") from None


def _configure(connection: sqlite3.Connection) -> None:
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_VALUE)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open the database to write, making it with mode 0600 if there is none."""
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
            script = "; ".join((_TABLE, _UNCHANGED, _UNDELETED))
            identity = f"PRAGMA application_id = {_APPLICATION_ID}"
            connection.executescript(f"BEGIN IMMEDIATE; {script}; {identity}; COMMIT")
        require_ledger(connection, path)
    except DATABASE_ERRORS as error:
        connection.close()
        raise LedgerError(f"{path} cannot be used as a ledger: {error}") from error
    except LedgerError:
        connection.close()
        raise
    return connection


def check_objects(connection: sqlite3.Connection, path: Path) -> None:
    """Check that a database holds what a ledger has, and nothing more; raises LedgerError."""
    try:
        found = set(connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall())
    except DATABASE_ERRORS as error:
        raise ledger_error(f"{path} cannot be read as a ledger: {error}", error) from error
    if found != _OBJECTS:
        odd = min(str(name) for _, name, _ in found ^ _OBJECTS)
        raise LedgerError(
            f"{path}: {odd[:64]!a} is not what a ledger has there",
            hint="run: fedlearn ledger verify; restore the file from its newest backup",
        )


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open the database to read; raises LedgerError when it is not a database."""
    name = urllib.parse.quote(str(path.absolute()))
    # A database in WAL mode needs its -shm file; on a read-only medium without a -wal file
    # nothing can be missing, and SQLite may treat the file as immutable.
    modes = ["mode=ro"]
    if not path.with_name(path.name + "-wal").exists():
        modes.append("mode=ro&immutable=1")
    problem: Exception | None = None
    for mode in modes:
        connection = sqlite3.connect(
            f"file:{name}?{mode}", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            _configure(connection)
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except DATABASE_ERRORS as error:
            connection.close()
            problem = error
        else:
            return connection
    raise ledger_error(
        f"{path} cannot be read as a ledger: {problem}", problem or sqlite3.Error()
    ) from problem


def require_ledger(connection: sqlite3.Connection, path: Path) -> None:
    """Check that a database is a ledger with a plain table of entries."""
    try:
        found = connection.execute("PRAGMA application_id").fetchone()[0]
        row = connection.execute(
            "SELECT type, sql FROM sqlite_master WHERE name = 'entry'"
        ).fetchone()
    except DATABASE_ERRORS as error:
        raise ledger_error(f"{path} cannot be read as a ledger: {error}", error) from error
    if found != _APPLICATION_ID or row is None:
        raise LedgerError(f"{path} is a database, but not a ledger")
    if row[0] != "table" or str(row[1]).upper().startswith("CREATE VIRTUAL"):
        raise LedgerError(f"{path}: its entries are not a plain table")
