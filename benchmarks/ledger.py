"""Compares appending to the ledger with the same rows in a bare SQLite table, and verifies.

Both write one row of the same size in one transaction with WAL and ``synchronous=FULL`` on the same
disk, in turns, so that the ratio is the cost of hashing, signing and checking beside the disk.
``--directory`` chooses the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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


def per_second(work: Callable[[], object], count: int) -> float:
    """Return how often a second ``work`` was done."""
    start = time.perf_counter()
    for _ in range(count):
        work()
    return count / (time.perf_counter() - start)


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
    """Print the rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, help="where to write; the temporary folder")
    parser.add_argument("--entries", type=int, default=300, help="entries in each repetition")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        folder = Path(name)
        table = bare(folder / "bare.sqlite")
        row = (1, "update", json.dumps(BODY).encode(), os.urandom(32), os.urandom(32))
        insert = "INSERT INTO entry VALUES (NULL, ?, ?, ?, ?, ?, ?)"
        signature = os.urandom(64)
        key = ec.generate_private_key(ec.SECP256R1())
        plain, ours = [], []
        with Ledger.open(folder / LEDGER_FILE, key) as ledger:
            for _ in range(arguments.repeat):
                count = arguments.entries
                plain.append(per_second(lambda: table.execute(insert, (*row, signature)), count))
                ours.append(per_second(lambda: ledger.append("update", BODY), count))
            start = time.perf_counter()
            entries = ledger.verify(ledger.public_key).entries
            verified = entries / (time.perf_counter() - start)
        table.close()
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    result = {
        "appends_per_second": statistics.median(ours),
        "bare_sqlite_per_second": statistics.median(plain),
        "ratio": statistics.median(ratios),
        "ratio_lowest": min(ratios),
        "ratio_highest": max(ratios),
        "verified_per_second": verified,
        "entries": entries,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for label, value in result.items():
        print(f"{label.replace('_', ' '):<42} {value:10.4g}")


if __name__ == "__main__":
    main()
