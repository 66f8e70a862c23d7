"""One running job: its exchange, its two processes, and its outcome.

The aggregator (:mod:`server.flower.aggregation.aggregator`) has no user code; the application's
process (:mod:`server.flower.application.app_main`) runs it and is connected to the aggregator only.
"""

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
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fedlearn.errors import FedlearnError, JobError
from fedlearn.job.state import JobStatus
from fedlearn.sandbox import thread_environment
from fedlearn.sandbox.process_channel import ChannelClosed, ProcessChannel
from server.flower.application.app_process import Application, environment, start_application
from server.flower.application.hosted import start_hosted
from server.flower.exchange.calls import MAX_RECORD_BYTES, serve
from server.flower.exchange.job_exchange import JobExchange
from server.flower.job_plan import JobChannel, JobPlan, Outcome, to_record

__all__ = ["JobRunner", "aggregator_environment"]

_MAX_LINE: Final = 4096
_LINES_PER_SECOND: Final = 100
_LINES_AT_ONCE: Final = 2_000
_LAST_LINES_SECONDS: Final = 5.0
_END_SECONDS: Final = 2.0
_LOG = logging.getLogger(__name__)


def aggregator_environment(home: Path) -> dict[str, str]:
    """Return the environment of an aggregator, whose numerical libraries use one thread.

    It parts its arithmetic between threads itself. The threads of a BLAS would wait for each
    other in loops for products as small as its blocks, and their number would decide last bits.
    """
    return environment(home) | thread_environment(1)


