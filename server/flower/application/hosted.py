"""The job's side of an application that runs in another container.

The other side is :mod:`server.flower.application.app_host`, which defines the messages between
the two.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from array import array
from pathlib import Path
from typing import IO, Any, ClassVar, Final

from fedlearn.errors import JobError
from fedlearn.sandbox import Protection, SandboxError, SandboxReport
from server.flower.application.app_host import MAX_RECORD, peer_of

__all__ = ["AppHostGone", "HostedApplication", "start_hosted"]

_ANSWER_SECONDS: Final = 75.0
_KILL_SECONDS: Final = 15.0
_PAUSE_SECONDS: Final = 0.2
_TIMEOUT_SECONDS: Final = 60.0
_MAX_WHY: Final = 1000


class AppHostGone(JobError):
    """No app host answers. The job counts as crashed, and continues when one answers again."""

    code: ClassVar[str] = "crashed"


class _Busy(Exception):
    """The app host runs its maximum number of applications."""


class HostedApplication:
    """An application in another container. Safe to use from many threads.

    It ends when the connection ends. When the app host is gone, ``returncode`` is that of a
    killed process and ``why`` names the app host.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        path: Path,
        pid: int,
        report: SandboxReport,
        stdout: IO[bytes],
    ) -> None:
        self.pid = pid
        self.report = report
        self.stdout: IO[bytes] | None = stdout
        self.why = ""
        self._connection = connection
        self._path = path
        self._returncode: int | None = None
        self._ended = threading.Event()
        threading.Thread(target=self._read_end, daemon=True).start()

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while any of its processes runs."""
        return self.poll()

    def poll(self) -> int | None:
        """Return the exit status when all its processes are gone, and None before."""
        return self._returncode if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, when all its processes are gone.

        :raises subprocess.TimeoutExpired: when they are not, after ``timeout`` seconds.
        """
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("the application", timeout or 0.0)
        found = self.poll()
        return -signal.SIGKILL if found is None else found

    def kill(self) -> int:
        """End all of its processes now; return the exit status.

        An app host that does not confirm this within 15 s counts as gone; it ends the application
        when it finds the connection closed.
        """
        with contextlib.suppress(OSError):  # it has ended
            self._connection.shutdown(socket.SHUT_WR)
        if not self._ended.wait(_KILL_SECONDS):
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        return self.wait()

    def _read_end(self) -> None:
        code, why = -int(signal.SIGKILL), f"the app host at {self._path} is gone"
        with self._connection, contextlib.suppress(OSError, ValueError):
            found = _record(self._connection.recv(MAX_RECORD))
            if type(found.get("code")) is int:
                code, why = found["code"], str(found.get("why", ""))[:_MAX_WHY]
            elif "error" in found:
                why = str(found["error"])[:_MAX_WHY]
        self._returncode, self.why = code, why
        self._ended.set()


def start_hosted(
    path: Path,
    *,
    aggregator: socket.socket,
    memory_bytes: int,
    full_sandbox: bool,
    over: threading.Event,
    timeout: float = _TIMEOUT_SECONDS,
) -> HostedApplication:
    """Have the app host at ``path`` start an application; return when it runs.

    :param aggregator: the application's socket to the aggregator; it stays the caller's.
    :param over: ends the wait for an app host that is missing or busy.
    :param timeout: how many seconds to wait for it.
    :raises AppHostGone: when none answers in time.
    :raises SandboxError: when it does not start the application, with its message.
    :raises JobError: when it is not of this user, or busy for all that time.
    """
    fields = {"memory_bytes": memory_bytes, "full_sandbox": full_sandbox}
    end = time.monotonic() + timeout
    read, write = os.pipe()
    output = os.fdopen(read, "rb")
    try:
        while True:
            reason: OSError | _Busy
            try:
                connection = _connect(path)
            except OSError as error:
                reason = error
            else:
                try:
                    answer = _ask(connection, fields, [aggregator.fileno(), write])
                except (OSError, _Busy) as error:
                    connection.close()
                    reason = error
                except BaseException:
                    connection.close()
                    raise
                else:
                    return HostedApplication(connection, path=path, stdout=output, **answer)
            if over.is_set() or time.monotonic() > end:
                raise _unreachable(path, reason)
            over.wait(_PAUSE_SECONDS)
    except BaseException:
        output.close()
        raise
    finally:
        os.close(write)


def _unreachable(path: Path, reason: OSError | _Busy) -> JobError:
    if isinstance(reason, _Busy):
        return JobError(
            f"the app host at {path} does not start the application: {reason}",
            hint="wait for another job's end, or let more run (`--most` of its command)",
        )
    return AppHostGone(
        f"no app host answers at {path}: {reason.strerror or reason}",
        hint="start it (`fedlearn-server app-host`), or remove jobs.app_host from server.toml",
    )


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(str(path))
        _, user = peer_of(connection)
        if user != os.geteuid():
            raise JobError(
                f"the app host at {path} runs as user {user}, not as {os.geteuid()}",
                hint="run it as the user that the coordinator runs as",
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _ask(
    connection: socket.socket, fields: dict[str, Any], descriptors: list[int]
) -> dict[str, Any]:
    """Send a request; return the properties of the running application."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))
    with contextlib.suppress(
        BrokenPipeError
    ):  # an app host that refuses at once has answered already
        connection.sendmsg([json.dumps(fields).encode()], [rights], socket.MSG_NOSIGNAL)
    data = connection.recv(MAX_RECORD)
    if not data:
        raise ConnectionResetError("it closed the connection")
    connection.settimeout(None)
    try:
        found = _record(data)
        if "error" in found:
            message = str(found["error"])[:_MAX_WHY]
            if found.get("busy") is True:
                raise _Busy(message)
            raise SandboxError(f"the app host does not start the application: {message}")
        report = SandboxReport(
            applied=frozenset(map(Protection, found["applied"])),
            missing={Protection(name): str(why) for name, why in found["missing"].items()},
            abi=int(found["abi"]),
        )
        return {"pid": int(found["pid"]), "report": report}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise JobError(
            "the app host's answer is malformed; run the app host of the coordinator's version"
        ) from None


def _record(data: bytes) -> dict[str, Any]:
    """Return one record; raise ValueError when it is not one."""
    try:
        found = json.loads(data)
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found
