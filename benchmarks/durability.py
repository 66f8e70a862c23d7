"""Measures what durability costs a round: entries of many callers, and checkpoints beside training.

Entries: threads append to the ledger at the same time, each entry synchronized before its caller
goes on. The floor writes the same rows to a bare SQLite table, one transaction each, with the same
settings on the same disk, in turns.

Checkpoints: a model of random bytes, in a file in memory as the aggregator hands it over, is sealed
by the handler of a job's requests. Ours is how long the next round waits for it; the peer is the
same with the seal on the path of the round, as under [privacy].
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from _report import Row, at_most, interleave, measured, options, show
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedlearn.update.arrays import document
from server.admission.registry import AdmissionRegistry
from server.flower.job_plan import Checkpoint
from server.jobs.job_channel import JobChannelHandler
from server.keys.key_protectors import RecoveryKey
from server.keys.service import KeyService
from server.ledger import LEDGER_FILE, Ledger
from server.store.head_file import HEAD_FILE, HeadFile
from server.store.models import ModelStore

BODY = {"job": "benchmark", "round": 12, "site": "site-a", "digest": "cd" * 32, "accepted": True}
BARE = "a row in a bare table"
ON_THE_PATH = "sealed on the path"


def concurrently(work: Callable[[], object], threads: int, entries: int) -> float:
    """Have threads do ``work`` together, ``entries`` times in all; return ms for each."""
    start = threading.Barrier(threads + 1)

    def run() -> None:
        start.wait()
        for _ in range(max(1, entries // threads)):
            work()

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in running:
        thread.join()
    return 1e3 * (time.perf_counter() - began) / (threads * max(1, entries // threads))


def bare(path: Path) -> Callable[[], None]:
    """Make a table with the columns of the ledger; return what writes one row durably."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE entry (sequence INTEGER PRIMARY KEY, time INTEGER, kind TEXT, body BLOB, "
        "previous BLOB, hash BLOB, signature BLOB)"
    )
    lock = threading.Lock()
    row = (1, "update", json.dumps(BODY).encode(), *map(os.urandom, (32, 32, 64)))

    def write() -> None:
        with lock:
            connection.execute("INSERT INTO entry VALUES (NULL, ?, ?, ?, ?, ?, ?)", row)

    return write


def entries(folder: Path, threads: int, count: int, repeat: int) -> Row:
    """Measure one entry with so many callers at the same time, its head sealed."""
    folder.mkdir()
    keys = KeyService.create(folder / "keys", [RecoveryKey.of(X25519PrivateKey.generate())])
    head = HeadFile(folder / HEAD_FILE, keys.root)
    write, key = bare(folder / "bare.sqlite"), ec.generate_private_key(ec.SECP256R1())
    sealed: list[object] = []

    def seal(found: Any) -> None:
        sealed.append(found)
        head.seal_head(found)

    with Ledger.open(folder / LEDGER_FILE, key, seal=seal) as ledger:
        found = interleave(
            {
                BARE: lambda: concurrently(write, threads, count),
                "ours": lambda: concurrently(lambda: ledger.append("update", BODY), threads, count),
            },
            repeat=repeat,
        )
        last = ledger.head()
    bursts = len(sealed) / (1 if last is None else last.sequence)
    return measured(
        f"an entry appended and synchronized, {threads} callers",
        unit="ms",
        ours=found["ours"],
        floor={BARE: found[BARE]},
        target=[at_most(1.0, BARE)] if threads >= 1_000 else [],
        how=f"wall time; medians of {repeat} turns of {count} entries; {bursts:.3f} transactions "
        "and sealed heads for each entry",
    )


def handler(folder: Path, *, privacy: bool) -> tuple[JobChannelHandler, ModelStore]:
    """Make the handler of a job's requests with a ledger and a store of its own."""
    folder.mkdir()
    keys = KeyService.create(folder / "keys", [RecoveryKey.of(X25519PrivateKey.generate())])
    ledger = Ledger.open(folder / LEDGER_FILE, ec.generate_private_key(ec.SECP256R1()))
    store = ModelStore.open(folder / "store", keys, record=ledger.append)
    spec: Any = SimpleNamespace(
        name="benchmark",
        privacy=None,
        sites=("a",),
        rounds=1_000,
        owner_public_key=lambda: None,
        strategy=SimpleNamespace(name="app"),
    )
    made = JobChannelHandler(
        spec,
        store=store,
        ledger=ledger,
        registry=AdmissionRegistry(),
        report=lambda *_: None,
        keep=1,
    )
    if privacy:
        # A checkpoint is on the path of the round; the releases of this job are not charged.
        spec.privacy = object()
    return made, store


def checkpoints(folder: Path, mib: int, repeat: int) -> list[Row]:
    """Measure how long a round waits for a checkpoint, and what it takes of the processor."""
    model = {"w": np.random.default_rng().integers(0, 256, mib << 20, np.uint8)}
    given = document(model)
    del model
    round_, processor = [0], dict[str, list[float]]()

    def turn(name: str, job: JobChannelHandler) -> float:
        round_[0] += 1
        number = round_[0]
        job.event("round.started", {"round": number, "rounds": 1_000, "sites": ["a"]})
        began, cpu = time.perf_counter(), time.process_time()
        job.save_checkpoint(Checkpoint(round=number, model=given))
        waited = time.perf_counter() - began
        job.settle()  # the next round trains meanwhile
        processor.setdefault(name, []).append(time.process_time() - cpu)
        return waited

    jobs: Mapping[str, JobChannelHandler] = {
        ON_THE_PATH: handler(folder / "path", privacy=True)[0],
        "ours": handler(folder / "off", privacy=False)[0],
    }
    found = interleave(
        {name: lambda name=name, job=job: turn(name, job) for name, job in jobs.items()},
        repeat=repeat,
    )
    how = f"medians of {repeat} turns; {mib} MiB of random bytes, synchronized"
    return [
        measured(
            f"a round waits for its checkpoint, {mib} MiB",
            unit="s",
            ours=found["ours"],
            peers={ON_THE_PATH: found[ON_THE_PATH]},
            target=[at_most(0.1, ON_THE_PATH)],
            how=f"wall time; {how}",
        ),
        measured(
            f"processor of a checkpoint, {mib} MiB",
            unit="s",
            ours=processor["ours"],
            peers={ON_THE_PATH: processor[ON_THE_PATH]},
            how=f"time of the process; {how}",
        ),
    ]


def main() -> None:
    """Measure both, and print the rows."""
    parser = options(__doc__)
    parser.add_argument("--directory", type=Path, help="where to write; the temporary folder")
    parser.add_argument("--entries", type=int, default=1_000, help="entries in each repetition")
    parser.add_argument("--mib", type=int, default=100, help="size of the model")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    quick = arguments.quick
    count, mib, repeat = (
        (20, 2, 1) if quick else (arguments.entries, arguments.mib, arguments.repeat)
    )
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        folder = Path(name)
        rows = [
            entries(folder / f"ledger-{threads}", threads, min(count, 300 * threads), repeat)
            for threads in ((1, 10) if quick else (1, 10, 1_000))
        ]
        rows += checkpoints(folder, mib, repeat)
    show(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
