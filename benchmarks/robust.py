"""Compares the rules over single updates with Flower's classes and with reading the updates once.

Both sides get the same messages, whose arrays are views of the updates, and make the model of a
round: ours as the aggregator does it, Flower's by ``aggregate_train`` of its class. Numerical
libraries have one thread, as in the aggregator; our rules take all processors by themselves. The
floor copies each block of all updates into a reused buffer, on all processors. The geometric
median is not one of Flower's classes. Flower collects garbage once for each reply; what exists
before is frozen (``gc.freeze()``), so that this does not search all imported modules.

The memory is the peak beside the updates, the new model included, in a process of its own for
each side: the growth of ``VmHWM``.
"""

from __future__ import annotations

import ctypes
import gc
import os

os.environ.update(OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", OMP_NUM_THREADS="1")

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as strategies
import numpy as np
from _report import Row, at_most, interleave, measured, options, show
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.app.array_records import arrays_of, record_of
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.robust.blocks import (
    Block,
    flat,
    in_lanes,
    lanes_of,
    load,
    ordered_type,
)
from server.flower.aggregation.strategies.classes import CLASSES

FEW = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
MALICIOUS = 4
RULES: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "median": ("fedmedian", {}, 0.2),
    "trimmed mean": ("fedtrimmedavg", {"beta": 0.2}, 0.2),
    "Krum": ("krum", {"num_malicious_nodes": MALICIOUS}, 0.2),
    "Multi-Krum": (
        "multikrum",
        {"num_malicious_nodes": MALICIOUS, "num_nodes_to_select": 10},
        None,
    ),
    "Bulyan": ("bulyan", {"num_malicious_nodes": MALICIOUS}, 0.5),
    "geometric median": ("geomedian", {}, None),
    "q-FedAvg": ("qfedavg", {"client_learning_rate": 0.1}, None),
}
"""Strategy, options and the target in seconds, by the name of the rule."""
MOST_MIB = 100.0
"""Beside the updates, for the median and the trimmed mean."""


class Nodes:
    """What a strategy asks of the grid of a job."""

    def __init__(self, count: int) -> None:
        self.count = count

    def get_node_ids(self) -> list[int]:
        """Return the nodes."""
        return list(range(self.count))

    def refuse(self, node: int, reason: str) -> None:
        """Stop, since no update here is to be refused."""
        raise SystemExit(f"the update of node {node} was refused: {reason}")

    def check_quorum(self, count: int, asked: int) -> None:
        """Take any number of updates."""


class Round:
    """The updates of one round, and both sides' ways to its model."""

    def __init__(self, count: int, elements: int) -> None:
        draw = np.random.default_rng()
        self.model = {"w": draw.standard_normal(elements, np.float32)}
        self.updates = [{"w": draw.standard_normal(elements, np.float32)} for _ in range(count)]
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def ours(self, name: str, given: dict[str, Any]) -> tuple[float, Any]:
        """Return the seconds of our rule, and its model."""
        return self._made(BuiltIn(name, {**FEW, **given}))

    def flowers(self, name: str, given: dict[str, Any]) -> tuple[float, Any]:
        """Return the seconds of Flower's class, and its model."""
        return self._made(getattr(strategies, CLASSES[name])(**FEW, **given))

    def _made(self, strategy: Any) -> tuple[float, Any]:
        strategy.configure_train(1, record_of(self.model), ConfigRecord(), Nodes(len(self.updates)))
        messages = []
        for node, update in enumerate(self.updates):
            metrics = MetricRecord({"num-examples": 10, "train_loss": 1.0})
            content = RecordDict({"arrays": record_of(update), "metrics": metrics})
            messages.append(Message(content, reply_to=Message(RecordDict(), node, "train")))
        started = time.perf_counter()
        arrays, _ = strategy.aggregate_train(1, messages)
        seconds = time.perf_counter() - started
        return seconds, arrays_of(arrays)["w"]

    def read(self) -> float:
        """Return the seconds of reading every update once, in blocks."""
        sources, count = [flat(each) for each in self.updates], len(self.updates)

        def lane(blocks: Sequence[Block]) -> None:
            for block in blocks:
                rows = room.setdefault(id(blocks), np.empty((count, block.size), block.dtype))
                for source, row in zip(sources, rows, strict=True):
                    load(block, source, row[: block.size])

        room: dict[int, Any] = {}
        started = time.perf_counter()
        in_lanes(lanes_of(self.model, count, ordered_type), count, lane)
        return time.perf_counter() - started


def main() -> int:
    """Measure and print."""
    parser = options(__doc__)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--elements", type=int, help="of a model; 5 million, with --quick 50,000")
    arguments = parser.parse_args()
    elements = arguments.elements or (50_000 if arguments.quick else 5_000_000)
    repeat = 1 if arguments.quick else 3
    round_ = Round(arguments.updates, elements)
    size = f"{arguments.updates} x {elements / 1e6:g}M float32"
    rows: list[Row] = []
    gc.freeze()
    for rule, (name, given, limit) in RULES.items():
        known = hasattr(strategies, CLASSES[name])
        if known:
            _check(round_.ours(name, given)[1], round_.flowers(name, given)[1], rule)
        tasks: dict[str, Callable[[], float]] = {
            "ours": lambda n=name, g=given: round_.ours(n, g)[0],  # type: ignore[misc]
            "read once": round_.read,
        }
        if known:
            tasks["Flower"] = lambda n=name, g=given: round_.flowers(n, g)[0]  # type: ignore[misc]
        samples = interleave(tasks, repeat=repeat, warm=0)
        rows.append(
            measured(
                f"{rule}, {size}",
                unit="s",
                ours=samples["ours"],
                peers={"Flower": samples["Flower"]} if known else {},
                floor={"read once": samples["read once"]},
                target=[] if limit is None else [at_most(limit)],
                how=f"wall time of a round's aggregation; medians of {repeat} interleaved runs; "
                "one thread for BLAS",
            )
        )
        peers = {"Flower": _peak(lambda n=name, g=given: round_.flowers(n, g))} if known else {}
        rows.append(
            measured(
                f"memory of the {rule}, {size}",
                unit="MiB",
                ours=_peak(lambda n=name, g=given: round_.ours(n, g)),
                peers=peers,
                floor={"the new model": elements * 4 / 2**20},
                target=[at_most(MOST_MIB)] if rule in {"median", "trimmed mean"} else [],
                how="growth of VmHWM beside the updates, in a process of its own",
            )
        )
    show(rows, as_json=arguments.json)
    return 0


def _check(ours: Any, flowers: Any, rule: str) -> None:
    if not np.allclose(ours, flowers, atol=1e-5):
        raise SystemExit(f"{rule}: our model is not Flower's, by {np.abs(ours - flowers).max():g}")


def _peak(work: Callable[[], Any]) -> float:
    """Return how much memory ``work`` takes at its peak in a child of this process, in MiB."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed is not there to be reused
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
            before = _high_water()
            work()
            os.write(writing, str(_high_water() - before).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as answer:
        written = answer.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"a process that measures memory ended with {status}")
    return max(0.0, float(written))


def _high_water() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status has no VmHWM")


if __name__ == "__main__":
    sys.exit(main())
