"""Flower's grid and ``Strategy.start``, as the application's process has them.

Everything here runs beside user code, in its process, and holds nothing that a job promises to
protect: the aggregator decides what may be asked (:mod:`server.flower.aggregation.aggregator`).
Within :func:`installed` a function has the place of Flower's ``Strategy.start``. It hands the
strategy's description, the first model and the application's functions to the aggregator. For
the application nothing changes.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from flwr.supercore.run import Run

from fedlearn.errors import JobError, QuorumNotReached, TransportError
from fedlearn.job.seeds import derive, seed_generators
from fedlearn.sandbox.memory_file import Part
from fedlearn.update import arrays as update
from server.flower.aggregation.strategies.classes import name_of
from server.flower.application.contract import check
from server.flower.ipc.peer import Answer, ServingCaller
from server.flower.ipc.records import (
    HISTORIES,
    array_record,
    content,
    message_fields,
    packed_arrays,
    packed_content,
    plain,
    plain_record,
)
from server.flower.ipc.strategy_state import NotCaptured, capture, restore

__all__ = ["AppGrid", "JobRules", "Started", "installed"]

_WAIT_SECONDS: Final = 0.25
_ARGUMENTS: Final = (
    "grid",
    "initial_arrays",
    "num_rounds",
    "timeout",
    "train_config",
    "evaluate_config",
    "evaluate_fn",
)
_DEFAULTS: Final[Mapping[str, Any]] = {"num_rounds": 3, "timeout": 3600.0}
_MAX_RESULT_BYTES: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRules:
    """The rules of the job for an application that drives its rounds itself; see the job's file."""

    sites: tuple[str, ...]
    seconds: float
    stragglers: str
    seed: int
    max_bytes: int


