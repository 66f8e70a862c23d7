"""A federation on this machine that runs jobs of ``apps/vector``."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from _stock_flower import environment

from attestation.config import dumps
from fedlearn.job.spec import JobSpec
from fedlearn.local.children import Children
from fedlearn.local.federation import Federation
from fedlearn.local.machines import TeeChoice, choose_tee
from fedlearn.local.policy import policy_text

__all__ = ["APP", "Deployment", "Rounds", "deployment"]

APP: Final = Path(__file__).parent / "apps" / "vector"
_DATA: Final = "vector"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Seconds of each round and from submission to the end of the first, and the checked sum."""

    seconds: list[float]
    first: float
    total: float

    @classmethod
    def of(cls, found: Mapping[str, Any], *, submitted: float) -> Rounds:
        """Read what the ServerApp printed or wrote: the time before and after each round."""
        times = found["times"]
        seconds = [after - before for before, after in itertools.pairwise(times)]
        return cls(seconds=seconds, first=times[1] - submitted, total=found["sum"])

    @property
    def later(self) -> list[float]:
        """All rounds but the first, in which processes start."""
        return self.seconds[1:]


class Deployment:
    """A coordinator and sites that are connected. Made by :func:`deployment`."""

    def __init__(self, federation: Federation, sites: Sequence[str], bundle: bytes) -> None:
        self.federation = federation
        self._sites = list(sites)
        self._bundle = bundle

    @cached_property
    def _policy(self) -> str:
        digest = sha256(self._bundle).digest()
        return policy_text(self.federation, name=_DATA, bundle=digest, app=_DATA, sites=self._sites)

    def run(
        self,
        name: str,
        *,
        rounds: int,
        size: int,
        tell: Callable[[int], None] = lambda number: None,
    ) -> Rounds:
        """Run one job with the exact mean (``[strategy] name = "fedavg"``) to its end.

        :param tell: is called with the number of each round that is finished.
        :raises SystemExit: unless it finishes and prints its times.
        """
        folder = self.federation.folder
        (folder / "policy.toml").write_text(self._policy)
        (folder / "job.toml").write_text(
            dumps(
                {
                    "name": name,
                    "app": str(APP),
                    "rounds": rounds,
                    "sites": self._sites,
                    "policy": "policy.toml",
                    "seed": 1,
                    "strategy": {"name": "fedavg", "options": {"fraction_evaluate": 0.0}},
                    "config": {"size": size, "min-sites": len(self._sites), "stamps": ""},
                    "data": {site: {"set": _DATA} for site in self._sites},
                }
            )
        )
        spec = JobSpec.load(folder / "job.toml")
        operator, stamps = self.federation.operator, list[dict[str, Any]]()
        submitted = time.time()
        operator.submit_job(job_toml=spec.to_toml(), bundle=self._bundle, policy_toml=self._policy)
        for event in operator.follow_job(spec.name):
            self.federation.check()
            found = json.loads(event.json)
            if event.kind == "round.finished":
                tell(found["round"])
            line = found.get("line", "")
            if line.startswith("stamps "):
                stamps.append(json.loads(line.removeprefix("stamps ")))
        state = operator.get_job(spec.name)
        if state.status != "finished" or not stamps:
            raise SystemExit(f"the job {name} is {state.status}: {state.detail}")
        times = [moment for part in stamps for moment in part["times"]]
        return Rounds.of({"times": times, "sum": stamps[-1]["sum"]}, submitted=submitted)


@contextlib.contextmanager
def deployment(folder: Path, *, sites: int, tee: TeeChoice = "auto") -> Iterator[Deployment]:
    """Start a federation below ``folder``, each process with one thread for numerics."""
    from server.flower.application import bundle as bundles

    names = [f"site-{number + 1}" for number in range(sites)]
    bundle = bundles.build(APP)
    with Children(folder / "logs", environment(folder / "flower")) as children:
        federation = Federation(folder, children, tee=choose_tee(tee)[0])
        federation.make_machines(names)
        federation.start()
        for name in names:
            rows = folder / "sites" / name / "data"
            rows.mkdir(parents=True)
            (rows / "rows.csv").write_text("nothing\n")
            federation.join(name, data={_DATA: rows}, bundle=sha256(bundle).digest())
        federation.await_connected(names)
        try:
            yield Deployment(federation, names, bundle)
        finally:
            federation.close()
