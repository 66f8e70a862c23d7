"""The job on fedlearn itself: the processes that everybody has, with every protection."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from attestation.config import dumps
from attestation.evidence import Tee
from fedlearn.cli.bench.costs import Run
from fedlearn.cli.bench.job import Job
from fedlearn.demo import app
from fedlearn.errors import JobError
from fedlearn.job.spec import JobSpec
from fedlearn.local.children import Children
from fedlearn.local.federation import Federation
from fedlearn.local.policy import policy_text

__all__ = ["run_everything"]

_MODULES: Final = {
    "server.flower.aggregation.aggregator": "aggregator",
    "server.flower.application.app_main": "server app",
    "edge.client.process_main": "client",
    "edge.client.flower.app_main": "app",
    "fedlearn-server": "coordinator",
    "fedlearn-edge": "agent",
}
_SAMPLE_SECONDS: Final = 0.1


def run_everything(job: Job, folder: Path, *, tee: Tee) -> Run:
    """Run the job once on a coordinator and sites that are started for it.

    The start of the coordinator and the agents is not counted: they are there before a job.

    :raises FedlearnError: when a step fails. All processes have ended then.
    """
    digest = sha256(job.bundle).digest()
    with Children(folder / "logs", job.environment) as children:
        federation = Federation(folder, children, tee=tee)
        federation.open(job.sites)
        for site in job.sites:
            federation.join(site, data={job.name: job.data[site]}, bundle=digest)
        federation.await_connected(job.sites)
        policy = policy_text(federation, name=job.name, bundle=digest, app=job.app, sites=job.sites)
        (folder / "policy.toml").write_text(policy)
        (folder / "job.toml").write_text(
            dumps(
                {
                    "name": job.name,
                    "app": str(app.folder(job.app)),
                    "rounds": job.rounds,
                    "sites": list(job.sites),
                    "policy": "policy.toml",
                    "config": {k: v for k, v in job.config.items() if k != "num-server-rounds"},
                    "evaluate": {"metric": job.metric},
                    "data": {site: {"set": job.name} for site in job.sites},
                }
            )
        )
        spec = JobSpec.load(folder / "job.toml")
        operator = federation.operator
        started: list[int] = []
        finished = 0
        with _CpuWatch() as watch:
            begun = time.time()
            operator.submit_job(job_toml=spec.to_toml(), bundle=job.bundle, policy_toml=policy)
            for event in operator.follow_job(spec.name):
                if event.kind == "round.started":
                    started.append(event.unix_ms)
                elif event.kind == "round.finished":
                    finished = event.unix_ms
            ended = time.time()
        state = operator.get_job(spec.name)
        federation.close()
        if state.status != "finished" or len(started) != job.rounds:
            raise JobError(f"the job is {state.status} after {len(started)} rounds: {state.detail}")
        times = [moment / 1000 for moment in [*started, finished]]
        return Run(
            start=times[0] - begun,
            rounds=[after - before for before, after in itertools.pairwise(times)],
            end=max(0.0, ended - times[-1]),
            cpu=watch.seconds(),
        )


@dataclass(slots=True)
class _CpuWatch:
    """Reads the processor time of every process below this one, as a context."""

    _first: dict[int, float] = field(default_factory=dict)
    _last: dict[int, tuple[str, float]] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> _CpuWatch:
        self._first = {pid: seconds for pid, (_, seconds) in _processes().items()}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each kind of process within the context."""
        found: dict[str, float] = {}
        for pid, (kind, seconds) in self._last.items():
            found[kind] = found.get(kind, 0.0) + seconds - self._first.get(pid, 0.0)
        return found

    def _watch(self) -> None:
        while True:
            self._last |= _processes()
            if self._over.wait(_SAMPLE_SECONDS):
                return


def _processes() -> dict[int, tuple[str, float]]:
    """Return kind and processor seconds of the processes of fedlearn below this one."""
    parents: dict[int, int] = {}
    found: dict[int, tuple[str, float]] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            names = [Path(word).name for word in words]
            kind = next((k for name, k in _MODULES.items() if name in words + names), "")
            if kind and names[0].startswith("python"):
                used = (int(fields[11]) + int(fields[12])) / tick
                found[int(entry.name)] = (kind, used)
    return {pid: each for pid, each in found.items() if _below(pid, parents)}


def _below(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False
