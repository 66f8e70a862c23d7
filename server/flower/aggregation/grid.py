"""The grid of a job: all arrays leave and enter a strategy through it.

It runs in the aggregator, a process without user code; the application sees
:class:`server.flower.application.app_grid.AppGrid`. A strategy sees Flower's ``Grid``. Behind it

* the global model is packed once for each exchange, however many clients get it;
* nodes are listed in the order of the job, and replies are handed over in that order, so that
  a strategy which adds floating-point numbers gets the same bits in every run. A strategy that
  declares ``streams = True`` gets each reply when it arrives, and no reply is kept;
* an exchange ends at its deadline, by the job's rule for stragglers and its quorum;
* a reply is checked before it enters: names, types and shapes are those of the model, values
  are finite, metrics are few and numbers, the weight is at most what the site has committed
  to, the sender is the node that was asked and is still admitted. An application that judges
  single updates itself (``visible-to-app``) gets other names, types and shapes as well.

One reply is one failure domain: whatever is wrong with it refuses this reply alone. It reaches
the strategy as an error message, which is how strategies of Flower know failures. Under
privacy the reason of a refusal is a constant, because any other text might depend on the data.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Final

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp.grid import Grid
from flwr.supercore.run import Run

from fedlearn.app.flower import CALL, Packer, flatten
from fedlearn.clock import REAL, Clock
from fedlearn.errors import JobError, QuorumNotReached, TransportError
from server.flower.aggregation.replies import Spec
from server.flower.aggregation.round_exchange import WAIT_SECONDS, RoundExchange
from server.flower.aggregation.round_updates import RoundUpdates, Rules
from server.flower.aggregation.update_validator import Asked, UpdateValidator
from server.flower.exchange.coordinator import Coordinator, Node
from server.flower.job_plan import Reply

__all__ = ["JobGrid"]

_GRACE_SECONDS: Final = 10.0
"""How long to wait for sites that have not connected yet after the quorum is reached."""

_PATIENCE_SECONDS: Final = 2.0
"""How long a round waits for sites before it reports this."""

_MAX_OPEN: Final = 8
"""The most questions that may wait for the answer of one node."""


class JobGrid(Grid):  # type: ignore[misc]
    """Flower's grid for one job; see the module.

    ``updates`` are those of the present round, ``validator`` checks replies, and ``clock``
    measures deadlines. ``clip`` is that of the round where it follows the updates. ``grace`` is how
    many seconds a job waits, once, for sites that have not connected yet; 0 where none connects.
    """

    def __init__(self, coordinator: Coordinator, rules: Rules, clock: Clock = REAL) -> None:
        self.clock = clock
        self._coordinator = coordinator
        self._rules = rules
        self._order = {site: index for index, site in enumerate(rules.sites)}
        self._run: Run | None = None
        self._asked: dict[str, Asked] = {}
        self._nodes: dict[int, Node] = {}
        self._met: frozenset[str] = frozenset()
        self._short_since: float | None = None
        self._calls = 0
        self.grace = _GRACE_SECONDS
        self._cohort: frozenset[str] | None = None
        self.updates = RoundUpdates(coordinator, rules)
        self.validator = UpdateValidator(rules, self.updates)
        self.streams = False
        self.clip: float | None = None

    # Rounds

    def begin_round(self, round_: int, *, streams: bool) -> None:
        """Begin a round; its exchanges have this number."""
        self.updates.begin(round_)
        self.streams = self.validator.added = streams

    def end_rounds(self) -> None:
        """End the rounds: later questions belong to none, until the next one begins."""
        # Clients know their calls by growing numbers.
        self._calls = max(self._calls, self.updates.round)
        self.updates.end()
        self.streams = self.validator.added = False

    def restrict(self, sites: frozenset[str] | None) -> None:
        """Show the strategy these sites only; None for all of the job."""
        self._cohort = sites

    def refuse(self, number: int, reason: str) -> None:
        """Note that a strategy did not accept the update of a node."""
        node = self._nodes.get(number)
        if node is not None:
            self.updates.remove(node.site)
            self.updates.drop(node.site, reason, train=True)

    def note(self, number: int, line: str) -> None:
        """Report a line on the reply of a node, which is used all the same."""
        site = self.site(number)
        self._coordinator.event("log", line=f"{site}: {line}", site=site, level="warning")

    def site(self, number: int) -> str:
        """Return the site of a node; empty for a number that was never listed."""
        node = self._nodes.get(number)
        return "" if node is None else node.site

    def place(self, number: int) -> int:
        """Return the position of a node in the order of the job."""
        node = self._nodes.get(number)
        return len(self._order) if node is None else self._place(node)

    def check_quorum(self, count: int, asked: int) -> None:
        """Check that enough updates can be used; see :meth:`RoundUpdates.check_quorum`."""
        self.updates.check_quorum(count, asked)

    # Flower's API

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

        Waits for the quorum, and then, once, some seconds for sites that have not connected yet.

        :raises QuorumNotReached: when the quorum is not reached by the deadline.
        """
        started = self.clock.monotonic()
        quorum, all_sites = self._rules.quorum, len(self._rules.sites)
        nodes = self._coordinator.online()
        patience = _PATIENCE_SECONDS
        while len(nodes) < quorum:
            left = started + self._rules.seconds - self.clock.monotonic()
            if left <= 0:
                raise QuorumNotReached(
                    f"{len(nodes)} of {quorum} sites are online after {self._rules.seconds:g} s",
                    hint="look at `fedlearn site list`, or lower `quorum`",
                )
            nodes = self._coordinator.online(quorum, min(left, patience))
            if len(nodes) < quorum:
                self.report_waiting(nodes, started + self._rules.seconds)
                patience = WAIT_SECONDS
        if self._absent(nodes) - self._met:
            end = self.clock.monotonic() + min(self.grace, self._rules.seconds / 4)
            while len(nodes) < all_sites and (left := end - self.clock.monotonic()) > 0:
                nodes = self._coordinator.online(all_sites, min(left, WAIT_SECONDS))
            self._met = frozenset(self._rules.sites)
        self._met |= {node.site for node in nodes}
        self.expect(nodes)
        self._check_strategy(nodes)
        cohort = self._cohort
        return [node.number for node in nodes if cohort is None or node.site in cohort]

    def online(self, count: int = 0, seconds: float = 0.0) -> list[Node]:
        """Return the nodes that are online, in the order of the job.

        :param count: wait for so many, at most for ``seconds``.
        """
        nodes = self._coordinator.online(count, seconds)
        self.expect(nodes)
        return nodes

    def expect(self, nodes: Iterable[Node]) -> None:
        """Note nodes that may be asked, whether they are online or not."""
        self._nodes.update((node.number, node) for node in nodes)

    def push_messages(
        self, messages: Iterable[Message], *, version: int | None = None
    ) -> Iterable[str]:
        """Send messages; return their ids, empty for one whose node is gone.

        :param version: of the model that they carry, where the job makes versions. A client knows
            the call by the number of the version after it.
        """
        messages = list(messages)
        if not messages:
            return []
        self._check_open(messages)
        self._short_since = None
        self.validator.most_examples = self._coordinator.live_sites()
        driven = self.updates.driven
        if not driven:
            self._calls += 1
        number = (self.updates.round or self._calls) if version is None else version + 1
        call = ConfigRecord({"round": number, "driven": driven})
        if self.clip is not None:
            call["clip"] = self.clip
        packer = Packer()
        specs: dict[int, Spec | None] = {}
        sent: list[Message] = []
        for message in messages:
            content = message.content
            if id(content) not in specs:
                specs[id(content)] = self.validator.spec(content)
            packed = packer.content(content, **{CALL: call})
            if state := self.validator.states.get(self.site(message.metadata.dst_node_id)):
                own = ConfigRecord({**call, "state": state})
                packed = RecordDict({**dict(packed.items()), CALL: own})
            sent.append(Message(metadata=message.metadata, content=packed))
        flat = flatten(sent)
        pushed = self._coordinator.push(flat)
        for message, id_, stored in zip(messages, flat.ids, pushed, strict=True):
            message.metadata.__dict__["_message_id"] = id_
            if stored:
                number = message.metadata.dst_node_id
                node = self._nodes.get(number, Node(number=number, site=""))
                kind = message.metadata.message_type
                model = self.validator.reference(message)
                spec = specs[id(message.content)]
                self._asked[id_] = Asked(node, kind, spec, model, version)
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
        """Return the answers that have arrived, after a wait if there is none."""
        known = [id_ for id_ in message_ids if id_ in self._asked]
        replies = self._coordinator.pull(known, seconds) if known else deque()
        return [message for _, message in self.validator.opened(replies, self._asked)]

    def opened(self, replies: deque[Reply]) -> Iterator[tuple[str, Message]]:
        """Yield each reply with its question; see :meth:`UpdateValidator.opened`."""
        return self.validator.opened(replies, self._asked)

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        enough: int | None = None,
    ) -> Iterable[Message]:
        """Send messages and return the replies, by the job's rules.

        :param timeout: seconds; the job's own deadline holds in any case.
        :param enough: withdraw the others when so many updates are used; None to wait for all.
        :raises QuorumNotReached: when too few updates arrived, or a site is late and the job
            treats this as a failure.
        """
        messages = list(messages)
        if not messages:
            return []
        exchange, train = self._exchange(messages, timeout, enough)
        if self.streams and train:
            return (message for _, message in exchange.arrivals())
        replies = sorted(exchange.arrivals(), key=lambda pair: self._place(pair[0]))
        return [message for _, message in exchange.live(replies)]

    def arrivals(
        self, messages: Sequence[Message], *, timeout: float
    ) -> Generator[tuple[Node, Message]]:
        """Send messages and yield the replies as they arrive, until the generator is closed.

        :raises QuorumNotReached: as :meth:`send_and_receive`, where it is not closed before.
        """
        return self._exchange(messages, timeout)[0].arrivals()

    def _exchange(
        self, messages: Sequence[Message], timeout: float | None, enough: int | None = None
    ) -> tuple[RoundExchange, bool]:
        """Send messages; return their exchange, and whether the answers are updates."""
        seconds = min(self._rules.seconds, timeout if timeout is not None else float("inf"))
        train = messages[0].metadata.message_type.split(".")[0] == MessageType.TRAIN
        ids = [id_ for id_ in self.push_messages(messages) if id_]
        intended = len(messages) if enough is None else min(enough, len(messages))
        exchange = RoundExchange(
            self._coordinator,
            self._rules,
            self.updates,
            self.validator,
            asked={id_: self._asked[id_] for id_ in ids},
            pending=self._asked,
            seconds=seconds,
            train=train,
            intended=intended,
            clock=self.clock,
            enough=enough,
        )
        refused = len(messages) - len(ids)
        if refused and self._rules.stragglers == "fail":
            raise QuorumNotReached(f"{refused} sites left before they could be asked")
        if train:
            self.updates.check_asked(len(ids), intended)
        return exchange, train

    def withdraw(self, ids: Iterable[str]) -> None:
        """Withdraw questions: answers that still arrive are refused."""
        known = [id_ for id_ in ids if self._asked.pop(id_, None) is not None]
        if known:
            self._coordinator.forget(known)

    def _check_strategy(self, nodes: list[Node]) -> None:
        """End a strategy that repeats its call because it wants more nodes than are online."""
        now = self.clock.monotonic()
        if self._short_since is None:
            self._short_since = now
        elif now - self._short_since > self._rules.seconds:
            raise QuorumNotReached(
                f"the strategy needs more than the {len(nodes)} nodes that are online",
                hint="lower its min_available_nodes, or wait for more sites",
            )
        elif self.updates.driven and now - self._short_since > _PATIENCE_SECONDS:
            self.report_waiting(nodes, self._short_since + self._rules.seconds)

    def report_waiting(self, nodes: list[Node], end: float) -> None:
        """Report for which sites the job waits; the coordinator knows what is new of it.

        :raises QuorumNotReached: when none of them comes back by itself, as the coordinator knows.
        """
        absent = self._absent(nodes)
        if absent:
            self._coordinator.event(
                "round.waiting",
                round=self.updates.round,
                sites=[site for site in self._rules.sites if site in absent],
                until_unix_ms=int((time.time() + max(0.0, end - self.clock.monotonic())) * 1000),
            )

    def _place(self, node: Node) -> int:
        return self._order.get(node.site, len(self._order))

    def _absent(self, nodes: list[Node]) -> frozenset[str]:
        return frozenset(self._rules.sites) - {node.site for node in nodes}
