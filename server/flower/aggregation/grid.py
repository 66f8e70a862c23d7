"""The grid of a job: the one seam through which arrays leave and enter a strategy.

It runs in the aggregator, a process of ours; the application sees
:class:`server.flower.application.app_grid.AppGrid`. A strategy sees Flower's ``Grid``. Behind it

* the global model is packed once for each exchange, however many clients get it;
* nodes are listed in the order of the job, and replies are handed over in that order, so that
  a strategy which adds floating-point numbers gets the same bits in every run. A strategy that
  declares ``streams = True`` gets each reply when it arrives, and then it is let go;
* an exchange ends at its deadline, by the job's rule for stragglers and its quorum;
* a reply is checked before it enters: names, types and shapes are those of the model, values
  are finite, metrics are few and numbers, the weight is at most what the site has committed
  to, the sender is the node that was asked and is still admitted. An application that judges
  single updates itself (``visible-to-app``) gets other names, types and shapes as well.

One reply is one failure domain: whatever is wrong with it refuses this reply alone. It reaches
the strategy as an error message, which is how strategies of Flower know failures. Under
privacy the reason of a refusal is a constant, because data may have gone into anything else.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    RecordDict,
)
from flwr.serverapp.grid import Grid
from flwr.supercore.run import Run

from attestation.length_prefixed import pack
from fedlearn.app.flower import (
    CALL,
    Packer,
    flatten,
    inflate,
    metadata_of,
)
from fedlearn.app.message import UNKNOWN
from fedlearn.errors import (
    FedlearnError,
    JobError,
    QuorumNotReached,
    TransportError,
)
from server.flower.aggregation.replies import ReplyChecks, Spec
from server.flower.exchange.calls import Coordinator, Node
from server.flower.exchange.receipts import ledger_digest
from server.flower.job_plan import Reply

__all__ = ["JobGrid", "Rules", "ContributorRevoked"]

_WAIT_SECONDS: Final = 5.0
_GRACE_SECONDS: Final = 10.0
"""How long to wait for sites that have not connected yet after the quorum is reached."""
_MAX_REASON: Final = 500
_MAX_OPEN: Final = 8
"""Questions that may wait for the answer of one node."""
_REFUSED: Final = "the answer of this site does not count; under privacy no reason is given"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The job's rules for an exchange; see :class:`server.flower.job_plan.JobPlan`."""

    sites: tuple[str, ...]
    quorum: int
    seconds: float
    stragglers: str
    max_update_bytes: int
    visible: bool = False
    exact_metrics: bool = False
    blind: bytes = field(default=b"", repr=False)

    @property
    def private(self) -> bool:
        """Whether the job has privacy; ``blind`` is then the key of the ledger's digests."""
        return bool(self.blind)


class ContributorRevoked(FedlearnError):
    """A site whose update is already in the result lost its admission: run the round again."""

    code = "tainted"

    def __init__(self, sites: frozenset[str]) -> None:
        super().__init__(f"{', '.join(sorted(sites))} lost its admission in this round")
        self.sites = sites


@dataclass(slots=True)
class _Asked:
    node: Node
    kind: str
    spec: Spec | None


@dataclass(slots=True)
class _Exchange:
    """What one call of ``send_and_receive`` is about."""

    asked: dict[str, _Asked]
    end: float
    limit: float
    train: bool
    intended: int
    accepted: set[str] = field(default_factory=set)


