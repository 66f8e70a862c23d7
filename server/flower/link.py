"""One job's Flower state, in memory, and the few things that may be done with it.

Flower's own servers are not started: this talks to its LinkState directly, so there is no
Control interface to reach and no port to guard. Two sides use a link:

* *nodes*, the clients in their TEEs, through :mod:`server.front`, which calls the link as an
  ASGI application after it has decided who is speaking (``scope["fedlearn.caller"]``). The
  actions are those of :data:`server.front.ACTIONS`, and a node can touch its own messages only.
* *the job's process*, through :mod:`server.flower.host`, which calls :meth:`JobLink.push`,
  :meth:`JobLink.pull` and the rest from a thread of its own.

Both sides wait for each other on events, never by asking again and again.

A node is a site of the job. Its number comes from the job and the site, and survives a new
key and a restarted client: a message that was handed out and not answered is handed out
again when its node asks for work.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from flwr.app import Message
from flwr.common.constant import (
    HEARTBEAT_MAX_INTERVAL,
    HEARTBEAT_MIN_INTERVAL,
    NOOP_FLWR_AID,
    SubStatus,
)
from flwr.common.serde import message_from_proto, message_to_proto, run_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_object_id,
    is_valid_sha256_hash,
    iterate_object_tree,
)
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.run import Run
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto

from fedlearn.errors import JobError, TransportError
from fedlearn.frames import FrameReader, frames_length, write_frames
from fedlearn.seeds import node_number
from server.flower import contract
from server.flower.plan import JobPlan, Reply
from server.front import Caller, Receive, Scope, Send

__all__ = ["JobLink"]

_CONTROL_BYTES: Final = 64 * 1024
_MAX_OBJECTS: Final = 200_000
_HOLD_SECONDS: Final = 20.0
"""How long a node that asks for work is kept waiting before it is told that there is none."""


class _Gone(TransportError):
    """There is nothing left to do for this node."""


class JobLink:
    """The Flower side of one job. Safe to use from many threads; see the module."""

    def __init__(self, plan: JobPlan) -> None:
        contract.check()
        self.plan = plan
        self._state = contract.in_memory_linkstate()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._sites: dict[int, str] = {}
        self._numbers = {site: node_number(plan.digest, site) for site in plan.sites}
        self._in_hand: dict[int, Message] = {}
        self._promised: dict[int, float] = {}
        self._sizes: dict[str, tuple[int, str, int]] = {}
        self._leaving: set[int] = set()
        self._waiting: dict[int, set[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._received = 0
        self._sent = 0
        self._closed = False
        self._run_id = self._start()

    # What the coordinator does

    @property
    def run_id(self) -> int:
        """Flower's number for this run of the job."""
        return self._run_id

    def create_node(self, site: str, tls_key: bytes) -> int:
        """Admit a site, or give the node of an admitted site its new key.

        :param tls_key: DER SPKI of the key of the client's certificate.
        :raises JobError: when the site does not belong to the job.
        """
        number = self._numbers.get(site)
        if number is None:
            raise JobError(f"{site} is not a site of job {self.plan.job}")
        with self._lock:
            contract.place_node(self._state, number, tls_key)
            self._sites[number] = site
            self._changed.notify_all()
        return number

    def delete_node(self, site: str) -> None:
        """Take a site's node away. What it was asked is answered with an error at once."""
        number = self._numbers.get(site)
        if number is None:
            return
        with self._lock:
            if self._sites.pop(number, None) is not None:
                contract.remove_node(self._state, number)
            self._in_hand.pop(number, None)
            self._promised.pop(number, None)
            self._leaving.discard(number)
            self._changed.notify_all()
        self._wake(number)

    def absent(self, site: str) -> None:
        """Note that no connection of the site's client is left: it is not online any more."""
        number = self._numbers.get(site)
        if number is None:
            return
        with self._lock:
            if number in self._sites:
                self._deactivate(number)
            self._changed.notify_all()

    def _deactivate(self, node: int) -> None:
        """Take a node offline, once nothing that it has answered lies here any more.

        Flower puts an error in the place of whatever a node sent before it went.
        """
        if any(sender == node for _, _, sender in self._sizes.values()):
            self._leaving.add(node)
        else:
            self._leaving.discard(node)
            self._state.deactivate_node(node)

    @property
    def closed(self) -> bool:
        """Whether the job has ended here for good."""
        return self._closed

    def start_over(self) -> None:
        """Withdraw all that a process of the job that is gone has asked of nodes."""
        with self._lock:
            self.forget(self._state.get_message_ids_from_run_id(self._run_id))
            self._in_hand.clear()

    def close(self, *, completed: bool) -> None:
        """End the run, drop everything that it holds, and let nobody wait any longer."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            task = contract.primary_task(self._state, self._run_id)
            outcome = SubStatus.COMPLETED if completed else SubStatus.STOPPED
            self._state.finish_task(task, outcome, "")
            self._state.cleanup_run(self._run_id)
            self._in_hand.clear()
            self._changed.notify_all()
            nodes = list(self._waiting)
        for node in nodes:
            self._wake(node)

    # What the job's process does

    def run(self) -> bytes:
        """Return Flower's description of the run, as protobuf."""
        return _bytes(run_to_proto(self._current_run()))

    def traffic(self) -> tuple[int, int]:
        """Return the bytes sent to and received from nodes so far."""
        with self._lock:
            return self._sent, self._received

    def online(self) -> list[tuple[int, str]]:
        """Return number and site of every node that is online, in the order of the job."""
        with self._lock:
            self._keep_alive()
            online = self._state.get_nodes(self._run_id)
            order = ((self._numbers[site], site) for site in self.plan.sites)
            return [pair for pair in order if pair[0] in online and pair[0] in self._sites]

    def wait_online(self, count: int, seconds: float) -> list[tuple[int, str]]:
        """Return :meth:`online` once it has ``count`` entries or the time is up."""
        end = time.monotonic() + seconds
        with self._changed:
            while len(found := self.online()) < count and not self._closed:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 1.0))
            return found

    def push(
        self,
        messages: Sequence[bytes],
        trees: Sequence[bytes],
        objects: Iterable[tuple[str, bytes]],
    ) -> list[str]:
        """Store messages for nodes; return their ids, empty where Flower refuses one.

        An object that several messages share is stored once.

        :raises TransportError: when something is malformed or an object is missing.
        """
        parsed = [_parsed(ProtoMessage, data) for data in messages]
        roots = [_parsed(ObjectTree, data) for data in trees]
        if len(parsed) != len(roots):
            raise TransportError("every message needs its tree")
        given = dict(objects)
        ids: list[str] = []
        with self._lock:
            self._keep_alive()
            session = self._state.start_session(self._run_id)
            wanted: dict[str, None] = {}
            for proto, root in zip(parsed, roots, strict=True):
                message = message_from_proto(proto)
                stored, missing = self._state.store_message_and_object_tree(message, root, session)
                ids.append(message.metadata.message_id if stored else "")
                wanted.update(dict.fromkeys(missing))
            try:
                self._store(session, wanted, given)
            except TransportError:
                self.forget(ids)
                raise
        for proto in parsed:
            self._wake(proto.metadata.dst_node_id)
        return ids

    def pull(self, ids: Iterable[str], seconds: float) -> list[Reply]:
        """Wait until some of the messages are answered; return and forget those answers.

        Empty when the time is up. A message whose node is gone is answered by Flower, with an
        error.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while True:
                self._keep_alive()
                replies = self._take(set(ids))
                left = end - time.monotonic()
                if replies or left <= 0 or self._closed:
                    return replies
                # Flower notices by its clock that a node went silent; so look now and then.
                self._changed.wait(min(left, 1.0))

    def forget(self, ids: Iterable[str]) -> None:
        """Withdraw messages. Answers that still arrive are not stored."""
        wanted = {id_ for id_ in ids if id_}
        with self._lock:
            known = wanted & self._state.get_message_ids_from_run_id(self._run_id)
            self._take(set(known))
            self._state.delete_messages(known)
            for id_ in wanted:
                self._state.object_store.delete(id_)
                self._sizes.pop(id_, None)
            self._let_leave()
            for node, message in list(self._in_hand.items()):
                if message.metadata.message_id in wanted:
                    del self._in_hand[node]

    # What a node does

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one action of one node; see :data:`server.front.ACTIONS`."""
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
        except _Gone as error:
            await _respond(send, 410, [str(error).encode()], kind=b"text/plain; charset=utf-8")
        except TransportError as error:
            await _respond(send, 400, [str(error).encode()], kind=b"text/plain; charset=utf-8")

    def _simple(self, action: str, caller: Caller, body: bytes) -> bytes:
        answer: Proto
        with self._lock:
            if action == "activate-node":
                activate = _parsed(ActivateNodeRequest, body)
                self._beat(caller.node_id, activate.heartbeat_interval)
                answer = ActivateNodeResponse(node_id=caller.node_id)
            elif action == "send-node-heartbeat":
                beat = _parsed(SendNodeHeartbeatRequest, body)
                _own(beat.node.node_id, caller)
                self._beat(caller.node_id, beat.heartbeat_interval)
                answer = SendNodeHeartbeatResponse(success=True)
            elif action == "deactivate-node":
                _own(_parsed(DeactivateNodeRequest, body).node_id, caller)
                self._deactivate(caller.node_id)
                self._promised.pop(caller.node_id, None)
                self._changed.notify_all()
                answer = DeactivateNodeResponse()
            elif action == "get-run":
                _own(_parsed(GetRunRequest, body).node.node_id, caller)
                answer = GetRunResponse(run=run_to_proto(self._current_run()))
            else:
                raise TransportError(f"{action} is not an action")
        return _bytes(answer)

    def _beat(self, node: int, interval: float) -> None:
        if not HEARTBEAT_MIN_INTERVAL <= interval <= HEARTBEAT_MAX_INTERVAL:
            raise TransportError(
                f"a heartbeat comes every {HEARTBEAT_MIN_INTERVAL} to {HEARTBEAT_MAX_INTERVAL} s"
            )
        if node not in self._sites:
            raise _Gone("this node is not part of the job any more")
        self._promised[node] = interval
        self._alive(node)

    def _alive(self, node: int) -> None:
        """Note a sign of life of a node that is active: whoever asks for work is there.

        A client that came back after :meth:`absent` is online with its first question; to
        wait for its next heartbeat would hold up a round for seconds.
        """
        interval = self._promised.get(node)
        if interval is None:
            return
        self._leaving.discard(node)
        self._state.activate_node(node, interval)
        self._state.acknowledge_node_heartbeat(node, interval)
        self._changed.notify_all()

    async def _fetch(self, caller: Caller, body: bytes, send: Send) -> None:
        """Answer with the next message and its objects, or with 204 after a while."""
        _own(_parsed(PullMessagesRequest, body).node.node_id, caller)
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._waiting.setdefault(caller.node_id, set()).add((loop, event))
        try:
            end = loop.time() + _HOLD_SECONDS
            while (parts := await asyncio.to_thread(self._next, caller.node_id)) is None:
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
        finally:
            with self._lock:
                self._waiting[caller.node_id].discard((loop, event))
        caller.still_live()
        size = frames_length(parts)
        with self._lock:
            self._sent += size
        await _respond(send, 200, list(write_frames(parts)), size=size)

    def _next(self, node: int) -> list[bytes] | None:
        with self._lock:
            if self._closed:
                raise _Gone("the job has ended")
            if node not in self._sites:
                raise _Gone("this node is not part of the job any more")
            self._alive(node)
            message = self._in_hand.get(node)
            if message is None:
                found = self._state.get_message_ins(node_id=node, limit=1)
                if not found:
                    return None
                message = self._in_hand[node] = found[0]
            root = message.metadata.message_id
            store = self._state.object_store
            tree = store.get_object_tree(root)
            contents = {each.object_id: store.get(each.object_id) for each in _each(tree)}
            if not all(contents.values()):
                raise TransportError("an object of the message is missing")
            response = PullMessagesResponse(
                messages_list=[message_to_proto(message)], message_object_trees=[tree]
            )
            return [_bytes(response), *(content for content in contents.values() if content)]

    async def _deliver(self, caller: Caller, length: int, receive: Receive, send: Send) -> None:
        """Take one reply and all of its objects, piece by piece as they arrive."""
        reader = FrameReader(length)
        request: PushMessagesRequest | None = None
        expected: set[str] = set()
        objects: dict[str, bytes] = {}
        left = length
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            piece = event.get("body", b"")
            left -= len(piece)
            for frame in reader.feed(piece):
                if request is None:
                    request, expected = self._opened(frame, caller)
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
        stored = await asyncio.to_thread(self._accept, request, objects, length, caller.key)
        answer = PushMessagesResponse(results={request.messages_list[0].metadata.message_id: 0})
        await _respond(send, 200 if stored else 410, [_bytes(answer)])

    def _opened(self, frame: bytes, caller: Caller) -> tuple[PushMessagesRequest, set[str]]:
        request = _parsed(PushMessagesRequest, frame)
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise TransportError("a delivery holds one message")
        _own(request.node.node_id, caller)
        _own(request.messages_list[0].metadata.src_node_id, caller)
        tree = request.message_object_trees[0]
        if tree.object_id != request.messages_list[0].metadata.message_id:
            raise TransportError("the tree does not belong to the message")
        expected = {each.object_id for each in _each(tree)}
        if not all(map(is_valid_sha256_hash, expected)):
            raise TransportError("an object's name is not a SHA-256")
        return request, expected

    def _accept(
        self, request: PushMessagesRequest, objects: dict[str, bytes], size: int, key: bytes
    ) -> bool:
        """Store a reply; return False when nobody waits for it any more."""
        message = message_from_proto(request.messages_list[0])
        node = message.metadata.src_node_id
        with self._lock:
            self._received += size
            held = self._in_hand.get(node)
            if held is None or held.metadata.message_id != message.metadata.reply_to_message_id:
                return False
            session = self._state.start_session(self._run_id)
            tree = request.message_object_trees[0]
            stored, missing = self._state.store_message_and_object_tree(message, tree, session)
            if not stored:
                del self._in_hand[node]
                return False
            try:
                self._store(session, dict.fromkeys(missing), objects)
            except TransportError:
                # The question is withdrawn with it: the job learns that there is no answer.
                self._state.delete_messages({message.metadata.reply_to_message_id})
                self._state.object_store.delete(message.metadata.message_id)
                del self._in_hand[node]
                self._changed.notify_all()
                raise
            self._sizes[message.metadata.reply_to_message_id] = (size, key.hex(), node)
            del self._in_hand[node]
            self._changed.notify_all()
        return True

    # Shared

    def _start(self) -> int:
        fab_hash = self._state.store_fab(Fab("", self.plan.bundle, {}))
        run_id = int(
            self._state.create_run(
                self.plan.job,
                "",
                fab_hash,
                dict(self.plan.run_config),
                NOOP_FEDERATION_ID,
                None,
                NOOP_FLWR_AID,
                TaskType.SERVER_APP,
            )
        )
        task = contract.primary_task(self._state, run_id)
        if self._state.claim_task(task) is None or not self._state.activate_task(task):
            raise JobError(f"Flower did not start the run of job {self.plan.job}")
        return run_id

    def _keep_alive(self) -> None:
        """Flower ends a run whose process is silent; ours is watched by its parent instead."""
        if not self._closed:
            self._state.acknowledge_task_heartbeat(contract.primary_task(self._state, self._run_id))

    def _current_run(self) -> Run:
        with self._lock:
            self._keep_alive()
            return self._state.get_run_info(run_ids=[self._run_id])[0]

    def _store(self, session: str, wanted: Mapping[str, None], given: Mapping[str, bytes]) -> None:
        for id_ in wanted:
            content = given.get(id_)
            if content is None:
                raise TransportError(f"the object {id_[:16]} is missing")
            if not self._state.store_object(self._run_id, session, id_, content):
                raise TransportError(f"the object {id_[:16]} is not what its name says")

    def _take(self, ids: set[str]) -> list[Reply]:
        if not ids or self._closed:
            return []
        store = self._state.object_store
        found = self._state.get_message_res(message_ids=set(ids), run_id=self._run_id)
        replies: list[Reply] = []
        for message in found:
            question = message.metadata.reply_to_message_id
            root = message.metadata.message_id
            try:
                tree = store.get_object_tree(root)
            except NoObjectInStoreError:
                tree = ObjectTree(object_id=root)
            objects = {each.object_id: store.get(each.object_id) or b"" for each in _each(tree)}
            size, key, _ = self._sizes.pop(question, (0, "", 0))
            replies.append(
                Reply(
                    message=_bytes(message_to_proto(message)),
                    tree=_bytes(tree),
                    objects=objects,
                    size=size,
                    key=key,
                )
            )
            store.delete(root)
            store.delete(question)
            self._state.delete_messages({question})
            for node, held in list(self._in_hand.items()):
                if held.metadata.message_id == question:
                    del self._in_hand[node]
        self._let_leave()
        return replies

    def _let_leave(self) -> None:
        for node in list(self._leaving):
            self._deactivate(node)

    def _wake(self, node: int) -> None:
        with self._lock:
            waiting = list(self._waiting.get(node, ()))
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)


def _own(node: int, caller: Caller) -> None:
    if node != caller.node_id:
        raise TransportError("a node may speak for itself only")


def _each(tree: ObjectTree) -> Iterable[ObjectTree]:
    for count, each in enumerate(iterate_object_tree(tree)):
        if count >= _MAX_OBJECTS:
            raise TransportError(f"a message of more than {_MAX_OBJECTS} objects")
        yield each


def _parsed(kind: type[Any], data: bytes) -> Any:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise TransportError(f"not a {kind.__name__}") from None
    return message


def _bytes(message: Proto) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))


async def _hashed(frame: bytes) -> str:
    if len(frame) < _CONTROL_BYTES:
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
