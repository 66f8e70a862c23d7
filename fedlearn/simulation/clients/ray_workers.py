"""Clients in the workers of a Ray cluster: on this machine, or the one that ``RAY_ADDRESS`` names.

A worker is an actor that loads the app once and makes one call at a time, the same as a process of
:mod:`fedlearn.simulation.clients.workers`. A call is a function of what it gets, so Ray makes it
again in a new worker when one is lost, and the bits are those of a simulation in one process. The
model of a round is put into Ray's object store once for all clients.

Ray serializes with pickle: whoever reaches a Ray cluster runs code in it. A cluster is one trust
domain, for research, and holds no data of sites in the field.

The pages are docs/how-to/simulate.md and docs/adr/0046-ray.md.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import socket
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedlearn import extras
from fedlearn.app import install
from fedlearn.config.filters import FilterSpec
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.job.spec import JobSpec
from fedlearn.sandbox.memory_file import Part, view_of
from fedlearn.simulation.clients.calls import ClientCall, ClientResult, Clients
from fedlearn.simulation.clients.worker_main import answered
from fedlearn.simulation.clients.workers import (
    WorkerLost,
    app_environment,
    call_record,
    result_of,
)
from fedlearn.simulation.parties.output import captured
from server.flower.ipc.failures import failure_of

__all__ = ["RayWorkers", "installed", "software"]

_ATTEMPTS: Final = 3
_AHEAD: Final = 2
_START_SECONDS: Final = 180.0
_CONNECT_SECONDS: Final = 10.0
_LARGE: Final = 64 * 1024
"""Parts from this size on go into the object store; smaller ones travel with the call."""

_KEPT: Final = 16
_DISTRIBUTIONS: Final = ("fedlearn", "flwr", "numpy", "torch")


def installed() -> bool:
    """Return whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None


