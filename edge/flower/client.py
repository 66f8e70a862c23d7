"""The warm client: one process that loads the app once and works until the job ends.

It takes the place of Flower's SuperNode, which starts a process for each message. An app does
not notice: it is called with a ``Message`` and a ``Context``, as ever. Around each call

* the packed model becomes the ArrayRecord that the app expects, and the reply is packed;
* the generators of ``random``, numpy and torch are seeded from the job's seed, the site and
  the round, and the app finds the state that it had before that round;
* the job's privacy is applied to what leaves, outside of user code;
* an exception of the app becomes an error reply, and the client lives on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flwr.app import ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from edge.flower.fleet import HEARTBEAT_SECONDS, Ended, Fleet, Identity, Work
from edge.flower.state import Call, StateHistory
from fedlearn import bundle
from fedlearn.errors import (
    FedlearnError,
    JobError,
    TransportError,
    UpdateRejected,
)
from fedlearn.flower import CALL, Flat, Packer, arrays_of, flatten, inflate, record_of, unpack
from fedlearn.message import CLIENT_APP_RAISED_EXCEPTION
from fedlearn.privacy import ClientPrivacy, PrivacySpec
from fedlearn.seeds import derive, seed_generators

__all__ = ["ClientPlan", "Identity", "WarmClient"]

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_MAX_REASON: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan:
    """All that a client must know of its job.

    ``bundle_digest`` is what the job says of the bundle; a bundle with another one is not
    loaded. ``node_config`` is what this site tells the app (where its data is, say).
    ``patience`` is for how many seconds the coordinator may be unreachable.
    """

    job: str
    site: str
    seed: int
    bundle: bytes = field(repr=False)
    bundle_digest: bytes
    node_config: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    run_config: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    privacy: PrivacySpec | None = None
    weighted_by: str = "num-examples"
    max_message_bytes: int = 4 * 1024**3
    patience: float = 600.0


class WarmClient:
    """One client of one job.

    :param directory: a private folder for the unpacked app; it must not exist.
    :param address: ``host:port`` of the coordinator's front.
    :param charge: ``charge(question)`` charges an update to the budget of the site's data before
        it leaves under privacy; what it raises keeps the update here.
    """

    def __init__(
        self,
        plan: ClientPlan,
        *,
        address: str,
        identity: Identity,
        directory: Path,
        charge: Callable[[str], object],
    ) -> None:
        self._plan = plan
        self._directory = directory
        self._fleet = Fleet(address, identity, max_message_bytes=plan.max_message_bytes)
        self._privacy = None if plan.privacy is None else ClientPrivacy.from_spec(plan.privacy)
        self._charge = charge
        self._history = StateHistory()
        self._context: Context | None = None
        self._app: Any = None
        self._last: tuple[str, Flat] | None = None
        self._stop = threading.Event()
        self._denied = threading.Event()

    def load(self) -> None:
        """Unpack, check and import the app. Done once; :meth:`run` does it if nobody has.

        Call it before the admission is needed: importing torch takes longer than a handshake.

        :raises JobError: when the bundle is not the job's, or has no ClientApp.
        """
        if self._app is not None:
            return
        bundle.check_packages()
        installed = bundle.unpack(
            self._plan.bundle, self._directory, digest=self._plan.bundle_digest
        )
        seed = derive(self._plan.seed, "client", self._plan.site, 0)
        seed_generators(seed)
        app = installed.load("clientapp")
        if not isinstance(app, ClientApp):
            raise JobError(f"{installed.clientapp} is a {type(app).__name__}, not a ClientApp")
        self._app = app
        self._context = Context(
            run_id=0,
            node_id=0,
            node_config=dict(self._plan.node_config),
            state=RecordDict(),
            run_config=installed.run_config(self._plan.run_config),
        )

    def renew(self, identity: Identity) -> None:
        """Go on with a new certificate; work under way is not dropped."""
        self._fleet.renew(identity)
        self._denied.clear()

    def stop(self) -> None:
        """Make :meth:`run` return after the call that is under way.

        The coordinator is not told that this client leaves: one that was evicted starts
        elsewhere, and is asked again what it did not answer. Whether it does, the agent knows.
        """
        self._stop.set()

    def run(self) -> str:
        """Work until the job ends or :meth:`stop` is called; return why it is over.

        May be called again after AdmissionDenied and :meth:`renew`: the app and its state are
        still there.

        :raises AdmissionDenied: when the coordinator does not accept the certificate.
        :raises TransportError: when it was unreachable for longer than the plan's patience.
        """
        self.load()
        beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        done = threading.Event()
        self._done = done
        try:
            self._patiently(self._enter)
            beats.start()
            while not self._stop.is_set():
                work = self._patiently(self._fleet.fetch)
                if work is not None:
                    self._handle(work)
            return "stopped"
        except Ended as ended:
            return str(ended)
        finally:
            done.set()

    # Around the work

    def _enter(self) -> None:
        context = self._context
        if context is None:
            raise JobError("the app is not loaded")
        context.node_id, context.run_id = self._fleet.activate()
        TaskIdentity.run_id = context.run_id
        TaskIdentity.node_id = context.node_id
        TaskIdentity.task_id = 1

    def _patiently(self, action: Any) -> Any:
        """Do something again until it works or patience ends."""
        pause, end = _FIRST_PAUSE, time.monotonic() + self._plan.patience
        while True:
            try:
                return action()
            except TransportError as error:
                if self._stop.is_set():
                    return None
                if time.monotonic() > end:
                    raise
                _LOG.info("trying again in %.2f s: %s", pause, error)
                self._stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _beat(self) -> None:
        done = self._done
        while not done.wait(HEARTBEAT_SECONDS / 3):
            try:
                self._fleet.heartbeat()
            except FedlearnError as error:
                # The call that fetches work meets the same answer, and decides.
                _LOG.info("a heartbeat was not taken: %s", error)

    # The work

    def _handle(self, work: Work) -> None:
        if self._last is None or self._last[0] != work.id:
            message = inflate(work.head, work.objects)
            self._last = (work.id, self._flat(message))
        try:
            delivered = self._deliver(self._last[1])
        except UpdateRejected as error:
            _LOG.warning("the reply was not sent: %s", error)
            refused = _failure(inflate(work.head, work.objects), str(error))
            self._last = (work.id, flatten([refused]))
            delivered = self._deliver(self._last[1])
        if delivered is False:
            _LOG.info("the reply came too late")

    def _deliver(self, flat: Flat) -> Any:
        return self._patiently(lambda: self._fleet.deliver(flat))

    def _flat(self, message: Message) -> Flat:
        try:
            return flatten([self._answer(message)])
        except TransportError as error:
            _LOG.warning("the reply cannot travel: %s", error)
            return flatten([_failure(message, str(error))])

    def _answer(self, message: Message) -> Message:
        try:
            content = self._called(message)
            return Message(Packer().content(content), reply_to=message)
        except FedlearnError as error:
            _LOG.warning("the reply was not sent: %s", error)
            return _failure(message, str(error))
        except Exception as error:  # noqa: BLE001  user code may raise anything; told, not lost
            _LOG.exception("the app raised an exception")
            # Under privacy nothing that data may have gone into leaves but the update.
            detail = "" if self._privacy is not None else f": {error}"
            return _failure(message, f"{type(error).__name__}{detail}")

    def _called(self, message: Message) -> RecordDict:
        context = self._context
        if context is None:
            raise JobError("the app is not loaded")
        content = unpack(message.content, max_bytes=self._plan.max_message_bytes)
        told = content.pop(CALL, ConfigRecord())
        kind = message.metadata.message_type
        call = Call.of(int(told.get("round", 0)), kind)
        context.state = self._history.before(call, context.state)
        seed_generators(derive(self._plan.seed, "client", self._plan.site, call.round, kind))
        reference = next(iter(content.array_records.values()), None)
        message.content = content
        before = None if reference is None else arrays_of(reference)
        reply: Message = self._app(message, context)
        if reply.has_error():
            raise JobError(f"the app answered with an error: {reply.error.reason}")
        outgoing = self._outgoing(reply.content, before, kind)
        if self._privacy is not None and outgoing.array_records:
            self._charge(message.metadata.message_id)
        return outgoing

    def _outgoing(self, content: RecordDict, before: Any, kind: str) -> RecordDict:
        if self._privacy is None:
            return content
        found = RecordDict()
        for name, record in content.items():
            if isinstance(record, MetricRecord):
                found[name] = self._metrics(record)
            elif isinstance(record, ConfigRecord):
                continue
            elif before is None or kind.split(".")[0] != MessageType.TRAIN:
                raise UpdateRejected("under privacy, arrays leave in the answer to training only")
            else:
                found[name] = record_of(self._privacy.outgoing(arrays_of(record), before))
        if len(found.array_records) > 1:
            raise UpdateRejected("under privacy, an update is one ArrayRecord")
        return found

    def _metrics(self, record: MetricRecord) -> MetricRecord:
        privacy, key = self._privacy, self._plan.weighted_by
        if privacy is None:
            return record
        others = {name: value for name, value in record.items() if name != key}
        found: dict[str, Any] = privacy.outgoing_metrics(others)
        if key in record:
            found[key] = privacy.outgoing_weight(0)
        return MetricRecord(found)


def _failure(message: Message, reason: str) -> Message:
    text = reason[:_MAX_REASON].encode(errors="replace").decode()
    error = Error(code=CLIENT_APP_RAISED_EXCEPTION, reason=text)
    return Message(error, reply_to=message)
