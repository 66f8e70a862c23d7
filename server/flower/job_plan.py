"""The plan of a job, and the channel between the coordinator and the job's aggregator.

No Flower here: the coordinator codes against these types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from fedlearn.job.seeds import node_number
from fedlearn.job.spec import JobSpec
from fedlearn.job.state import JobStatus
from fedlearn.sandbox.memory_file import Part
from fedlearn.update.arrays import encode

__all__ = [
    "MAX_EVENTS",
    "OF_ANSWERS",
    "Checkpoint",
    "JobChannel",
    "JobPlan",
    "Outcome",
    "Reply",
    "from_record",
    "to_record",
]


OF_ANSWERS: Final = frozenset({"log", "update.received", "update.rejected"})
"""The kinds of events that state what became of an answer; a round has one for each site."""

MAX_EVENTS: Final = 1_000
"""The most events that one request reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """Everything that decides the result of a job, apart from the data.

    ``bundle`` is the application. ``noise_secret`` is from
    :func:`fedlearn.privacy.noise_secret`, and empty where the job has no ``privacy``.
    ``app_memory_bytes`` bounds the application's process and what it starts, in memory and on
    disk; ``full_sandbox`` demands every protection of :data:`fedlearn.sandbox.FULL` for it.
    ``digest`` is :meth:`fedlearn.job.spec.JobSpec.digest`.
    """

    spec: JobSpec
    bundle: bytes = field(repr=False)
    noise_secret: bytes = field(default=b"", repr=False)
    max_update_bytes: int = 4 * 1024**3
    app_memory_bytes: int = 8 * 1024**3
    full_sandbox: bool = False
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", self.spec.digest())

    @property
    def run_id(self) -> int:
        """Flower's number for the run of this job; the same whenever it is resumed."""
        return node_number(self.digest, "")  # no site has an empty name


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a job needs to continue after ``round``.

    ``model`` is the global model. ``tensors`` and ``state`` hold the rest (the state of the
    strategy, the metrics so far). Model and tensors are documents of
    :mod:`fedlearn.update.arrays`, ``state`` is JSON.
    """

    round: int
    model: Part
    tensors: Part = field(default_factory=lambda: encode({}))
    state: Mapping[str, Any] = field(default_factory=dict)


class JobChannel(Protocol):
    """The requests that a job's aggregator may make to the coordinator.

    Calls come from one thread, in order, and block the job until they return. An error that
    a call raises ends the job with that error.
    """

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take one event of :mod:`fedlearn.job.events`.

        ``update.received`` has ``digest`` and ``key`` as well, of :class:`Reply`.
        """
        ...

    def take_events(self, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Take several events, each of a kind of :data:`OF_ANSWERS`, at most :data:`MAX_EVENTS`.

        The same as :meth:`event` for one after the other, but durable together.
        """
        ...

    def charge(self, stage: int, round_: int, inputs: bytes) -> None:
        """Pay for the release of a noised aggregate, or raise: its budget may be exceeded.

        ``inputs`` is a digest of the updates in it. An attempt that was charged and ended
        before its checkpoint was sealed is not charged again for the same inputs.
        """
        ...

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Seal the checkpoint, after the one before it; see :meth:`settle`.

        Under privacy it survives a crash when this returns. Otherwise it may be sealed in the
        background, at most one at a time; its error is raised by a later request.
        """
        ...

    def settle(self) -> None:
        """Return when the last checkpoint survives a crash, or raise why it does not."""
        ...

    def keep_files(self, files: Mapping[str, memoryview]) -> None:
        """Seal the files that the application leaves, by name; when this returns, it is done."""
        ...

    def load_checkpoint(self) -> Checkpoint | None:
        """Return the last sealed checkpoint of this job, or None."""
        ...

    def live_sites(self) -> Mapping[str, int]:
        """Return the sites whose admission to this job is live now (not quarantined).

        The number is how many examples a site may claim, by its commitment; 0: not known.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended. ``code`` is that of an error of :mod:`fedlearn.errors`."""

    status: JobStatus
    rounds: int = 0
    code: str = ""
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to one message, as the exchange vouches for it.

    ``question`` is the id of the message, ``site`` and ``node`` are those that it was sent to,
    and no other site answered it. ``message`` is the head of the answer, whose metadata is that of
    the question; ``objects`` are its parts by name; see :mod:`fedlearn.app.message`.

    ``size`` is what the node sent for it, in bytes; 0 for an error that the exchange made
    itself. ``key`` is the thumbprint of the admission with which it was sent, ``digest`` the
    SHA-256 of its arrays (:class:`server.flower.exchange.nodes.Delivered`), both in hexadecimal;
    they are empty where there is none.
    """

    question: str
    site: str
    node: int
    message: bytes
    objects: Mapping[str, Part]
    size: int
    key: str = ""
    digest: str = ""


def to_record(plan: JobPlan) -> tuple[dict[str, Any], list[bytes]]:
    """Return a plan as JSON and the byte strings that JSON cannot hold."""
    return {
        "spec": plan.spec.to_json(),
        "max_update_bytes": plan.max_update_bytes,
        "app_memory_bytes": plan.app_memory_bytes,
        "full_sandbox": plan.full_sandbox,
    }, [plan.bundle, plan.noise_secret]


def from_record(record: dict[str, Any], blobs: list[memoryview]) -> JobPlan:
    """Return the plan that :func:`to_record` wrote.

    :raises JobError: when its specification is not one of a job.
    """
    bundle, secret = map(bytes, blobs)
    spec = JobSpec.from_json(record.pop("spec"))
    return JobPlan(spec=spec, bundle=bundle, noise_secret=secret, **record)
