"""The calls of an asynchronous job: which sites train, since when, and which model.

A site is asked once at most for each version that is made: one that has answered is asked again
when the version is there. So no fast site is in a version twice, and a version of all sites has one
update of each. Which of the idle sites are asked is drawn from the job's seed, the version, and how
often the sites were listed for it before.

A call is open until its site has answered, or until the job's deadline has passed since it was
asked. Open calls outlive a crash: a checkpoint holds them together with the models that they train,
and they are asked again with the same number and model, for which a client computes the same
bits (:mod:`edge.client.flower.app_state`). The number of a call is that of the version which was
being made when its site was asked, one more than that of the model. It grows with each call of a
site, as rounds do.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedlearn.app.array_records import arrays_of, record_of
from fedlearn.errors import QuorumNotReached
from fedlearn.job.seeds import derive
from fedlearn.job.spec import JobSpec
from fedlearn.update.arrays import Array
from server.flower.aggregation.grid import JobGrid
from server.flower.aggregation.round_exchange import WAIT_SECONDS
from server.flower.exchange.coordinator import Coordinator, Node
from server.flower.job_plan import Reply

__all__ = ["Calls", "OpenCall"]

_LIST_SECONDS: Final = 1.0
"""For how long a list of the sites that are online is used."""

_ARRAYS: Final = "arrays"
_CONFIG: Final = "config"
"""The names of the records of a message, as Flower's strategies have them by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCall:
    """A call that a site has not answered.

    ``number``  that of the version which was being made when it was asked
    ``model``   what it trains: the version before that
    ``since``   when it was asked, by the clock of the grid
    """

    site: str
    node: int
    number: int
    model: ArrayRecord
    since: float

    @property
    def version(self) -> int:
        """The version of the model that it trains."""
        return self.number - 1


