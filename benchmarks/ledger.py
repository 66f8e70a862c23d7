"""Compares appending to the ledger with the same rows in a bare SQLite table, and verifies.

Both write one row of the same size in one transaction with WAL and ``synchronous=FULL`` on the same
disk, in turns, so that the ratio is the cost of hashing, signing and checking beside the disk.
``--directory`` chooses the disk.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _report import interleave, measured, options, show
from cryptography.hazmat.primitives.asymmetric import ec

from server.ledger import LEDGER_FILE, Ledger

BODY = {
    "job": "benchmark",
    "round": 12,
    "site": "site-a",
    "thumbprint": "ab" * 32,
    "digest": "cd" * 32,
    "examples": 1024,
    "accepted": True,
}


_BARE = "a row in a bare table"


def milliseconds(work: Callable[[], object], count: int) -> float:
    """Return the wall time of one call of ``work``."""
    start = time.perf_counter()
    for _ in range(count):
        work()
    return 1e3 * (time.perf_counter() - start) / count


def bare(path: Path) -> sqlite3.Connection:
    """Open a table with the columns of the ledger, and nothing else."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE entry (sequence INTEGER PRIMARY KEY, time INTEGER, kind TEXT, body BLOB, "
        "previous BLOB, hash BLOB, signature BLOB)"
    )
    return connection


def main() -> None:
    """Append in turns, and verify what was appended."""
    parser = options(__doc__)
    parser.add_argument("--directory", type=Path, help="where to write; the temporary folder")
    parser.add_argument("--entries", type=int, default=300, help="entries in each repetition")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    count, repeat = (10, 1) if arguments.quick else (arguments.entries, arguments.repeat)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        folder = Path(name)
        table = bare(folder / "bare.sqlite")
        row = (1, "update", json.dumps(BODY).encode(), os.urandom(32), os.urandom(32))
        insert = "INSERT INTO entry VALUES (NULL, ?, ?, ?, ?, ?, ?)"
        signature = os.urandom(64)
        key = ec.generate_private_key(ec.SECP256R1())
        with Ledger.open(folder / LEDGER_FILE, key) as ledger:
            found = interleave(
                {
                    _BARE: lambda: milliseconds(
                        lambda: table.execute(insert, (*row, signature)), count
                    ),
                    "ours": lambda: milliseconds(lambda: ledger.append("update", BODY), count),
                },
                repeat=repeat,
            )
            start = time.perf_counter()
            entries = ledger.verify(ledger.public_key).entries
            verified = 1e3 * (time.perf_counter() - start) / entries
        table.close()
    show(
        [
            measured(
                "an entry appended and synchronized, one caller",
                unit="ms",
                ours=found["ours"],
                floor={_BARE: found[_BARE]},
                how=f"wall time; medians of {repeat} turns of {count} entries",
            ),
            measured(
                "an entry verified",
                unit="ms",
                ours=verified,
                how=f"one pass over {entries} entries",
            ),
        ],
        as_json=arguments.json,
    )


if __name__ == "__main__":
    main()