class AppGrid(Grid):  # type: ignore[misc]
    """Flower's grid, as an application sees it. Safe to use from many threads."""

    def __init__(self, peer: ServingCaller, run: Run, rules: JobRules) -> None:
        self._peer = peer
        self._run = run
        self._rules = rules
        self._asked: dict[str, Message] = {}

    @property
    def peer(self) -> ServingCaller:
        """The connection to the aggregator."""
        return self._peer

    @property
    def rules(self) -> JobRules:
        """The job's rules."""
        return self._rules

    def set_run(self, run: Run) -> None:
        """Set Flower's description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return Run(**vars(self._run))

    def create_message(
        self,
        content: Any,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; the constructor of ``Message`` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are online, in the order of the job.

        :raises QuorumNotReached: when fewer nodes than the quorum are online at the job's deadline.
        """
        answer, _ = self._peer.call("nodes")
        return [int(number) for number in answer["nodes"]]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids, empty for one whose node is gone."""
        messages = list(messages)
        if not messages:
            return []
        fields, blobs = messages_fields(messages)
        answer, _ = self._peer.call("push", fields, blobs)
        ids = [str(id_) for id_ in answer["ids"]]
        for message, id_ in zip(messages, ids, strict=True):
            message.metadata.__dict__["_message_id"] = id_
            if id_:
                self._asked[id_] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have arrived, after a short wait if there are none."""
        return self._pulled(list(message_ids), 1.0)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and return the replies, by the job's rules.

        :param timeout: seconds; the job's own deadline holds in any case.
        :raises QuorumNotReached: when a site is late and the job treats this as a failure.
        """
        messages = list(messages)
        seconds = min(self._rules.seconds, timeout if timeout is not None else float("inf"))
        end = time.monotonic() + seconds
        ids = list(self.push_messages(messages))
        place = {id_: index for index, id_ in enumerate(ids) if id_}
        waiting, found = set(place), list[Message]()
        try:
            while waiting and (left := end - time.monotonic()) > 0:
                for message in self._pulled(sorted(waiting), min(left, _WAIT_SECONDS)):
                    waiting.discard(message.metadata.reply_to_message_id)
                    found.append(message)
        finally:
            if waiting:
                self._peer.call("forget", {"ids": sorted(waiting)})
                for id_ in waiting:
                    self._asked.pop(id_, None)
        late = len(ids) - len(found)
        if late and self._rules.stragglers == "fail":
            raise QuorumNotReached(
                f"{late} of {len(ids)} sites did not answer within {seconds:g} s",
                hint='raise `deadline_s`, or set stragglers = "drop"',
            )
        return sorted(found, key=lambda each: place[each.metadata.reply_to_message_id])

    def _pulled(self, ids: list[str], seconds: float) -> list[Message]:
        known = [id_ for id_ in ids if id_ in self._asked]
        if not known:
            return []
        answer, blobs = self._peer.call("pull", {"ids": known, "seconds": seconds})
        parts = iter(blobs)
        found = []
        for each in answer["replies"]:
            asked = self._asked.pop(each["to"])
            found.append(_reply(each, asked, parts, self._rules.max_bytes))
        return found


class Started:
    """One strategy that was started, and its answers to the aggregator's requests."""

    def __init__(self, strategy: Strategy, grid: AppGrid, arguments: Mapping[str, Any]) -> None:
        self._strategy = strategy
        self._grid = grid
        self._arguments = arguments
        self._asked: list[Message] = []

    def run(self) -> Result:
        """Have the aggregator run the rounds; answer its calls until they end."""
        given = self._arguments
        arrays, blobs = packed_arrays(given["initial_arrays"])
        fields = {
            "strategy": _described(self._strategy),
            "arrays": arrays,
            "rounds": given["num_rounds"],
            "timeout": given["timeout"],
            "train_config": plain(given["train_config"] or ConfigRecord()),
            "evaluate_config": plain(given["evaluate_config"] or ConfigRecord()),
            "evaluate": given["evaluate_fn"] is not None,
            "should_stop": given.get("should_stop") is not None,
        }
        answer, found = self._grid.peer.call_serving("start", fields, blobs, self.answer)
        return _result(answer, found)

    def answer(self, name: str, fields: dict[str, Any], blobs: list[Part]) -> Answer:
        """Answer one call of the aggregator."""
        round_, parts = fields.get("round"), iter(blobs)
        seed_generators(derive(self._grid.rules.seed, "server", round_ or 0, name))
        match name:
            case "evaluate":
                model = array_record(fields["arrays"], parts, max_bytes=_MAX_RESULT_BYTES)
                return _metrics_fields(self._arguments["evaluate_fn"](round_, model)), ()
            case "metrics":
                return self._metrics(fields), ()
            case "should_stop":
                result = _result(fields, blobs)
                return {"stop": bool(self._arguments["should_stop"](round_, result))}, ()
            case "summary":
                self._strategy.summary()
                return {}, ()
            case "configure_train" | "configure_evaluate":
                return self._configured(name, fields, blobs)
            case "aggregate_train" | "aggregate_evaluate":
                return self._aggregated(name, fields, blobs)
            case "capture":
                return self._captured()
            case "restore":
                state = fields["state"], update.decode(blobs[0], max_bytes=_MAX_RESULT_BYTES)
                restore({"strategy": self._strategy}, state)
                return {}, ()
            case other:
                raise TransportError(f"{other!r} is not a call")

    def _metrics(self, fields: dict[str, Any]) -> dict[str, Any]:
        which = f"{fields['which']}_metrics_aggr_fn"
        contents = [
            content(each, iter(()), max_bytes=0) for each in cast("list[Any]", fields["contents"])
        ]
        found = getattr(self._strategy, which)(contents, fields["weighted_by"])
        return _metrics_fields(found)

    def _configured(self, name: str, fields: dict[str, Any], blobs: list[Part]) -> Answer:
        model = array_record(fields["arrays"], iter(blobs), max_bytes=_MAX_RESULT_BYTES)
        config = cast("ConfigRecord", plain_record(fields["config"], None))
        configure = getattr(self._strategy, name)
        self._asked = list(configure(fields["round"], model, config, self._grid))
        found, parts = messages_fields(self._asked)
        return {**found, "config": plain(config)}, parts

    def _aggregated(self, name: str, fields: dict[str, Any], blobs: list[Part]) -> Answer:
        parts = iter(blobs)
        most = self._grid.rules.max_bytes
        replies = [_reply(each, self._asked[each["to"]], parts, most) for each in fields["replies"]]
        found = getattr(self._strategy, name)(fields["round"], replies)
        if name == "aggregate_evaluate":
            return _metrics_fields(found), ()
        arrays, metrics = found
        described, more = (None, list[Part]()) if arrays is None else packed_arrays(arrays)
        return {"arrays": described, **_metrics_fields(metrics)}, more

    def _captured(self) -> Answer:
        try:
            state, tensors = capture({"strategy": self._strategy})
        except NotCaptured as error:
            return {"not_captured": str(error)}, ()
        return {"state": state}, [update.document(tensors)]


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """A context in which ``Strategy.start`` is ours, with its own signature.

    ``should_stop``, an argument that Flower 1.43 adds, is honoured where there is one.

    :raises FlowerMismatch: when ``Strategy.start`` is not one of the known versions.
    """
    check()
    flowers = Strategy.start
    signature = inspect.signature(flowers)

    def start(self: Strategy, *args: Any, **keywords: Any) -> Result:
        bound = signature.bind(self, *args, **keywords)
        bound.apply_defaults()
        given: dict[str, Any] = {name: bound.arguments.get(name) for name in _ARGUMENTS}
        given["should_stop"] = bound.arguments.get("should_stop")
        for name, value in _DEFAULTS.items():
            given[name] = value if given[name] is None else given[name]
        if not isinstance(given["grid"], AppGrid):
            raise JobError("a strategy is started with the grid that the ServerApp was given")
        return Started(self, given["grid"], given).run()

    Strategy.start = start
    try:
        yield
    finally:
        Strategy.start = flowers


