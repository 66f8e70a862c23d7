"""Sites of a job that answer after a time that a test gives them, by a clock that a test reads."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from fedlearn.app.array_records import arrays_of, record_of, records_of
from fedlearn.app.flower import CALL, Packer, flatten, inflate, unpack
from fedlearn.app.message import Flat
from fedlearn.update.arrays import Array
from server.flower.exchange.coordinator import Node
from server.flower.job_plan import Checkpoint, Reply

Train = Callable[[str, int, dict[str, Array]], "RecordDict | str | None"]
"""What a site answers to a call: a content, the text of an error, or nothing at all."""


class TimedClock:
    """Seconds that pass only when something waits for them."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @contextmanager
    def at(self, moment: float) -> Iterator[float]:
        before, self.now = self.now, moment
        yield moment
        self.now = before


class TimedSites:
    """A coordinator with sites; ``seconds`` is how long each takes to train.

    ``asked``     each question that was sent: the time, the site, the number and the kind
    ``reported``  events, in their order
    """

    def __init__(self, sites: Iterable[str], seconds: Mapping[str, float], train: Train) -> None:
        self.clock = TimedClock()
        self.nodes = [Node(number=n + 10, site=site) for n, site in enumerate(sites)]
        self.seconds = dict(seconds)
        self.train = train
        self.gone: set[str] = set()
        self.revoked: set[str] = set()
        self.asked: list[tuple[float, str, int, str]] = []
        self.reported: list[tuple[str, dict[str, Any]]] = []
        self.checkpoints: list[Checkpoint] = []
        self.saved_at = 0.0
        self.forgotten: list[str] = []
        self.dies: Callable[[], bool] = lambda: False
        self._arrivals: list[tuple[float, int, str, Reply | None]] = []

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.reported if name == kind]

    # The coordinator

    def online(self, count: int = 0, seconds: float = 0.0) -> list[Node]:
        here = [node for node in self.nodes if node.site not in self.gone]
        if len(here) < count:
            self.clock.now += seconds
        return here

    def live_sites(self) -> dict[str, int]:
        return {node.site: 1000 for node in self.nodes if node.site not in self.revoked}

    def push(self, flat: Flat) -> list[str]:
        return [self._ask(flat, index) for index in range(len(flat.messages))]

    def pull(self, ids: Collection[str], seconds: float) -> deque[Reply]:
        if self.dies():
            raise KeyboardInterrupt
        end = self.clock.now + seconds
        found: deque[Reply] = deque()
        while self._arrivals and self._arrivals[0][0] <= end and not found:
            when = self._arrivals[0][0]
            while self._arrivals and self._arrivals[0][0] == when:
                _, _, id_, reply = heapq.heappop(self._arrivals)
                assert id_ in ids or id_ in self.forgotten
                if id_ in ids and reply is not None:
                    found.append(reply)
            self.clock.now = max(self.clock.now, when)
        if not found:
            self.clock.now = end
        return found

    def forget(self, ids: Iterable[str]) -> None:
        self.forgotten += ids

    def traffic(self) -> tuple[int, int]:
        return 0, 0

    def event(self, kind: str, **fields: Any) -> None:
        self.reported.append((kind, fields))

    note = event

    def save(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)
        self.saved_at = self.clock.now

    def load(self) -> Checkpoint | None:
        return self.checkpoints[-1] if self.checkpoints else None

    def settle(self) -> None:
        return None

    def charge(self, stage: int, round_: int, inputs: bytes) -> None:
        raise AssertionError("nothing is charged")

    def keep_files(self, files: Mapping[str, memoryview]) -> None:
        raise AssertionError("no files are kept")

    def done(self, **_: Any) -> None:
        raise AssertionError("the job does not end here")

    # The sites

    def _ask(self, flat: Flat, index: int) -> str:
        head, *_ = frames = flat.frames(index)
        message = inflate(head, flat.objects)
        node = next(n for n in self.nodes if n.number == message.metadata.dst_node_id)
        kind, number = message.metadata.message_type, int(message.content[CALL]["round"])
        self.asked.append((self.clock.now, node.site, number, kind))
        content = unpack(message.content, max_bytes=10**9)
        model = next(iter(records_of(content, ArrayRecord).values()))
        if kind == "evaluate":
            metrics = MetricRecord({"num-examples": 1, "score": float(len(node.site))})
            found: RecordDict | str | None = RecordDict({"metrics": metrics})
            after = 0.0
        elif node.site in self.gone:
            found, after = "the site's client is not online", 0.0
        else:
            assert content["config"]["server-round"] == number
            arrays = {name: array.copy() for name, array in arrays_of(model).items()}
            found, after = self.train(node.site, number, arrays), self.seconds[node.site]
        del frames
        reply = None if found is None else self._reply(message, node, found)
        heapq.heappush(
            self._arrivals,
            (self.clock.now + after, len(self.asked), message.metadata.message_id, reply),
        )
        return str(message.metadata.message_id)

    def _reply(self, message: Message, node: Node, found: RecordDict | str) -> Reply:
        from flwr.app import Error

        content = Error(code=1, reason=found) if isinstance(found, str) else Packer().content(found)
        flat = flatten([Message(content, reply_to=message)])
        return Reply(
            question=message.metadata.message_id,
            site=node.site,
            node=node.number,
            message=flat.messages[0],
            objects=flat.objects,
            size=1,
            key="ab",
            digest="cd" * 32,
        )


def update(arrays: Mapping[str, Array], *, examples: int = 1, **metrics: float) -> RecordDict:
    """Return the content of an update."""
    record = MetricRecord({"num-examples": examples, **metrics})
    return RecordDict({"arrays": record_of(arrays), "metrics": record})
