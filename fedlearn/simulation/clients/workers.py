"""Clients in processes of their own: a pool of workers, each of which loads the app once.

A question travels as the descriptors of the files in memory that the aggregator encoded, and an
answer as those that the worker wrote (:mod:`fedlearn.sandbox.memory_file`): model bytes are shared
and not copied. A worker has the environment of a site's app: its number of threads, and the order
of sets. What a client keeps is the parent's, so a call whose worker was killed is made again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from fedlearn.app.install import Installed
from fedlearn.config.filters import FilterSpec
from fedlearn.errors import JobError
from fedlearn.job.spec import JobSpec
from fedlearn.sandbox import thread_environment
from fedlearn.sandbox.process_channel import ChannelClosed, ProcessChannel
from fedlearn.simulation.clients.calls import ClientCall, ClientResult
from fedlearn.simulation.kept.memories import pack_memory, unpack_memory
from server.flower.ipc.failures import raised

__all__ = ["WorkerLost", "Workers", "app_environment", "call_record", "result_of"]

LIMIT: Final = 1 << 40
_ATTEMPTS: Final = 3
_AHEAD: Final = 2
"""How many calls for each worker may have begun before their answers are wanted."""

_GPU: Final = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


class WorkerLost(JobError):
    """The process of a worker ended in every attempt at a call."""


def app_environment(spec: JobSpec) -> dict[str, str]:
    """Return what determines the bits of an app, as at a site."""
    gpu = _GPU if spec.resources.gpu else {}
    return {**thread_environment(spec.resources.cpu), **gpu, "PYTHONHASHSEED": "0"}


class Workers:
    """A pool of processes. Safe to use from many threads.

    :param count: of processes; each starts with its first call.
    """

    def __init__(
        self,
        spec: JobSpec,
        installed: Installed,
        *,
        run: int,
        count: int,
        filters: tuple[FilterSpec, ...] = (),
    ) -> None:
        self.capacity = _AHEAD * count
        self._job: dict[str, Any] = {
            "spec": spec.to_json(),
            "folder": str(installed.folder),
            "name": installed.name,
            "clientapp": installed.clientapp,
            "config": dict(installed.config),
            "sites": len(spec.sites),
            "run": run,
            "filters": [each.to_mapping() for each in filters],
            "parent": os.getpid(),
        }
        self._environment = {**os.environ, **app_environment(spec)}
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._lock = threading.Lock()
        self._running: set[_Worker] = set()
        self._closed = False

    def submit(self, call: ClientCall) -> Future[ClientResult]:
        """Begin a call in a worker that is free, or when one is."""
        return self._threads.submit(self._call, call)

    def close(self) -> None:
        """End all workers, and the calls that run."""
        with self._lock:
            self._closed = True
            for worker in self._running:
                worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes that run."""
        with self._lock:
            return [worker.pid for worker in self._running]

    def _call(self, call: ClientCall) -> ClientResult:
        worker = self._idle.get()
        how = ""
        try:
            for _ in range(_ATTEMPTS):
                try:
                    worker = worker or self._started()
                    return worker.call(call)
                except ChannelClosed:
                    if worker is not None:
                        how = worker.ended()
                        with self._lock:
                            self._running.discard(worker)
                    worker = None
            raise WorkerLost(
                f"the worker's process ended in each of {_ATTEMPTS} attempts at the call of "
                f"{call.site}: {how}",
                hint="is there enough memory for so many workers? The run is kept; resume it with "
                "fewer",
            )
        finally:
            self._idle.put(worker)

    def _started(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise JobError("the simulation has ended")
            worker = _Worker(self._job, self._environment)
            self._running.add(worker)
        return worker


class _Worker:
    """One process; one call at a time."""

    def __init__(self, job: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "fedlearn.simulation.clients.worker_main",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=dict(environment),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._channel = ProcessChannel(ours, limit=LIMIT)
        self._job: Mapping[str, Any] | None = job

    def call(self, call: ClientCall) -> ClientResult:
        """Make a call.

        :raises ChannelClosed: when the process ended.
        :raises FedlearnError: when the app cannot be loaded.
        """
        if self._job is not None:
            self._channel.send(self._job)
            self._job = None
        header, blobs = call_record(call)
        self._channel.send(header, blobs)
        received = self._channel.receive_parts()
        if received is None:
            raise ChannelClosed("the worker's process ended")
        return result_of(*received)

    def ended(self) -> str:
        """End the process if it still runs; return how it ended."""
        self.kill()
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"status {code}"

    def kill(self) -> None:
        """End the process."""
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.05)
        self._process.kill()
        self._process.wait()


def call_record(call: ClientCall) -> tuple[dict[str, Any], list[Any]]:
    """Return a call as JSON and byte strings."""
    memory = pack_memory(call.memory)
    header = {
        "site": call.site,
        "index": call.index,
        "data": call.data,
        "node": call.node,
        "id": call.id,
        "memory": memory is not None,
    }
    return header, [*call.frames, *([] if memory is None else [memory])]


def result_of(header: Mapping[str, Any], blobs: list[Any]) -> ClientResult:
    """Return the result that a worker sent.

    :raises FedlearnError: the one with which the call could not be made.
    """
    if header.get("error") is not None:
        raise raised(header["error"])
    frames = blobs[:-1] if header["memory"] else blobs
    memory = unpack_memory(bytes(blobs[-1]) if header["memory"] else None)
    return ClientResult(frames=frames, memory=memory, lines=header["lines"])
