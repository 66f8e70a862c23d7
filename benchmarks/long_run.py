"""Runs one coordinator for long: a job of 2,000 rounds, then 200 jobs, and what it uses meanwhile.

    python benchmarks/long_run.py [--rounds 2000] [--jobs 200] [--write]

Two sites take part, with a tiny model. Every second the memory, the open descriptors and the
threads of the coordinator and of both agents are read from /proc, and the size of the coordinator's
state on disk. What grows is stated as the slope of a straight line through the later half of the
samples, for each 1,000 rounds and for each 100 jobs. ``--write`` keeps the samples and draws the
plot of the page. It takes an hour or so, and runs in ``make bench`` only when it is named.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from _chart import Panel, chart
from _deployment import Deployment, deployment
from _memory import AGENT, COORDINATOR, parts
from _report import Row, at_most, measured, options, show

ROOT: Final = Path(__file__).resolve().parents[1]
SAMPLES: Final = ROOT / "benchmarks" / "long_run.json"
PLOT: Final = ROOT / "docs" / "assets" / "long-run.svg"
_SIZE: Final = 1000
_SITES: Final = 2
_SHOWN: Final = 200
FIGURES: Final = ("rss", "pss", "descriptors", "threads", "agents", "state")


@dataclass(slots=True)
class Watch:
    """Samples every second: what the coordinator's process uses at each count of work done."""

    state: Path
    done: Callable[[], int]
    samples: list[dict[str, float]] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def follow(self) -> None:
        """Sample until :meth:`end`."""
        while not self._over.wait(1.0):
            self.samples.append({"done": self.done(), **sample(self.state)})

    def end(self) -> None:
        """Stop, after a last sample."""
        self._over.set()
        self.samples.append({"done": self.done(), **sample(self.state)})


def sample(state: Path) -> dict[str, float]:
    """Return MiB of memory and of the state on disk, descriptors and threads now."""
    found = parts()
    (pid,) = found[COORDINATOR]
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in status if len(line.split()) > 1}
    pss = _pss(pid)
    agents = sum(_pss(each) for each in found.get(AGENT, []))
    files = sum(path.stat().st_size for path in state.rglob("*") if _is_file(path))
    return {
        "rss": round(int(values["VmRSS"]) / 1024, 2),
        "pss": round(pss, 2),
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(values["Threads"]),
        "agents": round(agents, 2),
        "state": round(files / (1 << 20), 3),
    }


def _pss(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pss:"))) / 1024


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # deleted meanwhile, or a folder that another user has
        return False


def rounds_of_one_job(federation: Deployment, rounds: int) -> list[dict[str, float]]:
    """Run one job of many rounds."""
    return watched(
        federation, lambda tell: federation.run("long", rounds=rounds, size=_SIZE, tell=tell)
    )


def many_jobs(federation: Deployment, jobs: int) -> list[dict[str, float]]:
    """Run many jobs of two rounds, one after the other."""

    def work(tell: Callable[[int], None]) -> None:
        for number in range(jobs):
            federation.run(f"job-{number}", rounds=2, size=_SIZE)
            tell(number + 1)

    return watched(federation, work)


def watched(
    federation: Deployment, work: Callable[[Callable[[int], None]], object]
) -> list[dict[str, float]]:
    """Do ``work``, which reports how much is done, and return the samples."""
    done = [0]
    watch = Watch(federation.federation.state, lambda: done[0])
    thread = threading.Thread(target=watch.follow, daemon=True)
    thread.start()
    begun = time.monotonic()

    def tell(count: int) -> None:
        done[0] = count
        if count % 20 == 0:
            seconds = time.monotonic() - begun
            print(f"{count} in {seconds:.0f} s: {watch.samples[-1:]}", file=sys.stderr, flush=True)

    work(tell)
    watch.end()
    thread.join()
    return watch.samples


def slope(samples: list[dict[str, float]], figure: str, per: int) -> float:
    """Return how much a figure grows for ``per`` rounds or jobs, over the later half of them."""
    last = samples[-1]["done"]
    later = [s for s in samples if s["done"] >= last / 2]
    x = np.array([s["done"] for s in later], np.float64)
    y = np.array([s[figure] for s in later], np.float64)
    if len(later) < 3 or x.max() == x.min():
        raise SystemExit("too few samples for a slope: name more rounds or jobs")
    return float(np.polyfit(x, y, 1)[0]) * per


def rows(document: dict[str, Any]) -> list[Row]:
    """Return what grows; a value below 0 is a fall and is stated as 0."""
    limits = {"pss": ("MiB", 2.0), "descriptors": ("descriptors", 1.0), "threads": ("threads", 1.0)}
    found: list[Row] = []
    for work, per in (("rounds", 1000), ("jobs", 100)):
        samples = document[work]
        for figure, (unit, most) in limits.items():
            grown = max(0.0, slope(samples, figure, per))
            found.append(
                measured(
                    f"growth of the coordinator, {figure}, for each {per} {work}",
                    unit=unit,
                    ours=grown,
                    target=[at_most(most)],
                    how=f"slope over the later half of {samples[-1]['done']:.0f} {work}, "
                    f"sampled every second; {samples[-1][figure]:g} at the end",
                )
            )
    return found


def draw(document: dict[str, Any]) -> str:
    """Return the plot: memory, descriptors and threads over rounds, and over jobs."""
    panels = []
    for work in ("rounds", "jobs"):
        samples = thinned(document[work])
        for figure, name in (
            ("pss", "memory of the coordinator (Pss), MiB"),
            ("descriptors", "its open descriptors"),
            ("threads", "its threads"),
            ("state", "its state on disk, MiB"),
        ):
            points = [(s["done"], s[figure]) for s in samples]
            panels.append(Panel(name=name, x_name=work, points=points))
    return chart(panels, columns=2, title="One coordinator over many rounds and many jobs")


def thinned(samples: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return at most 200 of the samples, evenly, with the last."""
    step = max(1, -(-len(samples) // _SHOWN))
    return [*samples[:-1:step], samples[-1]]


def main() -> None:
    """Run, and print what grows."""
    parser: argparse.ArgumentParser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="keep the samples and draw the plot")
    parser.add_argument("--tee", choices=("auto", "tpm", "sample"), default="sample")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.jobs = 300, 4  # samples for a slope need seconds
    with tempfile.TemporaryDirectory(prefix="fedlearn-long-") as folder:
        with deployment(Path(folder), sites=_SITES, tee=arguments.tee) as federation:
            document = {
                "rounds": rounds_of_one_job(federation, arguments.rounds),
                "jobs": many_jobs(federation, arguments.jobs),
            }
    if arguments.write:
        kept = {work: thinned(samples) for work, samples in document.items()}
        SAMPLES.write_text(json.dumps(kept, indent=None, separators=(",", ":")) + "\n")
        PLOT.write_text(draw(document))
    show(rows(document), as_json=arguments.json)


if __name__ == "__main__":
    main()
