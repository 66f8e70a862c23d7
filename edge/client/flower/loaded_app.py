"""A ClientApp that is loaded in this process, and the calls of it. User code runs here.

In a deployment this process is one of its own, in a sandbox (:mod:`edge.client.flower.app_main`);
a simulation loads the app in its own process or in worker processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from edge.client.flower.app_state import State
from fedlearn.app.flower import CALL, Packer, flatten, inflate, unpack
from fedlearn.app.install import Installed
from fedlearn.app.message import Head
from fedlearn.errors import JobError
from fedlearn.job.seeds import seed_generators
from fedlearn.sandbox.memory_file import Part

__all__ = ["LoadedApp", "frames"]

_LIMIT: Final = 1 << 40


class LoadedApp:
    """The app of a bundle.

    What user code raises is not changed.

    :param seed: with which the generators are seeded before it is imported.
    :param run_config: of the app, with the overrides of the job.
    :raises JobError: when the bundle names no ClientApp.
    """

    def __init__(self, installed: Installed, *, seed: bytes, run_config: Mapping[str, Any]) -> None:
        seed_generators(seed)
        app = installed.load("clientapp")
        if not isinstance(app, ClientApp):
            raise JobError(f"{installed.clientapp} is a {type(app).__name__}, not a ClientApp")
        self._app: Any = app
        self._run_config = run_config

    def context(self, node_config: Mapping[str, Any]) -> Context:
        """Return the context of a client that was never called."""
        return Context(
            run_id=0,
            node_id=0,
            node_config=dict(node_config),
            state=RecordDict(),
            run_config=dict(self._run_config),
        )

    def call(
        self,
        context: Context,
        message: Sequence[Part],
        *,
        run: int,
        node: int,
        seed: bytes,
        state: State | None = None,
    ) -> RecordDict:
        """Call the app with one message; return the records of its answer, packed.

        :param message: head and parts of the message.
        :param run: the coordinator's number of the job, and ``node`` that of the client.
        :param state: what is in the state of ``context``; None leaves it unchanged.
        :raises JobError: when the app answers with an error.
        """
        if state is not None:
            context.state = _message(state).content if state else RecordDict()
        context.run_id, context.node_id = run, node
        TaskIdentity.run_id, TaskIdentity.node_id = run, node
        TaskIdentity.task_id = 1
        asked = _message(message)
        asked.content.pop(CALL, None)
        seed_generators(seed)
        reply: Message = self._app(asked, context)
        if reply.has_error():
            raise JobError(f"the app answered with an error: {reply.error.reason}")
        del asked  # its arrays, before the answer takes its room
        return Packer().content(reply.content)

    def state(self, context: Context) -> list[Part]:
        """Return the state of a client in frames; none when it is empty."""
        return frames(Packer().content(context.state)) if len(context.state) else []


def _message(frames: Sequence[Part]) -> Message:
    head = Head.from_bytes(frames[0])
    message = inflate(frames[0], dict(zip(head.parts, frames[1:], strict=True)))
    message.content = unpack(message.content, max_bytes=_LIMIT)
    return message


def frames(content: RecordDict) -> list[Part]:
    """Return a message with these records, which are packed; its metadata are not used."""
    return flatten([Message(content, dst_node_id=0, message_type=MessageType.QUERY)]).frames(0)
