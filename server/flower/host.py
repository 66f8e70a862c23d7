"""One job as it runs: its link for the nodes, its process, and how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fedlearn.errors import FedlearnError, JobError
from server.flower.calls import MAX_RECORD_BYTES, serve
from server.flower.link import JobLink
from server.flower.pipe import Pipe, PipeClosed
from server.flower.plan import JobChannel, JobPlan, Outcome, to_record

__all__ = ["JobHost"]

_KEPT: Final = (
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "PATH",
    "PYTHONPATH",
    "TZ",
    "VIRTUAL_ENV",
)
_MAX_LINE: Final = 4096
_LOG = logging.getLogger(__name__)


class JobHost:
    """Runs one job. Safe to use from many threads.

    :param directory: a folder for this job alone; what is in it is deleted at the start. The
        process keeps the unpacked application there, and nothing of the model.
    :param channel: see :class:`server.flower.plan.JobChannel`; ``log`` events come from a
        thread of their own.
    """

    def __init__(self, plan: JobPlan, channel: JobChannel, *, directory: Path) -> None:
        self.plan = plan
        self.link = JobLink(plan)
        self._channel = channel
        self._directory = directory
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._outcome: Outcome | None = None
        self._last_word: tuple[int, Mapping[str, str] | None] | None = None
        self._cancelled = ""

    @property
    def pid(self) -> int | None:
        """The number of the job's process, while there is one."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def create_node(self, site: str, tls_key: bytes) -> int:
        """Admit a site; see :meth:`server.flower.link.JobLink.create_node`."""
        return self.link.create_node(site, tls_key)

    def delete_node(self, site: str) -> None:
        """End a site's part in the job; see :meth:`server.flower.link.JobLink.delete_node`."""
        self.link.delete_node(site)

    def start(self) -> None:
        """Start the job's process. After a crash of the process it may be started again, and
        goes on from the last checkpoint; clients need not notice.

        :raises JobError: when it runs, or has ended for good.
        """
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise JobError(f"job {self.plan.job} runs already")
            if self._cancelled or self.link.closed:
                raise JobError(f"job {self.plan.job} has ended")
            self._ended.clear()
            self._outcome = self._last_word = None
            # The kernel ends the process with the thread that started it; this one stays.
            self._thread = threading.Thread(
                target=self._live, name=f"job {self.plan.job}", daemon=True
            )
            self._thread.start()

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Return how the job ended, or None when it has not after ``timeout`` seconds."""
        return self._outcome if self._ended.wait(timeout) else None

    def cancel(self, reason: str = "cancelled") -> None:
        """End the job now. Its last checkpoint stays."""
        with self._lock:
            self._cancelled = reason
            self._kill()

    def close(self) -> None:
        """End the process, if there is one, and let the nodes go."""
        with self._lock:
            self._kill()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=30)
        outcome = self._outcome
        self.link.close(completed=outcome is not None and outcome.status == "finished")
        shutil.rmtree(self._directory, ignore_errors=True)

    def _kill(self) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _live(self) -> None:
        failure: FedlearnError | None = None
        status = 0
        try:
            status = self._run()
        except FedlearnError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  a channel may raise anything; told, not lost
            _LOG.exception("job %s ends", self.plan.job)
            failure = JobError(f"the coordinator failed: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._kill()
            self._outcome = self._judge(status, failure)
            self._ended.set()

    def _run(self) -> int:
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(mode=0o700, parents=True)
        self.link.start_over()
        ours, theirs = socket.socketpair()
        pipe = Pipe(ours, limit=MAX_RECORD_BYTES)
        try:
            with theirs:
                process = self._spawn(theirs)
            logs = threading.Thread(target=self._follow, args=(process,), daemon=True)
            logs.start()
            header, blobs = to_record(self.plan)
            with contextlib.suppress(PipeClosed):  # its status says how the process ended
                pipe.send(header, [*blobs, self.link.run()])
                serve(pipe, self.link, self._channel, self._done)
        finally:
            pipe.close()
        status = process.wait()
        logs.join(timeout=5)
        return status

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        home = str(self._directory)
        environment |= {
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_HOME": home,
            "FLWR_TELEMETRY_ENABLED": "0",
            "HOME": home,
            "PYTHONHASHSEED": "0",
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": home,
        }
        arguments = [str(theirs.fileno()), str(os.getpid()), home]
        with self._lock:
            if self._cancelled:
                raise JobError(f"job {self.plan.job} was cancelled")
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "server.flower.run", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=home,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            return self._process

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        """Turn what the application prints into events, line by line."""
        if process.stdout is None:
            return
        with process.stdout as lines:
            while line := lines.readline(_MAX_LINE):
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._channel.event("log", {"line": text, "site": "", "level": "info"})

    def _done(self, rounds: int, failure: Mapping[str, str] | None) -> None:
        self._last_word = (rounds, failure)

    def _judge(self, status: int, failure: FedlearnError | None) -> Outcome:
        if self._cancelled:
            return Outcome(status="cancelled", message=self._cancelled)
        if self._last_word is not None:
            rounds, told = self._last_word
            if told is None:
                return Outcome(status="finished", rounds=rounds)
            return Outcome(
                status="failed",
                rounds=rounds,
                code=str(told["code"]),
                message=str(told["message"]),
                hint=str(told["hint"]),
            )
        if failure is not None:
            code, message, hint = failure.code, str(failure), failure.hint
            return Outcome(status="failed", code=code, message=message, hint=hint)
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return Outcome(
            status="failed",
            code="crashed",
            message=f"the job's process ended with {how}",
            hint="it goes on from its last checkpoint when it is started again",
        )
