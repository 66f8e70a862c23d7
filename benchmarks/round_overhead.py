"""Measures the overhead of a round beside training: fedlearn, stock Flower, the machine's floor.

The job (``apps/vector``) averages a vector; its training takes no time, so the time of a round is
overhead. Each update is new random bytes. The same unchanged Flower app runs

* on fedlearn: a coordinator and sites, attested by software TPMs if these are installed, over
  mutual TLS, with the exact mean (``[strategy] name = "fedavg"``), with the model of every round
  sealed and every decision in the ledger;
* on stock Flower's deployment runtime: one SuperLink, SuperNodes over plain HTTP, and Flower's
  FedAvg in floating point.

The floor is one process that sends the same bytes through loopback TCP to each site and back, adds
them, and encrypts the sum. Runs alternate: ours, stock, floor, and again. Times are taken in the
app, before the first round and after each; the first round, in which processes start, is left out.

Bytes are those that the loopback interface counted during the job (the machine must be otherwise
quiet). Memory is read from /proc during fedlearn's jobs; ``_memory.py`` states what is counted.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "apps" / "vector"))

import _stock_flower as stock_flower
import numpy as np
from _deployment import APP, Deployment, Rounds, deployment
from _memory import COORDINATOR, JOB, MemoryWatch
from _report import Limit, Row, at_most, measured, options, show
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from vector_app.values import expected_sum

from fedlearn.local.machines import TEES

_MIB: Final = 1 << 20
_STOCK: Final = "stock Flower"
_FLOOR: Final = "TCP + add + seal"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of the table: a model, sites, and how many rounds are run in each block."""

    name: str
    size: int
    sites: int
    blocks: int
    rounds: int
    stock_rounds: int
    target: tuple[Limit, ...]
    memory: bool = False

    @property
    def model(self) -> int:
        """The bytes of the model."""
        return 4 * self.size


_SIXTH: Final = at_most(1 / 6, _STOCK)
CASES: Final = (
    Case(
        name="small",
        size=1000,
        sites=4,
        blocks=2,
        rounds=30,
        stock_rounds=3,
        target=(at_most(0.06), _SIXTH),
    ),
    Case(
        name="100MB",
        size=25_000_000,
        sites=2,
        blocks=2,
        rounds=6,
        stock_rounds=3,
        target=(at_most(0.9), _SIXTH),
        memory=True,
    ),
    Case(
        name="400MB",
        size=100_000_000,
        sites=2,
        blocks=1,
        rounds=6,
        stock_rounds=2,
        target=(at_most(4.0), _SIXTH),
        memory=True,
    ),
)
QUICK: Final = Case(
    name="quick", size=100_000, sites=2, blocks=1, rounds=3, stock_rounds=0, target=(), memory=True
)


@dataclass(slots=True)
class Found:
    """What all blocks of one case gave: seconds, bytes of a round, MiB above idle."""

    ours: list[float] = field(default_factory=list)
    stock: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    ours_bytes: list[float] = field(default_factory=list)
    stock_bytes: list[float] = field(default_factory=list)
    coordinator: list[float] = field(default_factory=list)
    job: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)


def run(case: Case, folder: Path, *, tee: str, with_stock: bool) -> Found:
    """Run all blocks of a case, in turns."""
    found = Found()
    floor = Floor(case)
    with deployment(folder / "ours", sites=case.sites, tee=tee) as federation:
        for block in range(case.blocks):
            ours(federation, case, f"{case.name.lower()}-{block}", found)
            found.floor += [floor.seconds() for _ in range(3)]
            if with_stock and case.stock_rounds:
                stock(case, folder / f"stock-{block}", found)
                found.floor += [floor.seconds() for _ in range(2)]
    return found


def ours(federation: Deployment, case: Case, name: str, found: Found) -> None:
    """Run one job on fedlearn."""
    with MemoryWatch() as memory, counted() as sent:
        rounds = federation.run(name, rounds=case.rounds, size=case.size)
    check(case, rounds, case.rounds)
    found.ours += rounds.later
    found.ours_bytes.append(sent[0] / case.rounds)
    found.coordinator.append(max(0.0, memory.peak[COORDINATOR] - memory.idle))
    found.job.append(memory.peak[JOB])
    found.client.append(memory.client)


def stock(case: Case, folder: Path, found: Found) -> None:
    """Run the job once on stock Flower."""
    with counted() as sent:
        result = stock_flower.run(
            APP,
            sites=case.sites,
            config={"num-server-rounds": case.stock_rounds, "size": case.size},
            folder=folder,
            timeout=120 + 60 * case.stock_rounds,
        )
    rounds = Rounds.of(result, submitted=result["submitted"])
    check(case, rounds, case.stock_rounds)
    found.stock += rounds.later
    found.stock_bytes.append(sent[0] / case.stock_rounds)


