"""The process of a job that aggregates: it has every update in the clear, and no user code.

Started by :mod:`server.flower.job_runner` with two sockets: one to the coordinator, from which it
gets the job and makes its requests, and one to the process of the application. It
has no key but the secret of the job's noise, no network address and no place to keep weights;
it ends with its parent.

The requests that the application may make are decided here, by the job:

=====================  =======================================================================
``nodes``              the numbers of the nodes that are online
``start``              run the rounds of one of Flower's strategies, here
``start``, own         the same with a strategy of the application: only where the job has
strategy               ``[aggregation] updates = "visible-to-app"``
``push pull forget``   messages of an application that drives its rounds itself: likewise
``files``              the files that the application leaves, once, before it has ended
``done``               how the application ended
=====================  =======================================================================

The page is docs/adr/0017-aggregator.md.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Mapping
from typing import Any, Final

from flwr.app import ConfigRecord

from fedlearn.clock import REAL, Clock
from fedlearn.errors import FedlearnError, JobError, PrivacyError, TransportError
from fedlearn.job.asynchronous.options import ASYNCHRONOUS
from fedlearn.job.seeds import derive, seed_generators
from fedlearn.job.strategies import APP, MASKED, STRATEGIES
from fedlearn.privacy import ServerPrivacy
from fedlearn.sandbox import protect_this_process
from fedlearn.sandbox.memory_file import Part, view_of
from fedlearn.sandbox.process_channel import ProcessChannel
from server.flower.aggregation.asynchronous.strategy import Asynchronous
from server.flower.aggregation.builtin import BuiltIn
from server.flower.aggregation.grid import JobGrid
from server.flower.aggregation.remote import (
    RemoteFunctions,
    RemoteStrategy,
    messages_of,
    replies_fields,
    result_fields,
)
from server.flower.aggregation.round_updates import Rules
from server.flower.aggregation.rounds import Rounds, RoundStrategy, Stage
from server.flower.aggregation.secure.strategy import SecureMean
from server.flower.aggregation.strategies.classes import CLASSES
from server.flower.application import app_files as appfiles
from server.flower.exchange.calls import MAX_RECORD_BYTES, CoordinatorClient
from server.flower.exchange.coordinator import Coordinator
from server.flower.ipc.failures import raised
from server.flower.ipc.peer import Answer, Caller, Peer
from server.flower.ipc.process_lifetime import end_with
from server.flower.ipc.records import array_record, plain_record
from server.flower.ipc.task import enter_run
from server.flower.job_plan import JobPlan, from_record

__all__ = ["Session", "for_application", "main"]

_MAX_OPTIONS: Final = 100
_MAX_WAIT: Final = 1.0
_LOOK_SECONDS: Final = 0.1
_SLACK_BYTES: Final = 64 * 1024 * 1024


_NO_METRICS: Final = (
    "under [privacy] no loss or metric of a site leaves it; the app may evaluate the model of each "
    "round at the coordinator, on public data (evaluate_fn)"
)

_MASKED_METRICS: Final = (
    "with secure aggregation no loss or metric of a site leaves it, and no site evaluates; the app "
    "may evaluate the model of each round at the coordinator, on public data (evaluate_fn)"
)


class Session:
    """Answers the requests of one job's application. Safe to use from many threads.

    ``failure`` is how the job failed, once it has ``ended``.

    :param application: with which it calls the application back; to be set before :meth:`answer`
        is called where it is not given.
    :param clock: by which the job measures its deadlines.
    """

    def __init__(
        self,
        plan: JobPlan,
        run: Any,
        coordinator: Coordinator,
        application: Caller | None = None,
        *,
        clock: Clock = REAL,
    ) -> None:
        self._plan = plan
        self._visible = plan.spec.aggregation.visible
        self._privacy = (
            None
            if plan.spec.privacy is None
            else ServerPrivacy.from_spec(plan.spec.privacy, plan.noise_secret)
        )
        self.grid = JobGrid(coordinator, _rules(plan), clock)
        self.grid.set_run(run)
        self.rounds = Rounds(coordinator, plan.spec, self.grid)
        self.application = application
        self.ended = threading.Event()
        self.failure: FedlearnError | None = None
        self._denied: FedlearnError | None = None
        self._coordinator = coordinator
        self._files_kept = threading.Lock()

    def answer(self, name: str, fields: dict[str, Any], blobs: list[Part]) -> Answer:
        match name:
            case "nodes":
                return {"nodes": list(self.grid.get_node_ids())}, ()
            case "start":
                return self._start(fields, blobs)
            case "push":
                self._require_visible("sends messages to sites itself")
                messages = messages_of(fields, blobs, max_bytes=self._plan.max_update_bytes)
                return {"ids": list(self.grid.push_messages(messages))}, ()
            case "pull":
                self._require_visible("reads the replies of sites itself")
                return self._pull(fields)
            case "forget":
                self.grid.withdraw(map(str, fields["ids"]))
                return {}, ()
            case "files":
                return self._keep_files(fields, blobs)
            case "done":
                failure = fields.get("failure")
                self.failure = None if failure is None else raised(failure)
                if self.failure is None and not self.rounds.finished:
                    # Flower's legacy API continues even if none of its requests is allowed.
                    self.failure = self._denied
                if self.failure is None:
                    try:
                        self.rounds.check_made()
                    except FedlearnError as error:
                        self.failure = error
                self.ended.set()
                return {}, ()
            case other:
                raise TransportError(f"{other[:40]!r} is not a request")

    @property
    def _called_back(self) -> Caller:
        assert self.application is not None
        return self.application

    def _keep_files(self, fields: dict[str, Any], blobs: list[Part]) -> Answer:
        most = appfiles.most_bytes(self._plan.max_update_bytes)
        files = appfiles.checked(fields.get("names"), [*map(view_of, blobs)], most=most)
        if not self._files_kept.acquire(blocking=False):
            raise TransportError("the application's files are kept already")
        self._coordinator.keep_files(files)
        return {}, ()

    # Rounds that run here

    def _start(self, fields: dict[str, Any], blobs: list[Part]) -> Answer:
        parts = iter(blobs)
        most = self._plan.max_update_bytes
        functions = RemoteFunctions(self._called_back, max_bytes=most)
        stage = Stage(
            strategy=self._strategy(fields.get("strategy"), functions),
            arrays=array_record(fields["arrays"], parts, max_bytes=most),
            rounds=_whole(fields["rounds"], "rounds"),
            timeout=_seconds(fields["timeout"]),
            train_config=_config(fields["train_config"]),
            evaluate_config=_config(fields["evaluate_config"]),
            evaluate=functions.evaluate if fields.get("evaluate") is True else None,
            should_stop=functions.should_stop if fields.get("should_stop") is True else None,
        )
        return result_fields(self.rounds.run(stage))

    def _strategy(self, described: Any, functions: RemoteFunctions) -> RoundStrategy:
        plan, stage = self._plan, self.rounds.next_stage
        if (
            stage == 1
            and self._privacy is not None
            and not self._privacy.spec.insecure_exact_metrics
        ):
            self._coordinator.event("log", line=_NO_METRICS)
        if plan.spec.strategy.name != APP and stage == 1:
            strategy = (
                self._asynchronous()
                if plan.spec.strategy.name in ASYNCHRONOUS
                else self._built_in(plan.spec.strategy.name, self._options_of_job(), stage)
            )
            if replaced := _replaced(described, strategy):
                self._coordinator.event("log", line=replaced, level="warning")
            return strategy
        if self._visible:
            return RemoteStrategy(self._called_back, max_bytes=plan.max_update_bytes)
        if not isinstance(described, dict):
            raise TransportError("a strategy is an object")
        name, title = described.get("name"), str(described.get("title"))[:200]
        if not isinstance(name, str) or name not in CLASSES:
            raise self._refused(f"starts {title}, a strategy of its own that sees single updates")
        options = _options(described.get("options"))
        if self._privacy is not None:
            options |= {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
        metrics = self._privacy is None or self._privacy.spec.insecure_exact_metrics
        own = {
            which: functions.metrics(which)
            for which in ("train", "evaluate")
            if metrics and described.get(f"{which}_metrics") is True
        }
        return self._built_in(
            name,
            options,
            stage,
            train_metrics=own.get("train"),
            evaluate_metrics=own.get("evaluate"),
        )

    def _built_in(self, name: str, options: Mapping[str, Any], stage: int, **own: Any) -> BuiltIn:
        if self._plan.spec.aggregation.masked:
            return self._secure(name, options, stage)
        travels = self._plan.spec.compression.travels
        sites = len(self._plan.spec.sites)
        strategy = BuiltIn(
            name, options, privacy=self._privacy, travels=travels, sites=sites, **own
        )
        strategy.stage = stage
        self.grid.validator.weigh_by(strategy.inner.weighted_by_key)
        return strategy

    def _secure(self, name: str, options: Mapping[str, Any], stage: int) -> BuiltIn:
        if name not in MASKED:
            raise self._refused(f"starts {name}, which needs more than the sum of the updates")
        if stage == 1:
            self._coordinator.event("log", line=_MASKED_METRICS)
        strategy = SecureMean(name, options, self._plan.spec)
        strategy.stage = stage
        return strategy

    def _asynchronous(self) -> BuiltIn:
        spec = self._plan.spec
        strategy = Asynchronous(
            self._coordinator, self.grid, spec, travels=spec.compression.travels
        )
        self.grid.validator.weigh_by(strategy.inner.weighted_by_key)
        return strategy

    def _options_of_job(self) -> dict[str, Any]:
        spec = self._plan.spec
        return {
            "min_train_nodes": 1,
            "min_evaluate_nodes": 1,
            "min_available_nodes": spec.quorum if self._privacy is None else 1,
            "fraction_evaluate": spec.evaluate.fraction,
            **spec.strategy.options,
        }

    # Rounds that the application drives itself

    def _pull(self, fields: dict[str, Any]) -> Answer:
        seconds = min(_seconds(fields["seconds"]), _MAX_WAIT)
        replies = self.grid.pull_messages(map(str, fields["ids"]), seconds=seconds)
        listed, blobs = replies_fields(
            (message.metadata.reply_to_message_id, message) for message in replies
        )
        return {"replies": listed}, blobs

    def _require_visible(self, what: str) -> None:
        if not self._visible:
            raise self._refused(what)

    def _refused(self, what: str) -> FedlearnError:
        self._denied = self._denial(what)
        return self._denied

    def _denial(self, what: str) -> FedlearnError:
        if self._privacy is not None:
            return PrivacyError(
                f"the application {what}; under [privacy] only the noised aggregate leaves the "
                "aggregator",
                hint="start one of Flower's strategies, unchanged, with `strategy.start`",
            )
        return JobError(
            f"the application {what}",
            hint='set [aggregation] updates = "visible-to-app" in the job; its sites have to '
            "allow it",
        )


def main() -> None:
    """Run the job whose sockets are the descriptors in the first two arguments."""
    coordinator_end, app_end, parent = map(int, sys.argv[1:4])
    end_with(parent)
    protect_this_process()
    ours = ProcessChannel(socket.socket(fileno=coordinator_end), limit=MAX_RECORD_BYTES)
    first = ours.receive()
    if first is None:
        raise SystemExit(1)
    header, blobs = first
    plan = from_record(header, blobs)
    coordinator = CoordinatorClient(ours)
    theirs = ProcessChannel(
        socket.socket(fileno=app_end), limit=_SLACK_BYTES + 4 * plan.max_update_bytes
    )
    run = enter_run(plan.run_id)
    seed_generators(derive(plan.spec.seed, "server", 0))
    session = Session(plan, run, coordinator)
    peer = session.application = Peer(theirs, session.answer)
    theirs.send(*for_application(plan))
    peer.start()
    _wait(session, peer)
    if not session.ended.is_set():
        # The process of the application is gone, and the coordinator knows how it ended.
        os._exit(1)
    try:
        coordinator.done(rounds=session.rounds.finished, error=session.failure)
    except TransportError:
        os._exit(1)
    os._exit(0 if session.failure is None else 1)


def _wait(session: Session, peer: Peer) -> None:
    """Wait until the application reports its end, or its process is gone."""
    while not session.ended.wait(_LOOK_SECONDS):
        if peer.wait_closed(0):
            return
    peer.wait_closed(_MAX_WAIT)


def _rules(plan: JobPlan) -> Rules:
    spec = plan.spec
    return Rules(
        sites=spec.sites,
        quorum=spec.quorum,
        seconds=spec.deadline_s,
        stragglers=spec.stragglers,
        max_update_bytes=plan.max_update_bytes,
        visible=spec.aggregation.visible and spec.strategy.name == APP,
        site_filters=spec.aggregation.site_filters == "accept",
        secure=spec.aggregation.masked,
        exact_metrics=spec.privacy is not None and spec.privacy.insecure_exact_metrics,
        adaptive_clip=spec.privacy is not None and spec.privacy.clip_quantile is not None,
        blind=plan.noise_secret,
        compression=spec.compression,
    )


def for_application(plan: JobPlan) -> tuple[dict[str, Any], list[bytes]]:
    """Return what the process of the application gets of a job: no secret is in it."""
    spec = plan.spec
    return {
        "job": spec.name,
        "sites": list(spec.sites),
        "seconds": spec.deadline_s,
        "stragglers": spec.stragglers,
        "seed": spec.seed,
        "run_config": dict(spec.config),
        "max_bytes": plan.max_update_bytes,
        "run": plan.run_id,
    }, [plan.bundle]


def _replaced(described: Any, strategy: BuiltIn) -> str:
    """Return a line if the job's strategy replaces another one of the application; else empty."""
    if not isinstance(described, dict):
        raise TransportError("a strategy is an object")
    own, name = described.get("name"), strategy.name
    if own == name:
        options = _options(described.get("options"))
        if all(
            options[option] == getattr(strategy.inner, option, None)
            for option in STRATEGIES[name]
            if option in options
        ):
            return ""
    title = str(described.get("title")).rpartition(".")[2]
    return (
        f'the job\'s strategy "{name}" replaces that of the app, {title[:200]}; '
        f'name = "{APP}" in [strategy] uses that of the app'
    )


def _options(described: Any) -> dict[str, Any]:
    if not isinstance(described, dict) or len(described) > _MAX_OPTIONS:
        raise TransportError("the options of a strategy are an object")
    for name, value in described.items():
        if not isinstance(value, bool | int | float | str) or len(name) > 100:
            raise TransportError("an option of a strategy is a number or text")
    return dict(described)


def _config(body: Any) -> ConfigRecord:
    record = plain_record(body, None)
    assert isinstance(record, ConfigRecord)
    return record


def _whole(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise TransportError(f"{name} is a whole number")
    return value


def _seconds(value: Any) -> float:
    # The comparison is false for NaN.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31:
        raise TransportError("a time is a number of seconds from 0")
    return float(value)


if __name__ == "__main__":
    main()
