"""The impostor of the demo: its process is started early and acts in the middle of the job."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from fedlearn.demo.outcome import RefusedSite
from fedlearn.errors import FedlearnError, LaunchError
from fedlearn.job import events
from fedlearn.job.spec import JobSpec, workload_digest
from fedlearn.local.federation import COORDINATOR, Federation

__all__ = ["IMPOSTOR", "Impostor", "impostor"]

IMPOSTOR = "impostor"
"""Name of its machine and of its folder."""

_IDENTITY = re.compile(r"site\.\w+|ca\.pem|token")


@contextlib.contextmanager
def impostor(
    federation: Federation, spec: JobSpec, *, bundle: bytes, altered: bytes, policy: str
) -> Iterator[Impostor]:
    """Copy the identity of the job's last site and start the impostor's process with it.

    ``bundle`` and ``altered`` are the app's bundle and the one that the impostor runs.
    """
    victim = spec.sites[-1]
    folder = federation.folder / IMPOSTOR
    stolen = folder / "stolen-identity"
    shutil.copytree(federation.identity_folder(victim), stolen, ignore=_all_but_identity)
    stolen.chmod(0o700)
    order = {
        "identity": str(stolen),
        "tee": federation.tee.value,
        "state": str(federation.machines[IMPOSTOR].state),
        "job": spec.name,
        "policy": policy,
        "job_digest": spec.digest().hex(),
        "bundle": sha256(altered).hexdigest(),
        "workload": workload_digest(spec.digest(), sha256(bundle).digest()).hex(),
        "anchors": federation.anchors([COORDINATOR]),
    }
    with (folder / "impostor.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedlearn.cli.demo.rogue"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        yield Impostor(process, order, victim=victim, start=max(1, spec.rounds // 2))
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class Impostor:
    """The impostor's process, which waits until :meth:`act`."""

    def __init__(
        self, process: subprocess.Popen[bytes], order: Mapping[str, Any], *, victim: str, start: int
    ) -> None:
        self.name = f"impostor of {victim}"
        self.victim = victim
        self._tee = str(order["tee"])
        self._process, self._start, self._acted = process, start, False
        self._send(json.dumps(order))

    def concerns(self, event: events.Event) -> bool:
        """Whether an event is the impostor's refusal, which has the victim's name."""
        return self._acted and (
            isinstance(event, events.ClientRefused) and event.site == self.victim
        )

    def due(self, number: int) -> bool:
        """Return True once, in the middle of the job."""
        return number >= self._start and not self._acted

    def act(self, number: int) -> RefusedSite:
        """Let it request admission, and return how it was refused.

        :raises FedlearnError: when it was admitted, or there was no decision.
        """
        self._acted = True
        self._send("go")
        answer = self._receive()
        if answer.get("admitted"):
            raise FedlearnError("the altered client was admitted: the admission does not work")
        return RefusedSite(
            name=self.name,
            tee=self._tee,
            story=f"Somebody copied the key of {self.victim} and runs a client with it on a "
            "machine of their own. The client was altered to keep every model that it gets.",
            reason=str(answer.get("reason", "")),
            findings=tuple(answer.get("findings", ())),
            round=number,
        )

    def _send(self, line: str) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        if self._process.stdout is not None:
            while line := self._process.stdout.readline():
                if line.startswith(b"{"):
                    answer: dict[str, Any] = json.loads(line)
                    return answer
        raise LaunchError(
            "the impostor ended before it was refused",
            hint="run again with --keep and read impostor/impostor.log",
        )


def _all_but_identity(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not _IDENTITY.fullmatch(name)]
