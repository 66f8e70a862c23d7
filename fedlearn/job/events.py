"""The events of a job, which a coordinator reports while the job runs.

An event is a kind and a flat JSON object. The coordinator makes instances of these classes, which
are sent as ``fedlearn.v1.Event`` and shown by the command line. Events are for people; nothing is
decided by them, and decisions are recorded in the ledger.

Seconds are wall clock, bytes are those of the update as it crossed the wire. A reader ignores
fields that it does not know, and shows a kind that it does not know as :class:`OtherEvent`.

The page is docs/reference/events.md.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Final, get_type_hints

from fedlearn.errors import TransportError
from fedlearn.job.event_fields import Findings, checked, json_ready

__all__ = [
    "EVENT_SCHEMA",
    "KINDS",
    "MAX_EVENT_BYTES",
    "CheckpointSealed",
    "ClientAdmitted",
    "ClientLost",
    "ClientQuarantined",
    "ClientRefused",
    "ClientRenewed",
    "ClientStarting",
    "Event",
    "JobCancelled",
    "JobFailed",
    "JobFinished",
    "JobInterrupted",
    "JobStarted",
    "JobSubmitted",
    "Log",
    "OtherEvent",
    "PrivacySpent",
    "RoundFinished",
    "RoundSkipped",
    "RoundStarted",
    "RoundWaiting",
    "UpdateReceived",
    "UpdateRejected",
]

EVENT_SCHEMA: Final = "fedlearn event/1"
"""The schema of an event as one line of JSON: with ``--json``, and in the folder of a run."""

MAX_EVENT_BYTES: Final = 256 * 1024
"""Upper bound of one encoded event, checked before it is parsed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Root of all events. Construction checks types and bounds.

    :raises ValueError: for a field of a wrong type or a value out of range.

    >>> event = UpdateReceived(round=3, site="north", bytes=4096, metrics={"auc": 0.7})
    >>> event.encode()
    '{"bytes":4096,"examples":0,"filters":[],"metrics":{"auc":0.7},"round":3,"site":"north",\
"staleness":0}'
    >>> Event.decode("update.received", event.encode()) == event
    True
    >>> Event.decode("log", '{"line": 3}')
    Traceback (most recent call last):
        ...
    fedlearn.errors.TransportError: an event of kind 'log' is malformed: line must be text, not 3
    """

    kind: ClassVar[str] = ""
    final: ClassVar[bool] = False
    """No event of the same run follows a final one."""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for item in dataclasses.fields(self):
            value = checked(getattr(self, item.name), hints[item.name], item.name)
            object.__setattr__(self, item.name, value)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values, with the kind under ``kind``."""
        values = {f.name: json_ready(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"kind": self.kind, **values}

    def encode(self) -> str:
        """Return the fields as one line of JSON, without the kind, as the wire carries them."""
        values = self.to_json()
        del values["kind"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @staticmethod
    def decode(kind: str, text: str) -> Event:
        """Return the event that :meth:`encode` wrote.

        :raises TransportError: when ``text`` is not an event of that kind.
        """
        if len(text) > MAX_EVENT_BYTES:
            raise TransportError(
                f"an event of {len(text)} bytes; at most {MAX_EVENT_BYTES} are read"
            )
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            raise TransportError(f"an event of kind {kind[:64]!r} is not JSON") from None
        if not isinstance(body, dict):
            raise TransportError(f"an event of kind {kind[:64]!r} is not a JSON object")
        found = KINDS.get(kind)
        if found is None:
            return OtherEvent(name=kind, body=body)
        names = {item.name for item in dataclasses.fields(found)}
        try:
            return found(**{key: value for key, value in body.items() if key in names})
        except (TypeError, ValueError) as error:
            raise TransportError(f"an event of kind {kind!r} is malformed: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted(Event):
    """A job was accepted and waits for its sites."""

    kind: ClassVar[str] = "job.submitted"
    job: str
    rounds: int
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStarted(Event):
    """The job's process runs. ``resumed_from`` is the last finished round, 0 for none.

    ``compression`` is that of updates in a few words, empty for none.
    """

    kind: ClassVar[str] = "job.started"
    job: str
    rounds: int
    sites: tuple[str, ...] = ()
    resumed_from: int = 0
    compression: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientStarting(Event):
    """A site accepted the job and launches its client."""

    kind: ClassVar[str] = "client.starting"
    site: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientAdmitted(Event):
    """Evidence was verified and affirmed, and a certificate was issued."""

    kind: ClassVar[str] = "client.admitted"
    site: str
    tee: str
    client: str = ""
    expires_unix_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRefused(Event):
    """Evidence was refused; ``findings`` state what was expected and what was found."""

    kind: ClassVar[str] = "client.refused"
    site: str
    reason: str
    tee: str = ""
    findings: Findings = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRenewed(Event):
    """A client attested again before its certificate expired."""

    kind: ClassVar[str] = "client.renewed"
    site: str
    expires_unix_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientQuarantined(Event):
    """A client did not attest again; its update of this round does not enter the sum."""

    kind: ClassVar[str] = "client.quarantined"
    site: str
    reason: str
    findings: Findings = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLost(Event):
    """A client left, was revoked, or was stopped."""

    kind: ClassVar[str] = "client.lost"
    site: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStarted(Event):
    """The global model was sent to ``sites``."""

    kind: ClassVar[str] = "round.started"
    round: int
    rounds: int
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReceived(Event):
    """One update arrived and may enter the sum.

    ``staleness`` is how many versions older the model is that it was trained on than the newest
    one: 0 in rounds, where all sites train the same model.
    ``filters`` are those that its site applied before it left, by their kinds.
    """

    kind: ClassVar[str] = "update.received"
    round: int
    site: str
    bytes: int
    examples: int = 0
    staleness: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    filters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRejected(Event):
    """One update may not enter the sum, or was not received in time."""

    kind: ClassVar[str] = "update.rejected"
    round: int
    site: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFinished(Event):
    """A round has a model. ``sites`` is the number of updates in it.

    ``bytes`` are all that crossed the wire, ``bytes_received`` those that sites sent.
    ``bytes_saved`` are those that compression of updates saved.
    """

    kind: ClassVar[str] = "round.finished"
    round: int
    rounds: int = 0
    seconds: float
    sites: int
    bytes: int
    bytes_received: int = 0
    bytes_saved: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundWaiting(Event):
    """A round waits for ``sites``, at most until ``until_unix_ms``; ``detail`` states why each."""

    kind: ClassVar[str] = "round.waiting"
    round: int
    rounds: int = 0
    sites: tuple[str, ...]
    detail: str = ""
    until_unix_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSkipped(Event):
    """The strategy made no model in a round: the model is that of the round before."""

    kind: ClassVar[str] = "round.skipped"
    round: int
    rounds: int = 0
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSealed(Event):
    """The model of a round is on disk, sealed."""

    kind: ClassVar[str] = "checkpoint.sealed"
    round: int
    model: str
    version: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpent(Event):
    """The budget spent so far. An epsilon has a meaning only with the other fields."""

    kind: ClassVar[str] = "privacy.spent"
    round: int
    epsilon: float
    delta: float
    unit: str
    sampling: str
    accountant: str
    limit: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Log(Event):
    """One line that a site (or the server application, where ``site`` is empty) wrote."""

    kind: ClassVar[str] = "log"
    line: str
    site: str = ""
    level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished(Event):
    """All rounds are done, and the model is sealed under the name ``model``.

    ``model`` is empty when the app ran no round, and ``detail`` states this. A job whose rounds
    made no model has failed.
    """

    kind: ClassVar[str] = "job.finished"
    final: ClassVar[bool] = True
    detail: str = ""
    model: str = ""
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed(Event):
    """The job cannot continue. ``detail`` states why and ``hint`` what to do."""

    kind: ClassVar[str] = "job.failed"
    final: ClassVar[bool] = True
    detail: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled(Event):
    """An operator stopped the job."""

    kind: ClassVar[str] = "job.cancelled"
    final: ClassVar[bool] = True
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInterrupted(Event):
    """The coordinator stopped while the job ran; it resumes from its last checkpoint."""

    kind: ClassVar[str] = "job.interrupted"
    final: ClassVar[bool] = True
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherEvent(Event):
    """An event of a kind that this version does not know, kept as it was received."""

    name: str
    body: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the body with its kind."""
        return {**self.body, "kind": self.name}


KINDS: Final[Mapping[str, type[Event]]] = MappingProxyType(
    {
        kind.kind: kind
        for kind in (
            JobSubmitted,
            JobStarted,
            ClientStarting,
            ClientAdmitted,
            ClientRefused,
            ClientRenewed,
            ClientQuarantined,
            ClientLost,
            RoundStarted,
            UpdateReceived,
            UpdateRejected,
            RoundFinished,
            RoundWaiting,
            RoundSkipped,
            CheckpointSealed,
            PrivacySpent,
            Log,
            JobFinished,
            JobFailed,
            JobCancelled,
            JobInterrupted,
        )
    }
)
"""Every kind of this version, by name."""


_HINTS: dict[type[Event], dict[str, Any]] = {}


def _hints(kind: type[Event]) -> dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]
