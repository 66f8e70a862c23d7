"""Measures the overhead of a round beside training: stock Flower and fedlearn, one job.

The job (``apps/vector``) averages a vector; its training takes no time, so the time of a
round is overhead. The same unchanged Flower app runs

* on stock Flower's deployment runtime: one SuperLink, SuperNodes over plain HTTP;
* on fedlearn: a coordinator and sites, attested by software TPMs if these are installed, over
  mutual TLS, with the model of every round sealed and every decision in the ledger.

Both run on one machine, one after the other. Times are taken in the app, before the first round and
after each. The printed ratio is the median round of stock Flower to that of fedlearn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from attestation.config import dumps

sys.path.insert(0, str(Path(__file__).parent))

import _stock_flower as stock_flower
import numpy as np

from fedlearn.job.spec import JobSpec
from fedlearn.local.children import Children
from fedlearn.local.federation import Federation
from fedlearn.local.machines import TEES, choose_tee
from fedlearn.local.policy import policy_text

APP = Path(__file__).parent / "apps" / "vector"
NAME = "vector"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds: each round, from submission to the end of the first round, and the set-up."""

    rounds: list[float]
    first: float
    start: float
    total: float

    @property
    def median(self) -> float:
        """The median of all rounds but the first, which is a start as well."""
        return statistics.median(self.rounds[1:] or self.rounds)

    def to_json(self) -> dict[str, Any]:
        """Return everything JSON-ready."""
        return {
            "rounds_s": [round(value, 4) for value in self.rounds],
            "median_s": round(self.median, 4),
            "submission_to_first_round_s": round(self.first, 3),
            "processes_to_submission_s": round(self.start, 3),
        }


def stock(folder: Path, *, sites: int, rounds: int, size: int) -> Measured:
    """Run the job on stock Flower."""
    found = stock_flower.run(
        APP,
        sites=sites,
        config={"num-server-rounds": rounds, "size": size},
        folder=folder,
        timeout=60 + 30 * rounds,
    )
    return _measured(found, started=found["started"], submitted=found["submitted"])


def ours(
    folder: Path,
    *,
    sites: int,
    rounds: int,
    size: int,
    tee: str,
    submitting: Callable[[], object] = lambda: None,
) -> Measured:
    """Run the job on fedlearn, through its real processes.

    :param submitting: called before the job is submitted, when everything else is up.
    """
    from server.flower.application import bundle as bundles

    stamps: list[str] = []
    started = time.time()
    names = [f"site-{number + 1}" for number in range(sites)]
    bundle = bundles.build(APP)
    digest = sha256(bundle).digest()
    environment = stock_flower.environment(folder / "flower")
    with Children(folder / "logs", environment) as children:
        federation = Federation(folder, children, tee=choose_tee(tee)[0])  # type: ignore[arg-type]
        federation.make_machines(names)
        federation.start()
        for name in names:
            rows = folder / "sites" / name / "data"
            rows.mkdir(parents=True)
            (rows / "rows.csv").write_text("nothing\n")
            federation.join(name, data={NAME: rows}, bundle=digest)
        federation.await_connected(names)
        policy = policy_text(federation, name=NAME, bundle=digest, app=NAME, sites=names)
        (folder / "policy.toml").write_text(policy)
        (folder / "job.toml").write_text(
            dumps(
                {
                    "name": NAME,
                    "app": str(APP),
                    "rounds": rounds,
                    "sites": names,
                    "policy": "policy.toml",
                    "seed": 1,
                    "config": {"size": size, "min-sites": sites, "stamps": ""},
                    "data": {name: {"set": NAME} for name in names},
                }
            )
        )
        spec = JobSpec.load(folder / "job.toml")
        submitting()
        submitted = time.time()
        operator = federation.operator
        operator.submit_job(job_toml=spec.to_toml(), bundle=bundle, policy_toml=policy)
        for event in operator.follow_job(spec.name):
            federation.check()
            line = json.loads(event.json).get("line", "")
            stamps += [line.removeprefix("stamps ")] if line.startswith("stamps ") else []
        state = operator.get_job(spec.name)
        federation.close()
        if state.status != "finished":
            raise SystemExit(f"our job is {state.status}: {state.detail}")
    return _measured(json.loads(stamps[-1]), started=started, submitted=submitted)


def _measured(found: Mapping[str, Any], *, started: float, submitted: float) -> Measured:
    times = found["times"]
    return Measured(
        rounds=[after - before for before, after in itertools.pairwise(times)],
        first=times[1] - submitted,
        start=submitted - started,
        total=found["sum"],
    )


def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=6, help="of stock Flower; ours run 5 times")
    parser.add_argument("--size", type=int, default=1000, help="32-bit numbers in the model")
    parser.add_argument("--tee", choices=TEES, default="auto")
    parser.add_argument("--only", choices=("stock", "ours"), help="leave the other one out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    shape = {"sites": arguments.sites, "size": arguments.size}
    results: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="fedlearn-bench-") as folder:
        if arguments.only != "ours":
            results["stock"] = stock(Path(folder) / "stock", rounds=arguments.rounds, **shape)
        if arguments.only != "stock":
            results["ours"] = ours(
                Path(folder) / "ours", rounds=5 * arguments.rounds, tee=arguments.tee, **shape
            )
    _check(results, arguments.sites, arguments.size, arguments.rounds)
    document: dict[str, Any] = {name: found.to_json() for name, found in results.items()}
    if len(results) == 2:
        document["ratio"] = round(results["stock"].median / results["ours"].median, 1)
    if arguments.json:
        print(json.dumps({**shape, **document}))
        return
    print(f"{arguments.sites} sites, {arguments.size} numbers, training takes no time")
    for name, found in results.items():
        print(
            f"{name:>6}  round {found.median:7.3f} s (median)   "
            f"submission to first round {found.first:6.2f} s   "
            f"processes to submission {found.start:5.2f} s"
        )
    if "ratio" in document:
        print(f" ratio  stock / ours = {document['ratio']}")


def _check(results: Mapping[str, Measured], sites: int, size: int, rounds: int) -> None:
    """Stop when a run computed another result: its time then cannot be compared."""
    each = [np.random.default_rng(n + 1).random(size, np.float32).sum() for n in range(sites)]
    for name, found in results.items():
        count = rounds if name == "stock" else 5 * rounds
        wanted = count * float(sum(each)) / sites
        if len(found.rounds) != count or abs(found.total - wanted) > 1e-3 * wanted:
            raise SystemExit(f"{name} came to {found.total}, not {wanted}: not the same job")


if __name__ == "__main__":
    main()
