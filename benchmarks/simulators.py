"""Simulators: the same training in fedlearn's, a plain loop, Flower's on Ray, NVFlare's, BlazeFL.

Two tasks: 10 clients with a convolutional network of LeNet's size, and many clients with a linear
model; Fashion-MNIST in both, divided by a Dirichlet draw (alpha 0.5). All sides run the same
function for a client, on the same files, one thread each, in turns. A side that reaches another
accuracy than the plain loop has no number.

Each peer has an environment of its own below ``--cache``, which is made when it is not there. A
peer that cannot be installed, or fails, is named on stderr with the reason, and has no number.

    python benchmarks/simulators.py                  # all of it: 60,000 images, 10 rounds
    python benchmarks/simulators.py --images 6000 --rounds 3 --repeat 1
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import _tree
from _report import Row, at_most, measured, options, show

from fedlearn.data import load, write_new
from fedlearn.data.sources.fashion import FOLDER

APPS: Final = Path(__file__).parent / "apps" / "simulators"
ROOT: Final = Path(__file__).parents[1]
CACHE: Final = Path.home() / ".cache" / "fedlearn-benchmarks"

PEERS: Final[Mapping[str, str]] = {
    "Flower on Ray": "flwr[simulation]>=1.41,<1.44",
    "NVFlare": "nvflare>=2.7",
    "BlazeFL": "blazefl",
}
SCRIPTS: Final[Mapping[str, str]] = {
    "Flower on Ray": "run_flower.py",
    "NVFlare": "run_nvflare.py",
    "BlazeFL": "run_blazefl.py",
}
INTERPRETERS: Final = ("python3.12", "python3.13", "python3.14")
"""Tried in this order for a peer that this Python cannot install."""

FLOOR: Final = "plain torch loop"
OURS: Final = "ours"
WORKERS: Final = "ours with 2 workers"
_NEAR: Final = 0.03
"""How far accuracies may be apart: the sums are of other orders, the rest is the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One training."""

    name: str
    model: str
    clients: int
    images: int
    rounds: int
    epochs: int
    least: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one run took: its cost, when its first client began to train, its accuracy."""

    cost: _tree.Cost
    first_s: float
    accuracy: float


def environment(name: str, cache: Path) -> Path | None:
    """Return the Python of a peer's environment, made if it is not there; None if it cannot be."""
    folder = cache / name.lower().replace(" ", "-")
    python = folder / "bin" / "python"
    done = folder / "installed"
    if done.exists() and done.read_text() == PEERS[name]:
        return python
    print(f"making an environment for {name} ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith(("torch==", "numpy=="))
    ]
    for base in filter(None, [sys.executable, *map(shutil.which, INTERPRETERS)]):
        subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
        (folder / "pins.txt").write_text("\n".join(pins))
        wanted = [PEERS[name], "torch", "numpy", "-c", str(folder / "pins.txt")]
        made = subprocess.run(
            [str(python), "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True
        )
        if made.returncode == 0:
            done.write_text(PEERS[name])
            return python
        reason = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"{name}: could not be installed with {base}: {reason}", file=sys.stderr)
    return None


def command(side: str, python: Path, task: Task, data: Path, folder: Path) -> list[str]:
    """Return the command of a side."""
    if side == FLOOR:
        return [str(python), str(APPS / "run_floor.py")]
    if side in PEERS:
        return [str(python), str(APPS / SCRIPTS[side])]
    job = folder / "job.toml"
    sites = [f"client-{number:04d}" for number in range(task.clients)]
    job.write_text(
        f'name = "simulators"\napp = "{APPS}"\nrounds = {task.rounds}\n'
        f"sites = {json.dumps(sites)}\nquorum = {task.clients}\ndeadline_s = 3600\nseed = 1\n"
        'policy = "policy.toml"\n[resources]\nmemory_mib = 4096\n'
    )
    program = [str(python.with_name("fedlearn")), "simulate", str(job), "--data", str(data)]
    workers = ["--workers", "2"] if side == WORKERS else []
    return [*program, *workers, "--run", str(folder / "run")]


def measure(side: str, python: Path, task: Task, data: Path, timeout_s: float) -> Side:
    """Run one side once, in a new folder.

    :raises RuntimeError: when it fails, or did not train or test.
    """
    with tempfile.TemporaryDirectory(prefix="simulators-") as name:
        folder = Path(name)
        stamp, result = folder / "stamp", folder / "result.json"
        settings = {
            "model": task.model,
            "clients": task.clients,
            "rounds": task.rounds,
            "epochs": task.epochs,
            "data": str(data),
            "stamp": str(stamp),
            "result": str(result),
        }
        env = {
            **os.environ,
            "SIMULATORS": json.dumps(settings),
            "PYTHONPATH": os.pathsep.join(
                [str(APPS), *([str(ROOT)] if side in (OURS, WORKERS) else [])]
            ),
            "OMP_NUM_THREADS": "1",
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HOME": str(folder),
        }
        began = time.time()
        cost = _tree.run(
            command(side, python, task, data, folder),
            env=env,
            folder=folder,
            timeout_s=timeout_s,
            log=folder / "log",
        )
        if not stamp.exists() or not result.exists():
            raise RuntimeError(f"{side} trained or tested nothing:\n{(folder / 'log').read_text()}")
        return Side(
            cost=cost,
            first_s=float(stamp.read_text()) - began,
            accuracy=float(json.loads(result.read_text())["accuracy"]),
        )