def software() -> dict[str, str]:
    """Return the versions that determine the bits of a call in this process."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


class RayWorkers:
    """A pool of Ray actors.

    :param bundle: the app, which each worker unpacks where it runs.
    :param count: of workers; 0: as many as the cluster has room for.
    :param filters: of each site.
    :raises ConfigError: when Ray is not installed, the cluster cannot be reached, has no room for
        the workers, or other software than this process.
    """

    def __init__(
        self,
        spec: JobSpec,
        bundle: bytes,
        *,
        run: int,
        count: int,
        filters: tuple[FilterSpec, ...] = (),
    ) -> None:
        self._ray: Any = extras.load("ray", needed_for='the backend "ray"')
        cpus = max(1.0, spec.resources.cpu)
        self._mine = not self._ray.is_initialized()
        if self._mine:
            _connect(self._ray, int(cpus) * count)
        try:
            job = {"spec": spec, "run": run, "filters": filters}
            self._actors = self._started(job, bundle, count, cpus)
        except BaseException:
            self.close()
            raise
        self.capacity = _AHEAD * len(self._actors)
        self._waiting = [0] * len(self._actors)
        self._kept: OrderedDict[int, tuple[Part, Any]] = OrderedDict()

    def submit(self, call: ClientCall) -> _Pending:
        """Begin a call in the worker that has the fewest."""
        header, blobs = call_record(call)
        index = min(range(len(self._actors)), key=self._waiting.__getitem__)
        self._waiting[index] += 1
        reference = self._actors[index].call.remote(header, *map(self._sent, blobs))
        return _Pending(self, index, reference, call.site)

    def close(self) -> None:
        """End all workers, and a cluster that this process started."""
        if self._mine:
            self._ray.shutdown()
            return
        for actor in getattr(self, "_actors", ()):
            self._ray.kill(actor)

    def taken(self, index: int, reference: Any, site: str) -> ClientResult:
        """Wait for a call's result."""
        try:
            answer, parts = self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            raise WorkerLost(
                f"the worker in the Ray cluster ended in each of {_ATTEMPTS} attempts at the call "
                f"of {site}: {str(error).splitlines()[0]}",
                hint="is there enough memory for so many workers? The run is kept; resume it with "
                "fewer",
            ) from None
        finally:
            self._waiting[index] -= 1
        return result_of(answer, parts)

    def _started(self, job: Mapping[str, Any], bundle: bytes, count: int, cpus: float) -> list[Any]:
        spec: JobSpec = job["spec"]
        if not count:
            count = max(1, int(self._ray.cluster_resources().get("CPU", 1) // cpus))
        remote = self._ray.remote(
            num_cpus=cpus,
            num_gpus=spec.resources.gpu,
            max_restarts=_ATTEMPTS - 1,
            max_task_retries=_ATTEMPTS - 1,
            runtime_env={"env_vars": app_environment(spec)},
        )(_Worker)
        # Kept: a worker that is started again gets its bundle again.
        self._bundle = self._ray.put(bundle)
        actors = [remote.remote(job, self._bundle) for _ in range(count)]
        try:
            found = self._ray.get(
                [each.software.remote() for each in actors], timeout=_START_SECONDS
            )
        except self._ray.exceptions.GetTimeoutError:
            raise ConfigError(
                f"the Ray cluster started not all of {count} workers of {cpus:g} CPUs within "
                f"{_START_SECONDS:.0f} s; it has {self._ray.cluster_resources()}",
                key="workers",
                hint="ask for fewer workers",
            ) from None
        mine = software()
        for theirs in found:
            if other := {name for name in mine if theirs.get(name) != mine[name]}:
                listed = ", ".join(f"{n} {theirs.get(n)} (here {mine[n]})" for n in sorted(other))
                raise ConfigError(
                    f"a worker of the Ray cluster has other software: {listed}",
                    where="ray",
                    hint="use one image for the cluster and for this process",
                )
        return actors

    def _sent(self, part: Part) -> Any:
        """Return a part as it goes to a worker: itself, or where it is in the object store."""
        view = view_of(part)
        if len(view) < _LARGE:
            return bytes(view)
        if id(part) not in self._kept:
            # As an array, workers map it from the store and copy nothing.
            reference = self._ray.put(np.frombuffer(view, dtype=np.uint8))
            self._kept[id(part)] = (part, reference)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(id(part))
        return self._kept[id(part)][1]


class _Pending:
    """A call in the cluster."""

    def __init__(self, workers: RayWorkers, index: int, reference: Any, site: str) -> None:
        self._workers = workers
        self._index = index
        self._reference = reference
        self._site = site

    def result(self) -> ClientResult:
        """Wait for the answer and return it."""
        return self._workers.taken(self._index, self._reference, self._site)


class _Worker:
    """One worker, in a process of the cluster."""

    def __init__(self, job: Mapping[str, Any], bundle: bytes) -> None:
        self._job = job
        self._folder = tempfile.TemporaryDirectory(prefix="fedlearn-app-")
        self._installed = install.unpack(bundle, Path(self._folder.name) / "code")
        self._clients: Clients | None = None

    def software(self) -> dict[str, str]:
        """Return :func:`software` of this process."""
        return software()

    def call(self, header: Mapping[str, Any], *blobs: Any) -> tuple[dict[str, Any], list[bytes]]:
        """Make a call; its errors are part of the result."""
        lines: list[str] = []
        try:
            if self._clients is None:
                with captured(lines.append):
                    self._clients = Clients(
                        self._job["spec"],
                        self._installed,
                        run=self._job["run"],
                        filters=self._job["filters"],
                    )
            answer, parts = answered(
                self._clients, header, [memoryview(blob) for blob in blobs], lines
            )
        except FedlearnError as error:
            return {"error": failure_of(error)}, []
        return answer, [bytes(view_of(part)) for part in parts]


def _connect(ray: Any, cpus: int) -> None:
    """Connect to the cluster of ``RAY_ADDRESS``, or start one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        if address:
            # Ray itself tries for minutes.
            host, colon, port = address.removeprefix("ray://").rpartition(":")
            if colon:
                socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
            ray.init(log_to_driver=False, configure_logging=False)
        else:
            ray.init(
                num_cpus=cpus or None,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ConfigError(
            f"the Ray cluster cannot be reached: {reason}", where=f"RAY_ADDRESS={address}"
        ) from None
