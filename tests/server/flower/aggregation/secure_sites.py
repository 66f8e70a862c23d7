"""The grid of a job in memory: each site is the client's own code of secure aggregation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from edge.client.flower.masking import MaskedUpdates
from fedlearn.app.array_records import record_of
from fedlearn.app.flower import SECAGG
from fedlearn.errors import FedlearnError, QuorumNotReached
from fedlearn.job.spec import JobSpec
from fedlearn.update.arrays import Array
from server.flower.exchange.coordinator import Node

Update = Mapping[str, Array]


class SecureSites:
    """What a strategy asks of the grid; each stage may lose some sites, or have its body changed.

    ``lost``     sites that do not answer, by stage; ``train`` is one
    ``changed``  replaces the body of a question, ``changed(stage, site, body)``
    """

    def __init__(
        self, spec: JobSpec, updates: Mapping[str, tuple[Update, int]], *, persist: bool = False
    ) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.spec = spec
        self._updates = updates
        self._persist = persist
        self.clients = {site: self._client(site) for site in spec.sites}
        self.lost: dict[str, set[str]] = {}
        self.changed: Callable[[str, str, bytes], bytes] = lambda stage, site, body: body
        self.noted: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.checks = 0
        self.round = 1
        self.validator = SimpleNamespace(masked=None)
        self.updates = SimpleNamespace(check_contributors=self._check)

    def _client(self, site: str, memory: bytes = b"") -> MaskedUpdates:
        return MaskedUpdates(self.spec, site, weighted_by="num-examples", memory=memory)

    def _check(self) -> None:
        self.checks += 1

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self.spec.sites) + 1))

    def site(self, node: int) -> str:
        return self.spec.sites[node - 1]

    def place(self, node: int) -> int:
        return node

    def note(self, node: int, line: str) -> None:
        self.noted[self.site(node)] = line

    def refuse(self, node: int, reason: str) -> None:
        self.refused[self.site(node)] = reason

    def check_quorum(self, count: int, asked: int) -> None:
        if count < min(self.spec.quorum, asked):
            raise QuorumNotReached(f"{count} of {asked}")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float) -> list[Message]:
        return [self._reply(message) for message in messages]

    def arrivals(
        self, messages: Iterable[Message], *, timeout: float
    ) -> Generator[tuple[Node, Message]]:
        for message in messages:
            node = message.metadata.dst_node_id
            yield Node(number=node, site=self.site(node)), self._reply(message)

    def _reply(self, message: Message) -> Message:
        site = self.site(message.metadata.dst_node_id)
        fields = message.content.get(SECAGG)
        stage = "train" if fields is None else fields["stage"]
        if site in self.lost.get(stage, ()):
            return Message(Error(code=0, reason="gone"), reply_to=message)
        client = self.clients[site]
        try:
            if fields is None:
                update, weight = self._updates[site]
                answer = RecordDict(
                    {"u": record_of(update), "m": MetricRecord({"num-examples": weight})}
                )
                found = client.masked(answer, message.content, self.round)
            else:
                fields["body"] = self.changed(stage, site, fields["body"])
                found = client.answer(message.content, self.round)
        except FedlearnError as error:
            self.noted[site] = str(error)
            return Message(Error(code=0, reason=str(error)), reply_to=message)
        if self._persist:
            self.clients[site] = self._client(site, client.memory)
        return Message(found, reply_to=message)


def round_of(strategy: Any, grid: SecureSites, model: Update, number: int = 1) -> Any:
    """Run a round; return the arrays, or None."""
    from flwr.app import ConfigRecord

    grid.round = number
    messages = list(strategy.configure_train(number, record_of(model), ConfigRecord(), grid))
    arrays, metrics = strategy.aggregate_train(number, grid.send_and_receive(messages, timeout=1.0))
    assert metrics is None
    return {name: each.numpy() for name, each in arrays.items()}
