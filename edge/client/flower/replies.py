"""The replies of a client: the app is called in its own process, and the reply is made here.

An app is called with a ``Message`` and a ``Context``, as Flower calls it; the sandbox needs no
change of the app (:mod:`edge.client.flower.app_process`). Around each call

* the packed model becomes the ArrayRecord that the app expects, and the reply is packed;
* the generators of ``random``, numpy and torch are seeded from the job's seed, the site and
  the round, and the app has the state that it had before that round;
* the reply is made from the answer of the app's process, and the filters of the site, the job's
  privacy and its compression are applied, in this order;
* an exception of the app, or the end of its process, becomes an error reply; the process is
  started again when it is needed.

Under ``[privacy]`` nothing leaves that the app could use to encode data: no text, no name, and of
the metrics only the weight, which is 1. What the app itself writes, and the reason why it failed,
goes to its log (:mod:`edge.client.app_log`), and never into the log of this process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from edge.client.app_log import AppLog, DiscardedAppLog
from edge.client.flower.app_process import App, AppFailed, AppLimits, AppProcess, AppRaised
from edge.client.flower.app_state import EMPTY, Call, State, StateHistory
from edge.client.flower.compression import UpdateCompressor
from edge.client.flower.filters import UpdateFilters
from edge.client.flower.fleet import Work
from edge.client.flower.masking import MaskedUpdates
from edge.client.flower.memory import KeptMemory, Memory
from edge.client.flower.state_store import StateStore
from fedlearn.app import install as bundle
from fedlearn.app.array_records import arrays_of, record_of, records_of
from fedlearn.app.flower import (
    CALL,
    FILTERED,
    SECAGG,
    STATE,
    Flat,
    Packer,
    flatten,
    inflate,
    unpack,
)
from fedlearn.app.message import CLIENT_APP_RAISED_EXCEPTION
from fedlearn.config.filters import FilterSpec
from fedlearn.errors import FedlearnError, JobError, UpdateRejected
from fedlearn.job.seeds import derive
from fedlearn.job.spec import JobSpec
from fedlearn.privacy import ClientPrivacy, noise_secret
from fedlearn.privacy.adaptive import WITHIN, checked_clip
from fedlearn.privacy.app_config import app_config
from fedlearn.sandbox.memory_file import same_bytes
from fedlearn.secure_aggregation.roster import Credentials

__all__ = ["WITHHELD", "ClientPlan", "Memory", "Replies"]

_LOG = logging.getLogger(__name__)
_MAX_REASON: Final = 500
_METRICS: Final = "metrics"
_STATES: Final = 4
"""A state of an app has at most this part of the app's memory; a few states are kept."""

