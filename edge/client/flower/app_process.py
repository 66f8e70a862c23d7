"""The client's end of the process of the app: start it in a sandbox, call it, end it.

User code runs in :mod:`edge.client.flower.app_main` and nowhere else. That process returns a text,
a list and byte strings, which the client parses without trust.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol

from flwr.app import RecordDict

from edge.client.flower.app_state import State
from edge.client.output_reader import OutputReader
from fedlearn.app.flower import inflate
from fedlearn.app.message import Head
from fedlearn.errors import FedlearnError, TransportError
from fedlearn.sandbox import (
    Protection,
    Sandbox,
    SandboxedProcess,
    SandboxError,
    free_user,
    spawn,
    thread_environment,
)
from fedlearn.sandbox.environment import app_environment
from fedlearn.sandbox.memory_file import Part
from fedlearn.sandbox.process_channel import ChannelClosed, ChannelTimeout, ProcessChannel

__all__ = ["Answer", "App", "AppFailed", "AppLimits", "AppProcess", "AppRaised"]

_LOG = logging.getLogger(__name__)
_MAX_ANSWER_HEADER: Final = 4 * 1024 * 1024
_END_SECONDS: Final = 5.0
_GPU_DEVICES: Final = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dri/*", "/dev/kfd")
_GPU_FILES: Final = ("/sys/bus/pci", "/sys/class/drm", "/sys/devices", "/sys/module/nvidia")
_GPU_ENVIRONMENT: Final = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""With which cuBLAS adds in the same order each time (its manual, *Results reproducibility*)."""
_KEPT: Final = ("CUDA_VISIBLE_DEVICES", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class AppFailed(FedlearnError):
    """The app raised an exception, or its process ended, hung or sent a malformed answer."""

    code: ClassVar[str] = "app"


class AppRaised(AppFailed):
    """The app raised an exception. The text is the app's, and may hold anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AppLimits:
    """What the process of the app may use.

    ``seconds``     for loading the app, and for each call
    ``message``     the most bytes of one answer, and of the state that comes with it
    ``cpu``         cores, which decide how many threads numerical libraries start
    ``gpu``         whether it may open the devices of GPUs
    ``required``    protections without which it is not started
    """

    seconds: float = 600.0
    message: int = 4 * 1024**3
    cpu: float = 1.0
    memory_bytes: int = 4 * 1024**3
    disk_bytes: int = 16 * 1024**3
    gpu: bool = False
    required: frozenset[Protection] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of the app's process: the records of a reply, or why there are none.

    Arrays are packed as they were received, and have not been checked. They lie in the files that
    the process sent, which are not mapped.
    """

    failure: str | None
    content: RecordDict
    state: State


class App(Protocol):
    """The app of one client, as its replies use it; :class:`AppProcess` states the guarantees."""

    def ask(
        self, question: Mapping[str, Any], message: Sequence[Part], state: State | None
    ) -> Answer: ...

    @property
    def alive(self) -> bool: ...

    def drain(self) -> None: ...

    def close(self) -> None: ...


class AppProcess:
    """One process of the app. One thread calls it; any thread may call :meth:`close`.

    :param folder: of the unpacked app, which it may read.
    :param own: a folder of its own, which it may write to.
    :param data: the site's data, which it may read.
    :param output: takes what it writes to its standard output and error.
    :raises AppFailed: when it cannot be started.
    """

    def __init__(
        self,
        *,
        folder: Path,
        own: Path,
        data: Path | None,
        limits: AppLimits,
        output: Callable[[bytes], None],
    ) -> None:
        self._limits = limits
        self._number = 0
        ours, theirs = socket.socketpair()
        self._channel = ProcessChannel(
            ours, limit=2 * limits.message, max_header=_MAX_ANSWER_HEADER
        )
        try:
            with theirs:
                self._process = self._spawn(theirs.fileno(), folder, own, data)
        except (SandboxError, OSError) as error:
            self._channel.close()
            raise AppFailed(f"the app's process could not be started: {error}") from error
        _LOG.info("the app's process runs in a sandbox; %s", self._process.report)
        self._output = None
        if self._process.stdout is not None:
            self._output = OutputReader(self._process.stdout, output)

    def ask(
        self, question: Mapping[str, Any], message: Sequence[Part], state: State | None
    ) -> Answer:
        """Send one question and return what the process answers.

        :param message: head and parts of a message of the coordinator; none to load the app.
        :param state: the state to set before the call; None leaves it unchanged.

        :raises AppFailed: when there is no answer, or it is malformed; the process has ended then.
        """
        self._number += 1
        header = {
            **question,
            "number": self._number,
            "keep": state is None,
            "split": len(message),
        }
        blobs = [*message, *(state or ())]
        try:
            self._channel.send(header, blobs, timeout=self._limits.seconds)
            received = self._channel.receive_parts(timeout=self._limits.seconds)
        except ChannelTimeout:
            self.close()
            raise AppFailed(f"the app gave no answer in {self._limits.seconds:g} s") from None
        except ChannelClosed:
            raise AppFailed(self._ended()) from None
        except TransportError as error:
            self.close()
            raise AppFailed(f"the app's process sent a malformed answer: {error}") from None
        if received is None:
            raise AppFailed(self._ended())
        try:
            return self._answer(*received, empty=not message)
        except (KeyError, TypeError, ValueError, IndexError, TransportError) as error:
            self.close()
            raise AppFailed(f"the app's process sent a malformed answer: {error}") from None

    @property
    def alive(self) -> bool:
        """Whether it can be called."""
        return self._process.poll() is None

    def drain(self) -> None:
        """Take what the process has written so far."""
        if self._output is not None:
            self._output.drain()

    def close(self) -> None:
        """End the process and all that it started."""
        self._channel.close()
        try:
            self._process.kill()
        except SandboxError as error:
            _LOG.error("%s", error)

    def _answer(self, header: dict[str, Any], blobs: Sequence[Part], *, empty: bool) -> Answer:
        number, failure, split = header["number"], header["failure"], header["split"]
        if number != self._number or type(split) is not int or not 0 <= split <= len(blobs):
            raise ValueError("of another question, or of the wrong size")
        if failure is not None and not isinstance(failure, str):
            raise TypeError("the failure is not a text")
        content = RecordDict()
        if failure is None and not empty:
            content = _content(blobs[:split])
        return Answer(failure=failure, content=content, state=blobs[split:])

    def _ended(self) -> str:
        """End the process if it still runs, and return how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self.close()
        code, why = self._process.returncode, self._process.why
        if why:
            return f"the app's process was ended: {why}"
        how = f"signal {-code}" if code is not None and code < 0 else f"status {code}"
        return f"the app's process ended with {how}"

    def _spawn(self, channel: int, folder: Path, own: Path, data: Path | None) -> SandboxedProcess:
        limits = self._limits
        environment = {
            **app_environment(own, *_KEPT),
            **thread_environment(limits.cpu),
            **(_GPU_ENVIRONMENT if limits.gpu else {}),
            "LOGNAME": "app",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONFAULTHANDLER": "1",
            "PYTHONUNBUFFERED": "1",
            "USER": "app",
        }
        readable = [folder, *([] if data is None else [data])]
        devices: list[Path] = []
        if limits.gpu:
            devices = [Path(found) for each in _GPU_DEVICES for found in sorted(glob.glob(each))]  # noqa: PTH207
            readable += [Path(each) for each in _GPU_FILES]
        return spawn(
            [sys.executable, "-P", "-m", "edge.client.flower.app_main", str(channel)],
            sandbox=Sandbox(
                writable=(own.resolve(),),
                readable=tuple(path.resolve() for path in readable),
                devices=tuple(path for path in devices if not path.is_dir()),
                thread_names=limits.gpu,
                memory_bytes=limits.memory_bytes,
                processes=512 + 64 * int(limits.cpu),
                disk_bytes=limits.disk_bytes,
                user=free_user(),
                required=limits.required,
            ),
            env=environment,
            pass_fds=[channel],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


def _content(message: Sequence[Part]) -> RecordDict:
    """Return the records of a message in frames; the rest of it is ignored."""
    head = Head.from_bytes(message[0])
    found = inflate(message[0], dict(zip(head.parts, message[1:], strict=True)))
    if found.has_error():
        raise ValueError("an error instead of a message")
    return found.content
