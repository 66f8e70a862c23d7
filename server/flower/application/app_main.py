"""The process of a job's application: it runs the user's ServerApp, and nothing else.

Started by :mod:`server.flower.job_runner` in a sandbox, with one end of a socket pair to the
aggregator. It has no key, no network, no secret of the job, and sees the updates of sites only
where the job allows it.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any, Final

from fedlearn.app import install as bundle
from fedlearn.app.tracebacks import app_traceback
from fedlearn.errors import FedlearnError, JobError, TransportError
from fedlearn.sandbox.process_channel import ProcessChannel
from server.flower.application import app_files as appfiles
from server.flower.application.run_app import run_app
from server.flower.ipc.failures import failure_of
from server.flower.ipc.peer import Peer

__all__ = ["main"]

_MAX_RECORD_BYTES: Final = 1 << 40
_APP_FOLDER: Final = "app"
_TEMPORARY: Final = "tmp"  # the folder of the sandbox for temporary files
_MAX_REPORTED: Final = 20


def main() -> None:
    """Run the application whose socket is the descriptor in the first argument."""
    descriptor, folder = int(sys.argv[1]), Path(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    process_channel = ProcessChannel(socket.socket(fileno=descriptor), limit=_MAX_RECORD_BYTES)
    first = process_channel.receive()
    if first is None:
        raise SystemExit(1)
    header, (app,) = first
    peer = Peer(process_channel, None)
    peer.start()
    failure: FedlearnError | None = None
    try:
        _run(header, bytes(app), peer, folder)
    except FedlearnError as error:
        failure = error
    except BaseException as error:  # noqa: BLE001  user code may raise anything; it is reported
        failure = _raised(error, folder / _APP_FOLDER)
    try:
        _hand_over(peer, folder, header["max_bytes"])
    except FedlearnError as error:
        failure = failure or error
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        peer.call("done", {"failure": None if failure is None else failure_of(failure)})
    except TransportError:
        os._exit(1)
    # Threads of user code must not keep a finished job alive.
    os._exit(0 if failure is None else 1)


def _run(header: dict[str, Any], app_bytes: bytes, peer: Peer, folder: Path) -> None:
    bundle.check_packages()
    # Show what an application logs with Flower's logger.
    logging.getLogger("flwr").setLevel(logging.INFO)
    run_app(bundle.unpack(app_bytes, folder / _APP_FOLDER), header, peer)


def _raised(error: BaseException, app: Path) -> JobError:
    """Print the traceback, which becomes events of the job, and return the failure of the job."""
    found = app_traceback(error, app)
    print("\n".join(found.lines), file=sys.stderr)
    return JobError(
        f"the application raised an exception: {found.reason}",
        hint="the log of the job has the traceback",
    )


def _hand_over(peer: Peer, folder: Path, max_update_bytes: int) -> None:
    """Have the files that the application leaves kept with its job."""
    most = appfiles.most_bytes(max_update_bytes)
    files, left_out = appfiles.collect(folder, most=most, without=[_APP_FOLDER, _TEMPORARY])
    for reason in left_out[:_MAX_REPORTED]:
        print(f"a file of the application is not kept: {reason}")
    if len(left_out) > _MAX_REPORTED:
        print(f"{len(left_out) - _MAX_REPORTED} more files of the application are not kept")
    if files:
        peer.call("files", {"names": list(files)}, list(files.values()))


if __name__ == "__main__":
    main()
