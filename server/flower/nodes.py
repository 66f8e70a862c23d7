"""What nodes may ask of a job, as an ASGI application behind :mod:`server.front`.

The front has decided who is speaking (``scope["fedlearn.caller"]``) and how much may be read
(``scope["fedlearn.length"]``). The actions are those of :data:`server.front.ACTIONS`. A node
speaks for itself only, and touches nothing but its own messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from flwr.common.constant import HEARTBEAT_MAX_INTERVAL, HEARTBEAT_MIN_INTERVAL
from flwr.common.serde import run_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.inflatable.inflatable_object import get_object_id, is_valid_sha256_hash
from google.protobuf.message import Message as Proto

from fedlearn.errors import TransportError
from fedlearn.frames import FrameReader, frames_length, write_frames
from server.flower.messages import each_object, encoded, parsed
from server.front import Caller, Receive, Scope, Send

if TYPE_CHECKING:
    from server.flower.link import JobLink

__all__ = ["NodeActions", "NodeGone"]

_SMALL_BYTES: Final = 64 * 1024
_HOLD_SECONDS: Final = 20.0
"""How long a node that asks for work is kept waiting before it is told that there is none."""


class NodeGone(TransportError):
    """There is nothing left to do for this node."""


class NodeActions:
    """The actions of the nodes of one job."""

    def __init__(self, link: JobLink) -> None:
        self._link = link

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one action of one node."""
        caller: Caller = scope["fedlearn.caller"]
        action = str(scope["path"]).rpartition("/")[2]
        length = int(scope["fedlearn.length"])
        try:
            if action == "deliver":
                await self._deliver(caller, length, receive, send)
                return
            body = await _read(receive, length)
            if action == "fetch":
                await self._fetch(caller, body, send)
            else:
                answer = await asyncio.to_thread(self._simple, action, caller, body)
                await _respond(send, 200, [answer])
        except NodeGone as error:
            await _respond(send, 410, [str(error).encode()], kind=b"text/plain; charset=utf-8")
        except TransportError as error:
            await _respond(send, 400, [str(error).encode()], kind=b"text/plain; charset=utf-8")

    def _simple(self, action: str, caller: Caller, body: bytes) -> bytes:
        answer: Proto
        if action == "activate-node":
            interval = parsed(ActivateNodeRequest, body).heartbeat_interval
            self._link.beat(caller.node_id, _checked(interval))
            answer = ActivateNodeResponse(node_id=caller.node_id)
        elif action == "send-node-heartbeat":
            beat = parsed(SendNodeHeartbeatRequest, body)
            _own(beat.node.node_id, caller)
            self._link.beat(caller.node_id, _checked(beat.heartbeat_interval))
            answer = SendNodeHeartbeatResponse(success=True)
        elif action == "deactivate-node":
            _own(parsed(DeactivateNodeRequest, body).node_id, caller)
            self._link.leave(caller.node_id)
            answer = DeactivateNodeResponse()
        elif action == "get-run":
            _own(parsed(GetRunRequest, body).node.node_id, caller)
            answer = GetRunResponse(run=run_to_proto(self._link.current_run()))
        else:
            raise TransportError(f"{action} is not an action")
        return encoded(answer)

    async def _fetch(self, caller: Caller, body: bytes, send: Send) -> None:
        """Answer with the next message and its objects, or with 204 after a while."""
        node = caller.node_id
        _own(parsed(PullMessagesRequest, body).node.node_id, caller)
        loop = asyncio.get_running_loop()
        with self._link.woken(node, loop) as event:
            end = loop.time() + _HOLD_SECONDS
            while (parts := await asyncio.to_thread(self._link.next_question, node)) is None:
                left = end - loop.time()
                if left <= 0:
                    await _respond(send, 204, [])
                    return
                try:
                    await asyncio.wait_for(event.wait(), left)
                except TimeoutError:
                    continue
                event.clear()
                caller.still_live()
        caller.still_live()
        size = frames_length(parts)
        self._link.count_sent(size)
        await _respond(send, 200, list(write_frames(parts)), size=size)

    async def _deliver(self, caller: Caller, length: int, receive: Receive, send: Send) -> None:
        """Take one reply and all of its objects, piece by piece as they arrive."""
        reader = FrameReader(length)
        request: PushMessagesRequest | None = None
        expected: set[str] = set()
        objects: dict[str, bytes] = {}
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            for frame in reader.feed(event.get("body", b"")):
                if request is None:
                    request, expected = _opened(frame, caller)
                    continue
                id_ = await _hashed(frame)
                if id_ not in expected or id_ in objects:
                    raise TransportError("an object that the message does not hold")
                objects[id_] = frame
            if not event.get("more_body", False):
                break
        reader.finish()
        if request is None:
            raise TransportError("a delivery begins with its message")
        caller.still_live()
        accept = self._link.accept
        stored = await asyncio.to_thread(accept, request, objects, length, caller.key)
        answer = PushMessagesResponse(results={request.messages_list[0].metadata.message_id: 0})
        await _respond(send, 200 if stored else 410, [encoded(answer)])


def _opened(frame: bytes, caller: Caller) -> tuple[PushMessagesRequest, set[str]]:
    request = parsed(PushMessagesRequest, frame)
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise TransportError("a delivery holds one message")
    _own(request.node.node_id, caller)
    _own(request.messages_list[0].metadata.src_node_id, caller)
    tree = request.message_object_trees[0]
    if tree.object_id != request.messages_list[0].metadata.message_id:
        raise TransportError("the tree does not belong to the message")
    expected = {each.object_id for each in each_object(tree)}
    if not all(map(is_valid_sha256_hash, expected)):
        raise TransportError("an object's name is not a SHA-256")
    return request, expected


def _checked(interval: float) -> float:
    if not HEARTBEAT_MIN_INTERVAL <= interval <= HEARTBEAT_MAX_INTERVAL:
        raise TransportError(
            f"a heartbeat comes every {HEARTBEAT_MIN_INTERVAL} to {HEARTBEAT_MAX_INTERVAL} s"
        )
    return interval


def _own(node: int, caller: Caller) -> None:
    if node != caller.node_id:
        raise TransportError("a node may speak for itself only")


async def _hashed(frame: bytes) -> str:
    if len(frame) < _SMALL_BYTES:
        return str(get_object_id(frame))
    return str(await asyncio.to_thread(get_object_id, frame))


async def _read(receive: Receive, length: int) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise TransportError("the connection ended in the middle of a request")
        body += event.get("body", b"")
        if len(body) > length:
            raise TransportError("the body is longer than announced")
        if not event.get("more_body", False):
            return bytes(body)


async def _respond(
    send: Send,
    status: int,
    parts: Sequence[bytes | memoryview],
    *,
    size: int | None = None,
    kind: bytes = b"application/protobuf",
) -> None:
    length = sum(map(len, parts)) if size is None else size
    headers = [(b"content-type", kind), (b"content-length", str(length).encode())]
    if status == 204:
        headers = []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": bytes(part), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
