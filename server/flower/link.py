"""One job's Flower state, in memory, and the few things that may be done with it.

Flower's own servers are not started: this talks to its LinkState directly, so there is no
Control interface to reach and no port to guard. Two sides use a link:

* *nodes*, the clients in their TEEs, through :mod:`server.front`, which decides who is speaking,
  and :mod:`server.flower.nodes`, which serves what a node may do.
* *the job's process*, through :mod:`server.flower.host`, which calls :meth:`JobLink.push`,
  :meth:`JobLink.pull` and the rest from a thread of its own.

Both sides wait for each other on events, never by asking again and again.

A node is a site of the job. Its number comes from the job and the site, and survives a new
key and a restarted client: a message that was handed out and not answered is handed out
again when its node asks for work.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from flwr.app import Message
from flwr.common.constant import NOOP_FLWR_AID, SubStatus
from flwr.common.serde import message_from_proto, message_to_proto, run_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.run import Run

from fedlearn.errors import JobError, TransportError
from fedlearn.seeds import node_number
from server.flower import contract
from server.flower.messages import each_object, encoded, parsed
from server.flower.nodes import NodeActions, NodeGone
from server.flower.plan import JobPlan, Reply
from server.front import Receive, Scope, Send

__all__ = ["JobLink"]


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
        self._actions = NodeActions(self)

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
        return encoded(run_to_proto(self.current_run()))

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
        protos = [parsed(ProtoMessage, data) for data in messages]
        roots = [parsed(ObjectTree, data) for data in trees]
        if len(protos) != len(roots):
            raise TransportError("every message needs its tree")
        given = dict(objects)
        ids: list[str] = []
        with self._lock:
            self._keep_alive()
            session = self._state.start_session(self._run_id)
            wanted: dict[str, None] = {}
            for proto, root in zip(protos, roots, strict=True):
                message = message_from_proto(proto)
                stored, missing = self._state.store_message_and_object_tree(message, root, session)
                ids.append(message.metadata.message_id if stored else "")
                wanted.update(dict.fromkeys(missing))
            try:
                self._store(session, wanted, given)
            except TransportError:
                self.forget(ids)
                raise
        for proto in protos:
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

    # What nodes do, through NodeActions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one action of one node; see :mod:`server.flower.nodes`."""
        await self._actions(scope, receive, send)

    def beat(self, node: int, interval: float) -> None:
        """Note that a node is there, and will say so again within ``interval`` seconds.

        :raises NodeGone: when it is not part of the job.
        """
        with self._lock:
            if node not in self._sites:
                raise NodeGone("this node is not part of the job any more")
            self._promised[node] = interval
            self._alive(node)

    def leave(self, node: int) -> None:
        """Take a node offline, as it asks."""
        with self._lock:
            self._deactivate(node)
            self._promised.pop(node, None)
            self._changed.notify_all()

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

    @contextlib.contextmanager
    def woken(self, node: int, loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.Event]:
        """Yield an event of ``loop`` that is set whenever there may be something for a node."""
        entry = loop, asyncio.Event()
        with self._lock:
            self._waiting.setdefault(node, set()).add(entry)
        try:
            yield entry[1]
        finally:
            with self._lock:
                self._waiting[node].discard(entry)

    def count_sent(self, size: int) -> None:
        """Add to :meth:`traffic`."""
        with self._lock:
            self._sent += size

    def next_question(self, node: int) -> list[bytes] | None:
        """Return the message that a node has to answer, and its objects; ``None`` for none.

        The first part is a ``PullMessagesResponse``. A message that was handed out and not
        answered is handed out again.

        :raises NodeGone: when the job has ended, or the node is not part of it.
        """
        with self._lock:
            if self._closed:
                raise NodeGone("the job has ended")
            if node not in self._sites:
                raise NodeGone("this node is not part of the job any more")
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
            contents = {each.object_id: store.get(each.object_id) for each in each_object(tree)}
            if not all(contents.values()):
                raise TransportError("an object of the message is missing")
            response = PullMessagesResponse(
                messages_list=[message_to_proto(message)], message_object_trees=[tree]
            )
            return [encoded(response), *(content for content in contents.values() if content)]

    def accept(
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

    def current_run(self) -> Run:
        """Return Flower's description of the run."""
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
            objects = {
                each.object_id: store.get(each.object_id) or b"" for each in each_object(tree)
            }
            size, key, _ = self._sizes.pop(question, (0, "", 0))
            replies.append(
                Reply(
                    message=encoded(message_to_proto(message)),
                    tree=encoded(tree),
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
