"""Clients as processes of this machine: for one machine, for tests, and for the demo.

The process runs the same code as a confidential container (:mod:`edge.client.runner`), but nothing
protects its memory from the administrator of this machine.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge.protocol.agent_channel import agent_end
from edge.protocol.bootstrap import Bootstrap
from edge.protocol.workload import Report, Workload
from fedlearn.errors import FedlearnError, LaunchError, TransportError
from fedlearn.job.phase import Phase
from fedlearn.sandbox.environment import app_environment
from fedlearn.sandbox.process_channel import ProcessChannel

__all__ = ["ChargeFor", "LocalLauncher", "Prepare", "SeedFor", "VouchFor"]

_LOG = logging.getLogger(__name__)
_THREADS: Final = (
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "OPENBLAS_NUM_THREADS",
)

Prepare = Callable[[Workload], Bootstrap]
"""``prepare(workload)``: the client's bootstrap document."""

VouchFor = Callable[[Workload, bytes, bytes], bytes]
"""``vouch_for(workload, nonce, tls_key)``: the site's signature for its client."""

SeedFor = Callable[[Workload, bytes], bytes]
"""``seed_for(workload, request)``: the seed of a client's commitment, sealed to it."""

ChargeFor = Callable[[Workload, str], None]
"""``charge_for(workload, question)``: charge an update to the budget of the site's data."""


@dataclass(slots=True)
class _Running:
    workload: Workload
    process: subprocess.Popen[bytes]
    channel: ProcessChannel
    phase: Phase = Phase.STARTING
    reason: str = ""
    stopped: str = ""


class LocalLauncher:
    """A :class:`edge.protocol.workload.Launcher` that starts processes.

    ``directory``  private; holds a folder for each client while it runs, and the logs
    ``stop_s``     seconds that a client has to stop before it is killed
    """

    kind: Final = "process"

    def __init__(
        self,
        directory: Path,
        *,
        prepare: Prepare,
        vouch_for: VouchFor,
        seed_for: SeedFor,
        charge_for: ChargeFor,
        report: Report,
        stop_s: float = 10.0,
    ) -> None:
        self._directory = directory
        self._prepare = prepare
        self._vouch_for = vouch_for
        self._seed_for = seed_for
        self._charge_for = charge_for
        self._report = report
        self._stop_s = stop_s
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        shutil.rmtree(directory / "work", ignore_errors=True)
        for name in ("work", "logs"):
            (directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def launch(self, workload: Workload) -> None:
        """Start the process, which reports its phases itself."""
        identity = workload.assignment.id
        bootstrap = self._prepare(workload)
        with self._lock:
            if identity in self._running:
                return
            started = threading.Event()
            failure: list[LaunchError] = []
            thread = threading.Thread(
                target=self._live,
                args=(workload, bootstrap, started, failure),
                name=f"client {workload.assignment.job}",
                daemon=True,
            )
            # The kernel ends a client with the thread that started it; this thread lives as long.
            thread.start()
            started.wait()
            if failure:
                raise failure[0]

    def stop(self, assignment: str, reason: str) -> None:
        """Ask the process to stop, and kill it when it does not."""
        with self._lock:
            running = self._running.get(assignment)
        if running is None:
            return
        running.stopped = reason or "asked to stop"
        threading.Thread(target=self._end, args=(running,), daemon=True).start()

    def running(self) -> tuple[str, ...]:
        """Return the assignments that have a process."""
        with self._lock:
            return tuple(sorted(self._running))

    def capabilities(self) -> Mapping[str, Any]:
        """Return cores and memory of this machine."""
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        cpu, memory_mib = os.cpu_count() or 1, pages * size // (1024 * 1024)
        return {
            "launcher": self.kind,
            "cpu": cpu,
            "memory_mib": memory_mib,
            "total_cpu": cpu,
            "total_memory_mib": memory_mib,
        }

    def close(self) -> None:
        """End every process."""
        with self._lock:
            running = list(self._running.values())
        for each in running:
            each.stopped = each.stopped or "the agent stopped"
            self._end(each)

    # --- one process ------------------------------------------------------------------

    def _live(
        self,
        workload: Workload,
        bootstrap: Bootstrap,
        started: threading.Event,
        failure: list[LaunchError],
    ) -> None:
        identity = workload.assignment.id
        try:
            running = self._spawn(workload)
            self._running[identity] = running
        except OSError as error:
            failure.append(LaunchError(f"the client's process could not be started: {error}"))
            return
        finally:
            started.set()
        try:
            running.channel.send({}, [bootstrap.encode()])
            self._report(identity, Phase.STARTING, "the process runs")
            self._converse(running)
        except TransportError as error:
            _LOG.info("the client of job %s: %s", workload.assignment.job, error)
        finally:
            self._finish(identity, running)

    def _spawn(self, workload: Workload) -> _Running:
        identity = workload.assignment.id
        home = self._directory / "work" / identity
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(mode=0o700)
        ours, theirs = socket.socketpair()
        environment = {
            "OMP_NUM_THREADS": "1",
            **app_environment(home, "FEDLEARN_LOG", *_THREADS),
            "TMPDIR": str(home),
        }
        log_path = self._directory / "logs" / f"{workload.assignment.job}.log"
        with theirs, log_path.open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "edge.client.process_main"),
                    *(str(theirs.fileno()), str(home / "app")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=home,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return _Running(workload=workload, process=process, channel=agent_end(ours))

    def _converse(self, running: _Running) -> None:
        """Take the client's reports and answer its questions until it has ended.

        :raises TransportError: when the channel breaks, or for a malformed report.
        """
        identity = running.workload.assignment.id
        while (record := running.channel.receive()) is not None:
            header, blobs = record
            if "ask" in header:
                answer = self._answer(running.workload, header, [bytes(blob) for blob in blobs])
                running.channel.send(*answer)
                continue
            try:
                phase, reason = Phase(header["phase"]), str(header["reason"])
            except (KeyError, ValueError) as error:
                raise TransportError("the client sent a malformed report") from error
            running.phase, running.reason = phase, reason
            if not phase.final:
                self._report(identity, phase, reason)

    def _answer(
        self, workload: Workload, header: Mapping[str, Any], blobs: list[bytes]
    ) -> tuple[dict[str, Any], list[bytes]]:
        number, answer = header.get("number"), b""
        try:
            match header["ask"], blobs:
                case "vouch", [nonce, tls_key]:
                    answer = self._vouch_for(workload, nonce, tls_key)
                case "seed", [request]:
                    answer = self._seed_for(workload, request)
                case "charge", [question]:
                    self._charge_for(workload, question.decode())
                case _:
                    raise ValueError("the question is none of vouch, seed and charge")
        except (ValueError, FedlearnError) as error:
            return {"number": number, "refused": str(error)}, []
        return {"number": number}, [answer]

    def _end(self, running: _Running) -> None:
        try:
            running.channel.send({"stop": running.stopped})
            running.process.wait(self._stop_s)
        except (TransportError, subprocess.TimeoutExpired):
            _kill(running.process)

    def _finish(self, identity: str, running: _Running) -> None:
        running.channel.close()
        try:
            status = running.process.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            _kill(running.process)
            status = running.process.wait()
        with self._lock:
            self._running.pop(identity, None)
        shutil.rmtree(self._directory / "work" / identity, ignore_errors=True)
        phase, reason = running.phase, running.reason
        if running.stopped and phase is not Phase.SUCCEEDED:
            phase, reason = Phase.STOPPED, running.stopped
        elif not phase.final:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            phase, reason = Phase.FAILED, f"the client's process ended with {how}"
        self._report(identity, phase, reason)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
