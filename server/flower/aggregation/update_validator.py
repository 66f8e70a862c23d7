"""The validator of replies: what a site sends is checked before it reaches a strategy."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from fedlearn.app.array_records import records_of
from fedlearn.app.flower import FILTERED, SECAGG, STATE, inflate, metadata_of
from fedlearn.app.message import UNKNOWN
from fedlearn.config.filters import FILTER_KINDS, MOST_FILTERS
from fedlearn.errors import FedlearnError, UpdateRejected
from fedlearn.privacy.adaptive import WITHIN
from server.flower.aggregation.replies import ReplyChecks, Spec
from server.flower.aggregation.round_updates import RoundUpdates, Rules
from server.flower.aggregation.secure.answers import checked
from server.flower.aggregation.update_decoder import UpdateDecoder
from server.flower.exchange.coordinator import Node
from server.flower.job_plan import Reply

__all__ = ["Asked", "UpdateValidator", "failure"]

_DIGEST: Final = re.compile("[0-9a-f]{64}")


@dataclass(slots=True)
class Asked:
    """A question that waits for an answer; ``spec`` is the model that it carried.

    ``model`` is that model itself where an update has to be decoded, else None. ``version`` is the
    number of that model where the job makes versions in place of rounds, else None. ``filters`` are
    those of the site that its answer names.
    """

    node: Node
    kind: str
    spec: Spec | None
    model: ArrayRecord | None = None
    version: int | None = None
    filters: tuple[str, ...] = ()

    @property
    def train(self) -> bool:
        """Whether its answer is an update."""
        return bool(self.kind.split(".")[0] == MessageType.TRAIN)


class UpdateValidator:
    """Checks the replies of sites, and reports each. Not thread-safe.

    ``most_examples``  how many examples each site may claim, from its commitment
    ``states``         the digest of the sealed state that each site has reported last
    ``added``          whether updates go into the exact mean one by one: it looks at every value,
                       so that values are not checked here as well, and an update is reported when
                       it is in the sum
    ``masked``         what a masked update looks like, with secure aggregation; else None
    """

    def __init__(self, rules: Rules, updates: RoundUpdates) -> None:
        self._updates = updates
        self._refuses_filters = not rules.site_filters
        self._decoder = UpdateDecoder(rules.compression, max_bytes=rules.max_update_bytes)
        self._checks = ReplyChecks(
            max_bytes=rules.max_update_bytes,
            any_model=rules.visible,
            metrics=not rules.secure and (not rules.private or rules.exact_metrics),
            counted=(WITHIN,) if rules.adaptive_clip else (),
        )
        self.most_examples: Mapping[str, int] = {}
        self.states: dict[str, str] = {}
        self.added = False
        self.masked: Spec | None = None

    def remember_types(self, model: ArrayRecord) -> None:
        """Take the element types of the first model: updates may always have these.

        A strategy may average integers into floats; a client's integers stay welcome.

        :raises JobError: when no array of it travels in an update.
        """
        self._decoder.check_model(model)
        self._checks.types = {name: str(each.dtype) for name, each in model.items()}

    def weigh_by(self, key: str) -> None:
        """Take the name of the metric that is a reply's weight."""
        self._checks.weighted_by = key

    def spec(self, content: RecordDict) -> Spec | None:
        """Return the names, types and shapes of the model in a question; None for none."""
        found = self._checks.spec(content)
        return found if found is None or self.masked is None else self.masked

    def reference(self, message: Message) -> ArrayRecord | None:
        """Return the model of a question whose answer has to be decoded; None for another one."""
        return self._decoder.reference(message)

    def opened(
        self, replies: deque[Reply], waiting: dict[str, Asked]
    ) -> Iterator[tuple[str, Message]]:
        """Yield each reply with its question, as a message or as a failure; take it out of
        ``replies``.

        :param waiting: the questions by id; those that are answered are removed.
        """
        while replies:
            reply = replies.popleft()  # the others are freed one by one, when each is used up
            question = reply.question
            asked = waiting.pop(question, None)
            if asked is None:
                continue
            metadata = metadata_of(reply.message)
            try:
                message = inflate(reply.message, reply.objects)
                if message.has_content():
                    message.content = self._checked(message.content, asked)
            except Exception as error:  # noqa: BLE001 (bytes of a peer: refused and reported)
                known = isinstance(error, FedlearnError)
                reason = str(error) if known else f"cannot be read ({type(error).__name__})"
                yield question, failure(metadata, self._reject(asked, reason))
                continue
            if not message.has_content():
                yield question, failure(metadata, self._reject(asked, message.error.reason))
                continue
            metrics = _numbers(message.content)  # the strategy may take the content apart
            added = self.added and asked.train
            if not added:
                self._report(metrics, asked, reply)
            yield question, message
            if added and self._updates.uses(asked.node.site):
                self._report(metrics, asked, reply)

    def _checked(self, content: RecordDict, asked: Asked) -> RecordDict:
        most = self.most_examples.get(asked.node.site, 0)
        if asked.kind == SECAGG:
            return checked(content)
        if state := _state(content):
            self.states[asked.node.site] = state
        asked.filters = _filters(content)
        if asked.filters and self._refuses_filters:
            raise UpdateRejected(
                f"its site filtered it ({', '.join(asked.filters)}), and the job has "
                '[aggregation] site_filters = "refuse"'
            )
        if asked.model is not None:
            content, saved = self._decoder.decoded(content, asked.model)
            self._updates.saved += saved
        finite = not (self.added and asked.train)
        return self._checks.checked(content, asked.spec, most_examples=most, finite=finite)

    def _report(self, metrics: dict[str, float], asked: Asked, reply: Reply) -> None:
        if not asked.train:
            return
        metrics.pop(WITHIN, None)  # for the sum of the round only
        examples = max(0, int(metrics.pop(self._checks.weighted_by, 0)))
        newest = self._updates.round - 1
        staleness = 0 if asked.version is None else newest - asked.version
        self._updates.received(
            reply,
            asked.node.site,
            examples=examples,
            metrics=metrics,
            staleness=staleness,
            filters=asked.filters,
        )

    def _reject(self, asked: Asked, reason: str) -> str:
        return self._updates.drop(asked.node.site, reason, train=asked.train)