class JobGrid(Grid):  # type: ignore[misc]
    """Flower's grid for one job; see the module."""

    def __init__(self, coordinator: Coordinator, rules: Rules) -> None:
        self._coordinator = coordinator
        self._rules = rules
        self._order = {site: index for index, site in enumerate(rules.sites)}
        self._run: Run | None = None
        self._asked: dict[str, _Asked] = {}
        self._nodes: dict[int, Node] = {}
        self._met: frozenset[str] = frozenset()
        self._short_since: float | None = None
        self._most: Mapping[str, int] = {}
        self._round = 0
        self._calls = 0
        self._inputs: dict[str, str] = {}
        self._checks = ReplyChecks(
            max_bytes=rules.max_update_bytes,
            any_model=rules.visible,
            metrics=not rules.private or rules.exact_metrics,
        )
        self._driven = False
        self._contributors: frozenset[str] = frozenset()
        self._cohort: frozenset[str] | None = None
        self.streams = False

    # What the loop around a strategy tells the grid

    def begin_round(self, round_: int, *, streams: bool) -> None:
        """A round begins; its exchanges carry this number."""
        self._driven = True
        self._round = round_
        self._contributors = frozenset()
        self._inputs = {}
        self.streams = streams

    def end_rounds(self) -> None:
        """What is asked from now on belongs to no round, until the next one begins."""
        self._calls = max(self._calls, self._round)  # clients know their calls by growing numbers
        self._driven = False
        self._round = 0
        self.streams = False

    def remember_types(self, model: ArrayRecord) -> None:
        """Take the element types of the first model: updates may always have these.

        A strategy may average integers into floats; a client's integers stay welcome.
        """
        self._checks.types = {name: str(each.dtype) for name, each in model.items()}

    @property
    def contributors(self) -> frozenset[str]:
        """The sites whose updates were handed to the strategy in this round."""
        return self._contributors

    def check_contributors(self) -> None:
        """Check that every site in the result of this round is still admitted.

        :raises Tainted: naming those that are not.
        """
        gone = self._contributors - self._coordinator.live_sites().keys()
        if gone:
            raise ContributorRevoked(gone)

    def inputs(self) -> bytes:
        """Return a 32-byte digest of the updates that are in the result of this round."""
        pairs = ((site, self._inputs.get(site, "")) for site in sorted(self._contributors))
        return hashlib.sha256(pack(*(part.encode() for pair in pairs for part in pair))).digest()

    def weigh_by(self, key: str) -> None:
        """Take the name of the metric that is a reply's weight."""
        self._checks.weighted_by = key

    def restrict(self, sites: frozenset[str] | None) -> None:
        """Show the strategy these sites only; None for all of the job."""
        self._cohort = sites

    def refuse(self, number: int, reason: str) -> None:
        """Note that a strategy did not take the update of a node."""
        node = self._nodes.get(number)
        if node is not None:
            self._contributors -= {node.site}
            self._drop(node.site, reason, train=True)

    def note(self, number: int, line: str) -> None:
        """Tell people about the reply of a node, which is used all the same."""
        site = self.site(number)
        self._coordinator.event("log", line=f"{site}: {line}", site=site, level="warning")

    def site(self, number: int) -> str:
        """Return the site of a node; empty for a number that was never listed."""
        node = self._nodes.get(number)
        return "" if node is None else node.site

    def place(self, number: int) -> int:
        """Return where a node stands in the order of the job."""
        node = self._nodes.get(number)
        return len(self._order) if node is None else self._place(node)

    def check_quorum(self, count: int, asked: int) -> None:
        """Check that enough of the updates that were asked for can be used.

        :raises QuorumNotReached: when not.
        """
        needed = min(self._rules.quorum, asked) if self._driven else 0
        if count < needed:
            raise QuorumNotReached(
                f"{count} of the {asked} updates that the round asked for can be used, "
                f"{needed} are needed",
                hint="see the events of this round for what happened to the others",
            )

    # What an application may do

    def set_run(self, run: Run) -> None:
        """Set Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        if self._run is None:
            raise TransportError("the run is not known yet")
        return Run(**vars(self._run))

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; the constructor of ``Message`` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are online, in the order of the job.

        Waits for the quorum, and then a little, once, for sites that were never there yet.

        :raises QuorumNotReached: when the quorum is not there by the deadline.
        """
        started = time.monotonic()
        quorum, everybody = self._rules.quorum, len(self._rules.sites)
        nodes = self._coordinator.online()
        while len(nodes) < quorum:
            left = started + self._rules.seconds - time.monotonic()
            if left <= 0:
                raise QuorumNotReached(
                    f"{len(nodes)} of {quorum} sites are there after {self._rules.seconds:g} s",
                    hint="look at `fedlearn site list`, or lower `quorum`",
                )
            nodes = self._coordinator.online(quorum, min(left, _WAIT_SECONDS))
        if self._absent(nodes) - self._met:
            end = time.monotonic() + min(_GRACE_SECONDS, self._rules.seconds / 4)
            while len(nodes) < everybody and (left := end - time.monotonic()) > 0:
                nodes = self._coordinator.online(everybody, min(left, _WAIT_SECONDS))
            self._met = frozenset(self._rules.sites)
        self._met |= {node.site for node in nodes}
        self._nodes.update((node.number, node) for node in nodes)
        self._watch_patience(len(nodes))
        cohort = self._cohort
        return [node.number for node in nodes if cohort is None or node.site in cohort]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids, empty for one whose node is gone."""
        messages = list(messages)
        if not messages:
            return []
        self._check_open(messages)
        self._short_since = None
        self._most = self._coordinator.live_sites()
        if not self._driven:
            self._calls += 1
        call = ConfigRecord({"round": self._round or self._calls, "driven": self._driven})
        packer = Packer()
        specs: dict[int, Spec | None] = {}
        sent: list[Message] = []
        for message in messages:
            content = message.content
            if id(content) not in specs:
                specs[id(content)] = self._checks.spec(content)
            packed = packer.content(content, **{CALL: call})
            sent.append(Message(metadata=message.metadata, content=packed))
        flat = flatten(sent)
        pushed = self._coordinator.push(flat)
        for message, id_, stored in zip(messages, flat.ids, pushed, strict=True):
            message.metadata.__dict__["_message_id"] = id_
            if stored:
                number = message.metadata.dst_node_id
                node = self._nodes.get(number, Node(number=number, site=""))
                kind = message.metadata.message_type
                self._asked[id_] = _Asked(node, kind, specs[id(message.content)])
        return pushed

    def _check_open(self, messages: Iterable[Message]) -> None:
        """Check that no node has too many questions that wait: each holds a model."""
        waiting = Counter(asked.node.number for asked in self._asked.values())
        waiting.update(message.metadata.dst_node_id for message in messages)
        node, most = max(waiting.items(), key=lambda pair: pair[1])
        if most > _MAX_OPEN:
            raise JobError(
                f"{most} messages to node {node} would wait for an answer at once",
                hint=f"a node has at most {_MAX_OPEN}; pull replies before pushing more",
            )

    def pull_messages(
        self, message_ids: Iterable[str], *, seconds: float = 1.0
    ) -> Iterable[Message]:
        """Return what has been answered, after waiting for a moment if nothing has."""
        known = [id_ for id_ in message_ids if id_ in self._asked]
        replies = self._coordinator.pull(known, seconds) if known else []
        return [message for _, message in self._opened(replies, self._asked)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies, by the job's rules.

        :param timeout: seconds; the job's own deadline holds in any case.
        :raises QuorumNotReached: when too few updates came, or somebody is late and the job
            says that this is a failure.
        """
        messages = list(messages)
        if not messages:
            return []
        seconds = min(self._rules.seconds, timeout if timeout is not None else float("inf"))
        train = messages[0].metadata.message_type.split(".")[0] == MessageType.TRAIN
        ids = [id_ for id_ in self.push_messages(messages) if id_]
        asked = {id_: self._asked[id_] for id_ in ids}
        exchange = _Exchange(
            asked=asked,
            end=time.monotonic() + seconds,
            limit=seconds,
            train=train,
            intended=len(messages),
        )
        refused = len(messages) - len(ids)
        if refused and self._rules.stragglers == "fail":
            raise QuorumNotReached(f"{refused} sites left before they could be asked")
        if train:
            self._check_asked(len(ids), len(messages))
        arrivals = self._arrivals(exchange)
        if self.streams and train:
            return arrivals
        replies = sorted(arrivals, key=lambda pair: self._place(pair[0]))
        return [message for _, message in self._still_live(replies, train, len(messages))]

    def withdraw(self, ids: Iterable[str]) -> None:
        """Withdraw questions of an application that drives its rounds itself."""
        known = [id_ for id_ in ids if self._asked.pop(id_, None) is not None]
        if known:
            self._coordinator.forget(known)

    def _check_asked(self, asked: int, intended: int) -> None:
        """Check that a round reached enough sites to be one, before it waits for them."""
        needed = min(self._rules.quorum, intended) if self._driven else 0
        if asked < needed:
            raise QuorumNotReached(
                f"{asked} of {intended} sites could be asked, {needed} are needed",
                hint="the others are offline; look at `fedlearn site list`",
            )

    # How a reply is taken

    def _arrivals(self, exchange: _Exchange) -> Iterator[Any]:
        """Yield replies as they arrive: with their node, or alone for one that streams."""
        alone = self.streams and exchange.train
        waiting = dict(exchange.asked)
        try:
            while waiting:
                left = exchange.end - time.monotonic()
                if left <= 0:
                    break
                replies = self._coordinator.pull(waiting, min(left, _WAIT_SECONDS))
                for question, message in self._opened(replies, waiting):
                    asked = exchange.asked[question]
                    if message.has_content():
                        exchange.accepted.add(asked.node.site)
                        if exchange.train:
                            self._contributors |= {asked.node.site}
                    yield message if alone else (asked.node, message)
        finally:
            if waiting:
                self._coordinator.forget(waiting)
                for id_ in waiting:
                    self._asked.pop(id_, None)
        self._end(exchange, [asked.node.site for asked in waiting.values()])

    def _opened(
        self, replies: Iterable[Reply], waiting: dict[str, _Asked]
    ) -> Iterator[tuple[str, Message]]:
        for reply in replies:
            question = reply.question
            asked = waiting.pop(question, None)
            if asked is None:
                continue
            self._asked.pop(question, None)
            metadata = metadata_of(reply.message)
            try:
                message = inflate(reply.message, reply.objects)
                if message.has_content():
                    message.content = self._checked(message.content, asked)
            except Exception as error:  # noqa: BLE001  bytes of a peer; refused and told, not lost
                known = isinstance(error, FedlearnError)
                reason = str(error) if known else f"cannot be read ({type(error).__name__})"
                yield question, _failure(metadata, self._reject(asked, reason))
                continue
            if message.has_content():
                self._report(message, asked, reply)
                yield question, message
            else:
                yield question, _failure(metadata, self._reject(asked, message.error.reason))

    def _checked(self, content: RecordDict, asked: _Asked) -> RecordDict:
        most = self._most.get(asked.node.site, 0)
        return self._checks.checked(content, asked.spec, most_examples=most)

    # How an exchange ends

    def _end(self, exchange: _Exchange, late: list[str]) -> None:
        for site in late:
            self._drop(site, f"no answer within {exchange.limit:g} s", train=exchange.train)
        if late and self._rules.stragglers == "fail":
            raise QuorumNotReached(
                f"{', '.join(late)} did not answer within {exchange.limit:g} s",
                hint='raise `deadline_s`, or set stragglers = "drop"',
            )
        if exchange.train:
            self.check_quorum(len(exchange.accepted), exchange.intended)

    def _still_live(
        self, replies: list[tuple[Node, Message]], train: bool, intended: int
    ) -> Iterator[tuple[Node, Message]]:
        """Drop what sites sent that have lost their admission meanwhile."""
        live = self._coordinator.live_sites()
        kept = 0
        for node, message in replies:
            if message.has_content() and node.site not in live:
                reason = "the site lost its admission in this round"
                self._contributors -= {node.site}
                self._drop(node.site, reason, train=train)
                message = _failure(message.metadata, reason)
            kept += message.has_content()
            yield node, message
        if train:
            self.check_quorum(kept, intended)

    def _watch_patience(self, count: int) -> None:
        """A strategy that wants more nodes than there are asks again and again: end that."""
        now = time.monotonic()
        if self._short_since is None:
            self._short_since = now
        elif now - self._short_since > self._rules.seconds:
            raise QuorumNotReached(
                f"the strategy wants more than the {count} nodes that are online",
                hint="lower its min_available_nodes, or wait for more sites",
            )

    # What people are told

    def _report(self, message: Message, asked: _Asked, reply: Reply) -> None:
        if asked.kind.split(".")[0] != MessageType.TRAIN:
            return
        metrics = _numbers(message.content)
        self._inputs[asked.node.site] = ledger_digest(reply.digest, self._rules.blind)
        self._coordinator.event(
            "update.received",
            question=reply.question,
            round=self._round,
            site=asked.node.site,
            examples=max(0, int(metrics.pop(self._checks.weighted_by, 0))),
            metrics=metrics,
        )

    def _reject(self, asked: _Asked, reason: str) -> str:
        train = asked.kind.split(".")[0] == MessageType.TRAIN
        return self._drop(asked.node.site, reason, train=train)

    def _drop(self, site: str, reason: str, *, train: bool) -> str:
        """Say that an answer does not count. Only one to training is an update."""
        shown = _REFUSED if self._rules.private else reason[:_MAX_REASON]
        if train:
            self._coordinator.event("update.rejected", round=self._round, site=site, reason=shown)
        else:
            line = f"round {self._round}: no evaluation of this site: {shown}"
            self._coordinator.event("log", line=line, site=site, level="warning")
        return shown

    def _place(self, node: Node) -> int:
        return self._order.get(node.site, len(self._order))

    def _absent(self, nodes: list[Node]) -> frozenset[str]:
        return frozenset(self._rules.sites) - {node.site for node in nodes}


def _numbers(content: RecordDict) -> dict[str, float]:
    found: dict[str, float] = {}
    for record in content.metric_records.values():
        for name, value in record.items():
            if isinstance(value, int | float) and np.isfinite(value):
                found[name] = float(value)
    return found


def _failure(metadata: Any, reason: str) -> Message:
    return Message(metadata=metadata, error=Error(code=UNKNOWN, reason=reason))
