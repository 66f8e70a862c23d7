"""The warm client: it works until the job ends, and loads the app once, in another process.

It takes the place of Flower's SuperNode, which starts a process for each message. An app does
not notice: it is called with a ``Message`` and a ``Context``, as ever. The certificate, the keys
and the connections are here, and user code is not: it runs in a sandbox
(:mod:`edge.flower.app_process`). Around each call

* the packed model becomes the ArrayRecord that the app expects, and the reply is packed;
* the generators of ``random``, numpy and torch are seeded from the job's seed, the site and
  the round, and the app finds the state that it had before that round;
* the reply is made here from what the app's process answered, and the job's privacy is applied;
* an exception of the app, or the end of its process, becomes an error reply; the client lives
  on, and starts the process again when it is needed.

Under ``[privacy]`` nothing leaves in which the app can say something: no text, no name, and of
the metrics only the weight, which is 1. Why there is no answer stands in the site's log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from edge.flower.app_process import AppFailed, AppLimits, AppProcess, content_of
from edge.flower.fleet import HEARTBEAT_SECONDS, Ended, Fleet, Identity, Work
from edge.flower.state import EMPTY, Call, State, StateHistory
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
from fedlearn.seeds import derive

__all__ = ["ClientPlan", "Identity", "WarmClient"]

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 2.0
_MAX_REASON: Final = 500
_WITHHELD: Final = "the app gave no answer; under [privacy] the reason stays in the site's log"
_METRICS: Final = "metrics"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan:
    """All that a client must know of its job.

    ``bundle_digest`` is what the job says of the bundle; a bundle with another one is not
    loaded. ``node_config`` is what this site tells the app (where its data is, say).
    ``data`` is where the app may read the site's data. ``patience`` is for how many seconds
    the coordinator may be unreachable.
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
    data: Path | None = None
    limits: AppLimits = field(default_factory=AppLimits)