def failure(metadata: Any, reason: str) -> Message:
    """Return the error message that a strategy gets in place of a reply."""
    return Message(metadata=metadata, error=Error(code=UNKNOWN, reason=reason))


def _state(content: RecordDict) -> str:
    """Take the digest of a state out of a reply, empty for none; raises UpdateRejected where it is
    no SHA-256."""
    stated = content.pop(STATE, None)
    if stated is None:
        return ""
    digest = stated.get("digest") if isinstance(stated, ConfigRecord) else None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise UpdateRejected("the digest of its state is not a SHA-256 in hexadecimal")
    return digest


def _filters(content: RecordDict) -> tuple[str, ...]:
    """Take the names of filters out of a reply; raises UpdateRejected where they are none."""
    stated = content.pop(FILTERED, None)
    if stated is None:
        return ()
    names = stated.get("names") if isinstance(stated, ConfigRecord) else None
    if (
        not isinstance(names, list)
        or not 1 <= len(names) <= MOST_FILTERS
        or not all(isinstance(name, str) and name in FILTER_KINDS for name in names)
    ):
        raise UpdateRejected(f"its filters are not some of {', '.join(FILTER_KINDS)}")
    return tuple(names)


def _numbers(content: RecordDict) -> dict[str, float]:
    found: dict[str, float] = {}
    for record in records_of(content, MetricRecord).values():
        for name, value in record.items():
            if isinstance(value, int | float) and np.isfinite(value):
                found[name] = float(value)
    return found
