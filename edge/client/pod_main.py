"""A client in a pod or a virtual machine: ``python -m edge.client.pod_main``.

Its environment says where its agent is (``FEDLEARN_SPONSOR``), which key that has
(``FEDLEARN_SPONSOR_PIN``), and which ticket to show (``FEDLEARN_ASSIGNMENT``,
``FEDLEARN_TICKET``); and where its data, state and scratch folders are. None of it is secret
and none of it is trusted: what counts is measured and attested.

Exit status: 0 when the job ended well, 3 when the client was not admitted (starting it again
would not help), 143 when it was asked to stop before its job ended, 1 for everything else. A
client that an eviction stops has not done its work: with status 0 its Job would be complete,
and nothing would start it elsewhere. The last words are in ``FEDLEARN_LAST_WORDS``, which
Kubernetes shows as the termination message.
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
from fedlearn.terminal.plaintext import configure_logging
from fedlearn.wire.client_service import Ticket, WorkloadApiClient

__all__ = ["EXIT", "FIRST_WORDS", "PodEnvironment", "main"]

_LOG = logging.getLogger(__name__)
FIRST_WORDS: Final = "fedlearn client: started"
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
    """What a client finds in its environment."""

    sponsor: str
    pin: bytes
    assignment: str
    tag: bytes = field(repr=False)
    data: str
    state: Path
    scratch: Path
    last_words: Path

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Return what is there.

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
            sponsor=text("FEDLEARN_SPONSOR"),
            pin=digest("FEDLEARN_SPONSOR_PIN"),
            assignment=text("FEDLEARN_ASSIGNMENT"),
            tag=digest("FEDLEARN_TICKET"),
            data=text("FEDLEARN_DATA"),
            state=Path(text("FEDLEARN_STATE")),
            scratch=Path(text("FEDLEARN_SCRATCH")),
            last_words=Path(text("FEDLEARN_LAST_WORDS", "/dev/termination-log")),
        )


class _Line:
    """Says where the client stands: to the agent when it hears, and at last to Kubernetes."""

    def __init__(self, sponsor: WorkloadApiClient, last_words: Path) -> None:
        self._sponsor = sponsor
        self._last_words = last_words

    def say(self, phase: Phase, reason: str) -> None:
        if phase.final:
            leave_word(self._last_words, reason)
        try:
            self._sponsor.tell(phase, reason)
        except FedlearnError as error:
            _LOG.info("the agent did not hear %s: %s", phase.value, error)


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Run one client.

    Its first act is one line on standard error, whatever the log level is: where a guest keeps
    what its pod writes, an empty log shows that it does.
    """
    print(FIRST_WORDS, file=sys.stderr, flush=True)
    configure_logging(environment.get("FEDLEARN_LOG", "WARNING"))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=_end_when_asked, args=(stop,), daemon=True).start()
    last_words = Path(environment.get("FEDLEARN_LAST_WORDS", "/dev/termination-log"))
    try:
        around = PodEnvironment.read(environment)
        last_words = around.last_words
        phase = _run(around, stop)
    except FedlearnError as error:
        _LOG.error("%s", error)
        leave_word(last_words, f"{error}{f' ({error.hint})' if error.hint else ''}")
        return 1
    return EXIT[phase]


def _run(around: PodEnvironment, stop: threading.Event) -> Phase:
    ticket = Ticket(assignment=around.assignment, tag=around.tag)
    sponsor = WorkloadApiClient(around.sponsor, pin=around.pin, ticket=ticket)
    try:
        told = Bootstrap.decode(sponsor.bootstrap(limit=MAX_BOOTSTRAP_BYTES))
        bootstrap = dataclasses.replace(told, data=around.data, state=around.state)
        from edge.client.runner import run

        line = _Line(sponsor, around.last_words)
        scratch = around.scratch / "app"
        return run(bootstrap, sponsor, say=line.say, stop=stop, scratch=scratch)
    finally:
        sponsor.close()


def leave_word(path: Path, reason: str) -> None:
    """Write the last words; Kubernetes reads at most 4096 bytes."""
    try:
        path.write_bytes(reason.encode()[:4096])
    except OSError as error:
        _LOG.warning("the last words cannot be written to %s: %s", path, error.strerror)


def _end_when_asked(stop: threading.Event) -> None:
    """User code may not come back: give it a moment, then end with it."""
    stop.wait()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
