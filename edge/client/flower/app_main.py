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

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from edge.client.log_records import RecordHandler
from fedlearn.app import install as bundle
from fedlearn.app.flower import CALL, Packer, flatten, inflate, unpack
from fedlearn.app.message import Head
from fedlearn.errors import FedlearnError, JobError
from fedlearn.job.seeds import seed_generators
from fedlearn.sandbox.memory_file import Part
from fedlearn.sandbox.process_channel import ProcessChannel

__all__ = ["main"]

_LIMIT: Final = 1 << 40
_MAX_FAILURE: Final = 4000


class _App:
    """The app of the bundle, and its state."""

    def __init__(self, request: dict[str, Any]) -> None:
        bundle.check_packages()
        installed = bundle.Installed(
            folder=Path(request["folder"]),
            name=request["name"],
            serverapp="",
            clientapp=request["clientapp"],
            config={},
        )
        seed_generators(bytes.fromhex(request["seed"]))
        app = installed.load("clientapp")
        if not isinstance(app, ClientApp):
            raise JobError(f"{installed.clientapp} is a {type(app).__name__}, not a ClientApp")
        self._app: Any = app
        self._context = Context(
            run_id=0,
            node_id=0,
            node_config=request["node_config"],
            state=RecordDict(),
            run_config=request["run_config"],
        )

    def call(self, request: dict[str, Any], blobs: Sequence[Part]) -> list[Part]:
        """Call the app with one message; return its answer in frames."""
        context, split = self._context, request["split"]
        if not request["keep"]:
            context.state = _message(blobs[split:]).content if blobs[split:] else RecordDict()
        context.run_id, context.node_id = request["run"], request["node"]
        TaskIdentity.run_id, TaskIdentity.node_id = request["run"], request["node"]
        TaskIdentity.task_id = 1
        message = _message(blobs[:split])
        message.content.pop(CALL, None)
        seed_generators(bytes.fromhex(request["seed"]))
        reply: Message = self._app(message, context)
        if reply.has_error():
            raise JobError(f"the app answered with an error: {reply.error.reason}")
        del message  # its arrays, before the answer takes its room
        return _frames(reply.content)

    def state(self) -> list[Part]:
        """Return the state of the app in frames; none when it is empty."""
        return _frames(self._context.state) if len(self._context.state) else []


def _message(frames: Sequence[Part]) -> Message:
    head = Head.from_bytes(frames[0])
    message = inflate(frames[0], dict(zip(head.parts, frames[1:], strict=True)))
    message.content = unpack(message.content, max_bytes=_LIMIT)
    return message


def _frames(content: RecordDict) -> list[Part]:
    """Return a message with these records; its metadata are not used."""
    message = Message(Packer().content(content), dst_node_id=0, message_type=MessageType.QUERY)
    return flatten([message]).frames(0)


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
