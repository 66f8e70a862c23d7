"""A client in a pod or a virtual machine: ``python -m edge.client.pod_main``.

Its environment states the address of its agent (``FEDLEARN_SPONSOR``), the hash of the agent's key
(``FEDLEARN_SPONSOR_PIN``), the ticket to present (``FEDLEARN_ASSIGNMENT``, ``FEDLEARN_TICKET``),
and the folders of data, state and scratch files. None of it is secret, and none of it is trusted:
job, policy and code are measured and attested.

Exit status: 0 when the job ended well, 3 when the client was not admitted (starting it again
would not help), 143 when it was asked to stop before its job ended, 1 for everything else. A
client that is stopped by an eviction has not finished: with status 0 its Job would be complete,
and Kubernetes would not start it elsewhere. The termination message is written to the file that
``FEDLEARN_LAST_WORDS`` names.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from edge.protocol.bootstrap import MAX_BOOTSTRAP_BYTES, Bootstrap
from edge.protocol.workload import REFUSED_EXIT
from fedlearn.errors import ConfigError, FedlearnError
from fedlearn.job.phase import Phase
from fedlearn.terminal.logs import configure_logging
from fedlearn.wire.client_service import Ticket, WorkloadApiClient

__all__ = ["EXIT", "START_LINE", "PodEnvironment", "main"]

_LOG = logging.getLogger(__name__)
START_LINE: Final = "fedlearn client: started"
_GRACE_SECONDS: Final = 5.0
_TERMINATED: Final = 128 + signal.SIGTERM
EXIT: Final = {
    Phase.SUCCEEDED: 0,
    Phase.REFUSED: REFUSED_EXIT,
    Phase.STOPPED: _TERMINATED,
    Phase.FAILED: 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PodEnvironment:
    """The environment variables of a client."""

    agent_address: str
    pin: bytes
    assignment: str
    tag: bytes = field(repr=False)
    data: str
    state: Path
    scratch: Path
    termination_message: Path

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Return the values in ``environment``.

        :raises ConfigError: naming the variable that is missing or malformed.
        """

        def text(name: str, default: str = "") -> str:
            value = environment.get(name, default)
            if not value:
                raise ConfigError(
                    "is not set",
                    key=name,
                    hint="an agent starts this program; see edge.kube.pod_manifest",
                )
            return value

        def digest(name: str) -> bytes:
            try:
                value = bytes.fromhex(text(name))
            except ValueError:
                value = b""
            if len(value) != 32:
                raise ConfigError("must be 64 hexadecimal digits", key=name)
            return value

        return cls(
            agent_address=text("FEDLEARN_SPONSOR"),
            pin=digest("FEDLEARN_SPONSOR_PIN"),
            assignment=text("FEDLEARN_ASSIGNMENT"),
            tag=digest("FEDLEARN_TICKET"),
            data=text("FEDLEARN_DATA"),
            state=Path(text("FEDLEARN_STATE")),
            scratch=Path(text("FEDLEARN_SCRATCH")),
            termination_message=Path(text("FEDLEARN_LAST_WORDS", "/dev/termination-log")),
        )


class _PhaseReporter:
    """Reports each phase to the agent, and the final one to Kubernetes as well."""

    def __init__(self, workload_api: WorkloadApiClient, termination_message: Path) -> None:
        self._workload_api = workload_api
        self._termination_message = termination_message

    def report(self, phase: Phase, reason: str) -> None:
        if phase.final:
            write_termination_message(self._termination_message, reason)
        try:
            self._workload_api.report(phase, reason)
        except FedlearnError as error:
            _LOG.info("the phase %s was not reported: %s", phase.value, error)


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Run one client.

    It first writes one line to standard error at every log level. So a log that is empty shows
    that the guest does not pass on what its pod writes.
    """
    print(START_LINE, file=sys.stderr, flush=True)
    configure_logging(environment.get("FEDLEARN_LOG", "WARNING"))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_end_when_asked, args=(stop,), daemon=True).start()
    termination_message = Path(environment.get("FEDLEARN_LAST_WORDS", "/dev/termination-log"))
    try:
        found = PodEnvironment.read(environment)
        termination_message = found.termination_message
        phase = _run(found, stop)
    except FedlearnError as error:
        _LOG.error("%s", error)
        write_termination_message(
            termination_message, f"{error}{f' ({error.hint})' if error.hint else ''}"
        )
        return 1
    return EXIT[phase]


def _run(found: PodEnvironment, stop: threading.Event) -> Phase:
    ticket = Ticket(assignment=found.assignment, tag=found.tag)
    workload_api = WorkloadApiClient(found.agent_address, pin=found.pin, ticket=ticket)
    try:
        document = Bootstrap.decode(workload_api.bootstrap(limit=MAX_BOOTSTRAP_BYTES))
        bootstrap = dataclasses.replace(document, data=found.data, state=found.state)
        from edge.client.runner import run

        reporter = _PhaseReporter(workload_api, found.termination_message)
        scratch = found.scratch / "app"
        return run(bootstrap, workload_api, report=reporter.report, stop=stop, scratch=scratch)
    finally:
        workload_api.close()


def write_termination_message(path: Path, reason: str) -> None:
    """Write the termination message, of which Kubernetes reads at most 4096 bytes."""
    try:
        path.write_bytes(reason.encode()[:4096])
    except OSError as error:
        _LOG.warning("the termination message cannot be written to %s: %s", path, error.strerror)


def _end_when_asked(stop: threading.Event) -> None:
    """End this process 5 s after ``stop``, even if a call of user code does not return."""
    stop.wait()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
