"""What the coordinator says about a job, and what it answers the job's aggregator.

No Flower here: the coordinator codes against these types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from fedlearn.errors import JobError
from fedlearn.job.seeds import node_number
from fedlearn.job.strategies import AGGREGATED, APP, STRATEGIES, UPDATES
from fedlearn.privacy import PrivacySpec

__all__ = [
    "Checkpoint",
    "JobChannel",
    "JobPlan",
    "Outcome",
    "Reply",
    "Stragglers",
    "from_record",
    "to_record",
]

Stragglers = Literal["drop", "fail"]
"""``drop``: a round goes on without who is late, if the quorum is there. ``fail``: it does not."""

_MAX_SITES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """Everything that decides the result of a job, apart from the data.

    ``digest`` is the 32-byte digest of the job specification, ``bundle`` the application.
    ``app_memory_bytes`` bounds the application's process and what it starts, in memory and on
    disk; ``full_sandbox`` demands every protection of :data:`fedlearn.sandbox.FULL` for it.
    ``seconds`` is the deadline of one exchange with the clients (training or evaluation of
    one round). ``strategy`` is one of :mod:`fedlearn.job.strategies`; unless it is ``app``, it
    takes the place of the strategy that the application starts. ``updates`` is that of
    ``fedlearn.job.spec.AggregationSpec``. ``noise_secret`` is from
    :func:`fedlearn.privacy.noise_secret`, where the job has ``privacy``.

    :raises JobError: for values with which no job can run.
    """

    job: str
    digest: bytes
    bundle: bytes = field(repr=False)
    rounds: int
    sites: tuple[str, ...]
    quorum: int
    seconds: float
    seed: int
    stragglers: Stragglers = "drop"
    strategy: str = APP
    options: Mapping[str, Any] = field(default_factory=dict)
    updates: str = AGGREGATED
    evaluate_every: int = 1
    evaluate_fraction: float = 1.0
    run_config: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    privacy: PrivacySpec | None = None
    noise_secret: bytes = field(default=b"", repr=False)
    max_update_bytes: int = 4 * 1024**3
    app_memory_bytes: int = 8 * 1024**3
    full_sandbox: bool = False

    @property
    def run_id(self) -> int:
        """Flower's number for the run of this job; the same whenever it is resumed."""
        return node_number(self.digest, "")  # no site has an empty name

    def __post_init__(self) -> None:
        if len(self.digest) != 32:
            raise JobError(f"a job digest has 32 bytes, not {len(self.digest)}")
        if not 1 <= len(self.sites) <= _MAX_SITES or len(set(self.sites)) != len(self.sites):
            raise JobError(f"a job has 1 to {_MAX_SITES} different sites")
        if not 1 <= self.quorum <= len(self.sites):
            raise JobError(f"a quorum of {self.quorum} with {len(self.sites)} sites")
        if self.rounds < 1 or not self.seconds > 0:
            raise JobError("a job has at least one round and a deadline above 0 s")
        if self.strategy not in STRATEGIES:
            raise JobError(f"{self.strategy!r} is not a strategy")
        if self.updates not in UPDATES:
            raise JobError(f"{self.updates!r} is not what an app may receive of updates")
        if self.evaluate_every < 1 or not 0 <= self.evaluate_fraction <= 1:
            raise JobError("sites evaluate every round or less often, and 0 to 1 of them")
        if not 0 <= self.seed < 2**64:
            raise JobError("a seed is a whole number from 0 below 2^64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a job needs to go on after ``round``.

    ``model`` is the global model. ``tensors`` and ``state`` hold the rest (the state of the
    strategy, the metrics so far); ``state`` is JSON. The arrays may be views of one buffer;
    nobody writes to them.
    """

    round: int
    model: Mapping[str, NDArray[Any]]
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


class JobChannel(Protocol):
    """What a job's aggregator may ask of the coordinator.

    Calls come from one thread, in order, and block the job until they return. An error that
    a call raises ends the job with that error.
    """

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take one event of :mod:`fedlearn.job.events`.

        ``update.received`` has ``digest`` and ``key`` as well, of :class:`Reply`.
        """
        ...

    def charge(self, stage: int, round_: int, inputs: bytes) -> None:
        """Pay for the release of a noised aggregate, or raise: its budget may be exceeded.

        ``inputs`` is a digest of the updates in it. An attempt that was charged and ended
        before its checkpoint was sealed is not charged again for the same inputs.
        """
        ...

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Seal the checkpoint; when this returns, it survives a crash."""
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

    status: Literal["finished", "failed", "cancelled"]
    rounds: int = 0
    code: str = ""
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to one message, as the exchange vouches for it.

    ``question`` is the id of the message, ``site`` and ``node`` are those that it was sent to,
    and nobody else answered. ``message`` is the head of the answer, whose metadata is that of
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
    objects: Mapping[str, bytes]
    size: int
    key: str = ""
    digest: str = ""


def to_record(plan: JobPlan) -> tuple[dict[str, Any], list[bytes]]:
    """Return a plan as JSON and the byte strings that JSON cannot hold."""
    return {
        "job": plan.job,
        "rounds": plan.rounds,
        "sites": list(plan.sites),
        "quorum": plan.quorum,
        "seconds": plan.seconds,
        "seed": plan.seed,
        "stragglers": plan.stragglers,
        "strategy": plan.strategy,
        "options": dict(plan.options),
        "updates": plan.updates,
        "evaluate_every": plan.evaluate_every,
        "evaluate_fraction": plan.evaluate_fraction,
        "run_config": dict(plan.run_config),
        "privacy": None if plan.privacy is None else asdict(plan.privacy),
        "max_update_bytes": plan.max_update_bytes,
        "app_memory_bytes": plan.app_memory_bytes,
        "full_sandbox": plan.full_sandbox,
    }, [plan.digest, plan.bundle, plan.noise_secret]


def from_record(record: dict[str, Any], blobs: list[memoryview]) -> JobPlan:
    """Return the plan that :func:`to_record` wrote."""
    digest, app, secret = map(bytes, blobs)
    privacy = record.pop("privacy")
    return JobPlan(
        **{**record, "sites": tuple(record["sites"])},
        privacy=None if privacy is None else PrivacySpec(**privacy),
        digest=digest,
        bundle=app,
        noise_secret=secret,
    )
