"""The requests of a job's aggregator to the coordinator, both ends.

:class:`CoordinatorClient` is the aggregator's end, :func:`serve` the coordinator's. One request
at a time; every request gets one answer, which is a result or an error of :mod:`fedlearn.errors`.
Models pass through in files (:mod:`fedlearn.sandbox.memory_file`), which the coordinator does not
map. The aggregator holds no user code; it parses what sites send, so the coordinator checks what it
reports against what the coordinator itself knows (:mod:`server.jobs.job_channel`).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from fedlearn.app.message import Flat
from fedlearn.errors import FedlearnError, TransportError
from fedlearn.sandbox.memory_file import FilePart, Part, view_of
from fedlearn.sandbox.process_channel import ProcessChannel
from server.flower.exchange.coordinator import Node
from server.flower.exchange.receipts import Receipts
from server.flower.ipc.failures import failure_of, raised
from server.flower.job_plan import MAX_EVENTS, Checkpoint, JobChannel, Reply

if TYPE_CHECKING:
    from server.flower.exchange.job_exchange import JobExchange

__all__ = ["MAX_RECORD_BYTES", "CoordinatorClient", "Node", "serve"]

MAX_RECORD_BYTES: Final = 1 << 40
_LOG = logging.getLogger(__name__)

Answer = tuple[Mapping[str, Any], Sequence[Part]]


class CoordinatorClient:
    """The coordinator, as the aggregator sees it. Safe to use from several threads.

    Every method raises the error with which the coordinator answered, and TransportError when
    it is gone.
    """

    def __init__(self, process_channel: ProcessChannel) -> None:
        self._process_channel = process_channel
        self._lock = threading.Lock()
        self._pulling = threading.Lock()
        self._waited: Collection[str] | None = None
        self._left = 0
        self._noted: list[tuple[str, dict[str, Any]]] = []

    def push(self, flat: Flat) -> list[str]:
        """Hand messages to the nodes; return their ids, empty for one that was refused."""
        header = {"count": len(flat.messages), "ids": list(flat.objects)}
        answer, _ = self._ask("push", header, [*flat.messages, *flat.objects.values()])
        return list(answer["ids"])

    def pull(self, ids: Collection[str], seconds: float) -> deque[Reply]:
        """Wait for answers to some of ``ids``, up to ``seconds``.

        A caller that waits for many repeats its call with the same object, from which it has
        removed what was answered; the ids then travel once. What is in a file is not mapped; the
        caller takes the replies out of the result one by one, so that each is freed in time.
        """
        with self._pulling:
            same = ids is self._waited and len(ids) == self._left
            known = None if same else sorted(ids)
            self._waited = None
            answer, blobs = self._ask("pull", {"ids": known, "seconds": seconds})
            self._waited, self._left = ids, len(ids) - len(answer["replies"])
        replies: deque[Reply] = deque()
        parts = iter(blobs)
        for each in answer["replies"]:
            message = bytes(next(parts))
            objects = {id_: next(parts) for id_ in each.pop("ids")}
            replies.append(Reply(**each, message=message, objects=objects))
        return replies

    def forget(self, ids: Iterable[str]) -> None:
        """Withdraw messages."""
        self._ask("forget", {"ids": sorted(ids)})

    def online(self, count: int = 0, seconds: float = 0.0) -> list[Node]:
        """Return the nodes that are online, after waiting for ``count`` up to ``seconds``."""
        answer, _ = self._ask("online", {"count": count, "seconds": seconds})
        return [Node(number=number, site=site) for number, site in answer["nodes"]]

    def live_sites(self) -> dict[str, int]:
        """Return the sites whose admission is live, and how many examples each may claim.

        0 is a site that committed to nothing that can be counted.
        """
        return dict(self._ask("live", {})[0]["sites"])

    def traffic(self) -> tuple[int, int]:
        """Return the bytes sent to and received from nodes so far."""
        answer, _ = self._ask("traffic", {})
        return answer["sent"], answer["received"]

    def event(self, kind: str, **fields: Any) -> None:
        """Report an event of the job. An update is named by its question (``question``)."""
        self._ask("event", {"kind": kind, "fields": fields})

    def note(self, kind: str, **fields: Any) -> None:
        """Report an event of :data:`server.flower.job_plan.OF_ANSWERS` ahead of the next request.

        Many are one request. What the coordinator raises for it, that next request raises.
        """
        with self._lock:
            self._noted.append((kind, fields))

    def charge(self, stage: int, round_: int, inputs: bytes) -> None:
        """Charge the budget for a noised aggregate of these inputs, before it is released.

        :raises PrivacyError: when the budget of the job does not pay for it.
        """
        self._ask("charge", {"stage": stage, "round": round_, "inputs": inputs.hex()})

    def save(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint sealed; without privacy it may be when this has returned."""
        header = {"round": checkpoint.round, "state": checkpoint.state}
        self._ask("save", header, [checkpoint.model, checkpoint.tensors])

    def settle(self) -> None:
        """Wait until the last checkpoint is sealed."""
        self._ask("settle", {})

    def keep_files(self, files: Mapping[str, memoryview]) -> None:
        """Have the application's files sealed."""
        self._ask("files", {"names": list(files)}, list(files.values()))

    def load(self) -> Checkpoint | None:
        """Return the job's last checkpoint."""
        answer, blobs = self._ask("load", {})
        if answer["round"] is None:
            return None
        model, tensors = blobs
        return Checkpoint(
            round=answer["round"], model=model, tensors=tensors, state=answer["state"]
        )

    def done(self, *, rounds: int, error: FedlearnError | None = None) -> None:
        """Report how the job ended; the last request."""
        failure = None if error is None else failure_of(error)
        self._ask("done", {"rounds": rounds, "failure": failure})

    def _ask(
        self, what: str, header: Mapping[str, Any], blobs: Sequence[Part] = ()
    ) -> tuple[dict[str, Any], list[bytes | FilePart]]:
        with self._lock:
            while self._noted:
                now, self._noted = self._noted[:MAX_EVENTS], self._noted[MAX_EVENTS:]
                self._exchange({"ask": "events", "events": now}, ())
            return self._exchange({"ask": what, **header}, blobs)

    def _exchange(
        self, header: Mapping[str, Any], blobs: Sequence[Part]
    ) -> tuple[dict[str, Any], list[bytes | FilePart]]:
        self._process_channel.send(header, blobs)
        answer = self._process_channel.receive_parts()
        if answer is None:
            raise TransportError("the coordinator is gone")
        failure = answer[0].get("error")
        if failure is not None:
            raise raised(failure)
        return answer


