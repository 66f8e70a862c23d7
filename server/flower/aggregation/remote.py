"""The application's own functions, as the aggregator calls them in the application's process.

An application may bring a function that evaluates the model, functions that aggregate metrics,
and, where the job lets it see single updates, a whole strategy. None of them runs in the
aggregator: each call goes over the process channel, and what comes back is checked like all that
is not trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import Result

from fedlearn.app.array_records import arrays_of, records_of
from fedlearn.errors import TransportError
from fedlearn.sandbox.memory_file import Part
from fedlearn.update import arrays as update
from server.flower.ipc.peer import Caller
from server.flower.ipc.records import (
    HISTORIES,
    array_record,
    content,
    packed_arrays,
    packed_content,
    plain,
    plain_record,
)
from server.flower.ipc.strategy_state import Captured, NotCaptured

__all__ = ["RemoteFunctions", "RemoteStrategy", "messages_of", "replies_fields", "result_fields"]

_MAX_MESSAGES: Final = 100_000
_MAX_STATE_ARRAYS: Final = 100_000
_MAX_TTL: Final = 30 * 86_400.0
_MAX_NAME: Final = 200
_KINDS: Final = (MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY)
_LEGACY: Final = ("get_parameters", "get_properties", "reconnect")
"""The kinds of message that Flower's legacy API has beside those; all of them are questions."""