WITHHELD: Final = (
    "the app gave no answer; under [privacy] and with secure aggregation the reason does not leave "
    "the client (`fedlearn job try` shows it)"
)
"""What a client replies for every failure of the app that must not choose a text that leaves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan:
    """A job as a client works on it.

    ``node_config`` is passed to the app, with the place of the site's data for example. ``data`` is
    where the app may read the site's data. ``patience`` is for how many seconds the coordinator may
    be unreachable. ``filters`` are those of the site, and ``filter_secret`` that of their noise,
    random by default (:class:`edge.client.flower.filters.UpdateFilters`). ``noise_secret`` is what
    the noise of the job's ``[privacy]`` is made from here, random by default. ``most_examples`` is
    how many the client has committed to, 0 where they are not counted: the weight of a masked
    update, which nobody else sees, is not larger.
    """

    spec: JobSpec
    site: str
    bundle: bytes = field(repr=False)
    node_config: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    max_message_bytes: int = 4 * 1024**3
    patience: float = 600.0
    data: Path | None = None
    limits: AppLimits = field(default_factory=AppLimits)
    filters: tuple[FilterSpec, ...] = ()
    filter_secret: bytes = field(default=b"", repr=False)
    noise_secret: bytes = field(default=b"", repr=False)
    most_examples: int = 0

    @property
    def weighted_by(self) -> str:
        """The metric that is the weight of an update."""
        return str(self.spec.strategy.options.get("weighted_by_key", "num-examples"))


class Replies:
    """The app of one job at one site. Not thread-safe, except :meth:`close`.

    ``node`` and ``run`` are the coordinator's numbers of the client and of the job.

    :param directory: a private folder for the app; it must not exist.
    :param charge: see :class:`edge.client.flower.warm_client.WarmClient`.
    :param log: takes what the app writes; by default it is discarded.
    :param app: the app, loaded; by default it gets a process of its own in a sandbox.
    :param memory: of earlier calls.
    :param credentials: sign the keys of secure aggregation; by default they are not signed.
    :param store: where the memory is kept for the next client; by default nowhere.
    """

    def __init__(
        self,
        plan: ClientPlan,
        *,
        directory: Path,
        charge: Callable[[str], object],
        log: AppLog | None = None,
        app: App | None = None,
        memory: Memory | None = None,
        credentials: Credentials | None = None,
        store: StateStore | None = None,
    ) -> None:
        memory = memory or Memory()
        self.node = self.run = 0
        self._log = log or DiscardedAppLog()
        self._round = 0
        self._plan = plan
        self._directory = directory
        self._privacy: ClientPrivacy | None = None
        self._node_config = dict(plan.node_config)
        if (privacy := plan.spec.privacy) is not None:
            secret = plan.noise_secret or noise_secret(privacy, seed=plan.spec.seed, site=plan.site)
            self._privacy = ClientPrivacy.from_spec(privacy, secret)
            self._node_config |= app_config(privacy, secret)
        self._charge = charge
        self._compressor: UpdateCompressor | None = None
        if plan.spec.compression.active:
            self._compressor = UpdateCompressor(plan.spec, memory.residual)
        self._masked: MaskedUpdates | None = None
        if plan.spec.aggregation.masked:
            self._masked = MaskedUpdates(
                plan.spec,
                plan.site,
                weighted_by=plan.weighted_by,
                most_examples=plan.most_examples,
                credentials=credentials,
                memory=memory.secure,
            )
        self._filters = UpdateFilters(plan.spec, plan.filters, secret=plan.filter_secret)
        self._history = StateHistory[State]()
        self._installed: bundle.Installed | None = None
        self._process: App | None = app
        self._state: State = memory.state
        self._in_process: State | None = None
        self._kept = KeptMemory(store, always=self._hides)

    @property
    def memory(self) -> Memory:
        """What the client has kept so far."""
        residual = {} if self._compressor is None else self._compressor.residual
        secure = b"" if self._masked is None else self._masked.memory
        return Memory(self._state, residual, secure)

    def load(self) -> None:
        """Unpack and check the app and load it, once.

        :raises JobError: when the bundle may not run here, or has no ClientApp.
        :raises AppFailed: when the app cannot be imported, with the reason.
        """
        if self._installed is not None:
            return
        bundle.check_packages()
        self._directory.mkdir(mode=0o700, parents=True)
        self._installed = bundle.unpack(self._plan.bundle, self._directory / "code")
        # For the user of the app's process; the folder above excludes all other users.
        for path in (self._installed.folder, *self._installed.folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (self._directory / "own").mkdir(mode=0o700)
        try:
            self._started()
        except FedlearnError as error:
            self._note(error, "the app was not loaded")
            if self._privacy is None and self._masked is None:
                raise
            raise AppFailed(WITHHELD) from None
        finally:
            self._deliver_log()

    def reply(self, work: Work) -> Flat:
        """Return the reply to a message, in parts; after a failure, a reply that states it."""
        message = inflate(work.head, work.objects)
        try:
            content = self._content(work, message)
            return flatten([Message(content, reply_to=message)])
        except FedlearnError as error:
            if str(error) != WITHHELD:
                self._note(error, "the app gave no answer")
            reason = str(error)
        except Exception as error:  # noqa: BLE001  content of user code that Flower does not take
            self._note(error, "the app's answer cannot be sent")
            reason = (
                WITHHELD if self._privacy or self._masked else f"{type(error).__name__}: {error}"
            )
        finally:
            self._deliver_log()
        return flatten([_failure(message, reason)])

    def _content(self, work: Work, message: Message) -> RecordDict:
        config = message.content.pop(CALL, ConfigRecord())
        kind = message.metadata.message_type
        call = Call.of(int(config.get("round", 0)), kind)
        self._round = call.round
        if self._masked is not None and kind == SECAGG:
            return self._masked.answer(message.content, call.round)
        privacy = self._privacy
        try:
            memory = self._kept.before(str(config.get("state", "")))
        except FedlearnError as error:
            # Nothing in it comes from the app: names of files, and what the coordinator reported.
            _LOG.error("round %d: %s", call.round, error)
            if self._hides:
                raise JobError(WITHHELD) from None
            raise
        if memory is not None:
            self._state = memory.state
            if self._compressor is not None:
                self._compressor = UpdateCompressor(self._plan.spec, memory.residual)
        self._state = self._history.before(call, self._state)
        if self._masked is not None:
            return self._hidden(self._masked, work, message.content, call, kind)
        if privacy is None:
            answer = self._filtered(self._called(work, call, kind), message.content, kind)
            return self._stated(self._compressed(answer, message.content, call, kind), call)
        limit = self._plan.max_message_bytes
        try:
            asked = unpack(message.content, max_bytes=limit)
            answer = self._filtered(self._called(work, call, kind), asked, kind)
            answer = unpack(answer, max_bytes=limit)
            train = kind.split(".")[0] == MessageType.TRAIN
            clip = checked_clip(privacy.spec, config.get("clip")) if train else privacy.spec.clip
            outgoing = self._private(privacy, answer, asked, call.round if train else None, clip)
            outgoing = self._stated(self._compressed(outgoing, asked, call, kind), call)
        except Exception as error:  # noqa: BLE001  the app can choose each error that this has
            self._note(error, "the app's answer does not leave")
            raise JobError(WITHHELD) from None
        if records_of(outgoing, ArrayRecord):
            self._charge(message.metadata.message_id)
        return Packer().content(outgoing)

    def _hidden(
        self, masked: MaskedUpdates, work: Work, asked: RecordDict, call: Call, kind: str
    ) -> RecordDict:
        """Return the masked update; nothing else of the app's answer leaves, not even a reason."""
        if kind.split(".")[0] != MessageType.TRAIN:
            raise JobError("with secure aggregation nothing but masked updates leaves the client")
        limit = self._plan.max_message_bytes
        try:
            asked = unpack(asked, max_bytes=limit)
            answer = self._filtered(self._called(work, call, kind), asked, kind)
            answer = unpack(answer, max_bytes=limit)
            outgoing = Packer().content(masked.masked(answer, asked, call.round))
            return self._stated(outgoing, call)
        except Exception as error:  # noqa: BLE001  the app can choose each error that this has
            self._note(error, "the app's answer does not leave")
            raise JobError(WITHHELD) from None

    def _filtered(self, answer: RecordDict, asked: RecordDict, kind: str) -> RecordDict:
        """Return the answer of the app after the filters of the site."""
        for name in (FILTERED, STATE):
            answer.pop(name, None)  # the client alone states it
        if not self._filters.names:
            return answer
        limit = self._plan.max_message_bytes
        answer, asked = (unpack(each, max_bytes=limit) for each in (answer, asked))
        return Packer().content(self._filters.content(answer, asked, self._round, kind))

    @property
    def _hides(self) -> bool:
        """Whether nothing may leave that the app can choose, beside its update."""
        return self._privacy is not None or self._masked is not None

    def _stated(self, outgoing: RecordDict, call: Call) -> RecordDict:
        """Return an answer with the digest of the client's state, and an update with the names of
        the filters that were applied to it."""
        if digest := self._kept.after(call, self.memory):
            outgoing[STATE] = ConfigRecord({"digest": digest})
        if self._filters.names and records_of(outgoing, ArrayRecord):
            outgoing[FILTERED] = ConfigRecord({"names": self._filters.names})
        return outgoing

    def _compressed(
        self, answer: RecordDict, asked: RecordDict, call: Call, kind: str
    ) -> RecordDict:
        """Return the answer in the form that the job declares for updates."""
        if self._compressor is None or kind.split(".")[0] != MessageType.TRAIN:
            return answer
        limit = self._plan.max_message_bytes
        answer, asked = (unpack(each, max_bytes=limit) for each in (answer, asked))
        return Packer().content(self._compressor.content(answer, asked, call))

    def _called(self, work: Work, call: Call, kind: str) -> RecordDict:
        """Call the app's process; return its records unchanged."""
        seed = derive(self._plan.spec.seed, "client", self._plan.site, call.round, kind)
        question = {"seed": seed.hex(), "node": self.node, "run": self.run}
        process = self._started()
        state = None if self._state is self._in_process else self._state
        answer = process.ask(question, [work.head, *work.objects.values()], state)
        self._keep(answer.state)
        if answer.failure is not None:
            raise AppRaised(answer.failure)
        return answer.content

    def _keep(self, state: State) -> None:
        """Keep the state that the app has now; an unchanged state is stored once."""
        size, most = sum(map(len, state)), self._plan.limits.memory_bytes // _STATES
        if size > most:
            self._in_process = None
            raise AppFailed(
                f"the app keeps {size} bytes in its state; at most {most} are kept",
                hint="keep less in Context.state, or ask for more resources.memory_mib",
            )
        # The head has a new id each time and is not part of the state.
        old, new = self._state[1:], state[1:]
        if len(old) != len(new) or not all(map(same_bytes, old, new)):
            self._state = state
        self._in_process = self._state

    def _started(self) -> App:
        """Return the process of the app, with the app loaded; start one if there is none."""
        if self._process is not None and self._process.alive:
            return self._process
        plan, installed = self._plan, self._installed
        if installed is None:
            raise JobError("the app is not loaded")
        self._in_process = EMPTY  # a new process
        process = self._process = AppProcess(
            folder=installed.folder,
            own=self._directory / "own",
            data=plan.data,
            limits=plan.limits,
            output=self._log.write,
        )
        question = {
            "folder": str(installed.folder),
            "name": installed.name,
            "clientapp": installed.clientapp,
            "seed": derive(plan.spec.seed, "client", plan.site, 0).hex(),
            "node_config": self._node_config,
            "run_config": installed.run_config(plan.spec.config),
        }
        answer = process.ask(question, (), None)
        if answer.failure is not None:
            process.close()
            raise AppRaised(f"the app cannot be loaded: {answer.failure}")
        return process

    def _note(self, error: Exception, what: str) -> None:
        """Put an error into the log of the app, which has that of an exception that it raised.

        The log of this process has no text that the app can choose.
        """
        if not isinstance(error, AppRaised):
            self._log.note(f"{what}: {type(error).__name__}: {error}")
        _LOG.warning("round %d: %s (%s)", self._round, what, type(error).__name__)

    def _deliver_log(self) -> None:
        """Deliver what the app has written until now, before the reply is sent."""
        if self._process is not None:
            self._process.drain()
        self._log.deliver(self._round)

    def _private(
        self,
        privacy: ClientPrivacy,
        content: RecordDict,
        asked: RecordDict,
        training: int | None,
        clip: float,
    ) -> RecordDict:
        """Make the reply that may leave under privacy; no name in it comes from the app.

        :param training: the round, where the question is to train.
        """
        found, counted = RecordDict(), dict[str, int]()
        updates = list(records_of(content, ArrayRecord).values())
        metrics = records_of(content, MetricRecord)
        name, reference = next(iter(records_of(asked, ArrayRecord).items()), ("", None))
        if updates:
            if reference is None or training is None:
                raise UpdateRejected("under privacy, arrays leave in the answer to training only")
            if len(updates) > 1:
                raise UpdateRejected("under privacy, an update is one ArrayRecord")
            update, base = arrays_of(updates[0]), arrays_of(reference)
            if privacy.spec.clip_quantile is not None:
                counted[WITHIN] = int(privacy.within(update, base, clip))
            found[name] = record_of(privacy.outgoing(update, base, clip=clip, round=training))
        if len(metrics) > 1:
            raise UpdateRejected("under privacy, metrics are one MetricRecord")
        for record in metrics.values():
            key = self._plan.weighted_by
            others = {each: value for each, value in record.items() if each != key}
            weight = {key: privacy.outgoing_weight(0)}
            found[_METRICS] = MetricRecord(privacy.outgoing_metrics(others) | weight | counted)
        return found

    def failure(self, work: Work, reason: str) -> Flat:
        """Return a reply that states a failure."""
        return flatten([_failure(inflate(work.head, work.objects), reason)])

    def close(self) -> None:
        """End the app's process, and all that it started."""
        if self._process is not None:
            self._process.close()


def _failure(message: Message, reason: str) -> Message:
    text = reason[:_MAX_REASON].encode(errors="replace").decode()
    error = Error(code=CLIENT_APP_RAISED_EXCEPTION, reason=text)
    return Message(error, reply_to=message)