class Calls:
    """The calls of one job. Not thread-safe.

    :param concurrency: the most calls that are open at once.
    :param config: what each message to train states, beside its number.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        grid: JobGrid,
        spec: JobSpec,
        *,
        concurrency: int,
        config: Mapping[str, Any],
    ) -> None:
        self._coordinator = coordinator
        self._grid = grid
        self._spec = spec
        self._concurrency = concurrency
        self._config = dict(config)
        self._open: dict[str, OpenCall] = {}
        self._to_repeat: list[OpenCall] = []
        self._arrived: deque[Reply] = deque()
        self._answered: set[str] = set()
        self._number = 0
        self._idle: list[Node] = []
        self._lists = 0
        self._listed = -math.inf
        self._seconds = spec.deadline_s

    @property
    def busy(self) -> frozenset[str]:
        """The sites that train."""
        return frozenset(call.site for call in (*self._open.values(), *self._to_repeat))

    # One version

    def begin(
        self, number: int, arrays: ArrayRecord, config: ConfigRecord, seconds: float
    ) -> list[str]:
        """Begin to make a version: ask sites to train; return those that train, in the job's order.

        :param arrays: the newest version.
        :param config: what each message states, beside what this object was made with.
        :param seconds: for how long one call, and the version, may take.
        :raises QuorumNotReached: when the quorum is not online by the deadline.
        """
        self._number = number
        self._idle, self._lists, self._listed = [], 0, -math.inf
        self._answered.clear()
        self._model = arrays
        self._train_config = config
        self._content = self._message(number, arrays)
        self._seconds = seconds
        self._ends = self._grid.clock.monotonic() + seconds
        if not self._open and (self._grid.grace or not self._to_repeat):
            # Wait for the quorum, or for sites that connect again after a restart.
            list(self._grid.get_node_ids())
        self._repeat()
        self._ask()
        busy = self.busy
        return [site for site in self._spec.sites if site in busy]

    def answers(self, enough: Callable[[], bool]) -> Iterator[tuple[OpenCall, Message]]:
        """Yield each answer when it arrives, with the call that it answers, until it is enough.

        It ends as well at the deadline of the version, and when nobody is left who could answer.
        The last item must be used up before ``enough`` is true.

        :raises QuorumNotReached: when a site is late and the job treats this as a failure.
        """
        clock = self._grid.clock
        while not enough():
            if self._arrived:
                yield from self._opened(self._arrived.popleft())
                continue
            self._withdraw_late()
            self._ask()
            left = self._ends - clock.monotonic()
            if left <= 0:
                return
            if self._open:
                first = next(iter(self._open.values()))
                until_late = first.since + self._seconds - clock.monotonic()
                wait = max(0.0, min(left, until_late, WAIT_SECONDS))
                # A new object each time: the questions change between two calls.
                self._arrived = self._coordinator.pull(set(self._open), wait)
            elif not self._wait_for_others(left):
                return

    def withdraw(self) -> None:
        """Withdraw all calls: their answers are not needed any more."""
        self._grid.withdraw(list(self._open))
        self._open.clear()
        self._to_repeat.clear()
        self._arrived.clear()

    # Checkpoints

    def captured(self) -> tuple[list[list[Any]], dict[str, Array]]:
        """Return the open calls, JSON-ready, and the models that they train."""
        calls = (*self._open.values(), *self._to_repeat)
        models = {call.number: call.model for call in calls}
        arrays = {
            f"{number}/{name}": array
            for number, model in models.items()
            for name, array in arrays_of(model).items()
        }
        return [[call.site, call.node, call.number, call.since] for call in calls], arrays

    def restore(self, calls: list[list[Any]], arrays: Mapping[str, Array]) -> None:
        """Go on from what :meth:`captured` returned: these calls are asked again."""
        self.withdraw()
        models: dict[int, dict[str, Array]] = {}
        for key, array in arrays.items():
            number, _, name = key.partition("/")
            models.setdefault(int(number), {})[name] = array
        records = {number: record_of(found) for number, found in models.items()}
        self._to_repeat = [
            OpenCall(
                site=site,
                node=int(node),
                number=int(number),
                model=records[int(number)],
                since=float(since),
            )
            for site, node, number, since in calls
        ]

    # Inside

    def _message(self, number: int, arrays: ArrayRecord) -> RecordDict:
        config = ConfigRecord({**dict(self._train_config), **self._config, "server-round": number})
        return RecordDict({_ARRAYS: arrays, _CONFIG: config})

    def _ask(self) -> None:
        """Ask idle sites to train, as far as the concurrency permits."""
        now = self._grid.clock.monotonic()
        free = self._concurrency - len(self._open)
        if free <= 0:
            return
        if now - self._listed >= _LIST_SECONDS:
            self._list(now)
        chosen = [self._idle.pop() for _ in range(min(free, len(self._idle)))]
        if chosen:
            chosen.sort(key=lambda node: self._grid.place(node.number))
            nodes = [(node.number, node.site) for node in chosen]
            self._send(nodes, self._number, self._model, now)

    def _list(self, now: float) -> None:
        """List the sites that may be asked, in the order in which they are drawn."""
        busy, answered = self.busy, self._answered
        self._idle = [
            node
            for node in self._grid.online()
            if node.site not in busy and node.site not in answered
        ]
        material = derive(self._spec.seed, "server", self._number, "ask", self._lists)
        random.Random(material).shuffle(self._idle)  # noqa: S311
        self._listed = now
        self._lists += 1

    def _repeat(self) -> None:
        """Ask again what was open at the checkpoint from which the job goes on."""
        repeated, self._to_repeat = self._to_repeat, []
        self._grid.expect(Node(number=call.node, site=call.site) for call in repeated)
        for call in repeated:
            with self._grid.clock.at(call.since) as since:
                self._send([(call.node, call.site)], call.number, call.model, since)

    def _send(
        self, nodes: list[tuple[int, str]], number: int, model: ArrayRecord, since: float
    ) -> None:
        content = self._content if number == self._number else self._message(number, model)
        messages = [Message(content, node, MessageType.TRAIN) for node, _ in nodes]
        pushed = self._grid.push_messages(messages, version=number - 1)
        for (node, site), id_ in zip(nodes, pushed, strict=True):
            if not id_:
                self._fail(site, "the site left before it could be asked")
                continue
            self._open[id_] = OpenCall(
                site=site, node=node, number=number, model=model, since=since
            )

    def _opened(self, reply: Reply) -> Iterator[tuple[OpenCall, Message]]:
        call = self._open.get(reply.question)
        if call is None:
            return
        for question, message in self._grid.opened(deque([reply])):
            del self._open[question]
            self._answered.add(call.site)
            yield call, message

    def _withdraw_late(self) -> None:
        now = self._grid.clock.monotonic()
        late = []
        for id_, each in self._open.items():
            if now - each.since < self._seconds:
                break  # the others were asked later
            late.append(id_)
        if not late:
            return
        self._grid.withdraw(late)
        sites = [self._open.pop(id_).site for id_ in late]
        for site in sites:
            self._fail(site, f"no answer within {self._seconds:g} s")
        if self._spec.stragglers == "fail":
            raise QuorumNotReached(
                f"{', '.join(sites)} did not answer within {self._seconds:g} s",
                hint='raise `deadline_s`, or set stragglers = "drop"',
            )

    def _fail(self, site: str, reason: str) -> None:
        self._answered.add(site)
        self._grid.updates.drop(site, reason, train=True)

    def _wait_for_others(self, left: float) -> bool:
        """Wait for a site that is not online; return whether there may be one."""
        count, nodes = len(self._grid.updates.contributors), self._grid.online()
        self._listed = -math.inf
        if any(node.site not in self._answered for node in nodes):
            return True  # one that came since they were listed
        if count >= self._spec.quorum or len(nodes) == len(self._spec.sites):
            return False
        self._grid.report_waiting(nodes, self._ends)
        self._grid.online(len(nodes) + 1, min(left, WAIT_SECONDS))
        return True