def serve(
    process_channel: ProcessChannel,
    exchange: JobExchange,
    channel: JobChannel,
    done: Callable[[int, Mapping[str, str] | None], None],
) -> None:
    """Answer a job's requests until it closes its end.

    An error of :mod:`fedlearn.errors` is returned to the job, and may come back as its outcome.

    :param done: called with the job's final report: its rounds, and the failure if there was one.
    :raises TransportError: when the job does not follow the protocol.
    :raises StoreError: when its last checkpoint could not be sealed, which no answer reported.
    """
    receipts = Receipts(exchange.plan.noise_secret)
    try:
        while (record := process_channel.receive_parts()) is not None:
            header, blobs = record
            try:
                answer, parts = _answer(header, blobs, exchange, channel, receipts, done)
            except FedlearnError as error:
                answer, parts = {"error": failure_of(error)}, ()
            except (KeyError, TypeError, ValueError, StopIteration) as error:
                name = type(error).__name__
                raise TransportError(f"a request that is not one: {name}") from error
            process_channel.send(answer, parts)
            del record, blobs, parts  # files, which would live until the next request
    finally:
        # The end of a job, and its next start, are after the seal of its last checkpoint.
        channel.settle()


def _answer(
    header: dict[str, Any],
    blobs: list[bytes | FilePart],
    exchange: JobExchange,
    channel: JobChannel,
    receipts: Receipts,
    done: Callable[[int, Mapping[str, str] | None], None],
) -> Answer:
    match header.pop("ask"):
        case "push":
            count, ids = int(header["count"]), header["ids"]
            objects = zip(ids, blobs[count:], strict=True)
            pushed = exchange.push(list(map(bytes, blobs[:count])), objects)
            return {"ids": pushed}, ()
        case "pull":
            replies = exchange.pull(header["ids"], float(header["seconds"]))
            for reply in replies:
                receipts.note(reply)
            found = [
                {
                    "question": each.question,
                    "site": each.site,
                    "node": each.node,
                    "ids": list(each.objects),
                    "size": each.size,
                    "key": each.key,
                    "digest": each.digest,
                }
                for each in replies
            ]
            parts = [part for each in replies for part in (each.message, *each.objects.values())]
            return {"replies": found}, parts
        case "forget":
            exchange.forget(header["ids"])
            return {}, ()
        case "online":
            return {
                "nodes": exchange.wait_online(int(header["count"]), float(header["seconds"]))
            }, ()
        case "live":
            return {"sites": dict(channel.live_sites())}, ()
        case "traffic":
            sent, received = exchange.traffic()
            return {"sent": sent, "received": received}, ()
        case "event":
            kind = str(header["kind"])
            fields = receipts.fill(kind, header["fields"])
            try:
                channel.event(kind, fields)
            except ValueError as error:
                # An event informs; one that cannot be shown must not end a job.
                _LOG.warning("an event was not passed on: %s", error)
            return {}, ()
        case "events":
            noted = [(str(kind), fields) for kind, fields in header["events"]]
            channel.take_events([(kind, receipts.fill(kind, fields)) for kind, fields in noted])
            return {}, ()
        case "charge":
            inputs = bytes.fromhex(header["inputs"])
            channel.charge(int(header["stage"]), int(header["round"]), inputs)
            return {}, ()
        case "save":
            model, tensors = blobs
            channel.save_checkpoint(
                Checkpoint(
                    round=int(header["round"]),
                    model=model,
                    tensors=tensors,
                    state=dict(header["state"]),
                )
            )
            return {}, ()
        case "settle":
            channel.settle()
            return {}, ()
        case "files":
            files = dict(zip(map(str, header["names"]), map(view_of, blobs), strict=True))
            channel.keep_files(files)
            return {}, ()
        case "load":
            return _loaded(channel.load_checkpoint())
        case "done":
            done(int(header["rounds"]), header["failure"])
            return {}, ()
        case other:
            raise TransportError(f"{other!r} is not a request")


def _loaded(checkpoint: Checkpoint | None) -> Answer:
    if checkpoint is None:
        return {"round": None}, ()
    header = {"round": checkpoint.round, "state": dict(checkpoint.state)}
    return header, [checkpoint.model, checkpoint.tensors]
