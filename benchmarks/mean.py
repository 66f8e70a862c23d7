"""The exact weighted mean beside inexact ones, and beside what memory can do.

    python benchmarks/mean.py [--updates 20] [--parameters 5] [--repeat 5] [--large 100] [--json]

Updates of random float32 weights with weights of about 1,000 are averaged. *Flower* is the function
of its FedAvg, over records that hold the arrays as Flower stores them. *numpy float64* adds each
update times its weight to one float64 array. The floors do less than a mean: *torch add_* adds
every update times a number to a float32 array, and *memcpy* copies each once. Both use
all cores, and so does fedlearn.

*Memory* is what a process needs beside two updates of many parameters, as a multiple of one of
them: the peak of the resident set in a process of its own, for the sum and the mean together.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable, Mapping
from math import fsum
from pathlib import Path

import numpy as np
import torch
from _report import Limit, Row, at_most, interleave, measured, options, show
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fedlearn.update.arrays import Array
from server.flower.aggregation.mean import ExactMean

Model = dict[str, Array]
Updates = list[tuple[Model, int]]

_ARRAYS = 10
_KEY = "num-examples"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--parameters", type=float, default=5, help="of a model, in millions")
    parser.add_argument("--large", type=float, default=100, help="of a model, in millions")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.updates, arguments.parameters, arguments.large, arguments.repeat = 3, 0.2, 2, 1
    rows = times(arguments.updates, arguments.parameters, arguments.repeat, arguments.quick)
    rows.append(memory(arguments.large, arguments.quick))
    show(rows, as_json=arguments.json)


# --- time -----------------------------------------------------------------------------


def times(count: int, millions: float, repeat: int, quick: bool) -> list[Row]:
    """Return the wall time and the processor time of one mean, for two sizes of weights."""
    draw = np.random.default_rng(2)
    updates = [(model(draw, millions), 700 + 31 * place) for place in range(count)]
    heavy = [(each, 60_000 + place) for place, (each, _) in enumerate(updates)]
    records = [as_record(*update) for update in updates]
    tensors = [[torch.from_numpy(array) for array in each.values()] for each, _ in updates]
    target = [np.empty_like(array) for array in updates[0][0].values()]
    check(exact(updates), updates)
    check(exact(heavy), heavy)

    def torch_add() -> None:
        sums = [torch.zeros_like(tensor) for tensor in tensors[0]]
        for each in tensors:
            for total, tensor in zip(sums, each, strict=True):
                total.add_(tensor, alpha=3.0)

    def memcpy() -> None:
        for each, _ in updates:
            for into, array in zip(target, each.values(), strict=True):
                np.copyto(into, array)

    tasks: dict[str, Callable[[], object]] = {
        "ours": lambda: exact(updates),
        "ours, weights of 60,000": lambda: exact(heavy),
        "Flower": lambda: aggregate_arrayrecords(records, _KEY),
        "numpy float64": lambda: float64(updates),
        "torch add_": torch_add,
        "memcpy": memcpy,
    }
    cpu: dict[str, list[float]] = {name: [] for name in tasks}
    wall = interleave(
        {name: (lambda name=name: timed(tasks[name], cpu[name])) for name in tasks}, repeat=repeat
    )
    cpu = {name: samples[-repeat:] for name, samples in cpu.items()}
    what = f"weighted mean, {count} x {millions:g}M float32"
    limits = [] if quick else [at_most(0.06)]
    how = f"medians of {repeat} interleaved runs on all cores, weights of about 1,000"
    return [
        row(what, wall, "ours", limits, f"wall time; {how}"),
        row(
            f"{what}, processor time",
            cpu,
            "ours",
            [],
            f"processor time of all threads; {how}",
        ),
        row(
            f"{what}, weights of 60,000, processor time",
            cpu,
            "ours, weights of 60,000",
            [],
            f"processor time of all threads; {how} but here",
        ),
    ]


def row(
    what: str, samples: Mapping[str, list[float]], ours: str, target: list[Limit], how: str
) -> Row:
    return measured(
        what,
        unit="s",
        ours=samples[ours],
        peers={name: samples[name] for name in ("Flower", "numpy float64")},
        floor={name: samples[name] for name in ("torch add_", "memcpy")},
        target=target,
        how=how,
    )


def timed(task: Callable[[], object], cpu: list[float]) -> float:
    """Return the wall time of a task; its processor time goes to ``cpu``."""
    started, used = time.perf_counter(), time.process_time()
    task()
    cpu.append(time.process_time() - used)
    return time.perf_counter() - started


def exact(updates: Updates) -> Model:
    mean = ExactMean(updates[0][0])
    for arrays, weight in updates:
        mean.add(arrays, weight)
    return mean.result(release=True)


def float64(updates: Updates) -> Model:
    sums = {name: np.zeros(array.shape) for name, array in updates[0][0].items()}
    for arrays, weight in updates:
        for name, array in arrays.items():
            sums[name] += array * np.float64(weight)
    total = sum(weight for _, weight in updates)
    return {name: (array / total).astype(np.float32) for name, array in sums.items()}


def model(draw: np.random.Generator, millions: float) -> Model:
    size = int(millions * 1e6) // _ARRAYS
    return {
        f"layer{place}": draw.standard_normal(size, np.float32) * np.float32(0.05)
        for place in range(_ARRAYS)
    }


def as_record(arrays: Model, weight: int) -> RecordDict:
    record = ArrayRecord({name: FlowerArray(array) for name, array in arrays.items()})
    return RecordDict({"arrays": record, "metrics": MetricRecord({_KEY: weight})})


def check(found: Model, updates: Updates) -> None:
    """Stop unless values of the mean are the exact ones."""
    total = sum(weight for _, weight in updates)
    for name, array in found.items():
        for place in range(0, array.size, 9_973):
            wanted = fsum(float(each[name][place]) * weight for each, weight in updates) / total
            if np.float32(wanted) != array[place]:
                raise SystemExit(f"{name}[{place}] is {array[place]}, not {wanted}")


# --- memory ---------------------------------------------------------------------------


def memory(millions: float, quick: bool) -> Row:
    """Return the peak memory of a mean of two large updates, as multiples of a model."""
    found: dict[str, float] = {}
    for name in ("exact", "float64", "flower"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(peak, (name, millions))
    return measured(
        f"memory of a mean, 2 x {millions:g}M float32",
        unit="models",
        ours=found["exact"],
        peers={"Flower": found["flower"], "numpy float64": found["float64"]},
        floor={"the mean itself": 1.0},
        target=[] if quick else [at_most(2.1)],
        how="peak of the resident set above the two updates, one run each in a process of its own",
    )


def peak(name: str, millions: float) -> float:
    """Return the peak of the resident set while a mean is made, without what it was before."""
    draw = np.random.default_rng(3)
    updates = [(model(draw, millions), weight) for weight in (1000, 731)]
    records = [as_record(*each) for each in updates] if name == "flower" else []
    tasks: dict[str, Callable[[], object]] = {
        "exact": lambda: exact(updates),
        "float64": lambda: float64(updates),
        "flower": lambda: aggregate_arrayrecords(records, _KEY),
    }
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = tasks[name]()
    used = resident("VmHWM") - before
    del result
    return used / sum(array.nbytes for array in updates[0][0].values())


def resident(key: str) -> int:
    """Return a line of this process's status, in bytes."""
    found = re.search(key + r":\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise SystemExit(f"/proc/self/status has no {key}")
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
