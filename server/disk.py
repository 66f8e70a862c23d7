"""Which errors mean that the disk failed, and that the same may succeed later."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fedlearn.errors import DiskError, LedgerDiskError, LedgerError, StoreError

__all__ = [
    "DATABASE_ERRORS",
    "DISK_HINT",
    "database",
    "disk_failed",
    "ledger_error",
    "store_error",
    "transaction",
]

DISK_HINT: Final = (
    "see that the disk of the state directory is neither full nor read-only, and that it works; "
    "nothing was changed"
)

DATABASE_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite raises. Its message may quote bytes of a damaged file that are not UTF-8, and then
there is no error of SQLite but one of decoding."""

_ERRNOS: Final = frozenset(
    {
        errno.EIO,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EBUSY,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOBUFS,
    }
)
_SQLITE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_PRIMARY: Final = 0xFF
"""An extended result code of SQLite has the primary one in its lowest byte."""


def disk_failed(error: BaseException) -> bool:
    """Return whether the disk, and not its contents, is the cause."""
    if isinstance(error, OSError):
        return error.errno in _ERRNOS
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.Error) and code is not None and code & _PRIMARY in _SQLITE


def store_error(message: str, error: Exception, *, hint: str = DISK_HINT) -> StoreError:
    """Return a DiskError where the disk failed, and a StoreError otherwise."""
    return (DiskError if disk_failed(error) else StoreError)(message, hint=hint)


@contextmanager
def database(what: str) -> Iterator[None]:
    """Turn errors of SQLite in a block into a StoreError that begins with ``what``."""
    try:
        yield
    except DATABASE_ERRORS as error:
        raise store_error(f"{what}: {error}", error) from error


@contextmanager
def transaction(db: sqlite3.Connection, what: str) -> Iterator[sqlite3.Connection]:
    """Run a block as one durable change, or none when it raises.

    A commit that fails is rolled back, too: the next transaction would not begin otherwise.

    :raises StoreError: beginning with ``what``, for errors of SQLite.
    """
    with database(what):
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            # SQLite itself rolls back after some errors of the disk.
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def ledger_error(message: str, error: Exception, *, hint: str = DISK_HINT) -> LedgerError:
    """Return a LedgerDiskError where the disk failed, and a LedgerError otherwise."""
    return (LedgerDiskError if disk_failed(error) else LedgerError)(message, hint=hint)
