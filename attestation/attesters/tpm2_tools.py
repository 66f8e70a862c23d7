"""Access to a TPM 2.0 by the ``tpm2-tools`` commands (version 5.x), run without a shell.

No other module talks to a TPM. Every sequence of commands runs in a private scratch directory
(mode 0700) that is removed at its end, under a lock that all processes sharing the TPM take, and
with a time limit. Secrets are passed by standard input and output, never by argv or the disk.

A software TPM has no resource manager and only three slots for transient objects, so a
sequence that loads objects or starts sessions flushes them before it begins and when it
ends; with ``/dev/tpmrm0`` the kernel does that.

The page is docs/adr/0006-tpm-tools.md.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attestation.errors import AttesterError

__all__ = ["BANKS", "DEFAULT_TCTI", "Tpm2CommandError", "Tpm2Tools", "Workspace"]

BANKS: Final = ("sha256", "sha384", "sha512")
"""Banks of PCRs whose values count, the one that is taken first where a TPM has several."""

DEFAULT_TCTI: Final = "device:/dev/tpmrm0"
"""The kernel's resource manager of the first TPM."""

_COMMAND_SECONDS: Final = 60.0
_MAX_OUTPUT_BYTES: Final = 64 * 1024
_INSTALL_HINT: Final = "install tpm2-tools (on Debian: apt-get install tpm2-tools)"
_ALLOCATED = re.compile(r"^\s*- (\w+): \[([ 0-9,]*)\]\s*$", re.MULTILINE)
_CODE = re.compile(r"\((0x[0-9A-Fa-f]{1,8})\)")


class Tpm2CommandError(AttesterError):
    """A tpm2 command failed. ``command`` is its name, ``code`` the TPM's response code.

    ``code`` is ``None`` when the TPM was not reached. Codes are those of TPM 2.0 Part 2,
    section 6.6.
    """

    def __init__(self, command: str, reason: str, *, code: int | None, hint: str = "") -> None:
        super().__init__(f"{command} failed: {reason}", hint=hint)
        self.command = command
        self.reason = reason
        self.code = code