class Floor:
    """The same bytes through the cheapest means: the model to each site, an update back."""

    def __init__(self, case: Case) -> None:
        draw = np.random.default_rng(0)
        self._model = draw.random(case.size, np.float32)
        self._updates = [np.empty_like(self._model) for _ in range(case.sites)]
        self._total = np.empty_like(self._model)
        self._sealed = bytearray(_CHUNK + 16)
        self._key = AESGCM(AESGCM.generate_key(256))

    def seconds(self) -> float:
        """Return the seconds of one round."""
        begun = time.perf_counter()
        links = [threading.Thread(target=self._exchange, args=(u,)) for u in self._updates]
        for link in links:
            link.start()
        for link in links:
            link.join()
        np.add(self._updates[0], self._updates[-1], out=self._total)
        for update in self._updates[2:]:
            np.add(self._total, update, out=self._total)
        view = memoryview(self._total).cast("B")
        for start in range(0, len(view), _CHUNK):
            piece = view[start : start + _CHUNK]
            into = memoryview(self._sealed)[: len(piece) + 16]
            self._key.encrypt_into(bytes(12), piece, None, into)
        return time.perf_counter() - begun

    def _exchange(self, update: np.ndarray) -> None:  # type: ignore[type-arg]
        with socket.create_server(("127.0.0.1", 0)) as server:
            site = threading.Thread(target=self._site, args=(server.getsockname()[1],))
            site.start()
            link, _ = server.accept()
            with link:
                link.sendall(memoryview(self._model).cast("B"))
                receive(link, memoryview(update).cast("B"))
            site.join()

    def _site(self, port: int) -> None:
        buffer = memoryview(bytearray(self._model.nbytes))
        with socket.create_connection(("127.0.0.1", port)) as link:
            receive(link, buffer)
            link.sendall(buffer)


def receive(link: socket.socket, into: memoryview) -> None:
    """Fill a buffer from a socket."""
    at = 0
    while at < len(into):
        count = link.recv_into(into[at:])
        if not count:
            raise SystemExit("the floor's connection ended")
        at += count


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """A context that appends the bytes that the loopback interface sent within it."""
    result: list[int] = []
    before = _loopback()
    yield result
    result.append(_loopback() - before)


def _loopback() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise SystemExit("/proc/net/dev has no loopback interface")


def check(case: Case, rounds: Rounds, count: int) -> None:
    """Stop when a run computed another result: its time then cannot be compared."""
    wanted = expected_sum(case.size, sites=case.sites, rounds=count)
    if len(rounds.seconds) != count or abs(rounds.total - wanted) > 1e-3 * wanted:
        raise SystemExit(
            f"{case.name}: {len(rounds.seconds)} rounds came to {rounds.total}, not {count} to "
            f"{wanted}: not the same job"
        )


def rows(case: Case, found: Found) -> list[Row]:
    """Return the rows of the report for one case."""
    title = f"{_size(case)}, {case.sites} sites"
    target = case.target if found.stock else tuple(t for t in case.target if "of" not in t)
    how = (
        f"wall time of a round; medians of {len(found.ours)} rounds of ours"
        f"{f', {len(found.stock)} of stock Flower' if found.stock else ''} and {len(found.floor)} "
        "of the floor, in turns; ours: exact mean, mutual TLS, sealed, in the ledger; stock: plain "
        "HTTP, FedAvg in floating point"
    )
    result = [
        measured(
            f"round, {title}",
            unit="s",
            ours=found.ours,
            peers={_STOCK: found.stock} if found.stock else {},
            floor={_FLOOR: found.floor},
            target=target,
            how=how,
        )
    ]
    if case.model < _MIB:
        return result
    moved = 2 * case.sites
    result.append(
        measured(
            f"bytes on the wire of a round, {title}",
            unit="models",
            ours=[count / case.model for count in found.ours_bytes],
            peers={_STOCK: [n / case.model for n in found.stock_bytes]} if found.stock else {},
            floor={"each site, down and up": moved},
            target=[at_most(1.05, "each site, down and up")],
            how="bytes that the loopback interface counted, over the rounds; stock Flower also "
            "sends messages between its own processes there",
        )
    )
    if case.memory:
        result += _memory_rows(case, found, title)
    return result


def _memory_rows(case: Case, found: Found, title: str) -> list[Row]:
    how = (
        "highest of samples every 20 ms of anonymous memory and memory files; files that the "
        "coordinator holds for the job count as the job's"
    )
    return [
        measured(
            f"peak memory of the coordinator above idle, {title}",
            unit="MiB",
            ours=found.coordinator,
            target=[at_most(64)],
            how=how,
        ),
        *(
            measured(
                f"peak memory of {part}, {title}",
                unit="models",
                ours=[mib * _MIB / case.model for mib in values],
                floor={"one model": 1.0},
                target=[at_most(2.2)] if case.model >= 400_000_000 else [],
                how=how + "; with the interpreters of both processes",
            )
            for part, values in (("the job", found.job), ("a client", found.client))
        ),
    ]


def _size(case: Case) -> str:
    if case.model < 1_000_000:
        return f"{case.size} numbers"
    return f"{case.model / 1e6:.0f} MB model"


def main() -> None:
    """Measure all cases and print their rows."""
    parser = options(__doc__)
    parser.add_argument("--only", choices=[case.name for case in CASES], help="one case")
    parser.add_argument("--tee", choices=TEES, default="auto")
    parser.add_argument("--without-stock", action="store_true", help="leave stock Flower out")
    arguments = parser.parse_args()
    cases = [QUICK] if arguments.quick else CASES
    found: list[Row] = []
    for case in cases:
        if arguments.only in (None, case.name):
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="fedlearn-bench-") as folder:
                result = run(
                    case,
                    Path(folder),
                    tee="sample" if arguments.quick else arguments.tee,
                    with_stock=not arguments.without_stock,
                )
            print(
                f"{case.name}: {statistics.median(result.ours):.3f} s", file=sys.stderr, flush=True
            )
            found += rows(case, result)
    show(found, as_json=arguments.json)


if __name__ == "__main__":
    main()