def measure_task(
    task: Task, pythons: Mapping[str, Path], *, repeat: int, timeout_s: float
) -> list[Row]:
    """Run all sides in turns, and return the rows of a task."""
    found: dict[str, list[Side]] = {}
    broken: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="simulators-data-") as name:
        data = Path(name, "data")
        setup = {
            "source": "fashion-mnist",
            "partition": "dirichlet",
            "alpha": 0.5,
            "min_size": task.least,
            "test": 0,
            "server_test": True,
            "limit": task.images,
        }
        sites = [f"client-{number:04d}" for number in range(task.clients)]
        write_new(setup, data, sites, 1, examples=load("fashion-mnist"))
        for turn in range(repeat):
            order = list(pythons) if turn % 2 == 0 else list(reversed(pythons))
            for side in [each for each in order if each not in broken]:
                try:
                    result = measure(side, pythons[side], task, data, timeout_s)
                except RuntimeError as error:
                    if side in (OURS, WORKERS, FLOOR):
                        raise
                    broken.add(side)
                    print(f"{task.name}: {side}: {error}", file=sys.stderr)
                    continue
                found.setdefault(side, []).append(result)
                print(f"{task.name}: {side}: {json.dumps(asdict(result))}", file=sys.stderr)
    floor = found[FLOOR][0].accuracy
    for side, results in found.items():
        if any(abs(result.accuracy - floor) > _NEAR for result in results):
            raise RuntimeError(
                f"{task.name}: {side} reached {[r.accuracy for r in results]}, the floor {floor}"
            )
    return rows_of(task, found)


def rows_of(task: Task, found: Mapping[str, list[Side]]) -> list[Row]:
    """Return processor time, time to the first client and memory as rows."""
    many = task.clients > 100
    how = (
        f"{task.clients} clients, {task.images:,} images of Fashion-MNIST, Dirichlet 0.5, "
        f"{task.rounds} rounds of {task.epochs} local epochs; "
        f"{len(found[FLOOR])} interleaved runs; "
        f"accuracy of all sides within {_NEAR} of {found[FLOOR][0].accuracy:.3f}; "
    )
    measures: list[tuple[str, str, Callable[[Side], float], list[object], str]] = [
        (
            "processor time",
            "s",
            lambda side: side.cost.cpu_s,
            [at_most(1.3 if many else 1.15, FLOOR)],
            "all processes, from the command to its end",
        ),
        (
            "the first client trains",
            "s",
            lambda side: side.first_s,
            [] if many else [at_most(5.0)],
            "from the command until a client begins to train",
        ),
        (
            "peak memory",
            "MiB",
            lambda side: side.cost.peak_mib,
            [at_most(500.0)],
            "proportional set sizes of all processes, sampled every 0.25 s",
        ),
    ]
    return [
        measured(
            f"{name}, {task.name}{suffix}",
            unit=unit,
            ours=[value(side) for side in found[mine]],
            peers={peer: [value(side) for side in found[peer]] for peer in PEERS if peer in found},
            floor={FLOOR: [value(side) for side in found[FLOOR]]},
            target=target,  # type: ignore[arg-type]
            how=how + note,
        )
        for mine, suffix in ((OURS, ""), (WORKERS, ", 2 worker processes"))
        if mine in found
        for name, unit, value, target, note in measures
    ]


def main() -> None:
    """Measure and show."""
    parser = options(__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, help="environments of the peers")
    parser.add_argument("--images", type=int, default=60_000, help="of the task with 10 clients")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=1000, help="of the other task")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for each run")
    parser.add_argument("--sides", default="", help="only these, with commas between them")
    parser.add_argument("--tasks", default="cnn,linear", help="only these, with commas")
    given = parser.parse_args()
    if not FOLDER.is_dir():
        print("nothing was measured: apt-get install dataset-fashion-mnist", file=sys.stderr)
        show([], as_json=given.json)
        return
    images, rounds, clients, repeat = given.images, given.rounds, given.clients, given.repeat
    wanted = [OURS, FLOOR, WORKERS, *PEERS]
    if given.quick:
        images, rounds, clients, repeat, wanted = 600, 1, 20, 1, [OURS, FLOOR]
    if given.sides:
        wanted = given.sides.split(",")
    pythons = {}
    for side in wanted:
        python = environment(side, given.cache) if side in PEERS else Path(sys.executable)
        if python is not None:
            pythons[side] = python
    tasks = {
        "cnn": Task(
            name="10 clients, LeNet",
            model="cnn",
            clients=10,
            images=images,
            rounds=rounds,
            epochs=1,
            least=10,
        ),
        "linear": Task(
            name=f"{clients:,} clients, linear model",
            model="linear",
            clients=clients,
            images=max(images, 20 * clients),
            rounds=min(rounds, 3),
            epochs=1,
            least=1,
        ),
    }
    rows: list[Row] = []
    for name in given.tasks.split(","):
        rows += measure_task(tasks[name], pythons, repeat=repeat, timeout_s=given.timeout)
    show(rows, as_json=given.json)


if __name__ == "__main__":
    main()
