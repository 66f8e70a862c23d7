"""A TPM in software, for development, tests and the demo.

**It proves nothing about hardware.** ``swtpm`` is a process. The person who runs it controls its
memory and state directory, and can copy its keys, roll its counters back and set its registers to
any value. Its evidence has the form of a TPM quote and proves no more than a software signature.
It counts only where its attestation key was pinned on purpose.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from attestation.attesters.child_process import until_input_closes
from attestation.attesters.tpm2_tools import Tpm2Tools
from attestation.errors import AttesterError

__all__ = ["SoftwareTpm"]

_START_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.002
_MAX_SOCKET_PATH: Final = 100
"""A unix socket path has at most 107 bytes; ``.ctrl`` is added to this one."""


class SoftwareTpm:
    """A ``swtpm`` process with its state in ``directory``, as a context manager.

    The state persists: a later start with the same directory is the same TPM after a reset,
    with the same seeds, persistent keys and counters, and with its PCRs at their initial
    values. Entering takes well under half a second. The process ends when the context does,
    or when this process dies in any way.

    Several processes can use it at the same time through :attr:`tcti`; a lock lets one run at a
    time.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._run_directory: Path | None = None
        self._socket: Path | None = None

    @staticmethod
    def available() -> str:
        """Return why a software TPM cannot be started here, or an empty string."""
        missing = [name for name in ("swtpm", "tpm2") if shutil.which(name) is None]
        if not missing:
            return ""
        packages = {"swtpm": "swtpm", "tpm2": "tpm2-tools"}
        names = " ".join(packages[name] for name in missing)
        return f"{' and '.join(missing)} not found; on Debian: apt-get install {names}"

    @property
    def tcti(self) -> str:
        """The TCTI string of the running TPM, for :class:`~attestation.attesters.tpm2_tools`.

        :raises AttesterError: when it is not running.
        """
        if self._socket is None:
            raise AttesterError("the software TPM is not running")
        return f"swtpm:path={self._socket}"

    def start(self) -> Self:
        """Start the TPM and return when it accepts commands.

        :raises AttesterError: when it is missing, already running, or its state is in use.
        """
        if self._process is not None:
            raise AttesterError("the software TPM is already running")
        if reason := self.available():
            raise AttesterError(f"no software TPM: {reason}")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        socket_path = self._socket_path()
        control = Path(f"{socket_path}.ctrl")
        # A TPM whose owner has just died is about to end.
        deadline = time.monotonic() + _STOP_SECONDS
        while _answers(control):
            if time.monotonic() > deadline:
                raise AttesterError(f"another software TPM is running in {self._directory}")
            time.sleep(_POLL_SECONDS)
        for stale in (socket_path, control):
            stale.unlink(missing_ok=True)
        log = self._directory / "swtpm.log"
        command = [
            *("swtpm", "socket", "--tpm2"),
            *("--tpmstate", f"dir={self._directory},mode=0600"),
            *("--server", f"type=unixio,path={socket_path},mode=0600"),
            *("--ctrl", f"type=unixio,path={control},mode=0600"),
            *("--flags", "not-need-init,startup-clear"),
            *("--log", f"file={log},level=1,truncate"),
        ]
        self._process = subprocess.Popen(
            until_input_closes("swtpm-lease", command),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._socket = socket_path
        try:
            self._await_ready(self._process, control, log)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the process and remove its sockets; the state stays."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            if self._socket is not None and process.poll() is None:
                # An orderly shutdown keeps the clock "safe"; without it the state is the same.
                with suppress(AttesterError), Tpm2Tools(self.tcti).workspace() as work:
                    work.run("shutdown", "--clear")
            process.stdin.close()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
        if self._socket is not None:
            for suffix in ("", ".ctrl"):
                Path(f"{self._socket}{suffix}").unlink(missing_ok=True)
            self._socket = None
        if self._run_directory is not None:
            shutil.rmtree(self._run_directory, ignore_errors=True)
            self._run_directory = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _socket_path(self) -> Path:
        """Return a path beside the state, or in a private directory where that is too long."""
        beside = self._directory.resolve() / "tpm.sock"
        if len(os.fsencode(beside)) <= _MAX_SOCKET_PATH and "," not in str(beside):
            return beside
        self._run_directory = Path(tempfile.mkdtemp(prefix="fedlearn-swtpm-"))
        return self._run_directory / "tpm.sock"

    def _await_ready(self, process: subprocess.Popen[bytes], control: Path, log: Path) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not (_answers(control) and _answers(self._socket)):
            if process.poll() is not None:
                raise AttesterError(
                    f"swtpm did not start{_last_line(log)}",
                    hint=f"is another swtpm using {self._directory}?",
                )
            if time.monotonic() > deadline:
                raise AttesterError(f"swtpm did not start within {_START_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)


def _answers(path: Path | None) -> bool:
    """True when something accepts connections at ``path``."""
    if path is None:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1][:200]}" if lines else ""
