"""The process of a ClientApp: ``python -m edge.client.flower.app_main FD``. User code runs in it.

Started by :mod:`edge.client.flower.app_process` in a sandbox, with one end of a
:class:`~fedlearn.sandbox.process_channel.ProcessChannel`. It has no key, no connection and no file
of the client: it receives messages and answers them. The client does not trust its answers.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from edge.client.flower.loaded_app import LoadedApp, frames
from edge.client.log_records import RecordHandler
from fedlearn.app import install as bundle
from fedlearn.errors import FedlearnError
from fedlearn.sandbox.memory_file import Part
from fedlearn.sandbox.process_channel import ProcessChannel

__all__ = ["main"]

_LIMIT: Final = 1 << 40
_MAX_FAILURE: Final = 4000


class _App:
    """The app, and the context of the one client that it has here."""

    def __init__(self, request: dict[str, Any]) -> None:
        bundle.check_packages()
        installed = bundle.Installed(
            folder=Path(request["folder"]),
            name=request["name"],
            serverapp="",
            clientapp=request["clientapp"],
            config={},
        )
        seed = bytes.fromhex(request["seed"])
        self._app = LoadedApp(installed, seed=seed, run_config=request["run_config"])
        self._context = self._app.context(request["node_config"])

    def call(self, request: dict[str, Any], blobs: Sequence[Part]) -> list[Part]:
        """Call the app with one message; return its answer in frames."""
        split = request["split"]
        answer = self._app.call(
            self._context,
            blobs[:split],
            run=request["run"],
            node=request["node"],
            seed=bytes.fromhex(request["seed"]),
            state=None if request["keep"] else blobs[split:],
        )
        return frames(answer)

    def state(self) -> list[Part]:
        """Return the state of the app in frames; none when it is empty."""
        return self._app.state(self._context)


def main(arguments: list[str]) -> int:
    """Answer the client until it has ended."""
    channel = ProcessChannel(socket.socket(fileno=int(arguments[0])), limit=_LIMIT)
    app: _App | None = None
    records: RecordHandler | None = None
    while (asked := channel.receive_parts()) is not None:
        request, blobs = asked
        if records is None:
            records = RecordHandler(Path(request["folder"]), os.dup(2))
            records.install()
        message: list[Part] = []
        failure = None
        try:
            if app is None:
                app = _App(request)
            else:
                message = app.call(request, blobs)
        except FedlearnError as error:
            records.exception(error)
            failure = str(error)[:_MAX_FAILURE]
        except Exception as error:  # noqa: BLE001  user code may raise anything; it is reported
            failure = records.exception(error).reason[:_MAX_FAILURE]
        state = [] if app is None else app.state()
        answer = {"number": request["number"], "failure": failure, "split": len(message)}
        channel.send(answer, [*message, *state])
        del asked, blobs, message, state  # files, which would live until the next message
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