class WarmClient:
    """One client of one job.

    :param directory: a private folder for the app; it must not exist.
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
        self._installed: bundle.Installed | None = None
        self._process: AppProcess | None = None
        self._state: State = EMPTY
        self._in_process: State = EMPTY
        self._node = self._run = 0
        self._last: tuple[str, Flat] | None = None
        self._stop = threading.Event()
        self._denied = threading.Event()

    def load(self) -> None:
        """Unpack and check the app and load it. Done once; :meth:`run` does it if nobody has.

        Call it before the admission is needed: importing torch takes longer than a handshake.

        :raises JobError: when the bundle is not the job's, or has no ClientApp.
        :raises AppFailed: when the app cannot be imported, with the reason.
        """
        if self._installed is not None:
            return
        bundle.check_packages()
        self._directory.mkdir(mode=0o700, parents=True)
        self._installed = bundle.unpack(
            self._plan.bundle, self._directory / "code", digest=self._plan.bundle_digest
        )
        # For the user of the app's process; the folder above lets nobody else in.
        for path in (self._installed.folder, *self._installed.folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (self._directory / "own").mkdir(mode=0o700)
        try:
            self._started()
        except FedlearnError as error:
            if self._privacy is None:
                raise
            _LOG.warning("the app was not loaded: %s", error)
            raise AppFailed(_WITHHELD) from None

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

    def close(self) -> None:
        """End the app's process, and all that it started."""
        if self._process is not None:
            self._process.close()

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
            self.close()
            return "stopped"
        except Ended as ended:
            self.close()
            return str(ended)
        finally:
            done.set()

    # Around the work

    def _enter(self) -> None:
        self._node, self._run = self._fleet.activate()

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
            self._last = (work.id, self._answered(work))
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

    def _answered(self, work: Work) -> Flat:
        """Return the reply to a message, taken apart; of whatever fails, one that says so."""
        message = inflate(work.head, work.objects)
        try:
            content = self._content(work, message)
            return flatten([Message(content, reply_to=message)])
        except FedlearnError as error:
            _LOG.warning("the reply was not sent: %s", error)
            reason = str(error)
        except Exception as error:  # noqa: BLE001  content of user code that Flower does not take
            _LOG.exception("the reply cannot be sent")
            reason = _WITHHELD if self._privacy else f"{type(error).__name__}: {error}"
        return flatten([_failure(message, reason)])

    def _content(self, work: Work, message: Message) -> RecordDict:
        told = message.content.pop(CALL, ConfigRecord())
        kind = message.metadata.message_type
        call = Call.of(int(told.get("round", 0)), kind)
        self._state = self._history.before(call, self._state)
        privacy = self._privacy
        if privacy is None:
            return self._called(work, call, kind)
        limit = self._plan.max_message_bytes
        try:
            answer = unpack(self._called(work, call, kind), max_bytes=limit)
            asked = unpack(message.content, max_bytes=limit)
            outgoing = self._private(privacy, answer, asked, kind)
        except Exception as error:  # noqa: BLE001  the app can choose each error that this has
            _LOG.warning("the app's answer does not leave: %s: %s", type(error).__name__, error)
            raise JobError(_WITHHELD) from None
        if outgoing.array_records:
            self._charge(message.metadata.message_id)
        return Packer().content(outgoing)

    def _called(self, work: Work, call: Call, kind: str) -> RecordDict:
        """Have the app's process answer; return its records as they are."""
        seed = derive(self._plan.seed, "client", self._plan.site, call.round, kind)
        question = {"seed": seed.hex(), "node": self._node, "run": self._run}
        process = self._started()
        state = None if self._state is self._in_process else self._state
        answer = process.ask(question, [work.head, *work.objects.values()], state)
        self._state = self._in_process = answer.state
        if answer.failure is not None:
            raise AppFailed(answer.failure)
        return content_of(answer.message)

    def _started(self) -> AppProcess:
        """Return the process of the app, with the app loaded; a new one when there is none."""
        plan, installed = self._plan, self._installed
        if installed is None:
            raise JobError("the app is not loaded")
        if self._process is not None and self._process.alive:
            return self._process
        self._in_process = EMPTY
        process = self._process = AppProcess(
            folder=installed.folder,
            own=self._directory / "own",
            data=plan.data,
            limits=plan.limits,
        )
        question = {
            "folder": str(installed.folder),
            "name": installed.name,
            "clientapp": installed.clientapp,
            "seed": derive(plan.seed, "client", plan.site, 0).hex(),
            "node_config": dict(plan.node_config),
            "run_config": installed.run_config(plan.run_config),
        }
        answer = process.ask(question, (), None)
        if answer.failure is not None:
            process.close()
            raise AppFailed(f"the app cannot be loaded: {answer.failure}")
        return process

    def _private(
        self, privacy: ClientPrivacy, content: RecordDict, asked: RecordDict, kind: str
    ) -> RecordDict:
        """Make the reply that may leave under privacy; each name in it is ours."""
        found = RecordDict()
        updates, metrics = list(content.array_records.values()), content.metric_records
        name, reference = next(iter(asked.array_records.items()), ("", None))
        if updates:
            if reference is None or kind.split(".")[0] != MessageType.TRAIN:
                raise UpdateRejected("under privacy, arrays leave in the answer to training only")
            if len(updates) > 1:
                raise UpdateRejected("under privacy, an update is one ArrayRecord")
            found[name] = record_of(privacy.outgoing(arrays_of(updates[0]), arrays_of(reference)))
        if len(metrics) > 1:
            raise UpdateRejected("under privacy, metrics are one MetricRecord")
        for record in metrics.values():
            key = self._plan.weighted_by
            others = {each: value for each, value in record.items() if each != key}
            weight = {key: privacy.outgoing_weight(0)}
            found[_METRICS] = MetricRecord(privacy.outgoing_metrics(others) | weight)
        return found


def _failure(message: Message, reason: str) -> Message:
    text = reason[:_MAX_REASON].encode(errors="replace").decode()
    error = Error(code=CLIENT_APP_RAISED_EXCEPTION, reason=text)
    return Message(error, reply_to=message)
