"""The sealed logs of apps: kept with their job, and bounded for each site.

The coordinator cannot open them. A row has a MAC like those of jobs, so that a log that was altered
on the disk, or put there, is named. A row that was removed leaves a gap in the numbers of its
stream, which the owner sees; the end of a stream may be cut unseen. Nothing is decided by a log.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedlearn.job.app_log import SealedAppLog
from fedlearn.sealing.app_log import MAX_SEALED_BYTES
from server.jobs.records.authenticated_rows import Database

__all__ = ["APP_LOGS_FILE", "MAX_JOB_BYTES", "MAX_SITE_BYTES", "AppLogStore"]

APP_LOGS_FILE: Final = "app-logs.sqlite"
MAX_SITE_BYTES: Final = 8 * 1024 * 1024
"""Sealed bytes kept of one site in one job; beyond it the oldest logs are deleted."""

MAX_JOB_BYTES: Final = 256 * 1024 * 1024
"""Of all sites of a job together: each has an equal part, which is at least one log."""

_APPLICATION: Final = 0x464C414C  # "FLAL"
_LOGS: Final = """CREATE TABLE app_logs (
  number INTEGER PRIMARY KEY,
  job TEXT NOT NULL,
  site TEXT NOT NULL,
  client TEXT NOT NULL,
  stream BLOB NOT NULL,
  round INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  sealed BLOB NOT NULL,
  mac BLOB NOT NULL
) STRICT"""
_BY_SITE: Final = "CREATE INDEX app_logs_by_site ON app_logs (job, site, number)"
_CELLS: Final = "number, job, site, client, stream, round, sequence, sealed"
_ALTERED: Final = "it was altered on the coordinator's disk"


class AppLogStore:
    """The logs of all jobs. Safe to use from many threads; each is durable when it was added."""

    def __init__(self, folder: Path, *, key: bytes) -> None:
        """Open or create the file in ``folder``.

        :param key: 32 bytes, from which the MACs of rows are made.
        :raises StoreError: when the file cannot be opened, is damaged, or is not such a file.
        """
        self._database = Database(
            folder / APP_LOGS_FILE, key=key, schema=(_LOGS, _BY_SITE), application=_APPLICATION
        )
        self._lock = threading.Lock()
        with self._database.reading() as db:
            self._last = int(db.execute("SELECT max(number) FROM app_logs").fetchone()[0] or 0)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, job: str, site: str, log: SealedAppLog, *, sites: int) -> None:
        """Keep one log of a client at ``site``, and delete the oldest ones beyond the site's part.

        :param sites: how many sites the job has.
        :raises StoreError: when it cannot be written.
        """
        most = max(min(MAX_SITE_BYTES, MAX_JOB_BYTES // sites), MAX_SEALED_BYTES)
        with self._lock, self._database.transaction() as db:
            number = self._last + 1
            cells = (
                *(number, job, site, log.client),
                *(log.stream, log.round, log.sequence, log.sealed),
            )
            db.execute(
                "INSERT INTO app_logs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*cells, self._database.key.mac("app_logs", cells)),
            )
            kept = 0
            for old, size in db.execute(
                "SELECT number, length(sealed) FROM app_logs WHERE job = ? AND site = ?"
                " ORDER BY number DESC",
                (job, site),
            ).fetchall():
                kept += size
                if kept > most:
                    db.execute("DELETE FROM app_logs WHERE number = ?", (old,))
            self._last = number

    def of_site(self, job: str, site: str) -> Iterator[SealedAppLog]:
        """Yield the logs of a job at one site in the order in which they were added.

        An altered row becomes a log without content, whose ``fault`` states this.

        :raises StoreError: when the file cannot be read.
        """
        after = 0
        while True:
            with self._database.reading() as db:
                row = db.execute(
                    f"SELECT {_CELLS}, mac FROM app_logs"  # noqa: S608 (a constant)
                    " WHERE job = ? AND site = ? AND number > ? ORDER BY number LIMIT 1",
                    (job, site, after),
                ).fetchone()
            if row is None:
                return
            *cells, mac = row
            after, _, _, client, stream, round_, sequence, sealed = cells
            genuine = self._database.key.genuine("app_logs", cells, mac)
            yield SealedAppLog(
                client=client,
                stream=stream,
                round=round_,
                sequence=sequence,
                sealed=sealed if genuine else b"",
                fault="" if genuine else _ALTERED,
            )

    def forget(self, job: str) -> None:
        """Delete all logs of a job.

        :raises StoreError: when it cannot be written.
        """
        with self._database.transaction() as db:
            db.execute("DELETE FROM app_logs WHERE job = ?", (job,))