class JobRunner:
    """Runs one job. Safe to use from many threads.

    :param directory: a folder for this job alone; what is in it is deleted at the start. The
        application's process keeps the unpacked application there, and its own files.
    :param channel: see :class:`server.flower.job_plan.JobChannel`; ``log`` events come from a
        thread of their own.
    :param app_host: the socket of an app host (:mod:`server.flower.application.app_host`), which
    starts the
        application's process in its own container; without one it is started here.
    """

    def __init__(
        self,
        plan: JobPlan,
        channel: JobChannel,
        *,
        directory: Path,
        app_host: Path | None = None,
    ) -> None:
        self.plan = plan
        self.link = JobExchange(plan)
        self._channel = channel
        self._directory = directory
        self._app_host = app_host
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._aggregator: subprocess.Popen[bytes] | None = None
        self._application: Application | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._outcome: Outcome | None = None
        self._final_report: tuple[int, Mapping[str, str] | None] | None = None
        self._cancelled = ""

    @property
    def pids(self) -> tuple[int, ...]:
        """The numbers of the job's processes that are there: aggregator, application.

        That of an application in another container is of that container's PID namespace.
        """
        each = (self._aggregator, self._application)
        return tuple(found.pid for found in each if found is not None and found.poll() is None)

    def create_node(self, site: str, tls_key: bytes) -> int:
        """Admit a site; see :meth:`server.flower.exchange.job_exchange.JobExchange.create_node`."""
        return self.link.create_node(site, tls_key)

    def delete_node(self, site: str) -> None:
        """End a site's part in the job; see
        :meth:`server.flower.exchange.job_exchange.JobExchange.delete_node`."""
        self.link.delete_node(site)

    def start(self) -> None:
        """Start the job's processes. After a crash of one they may be started again, and
        continue from the last checkpoint; clients are not affected.

        :raises JobError: when it runs, or has ended for good.
        """
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise JobError(f"job {self.plan.spec.name} runs already")
            if self._cancelled or self.link.closed:
                raise JobError(f"job {self.plan.spec.name} has ended")
            self._ended.clear()
            self._outcome = self._final_report = None
            # The kernel ends the process with the thread that started it; this one stays.
            self._thread = threading.Thread(
                target=self._live, name=f"job {self.plan.spec.name}", daemon=True
            )
            self._thread.start()

    def wait(self, timeout: float | None = None) -> Outcome | None:
        """Return how the job ended, or None when it has not after ``timeout`` seconds."""
        return self._outcome if self._ended.wait(timeout) else None

    def cancel(self, reason: str = "cancelled") -> None:
        """End the job now. Its last checkpoint stays."""
        with self._lock:
            self._cancelled = reason
            self._over.set()
            self._kill()

    def close(self) -> None:
        """End the job's processes and its exchange."""
        self._over.set()
        with self._lock:
            self._kill()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=30)
        outcome = self._outcome
        self.link.close(completed=outcome is not None and outcome.status is JobStatus.FINISHED)
        if outcome is None:
            # A run that has ended has removed it, and a resumed job may be using it again.
            shutil.rmtree(self._directory, ignore_errors=True)

    def _kill(self) -> None:
        aggregator, application = self._aggregator, self._application
        if aggregator is not None and aggregator.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(aggregator.pid, signal.SIGKILL)
        if application is not None and application.poll() is None:
            application.kill()

    def _live(self) -> None:
        failure: FedlearnError | None = None
        how = ""
        try:
            how = self._run()
        except FedlearnError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  a channel may raise anything; it is reported
            _LOG.exception("job %s ends", self.plan.spec.name)
            failure = JobError(f"the coordinator failed: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._kill()
            self._outcome = self._judge(how, failure)
            self._ended.set()

    def _run(self) -> str:
        """Run both processes to their end; return how they ended, in words."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(mode=0o700, parents=True)
        self.link.start_over()
        ours, theirs = socket.socketpair()
        inner, outer = socket.socketpair()
        process_channel = ProcessChannel(ours, limit=MAX_RECORD_BYTES)
        followers: list[threading.Thread] = []
        try:
            with theirs, inner, outer:
                application = self._application = self._start_application(outer)
                aggregator = self._aggregator = self._spawn_aggregator(theirs, inner)
            for process in (aggregator, application):
                followers.append(threading.Thread(target=self._follow, args=(process,)))
                followers[-1].daemon = True
                followers[-1].start()
            watch = threading.Thread(target=self._end_after, args=(application,), daemon=True)
            watch.start()
            header, blobs = to_record(self.plan)
            with contextlib.suppress(ChannelClosed):  # its status shows how the process ended
                process_channel.send(header, blobs)
                serve(process_channel, self.link, self._channel, self._done)
        finally:
            # Closed first: what still runs of the job can make no more requests.
            process_channel.close()
            self._settle()
            # Before the job is reported as over: the files of the application are in the clear.
            shutil.rmtree(self._directory, ignore_errors=True)
        for follower in followers:
            follower.join(timeout=_LAST_LINES_SECONDS)
        return _how(aggregator, application)

    def _settle(self) -> None:
        """Give both processes a moment to end by themselves, then end them."""
        end = time.monotonic() + _END_SECONDS
        for process in (self._application, self._aggregator):
            if process is None:
                continue
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                _LOG.warning("job %s: a process of it has to be ended", self.plan.spec.name)
        with self._lock:
            self._kill()
        for process in (self._application, self._aggregator):
            if process is not None:
                process.wait()

    def _end_after(self, application: Application) -> None:
        """End the job some time after its application's process has ended.

        What that process left behind may hold its socket open, so its end alone would not
        reach the aggregator.
        """
        application.wait()
        time.sleep(_END_SECONDS)
        with self._lock:
            if self._application is application:
                self._kill()

    def _spawn_aggregator(
        self, coordinator: socket.socket, application: socket.socket
    ) -> subprocess.Popen[bytes]:
        descriptors = [coordinator.fileno(), application.fileno()]
        module = "server.flower.aggregation.aggregator"
        with self._lock:
            self._check_not_cancelled()
            return subprocess.Popen(
                [sys.executable, "-P", "-m", module, *map(str, descriptors), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=aggregator_environment(self._directory),
                cwd="/",
                pass_fds=descriptors,
                start_new_session=True,
            )

    def _start_application(self, aggregator: socket.socket) -> Application:
        plan = self.plan
        found: Application
        if self._app_host is not None:
            found = start_hosted(
                self._app_host,
                aggregator=aggregator,
                memory_bytes=plan.app_memory_bytes,
                full_sandbox=plan.full_sandbox,
                over=self._over,
            )
        else:
            with self._lock:
                self._check_not_cancelled()
                found = start_application(
                    folder=self._directory,
                    aggregator=aggregator.fileno(),
                    stdout=subprocess.PIPE,
                    memory_bytes=plan.app_memory_bytes,
                    full_sandbox=plan.full_sandbox,
                )
        if not found.report.full:
            self._log(f"the application's sandbox is not complete: {found.report}", level="warning")
        return found

    def _check_not_cancelled(self) -> None:
        if self._cancelled:
            raise JobError(f"job {self.plan.spec.name} was cancelled")

    def _follow(self, process: subprocess.Popen[bytes] | Application) -> None:
        """Turn what the application prints into events, line by line."""
        if process.stdout is None:
            return
        shown = Allowance(rate=_LINES_PER_SECOND, burst=_LINES_AT_ONCE)
        with process.stdout as lines:
            while line := lines.readline(_MAX_LINE):
                text = line.decode(errors="replace").rstrip()
                if not text:
                    continue
                missed = shown.take()
                if missed is None:
                    continue
                if missed:
                    note = f"{missed} lines are not shown: at most {_LINES_PER_SECOND} a second are"
                    self._log(note, level="warning")
                self._log(text)

    def _log(self, line: str, *, level: str = "info") -> None:
        self._channel.event("log", {"line": line, "site": "", "level": level})

    def _done(self, rounds: int, failure: Mapping[str, str] | None) -> None:
        self._final_report = (rounds, failure)

    def _judge(self, how: str, failure: FedlearnError | None) -> Outcome:
        if self._cancelled:
            return Outcome(status=JobStatus.CANCELLED, message=self._cancelled)
        if self._final_report is not None:
            rounds, reported = self._final_report
            if reported is None:
                return Outcome(status=JobStatus.FINISHED, rounds=rounds)
            return Outcome(
                status=JobStatus.FAILED,
                rounds=rounds,
                code=str(reported["code"]),
                message=str(reported["message"]),
                hint=str(reported["hint"]),
            )
        if failure is not None:
            code, message, hint = failure.code, str(failure), failure.hint
            return Outcome(status=JobStatus.FAILED, code=code, message=message, hint=hint)
        return Outcome(
            status=JobStatus.FAILED,
            code="crashed",
            message=how,
            hint="it continues from its last checkpoint when it is started again",
        )


class Allowance:
    """How many lines may still be shown: ``rate`` a second, and ``burst`` at once."""

    def __init__(self, *, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._left = float(burst)
        self._at = time.monotonic()
        self._missed = 0

    def take(self) -> int | None:
        """Return how many lines were missed before this one; None when this one is missed."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            self._missed += 1
            return None
        self._left -= 1
        missed, self._missed = self._missed, 0
        return missed


def _how(aggregator: subprocess.Popen[bytes], application: Application) -> str:
    """Return how the processes ended, the application's first: it is the usual cause."""
    found = []
    if application.why:
        found.append(f"the application's process was ended: {application.why}")
    for name, process in (("application's process", application), ("aggregator", aggregator)):
        status = process.returncode or 0
        if status:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            found.append(f"the {name} ended with {how}")
    return "; ".join(found) or "the job's processes ended before the job did"