class RemoteFunctions:
    """Functions of the application beside a strategy.

    :param max_bytes: the most bytes that the arrays of one answer may have.
    """

    def __init__(self, peer: Caller, *, max_bytes: int) -> None:
        self._peer = peer
        self._max_bytes = max_bytes

    def evaluate(self, round_: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Return the result of the application's ``evaluate_fn`` for a model."""
        described, blobs = packed_arrays(arrays)
        answer, _ = self._peer.call("evaluate", {"round": round_, "arrays": described}, blobs)
        return _metrics(answer.get("metrics"))

    def metrics(self, which: str) -> Callable[[list[RecordDict], str], MetricRecord]:
        """Return the application's aggregation of metrics, ``train`` or ``evaluate``."""

        def aggregate(contents: list[RecordDict], weighted_by: str) -> MetricRecord:
            listed: list[Any] = []
            for each in contents:
                only = RecordDict(records_of(each, MetricRecord))
                listed.append(packed_content(only)[0])
            fields = {"which": which, "contents": listed, "weighted_by": weighted_by}
            answer, _ = self._peer.call("metrics", fields)
            return _metrics(answer.get("metrics")) or MetricRecord()

        return aggregate

    def should_stop(self, round_: int, result: Result) -> bool:
        """Return whether the application stops after this round."""
        fields, blobs = result_fields(result)
        answer, _ = self._peer.call("should_stop", {**fields, "round": round_}, blobs)
        return answer.get("stop") is True


class RemoteStrategy:
    """A strategy that runs in the application's process and sees the update of each site."""

    def __init__(self, peer: Caller, *, max_bytes: int) -> None:
        self._peer = peer
        self._max_bytes = max_bytes
        self._asked: list[Message] = []

    def summary(self) -> None:
        """Let the strategy log its options, in its own process."""
        self._peer.call("summary")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages that the strategy sends."""
        return self._configured("configure_train", server_round, arrays, config)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages that the strategy sends."""
        return self._configured("configure_evaluate", server_round, arrays, config)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model and the metrics that the strategy makes of the replies."""
        answer, blobs = self._aggregated("aggregate_train", server_round, replies)
        described = answer.get("arrays")
        arrays = None
        if described is not None:
            arrays = array_record(described, iter(blobs), max_bytes=self._max_bytes)
            arrays_of(arrays)  # raises for arrays that are not numbers
        return arrays, _metrics(answer.get("metrics"))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return the metrics that the strategy makes of the replies."""
        answer, _ = self._aggregated("aggregate_evaluate", server_round, replies)
        return _metrics(answer.get("metrics"))

    def captured(self) -> Captured:
        """Return the strategy's state as its process wrote it down: data, never code.

        :raises NotCaptured: when the strategy holds something that cannot be written down.
        """
        answer, blobs = self._peer.call("capture")
        reason = answer.get("not_captured")
        if reason is not None:
            raise NotCaptured(str(reason)[:1_000])
        if not isinstance(answer.get("state"), dict) or len(blobs) != 1:
            raise TransportError("a captured state is an object and its arrays")
        arrays = update.decode(blobs[0], max_bytes=self._max_bytes, max_tensors=_MAX_STATE_ARRAYS)
        return answer["state"], arrays

    def restore(self, captured: Captured) -> None:
        """Give the strategy back the state that it had."""
        state, arrays = captured
        self._peer.call("restore", {"state": state}, [update.document(arrays)])

    def _configured(
        self, name: str, round_: int, arrays: ArrayRecord, config: ConfigRecord
    ) -> list[Message]:
        described, blobs = packed_arrays(arrays)
        fields = {"round": round_, "arrays": described, "config": plain(config)}
        answer, found = self._peer.call(name, fields, blobs)
        changed = plain_record(answer.get("config"), None)
        config.clear()
        config.update(changed)
        self._asked = messages_of(answer, found, max_bytes=self._max_bytes)
        return self._asked

    def _aggregated(
        self, name: str, round_: int, replies: Iterable[Message]
    ) -> tuple[dict[str, Any], list[Part]]:
        places = {each.metadata.message_id: place for place, each in enumerate(self._asked)}
        listed, blobs = replies_fields(
            (places[each.metadata.reply_to_message_id], each)
            for each in replies
            if each.metadata.reply_to_message_id in places
        )
        return self._peer.call(name, {"round": round_, "replies": listed}, blobs)


def result_fields(result: Result) -> tuple[dict[str, Any], Sequence[Part]]:
    """Return the result of a stage so far as JSON and byte strings."""
    described, blobs = (
        (None, list[Part]()) if result.arrays is None else packed_arrays(result.arrays)
    )
    fields: dict[str, Any] = {"arrays": described}
    for name in HISTORIES:
        found = getattr(result, name)
        fields[name] = [[number, plain(record)] for number, record in sorted(found.items())]
    return fields, blobs


def replies_fields(
    replies: Iterable[tuple[int | str, Message]],
) -> tuple[list[dict[str, Any]], list[Part]]:
    """Return replies as JSON and byte strings; ``to`` names what each answers."""
    listed: list[dict[str, Any]] = []
    blobs: list[Part] = []
    for to, message in replies:
        if message.has_error():
            error = {"code": message.error.code, "reason": message.error.reason}
            listed.append({"to": to, "error": error})
            continue
        described, parts = packed_content(message.content)
        listed.append({"to": to, "content": described})
        blobs += parts
    return listed, blobs


def messages_of(
    fields: Mapping[str, Any], blobs: Sequence[Part], *, max_bytes: int
) -> list[Message]:
    """Return the messages that an application sends to nodes.

    Messages that share a content share it here as well.

    :raises TransportError: when they are malformed.
    """
    listed, contents = fields.get("messages"), fields.get("contents")
    if not isinstance(listed, list) or not isinstance(contents, list):
        raise TransportError("messages and contents are lists")
    if len(listed) > _MAX_MESSAGES or len(contents) > len(listed):
        raise TransportError(f"at most {_MAX_MESSAGES} messages are sent at once")
    parts: Iterator[Part] = iter(blobs)
    made = [content(each, parts, max_bytes=max_bytes) for each in contents]
    return [_message(each, made) for each in listed]


def _message(fields: Any, contents: list[RecordDict]) -> Message:
    match fields:
        case {
            "node": int(node),
            "kind": str(kind),
            "group": str(group),
            "ttl": int() | float() as ttl,
            "content": int(place),
        } if 0 <= node < 2**64 and 0 < ttl <= _MAX_TTL and 0 <= place < len(contents):
            known = kind in _LEGACY or kind.split(".")[0] in _KINDS
            if not known or max(len(kind), len(group)) > _MAX_NAME:
                raise TransportError(f"{kind[:_MAX_NAME]!r} is not a kind of message")
            return Message(contents[place], node, kind, ttl=float(ttl), group_id=group)
    raise TransportError("a message has a node, a kind, a group, a time to live and a content")


def _metrics(body: Any) -> MetricRecord | None:
    if body is None:
        return None
    record = plain_record(body, MetricRecord)
    assert isinstance(record, MetricRecord)
    return record