def messages_fields(messages: Iterable[Message]) -> tuple[dict[str, Any], list[Part]]:
    """Return messages as JSON and byte strings; a content that they share appears once."""
    places: dict[int, int] = {}
    contents: list[Any] = []
    blobs: list[Part] = []
    listed: list[dict[str, Any]] = []
    for message in messages:
        found = message.content
        if id(found) not in places:
            places[id(found)] = len(contents)
            described, parts = packed_content(found)
            contents.append(described)
            blobs += parts
        listed.append({**message_fields(message), "content": places[id(found)]})
    return {"messages": listed, "contents": contents}, blobs


def _reply(each: Mapping[str, Any], asked: Message, parts: Any, max_bytes: int) -> Message:
    error = each.get("error")
    if error is not None:
        return Message(Error(code=error["code"], reason=error["reason"]), reply_to=asked)
    return Message(content(each["content"], parts, max_bytes=max_bytes), reply_to=asked)


def _described(strategy: Strategy) -> dict[str, Any]:
    """Return one of Flower's strategies as its name and options, and any other by its title."""
    title = f"{type(strategy).__module__}.{type(strategy).__qualname__}"
    name = name_of(strategy)
    if name is None:
        return {"name": None, "title": title}
    options = {
        option: value
        for option in inspect.signature(type(strategy).__init__).parameters
        if isinstance(value := getattr(strategy, option, None), bool | int | float | str)
    }
    usual = FedAvg()
    return {
        "name": name,
        "title": title,
        "options": options,
        **{
            f"{which}_metrics": getattr(strategy, f"{which}_metrics_aggr_fn")
            is not getattr(usual, f"{which}_metrics_aggr_fn")
            for which in ("train", "evaluate")
        },
    }


def _metrics_fields(found: MetricRecord | None) -> dict[str, Any]:
    return {"metrics": None if found is None else plain(MetricRecord(dict(found)))}


def _result(fields: Mapping[str, Any], blobs: list[Part]) -> Result:
    result = Result()
    if fields["arrays"] is not None:
        found: ArrayRecord = array_record(
            fields["arrays"], iter(blobs), max_bytes=_MAX_RESULT_BYTES
        )
        result.arrays = found
    for name in HISTORIES:
        pairs = fields[name]
        setattr(result, name, {number: plain_record(body, MetricRecord) for number, body in pairs})
    return result
