"""Runs the applications of jobs in a container of its own: ``fedlearn-server app-host``.

The coordinator connects to an AF_UNIX socket of type SOCK_SEQPACKET, once for each application.
Every record is one packet with a JSON object of at most :data:`MAX_RECORD` bytes:

1. the request, ``{"memory_bytes": int, "full_sandbox": bool}``, with two descriptors (SCM_RIGHTS,
   unix(7)): the application's socket to the aggregator, and the pipe that it prints to;
2. the answer, ``{"pid": int, "applied": [str], "missing": {str: str}, "abi": int}`` when it runs,
   or ``{"error": str, "busy": bool}`` when it does not;
3. its end, ``{"code": int, "why": str}``, as :class:`fedlearn.sandbox.SandboxedProcess` has it.

The connection is the application's lifetime: when the coordinator closes it or dies, the
application ends, and when the app host dies, the kernel closes it.

The app host answers only processes of its own user, and none that it started itself: without a
mount namespace the code of a job can reach the socket too.

The page is docs/adr/0020-app-container.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import socket
import stat
import struct
import tempfile
import threading
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedlearn.errors import ConfigError, FedlearnError, TransportError
from fedlearn.sandbox import SandboxedProcess
from server.flower.application.app_process import start_application

__all__ = ["MAX_RECORD", "AppHost", "peer_of"]

MAX_RECORD: Final = 64 * 1024
"""Bytes of one record."""

_MAX_NAME: Final = 107  # of a socket, in bytes: unix(7)
_REQUEST_SECONDS: Final = 5.0
_TICK_MS: Final = 200
_MAX_STEPS: Final = 10_000
_BACKLOG: Final = 64
_MAX_MEMORY: Final = 1 << 54
_CREDENTIALS: Final = struct.Struct("3i")
_LOG = logging.getLogger(__name__)


class AppHost:
    """Starts applications for a coordinator, each in its own sandbox.

    :param path: the socket. Its folder is made, for this user alone.
    :param scratch: where each application gets a folder; it holds nothing else.
    :param most: how many applications may run at once.
    :raises ConfigError: when the folder is open to others, or another app host listens there.
    """

    def __init__(self, path: Path, *, scratch: Path, most: int) -> None:
        self._path = path
        self._scratch = scratch
        self._most = most
        self._free = threading.BoundedSemaphore(most)
        self._over = threading.Event()
        self._threads: set[threading.Thread] = set()
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._listener = _listener(path)
        self._accepting = threading.Thread(target=self._accept, name="app-host", daemon=True)

    def start(self) -> None:
        """Take requests from now on, in a thread."""
        self._accepting.start()

    def close(self) -> None:
        """End every application and stop listening."""
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for thread in list(self._threads):
            thread.join()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._over.wait(_TICK_MS / 1000):
                    return
                _LOG.warning("the app host takes no connection: %s", error)
                continue
            refusal = _refusal(connection)
            if refusal:
                _LOG.warning("a connection is refused: %s", refusal)
                _refuse(connection, refusal)
                continue
            if len(self._threads) >= self._most + _BACKLOG:
                connection.close()
                continue
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.add(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        descriptors: list[int] = []
        try:
            with connection:
                try:
                    fields = _request(connection, descriptors)
                except (FedlearnError, OSError) as error:
                    _LOG.warning("a request is refused: %s", error)
                    _send(connection, {"error": str(error), "busy": False})
                    return
                if not self._free.acquire(blocking=False):
                    full = f"{self._most} applications run already, which is the limit"
                    _send(connection, {"error": full, "busy": True})
                    return
                try:
                    self._run(connection, fields, descriptors)
                finally:
                    self._free.release()
        finally:
            _close(descriptors)
            self._threads.discard(threading.current_thread())

    def _run(
        self, connection: socket.socket, fields: Mapping[str, Any], descriptors: list[int]
    ) -> None:
        """Run one application to its end, and report the end to the coordinator."""
        folder: Path | None = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="app-", dir=self._scratch))
            aggregator, output = descriptors
            process = start_application(
                folder=folder, aggregator=aggregator, stdout=output, **fields
            )
            # Its socket and its output end with it.
            _close(descriptors)
            _send(connection, _running(process))
            self._watch(connection, process)
            end = {"code": process.returncode or 0, "why": process.why}
        except (FedlearnError, OSError) as error:
            _LOG.warning("an application does not run: %s", error)
            end = {"error": str(error), "busy": False}
        finally:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        _send(connection, end)

    def _watch(self, connection: socket.socket, process: SandboxedProcess) -> None:
        """Return when the process has ended; end it when the coordinator is gone."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        ended = -1
        with contextlib.suppress(OSError):  # before Linux 5.3; then each tick checks
            ended = os.pidfd_open(process.pid)
            poll.register(ended, select.POLLIN)
        try:
            while process.poll() is None:
                ready = {descriptor for descriptor, _ in poll.poll(_TICK_MS)}
                if connection.fileno() in ready or self._over.is_set():
                    process.kill()
        finally:
            if ended >= 0:
                os.close(ended)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return process and user id of the other end when it connected (``SO_PEERCRED``, unix(7)).

    The process id is 0 where it is of a PID namespace that this process does not see.
    """
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(found)
    return pid, user


def _listener(path: Path) -> socket.socket:
    folder = path.parent
    if len(os.fsencode(path)) > _MAX_NAME:
        raise ConfigError(
            f"{path} is longer than the {_MAX_NAME} bytes that a socket's name may have"
        )
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{folder} is not a folder of this user alone",
            hint="name a folder that does not exist yet; the app host makes it with mode 0700",
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            if other.connect_ex(str(path)) == 0:
                raise ConfigError(f"another app host listens at {path}")
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _refusal(connection: socket.socket) -> str:
    """Return why this peer may not start applications; empty when it may."""
    pid, user = peer_of(connection)
    if user != os.geteuid():
        return f"user {user} may not start applications, only user {os.geteuid()} may"
    if pid in (0, os.getpid()):
        return ""
    return _descent(pid)


def _descent(pid: int) -> str:
    """Return why a process counts as part of an application; empty when it does not.

    From the process upwards: a parent that has ended is detected, and its children then
    have another parent.
    """
    each, steps = pid, 0
    while each > 0 and steps < _MAX_STEPS:
        steps += 1
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            if each == pid:
                return f"process {pid}, which connected, is gone"
            each = pid
            continue
        each = int(fields[1])
        if each == os.getpid():
            return f"process {pid} is one of an application"
    return f"the parents of process {pid} change too fast" if each > 0 else ""


def _refuse(connection: socket.socket, reason: str) -> None:
    with connection:
        # An unread request would reset the connection, and the reason would be lost.
        with contextlib.suppress(OSError):
            connection.recv(MAX_RECORD, socket.MSG_DONTWAIT)
        _send(connection, {"error": reason, "busy": False})


def _running(process: SandboxedProcess) -> dict[str, Any]:
    found = process.report
    return {
        "pid": process.pid,
        "applied": sorted(found.applied),
        "missing": dict(found.missing),
        "abi": found.abi,
    }


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _request(connection: socket.socket, descriptors: list[int]) -> dict[str, Any]:
    """Return a request's fields; what came with it is added to ``descriptors``."""
    connection.settimeout(_REQUEST_SECONDS)
    room = socket.CMSG_SPACE(2 * array("i").itemsize)
    try:
        data, ancillary, flags, _ = connection.recvmsg(MAX_RECORD, room, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        raise TransportError(f"no request arrived within {_REQUEST_SECONDS:g} s") from None
    finally:
        connection.settimeout(None)
    for level, kind, body in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found = array("i")
            found.frombytes(body[: len(body) - len(body) % found.itemsize])
            descriptors += found
    if flags & socket.MSG_TRUNC:
        raise TransportError(f"a request has at most {MAX_RECORD} bytes")
    if flags & socket.MSG_CTRUNC or len(descriptors) != 2:
        raise TransportError("a request comes with two descriptors, a socket and a pipe")
    kinds = [os.fstat(descriptor).st_mode for descriptor in descriptors]
    if not stat.S_ISSOCK(kinds[0]) or not stat.S_ISFIFO(kinds[1]):
        raise TransportError("the descriptors of a request are a socket and a pipe, in this order")
    return _checked(data)


def _checked(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or set(fields) != {"memory_bytes", "full_sandbox"}:
        raise TransportError("a request is a JSON object with memory_bytes and full_sandbox")
    memory = fields["memory_bytes"]
    if type(memory) is not int or not 1 <= memory <= _MAX_MEMORY:
        raise TransportError(f"memory_bytes is a whole number from 1 to {_MAX_MEMORY}")
    if type(fields["full_sandbox"]) is not bool:
        raise TransportError("full_sandbox is true or false")
    return fields


def _send(connection: socket.socket, fields: Mapping[str, Any]) -> None:
    """Send one record, unless the other end is gone or does not read."""
    with contextlib.suppress(OSError):
        connection.send(json.dumps(fields).encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