class Workspace:
    """A scratch directory in which a sequence of tpm2 commands runs."""

    def __init__(self, tools: Tpm2Tools, path: Path, locks: tuple[int, ...]) -> None:
        self._tools = tools
        self._path = path
        self._locks = locks

    def run(self, command: str, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run one command here and return its standard output.

        :raises Tpm2CommandError: when it fails, naming the TPM's reason.
        """
        return self._tools.invoke(self._path, command, arguments, stdin, self._locks)

    def bank(self, pcrs: Iterable[int], among: Collection[str] = BANKS) -> str:
        """Return the first of :data:`BANKS`, and of ``among``, in which the TPM has ``pcrs``.

        A TPM reports no error for a bank that is not allocated: it quotes, or seals to, no
        register at all. So every caller that selects registers must call this first.

        :raises AttesterError: naming the allocated banks, when none of them has ``pcrs``.
        """
        wanted = set(pcrs)
        listed = self.run("getcap", "pcrs").decode("utf-8", "replace")
        allocated = {
            name: set(map(int, numbers.replace(",", " ").split()))
            for name, numbers in _ALLOCATED.findall(listed)
        }
        for name in BANKS:
            if name in among and wanted <= allocated.get(name, set()):
                return name
        found = ", ".join(name for name, numbers in allocated.items() if numbers) or "none"
        needed = " or ".join(name for name in BANKS if name in among) or "sha256"
        raise AttesterError(
            f"the TPM at {self._tools.tcti} has no {needed} bank with the PCRs "
            f"{', '.join(map(str, sorted(wanted)))}; its banks are: {found}",
            hint=f"allocate one with tpm2_pcrallocate {needed.split()[0]}:all, then restart the "
            "machine (or the software TPM)",
        )

    def release(self) -> None:
        """Free the slots of transient objects; their saved contexts stay usable."""
        if not self._tools.managed:
            self.run("flushcontext", "--transient-object")

    def read(self, name: str) -> bytes:
        """Return a file that a command wrote, at most 64 KiB."""
        with (self._path / name).open("rb") as stream:
            data = stream.read(_MAX_OUTPUT_BYTES + 1)
        if len(data) > _MAX_OUTPUT_BYTES:
            raise AttesterError(f"{name}: a tpm2 command wrote more than {_MAX_OUTPUT_BYTES} bytes")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file for a command to read. Never a secret."""
        (self._path / name).write_bytes(data)


class Tpm2Tools:
    """A TPM, reached through a TCTI of tpm2-tss.

    ``tcti`` is ``device:/dev/tpmrm0``, ``swtpm:path=/run/site/tpm.sock``, ``tabrmd:`` or any
    other string that ``tpm2`` accepts in ``TPM2TOOLS_TCTI``. ``managed`` is true when a resource
    manager is between us and the TPM.
    """

    def __init__(self, tcti: str = DEFAULT_TCTI) -> None:
        if not tcti or "\n" in tcti or "\0" in tcti:
            raise ValueError("a TCTI is one non-empty line")
        self.tcti = tcti
        self.managed = "tpmrm" in tcti or tcti.startswith("tabrmd")
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("TPM2TOOLS_", "TSS2_"))},
            "TPM2TOOLS_TCTI": tcti,
            "TSS2_LOG": "all+none",
            "LC_ALL": "C",
        }

    @property
    def unavailable(self) -> str:
        """Why this TPM cannot be used now; empty when it answers."""
        if shutil.which("tpm2") is None:
            return f"tpm2-tools is not installed; {_INSTALL_HINT}"
        kind, _, where = self.tcti.partition(":")
        if kind == "device" and not os.access(where, os.R_OK | os.W_OK):
            state = "may not be opened by this user" if Path(where).exists() else "does not exist"
            return f"{where} {state}"
        try:
            with self.workspace() as work:
                work.run("getcap", "properties-fixed")
        except AttesterError as error:
            return str(error)
        return ""

    @contextmanager
    def workspace(
        self, *, objects: bool = False, locks: tuple[int, ...] = ()
    ) -> Iterator[Workspace]:
        """Hold the TPM and a scratch directory for one sequence of commands.

        ``objects``  the sequence loads transient objects or starts sessions
        ``locks``    descriptors of file locks that the sequence is under. Its commands
                     inherit them and the TPM's lock, so that a command which runs on after this
                     process was killed keeps the locks until it ends.
        """
        with (
            self._exclusive() as held,
            tempfile.TemporaryDirectory(prefix="fedlearn-tpm-") as scratch,
        ):
            work = Workspace(self, Path(scratch), (*locks, *held))
            flush = objects and not self.managed
            if flush:
                _flush(work)
            try:
                yield work
            finally:
                if flush:
                    _flush(work)

    def invoke(
        self,
        directory: Path,
        command: str,
        arguments: tuple[str, ...],
        stdin: bytes,
        locks: tuple[int, ...],
    ) -> bytes:
        """Run ``tpm2 command arguments`` in ``directory``; see :meth:`Workspace.run`."""
        try:
            done = subprocess.run(
                ["tpm2", command, *arguments],
                cwd=directory,
                env=self._environment,
                input=stdin,
                capture_output=True,
                timeout=_COMMAND_SECONDS,
                umask=0o077,
                pass_fds=locks,
                check=False,
            )
        except FileNotFoundError:
            raise Tpm2CommandError(
                f"tpm2_{command}", "tpm2-tools is not installed", code=None, hint=_INSTALL_HINT
            ) from None
        except subprocess.TimeoutExpired:
            raise Tpm2CommandError(
                f"tpm2_{command}",
                f"the TPM at {self.tcti} did not answer within {_COMMAND_SECONDS:.0f} s",
                code=None,
                hint="another process may hold the TPM",
            ) from None
        if done.returncode != 0:
            reason, code = _diagnose(done.stderr)
            if done.returncode < 0:
                reason = f"the tool died of signal {-done.returncode}; {reason}"
            hint = "" if code is not None else f"is the TPM at {self.tcti} running?"
            raise Tpm2CommandError(f"tpm2_{command}", reason, code=code, hint=hint)
        return done.stdout[:_MAX_OUTPUT_BYTES]

    @contextmanager
    def _exclusive(self) -> Iterator[tuple[int, ...]]:
        """Lock a TPM that is a socket; the kernel serializes the access to a device node."""
        _, found, socket_path = self.tcti.partition("path=")
        if not found:
            yield ()
            return
        try:
            lock = os.open(f"{socket_path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AttesterError(
                f"the software TPM at {socket_path} cannot be found: {error.strerror}",
                hint="start it first",
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield (lock,)
        finally:
            os.close(lock)


def _flush(work: Workspace) -> None:
    for kind in ("--transient-object", "--loaded-session"):
        work.run("flushcontext", kind)


def _diagnose(stderr: bytes) -> tuple[str, int | None]:
    """Return the line of a tool's errors that has the cause, and the TPM's code in it."""
    lines = [
        line.removeprefix("ERROR: ").strip()
        for line in stderr[:_MAX_OUTPUT_BYTES].decode("utf-8", "replace").splitlines()
    ]
    for line in lines:
        if match := _CODE.search(line):
            return line[:300], int(match.group(1), 16)
    return (lines[0][:300] if lines else "no reason given"), None
