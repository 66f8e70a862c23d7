"""A client as a process of its own: ``python -m edge.client.process_main FD SCRATCH``.

``FD`` is the client's end of :mod:`edge.protocol.agent_channel`. Standard output and error are
the site's log.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from edge.protocol.agent_channel import AgentChannel, Gone
from fedlearn.errors import FedlearnError
from fedlearn.job.phase import Phase
from fedlearn.terminal.logs import configure_logging

_GRACE_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """Run one client; return 0 when its job ended well or it was asked to stop."""
    descriptor, scratch = int(arguments[0]), Path(arguments[1])
    configure_logging()
    agent = AgentChannel(socket.socket(fileno=descriptor))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop.set())
    try:
        data = agent.bootstrap()
    except Gone:
        return 1
    threading.Thread(target=_end_when_asked, args=(agent.stop,), daemon=True).start()
    try:
        from edge.client.runner import run
        from edge.protocol.bootstrap import Bootstrap

        phase = run(
            Bootstrap.decode(data),
            agent,
            report=agent.report,
            stop=agent.stop,
            scratch=scratch,
            in_pod=False,
        )
    except Gone:
        return 1
    except FedlearnError as error:
        agent.report(Phase.FAILED, str(error))
        return 1
    return 0 if phase in {Phase.SUCCEEDED, Phase.STOPPED} else 1


def _end_when_asked(stop: threading.Event) -> None:
    """End this process 5 s after ``stop``, even if a call of user code does not return."""
    stop.wait()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
