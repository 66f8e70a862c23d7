"""Runs a job with simulated clients; see :func:`simulate`."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from attestation.durable import write_durably
from fedlearn.app import install as bundle
from fedlearn.app.tracebacks import app_traceback
from fedlearn.config.filters import FilterSpec
from fedlearn.data.flower_datasets import provide_as_asked
from fedlearn.errors import ConfigError, FedlearnError, Interrupted, JobError
from fedlearn.job.events import (
    Event,
    JobFailed,
    JobFinished,
    Log,
)
from fedlearn.job.seeds import derive, seed_generators
from fedlearn.job.spec import JobFiles, JobSpec
from fedlearn.privacy import Budget, simulated_secret
from fedlearn.results.run_folder import About, Recorder, RunFolder
from fedlearn.simulation.clients.calls import Backend, Clients
from fedlearn.simulation.clients.in_process import InProcess
from fedlearn.simulation.clients.workers import Workers, app_environment
from fedlearn.simulation.coordinator import SimulatedCoordinator
from fedlearn.simulation.folders import site_folders
from fedlearn.simulation.hooks import Hook
from fedlearn.simulation.jobs import SimulatedJob, read_job
from fedlearn.simulation.kept import checkpoints
from fedlearn.simulation.kept.memories import Memories
from fedlearn.simulation.kept.rounds import Rounds
from fedlearn.simulation.parties.generators import AGGREGATOR, APPLICATION, CLIENT, Parties
from fedlearn.simulation.parties.modules import app_modules, threads
from fedlearn.simulation.parties.output import Streams, captured, here, printing_to
from fedlearn.simulation.result import (
    INSECURE,
    NOISE_FROM_SEED,
    SimulatedRun,
    history_json,
    history_of,
    rounds_of,
)
from fedlearn.simulation.schedule import InOrder, Schedule
from fedlearn.simulation.setup import SimulationSetup
from fedlearn.simulation.virtual_time.examples import examples_in
from fedlearn.simulation.virtual_time.timeline import VirtualTime
from fedlearn.terminal.progress import Show
from fedlearn.update.arrays import decode
from server.flower.aggregation.aggregator import Session, for_application
from server.flower.application.run_app import run_app
from server.flower.ipc.direct import DirectCalls
from server.flower.ipc.failures import failure_of
from server.flower.ipc.task import enter_run
from server.flower.job_plan import JobPlan

__all__ = ["BACKENDS", "simulate"]

BACKENDS: Final = ("process", "ray")
"""Where clients may run."""

_CHECKPOINT: Final = "checkpoint"
_HISTORY: Final = "history.json"
_APP_LOG: Final = "app.log"
_ALONE = threading.Lock()


def simulate(
    job: str | Path | JobFiles,
    *,
    data: Path | None = None,
    setup: SimulationSetup | Path | None = None,
    clients: int | None = None,
    workers: int = 0,
    backend: str = "process",
    seed: int | None = None,
    overrides: Mapping[str, Any] = {},
    folder: Path | None = None,
    resume: bool = False,
    hooks: Sequence[Hook] = (),
    show: Show | None = None,
) -> SimulatedRun:
    """Run a job with simulated clients, and return its model and its history.

    The app is unchanged, and what aggregates, adds noise, clips and compresses is the code of the
    field. Attestation, TLS and sealing are left out, and so are the sandboxes of the apps: run
    only apps that you trust. The same job and seed give the same bits as a deployed run with the
    same data, whatever the number of workers.

    :param job: its file (or the folder with a ``job.toml``), or what was read of it. Its policy
        need not exist.
    :param data: a folder with one folder of data for each site; ``data`` next to the job's file
        if that exists.
    :param setup: of the simulation, or its file: clients, data, virtual time.
    :param clients: how many clients, ``client-0000`` and so on, take the place of the job's
        sites. A quorum stays the same share of them.
    :param workers: processes for the clients; 0: they run in this process.
    :param backend: where workers run: ``process`` on this machine.
    :param seed: in place of the job's.
    :param overrides: values by dotted key in place of those of the job:
        ``{"strategy.name": "fedadam", "config.learning-rate": 0.1}``.
    :param folder: keeps the run, and must not exist; a temporary one by default, which is gone
        with the returned object.
    :param resume: go on from the last checkpoint of the run in ``folder``. One that has finished
        is returned as it is.
    :param hooks: see and change what passes (:mod:`fedlearn.simulation.hooks`).
    :param show: takes the events.
    :raises ConfigError: naming what is wrong with the job, its data, its setup or the folder.
    :raises JobError: when the job fails, as when a client's process cannot be started.
    :raises RoundError: when a round cannot be completed.
    :raises PrivacyError: when the budget of the job does not pay for a round.
    :raises Interrupted: on Ctrl-C; the run is kept, and ``resume`` continues it.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"{backend!r} is not one of {', '.join(BACKENDS)}", key="backend")
    if isinstance(setup, Path):
        setup = SimulationSetup.load(setup)
    setup = setup or SimulationSetup()
    provide_as_asked()
    made = read_job(
        job,
        clients=clients if clients is not None else setup.clients.count or None,
        seed=seed,
        overrides=overrides,
    )
    numbered = clients is not None or setup.clients.count > 0
    folders = site_folders(made, data=data, setup=setup, numbered=numbered)
    if not _ALONE.acquire(blocking=False):
        raise JobError(
            "another simulation runs in this process",
            hint="its generators are those of the whole process; start another process",
        )
    try:
        kept, temporary = _folder(made, folder, resume=resume)
        if resume and (kept.path / _HISTORY).exists():
            return _finished(kept, made.spec)
        simulation = _Simulation(
            made,
            kept,
            data=folders,
            server_node_config=_server_node_config(setup, folders),
            schedule=_schedule(setup, made.spec, folders),
            hooks=hooks,
            workers=workers,
            backend=backend,
            filters=setup.clients.filters,
            show=show,
            again=_again(kept.path),
        )
        run = simulation.run(resume=resume)
        if temporary:
            run.removed_with_it()
        return run
    finally:
        _ALONE.release()


@dataclass(slots=True)
class _Simulation:
    """One simulation in one folder."""

    job: SimulatedJob
    folder: RunFolder
    data: Mapping[str, Path]
    server_node_config: Mapping[str, Any]
    schedule: Schedule
    hooks: Sequence[Hook]
    workers: int
    backend: str
    filters: tuple[FilterSpec, ...]
    show: Show | None
    again: str
    _recorder: Recorder = field(init=False)
    _rounds: Rounds = field(init=False)
    _streams: Streams = field(init=False, default_factory=here)

    def run(self, *, resume: bool) -> SimulatedRun:
        """Run the job from its last checkpoint, or from the first round, to its end."""
        folder, spec = self.folder, self.job.spec
        state = folder.simulation
        with contextlib.ExitStack() as open_:
            self._rounds = Rounds(self.schedule)
            self._recorder = open_.enter_context(folder.record())
            if resume:
                self._rounds.remember(folder.events())
            kept = checkpoints.read(state / _CHECKPOINT) if resume else None
            state.mkdir(mode=0o700, exist_ok=True)
            open_.enter_context(threads(app_environment(spec)))
            memories = Memories(state, None if kept is None else kept.memories)
            open_.callback(memories.close)
            code = state / "code"
            shutil.rmtree(code, ignore_errors=True)
            installed = bundle.unpack(self.job.bundle, code)
            open_.enter_context(app_modules(code))
            if self.show is not None:
                open_.enter_context(self.show)
            folder.logs.mkdir(exist_ok=True)
            log = open_.enter_context((folder.logs / _APP_LOG).open("a", encoding="utf-8"))
            parties = Parties()
            plan = _plan(self.job)
            backend = self._backend(plan, installed, parties)
            open_.callback(backend.close)

            def wrote(site: str, line: str) -> None:
                log.write(f"{site} | {line}\n")
                self._show(Log(line=line, site=site), _now())

            coordinator = SimulatedCoordinator(
                plan,
                data=self.data,
                backend=backend,
                schedule=self.schedule,
                hooks=self.hooks,
                memories=memories,
                report=self._report,
                wrote=wrote,
                checkpoint=state / _CHECKPOINT,
                kept=kept,
            )
            started = time.monotonic()
            session = self._through(plan, installed, coordinator, parties)
            return self._end(coordinator, session, time.monotonic() - started)

    def _backend(self, plan: JobPlan, installed: bundle.Installed, parties: Parties) -> Backend:
        count = self.workers
        if self.backend == "ray":
            from fedlearn.simulation.clients.ray_workers import RayWorkers

            return RayWorkers(
                plan.spec,
                self.job.bundle,
                run=plan.run_id,
                count=count,
                filters=self.filters,
            )
        if not count and int(plan.spec.resources.cpu) > 1:
            # The aggregator has one thread, and such an app has more: it needs another process.
            count = 1
        if count:
            return Workers(plan.spec, installed, run=plan.run_id, count=count, filters=self.filters)
        return InProcess(
            lambda: Clients(plan.spec, installed, run=plan.run_id, filters=self.filters),
            lambda: parties.entered(CLIENT),
        )

    def _through(
        self,
        plan: JobPlan,
        installed: bundle.Installed,
        coordinator: SimulatedCoordinator,
        parties: Parties,
    ) -> Session:
        """Run ServerApp and aggregator to the end of the job."""
        calls = DirectCalls(
            into_aggregator=lambda: parties.entered(AGGREGATOR),
            into_application=lambda: parties.entered(APPLICATION),
        )
        with parties.entered(AGGREGATOR):
            run = enter_run(plan.run_id)
            seed_generators(derive(plan.spec.seed, "server", 0))
            session = Session(plan, run, coordinator, calls.aggregator, clock=self.schedule.clock)
        session.grid.grace = 0.0  # no site connects late
        calls.handler = session.answer
        header, _ = for_application(plan)
        failure: FedlearnError | None = None
        try:
            with parties.entered(APPLICATION), captured(coordinator.log):
                run_app(installed, header, calls.application, node_config=self.server_node_config)
        except KeyboardInterrupt:
            raise Interrupted(
                f"the run is kept in {self.folder.path}", hint=f"{self.again} continues it"
            ) from None
        except FedlearnError as error:
            failure = error
        except BaseException as error:  # noqa: BLE001  user code may raise anything; it is reported
            failure = _raised(error, installed.folder, coordinator)
        reported = None if failure is None else failure_of(failure)
        calls.application.call("done", {"failure": reported})
        return session

    def _end(
        self, coordinator: SimulatedCoordinator, session: Session, seconds: float
    ) -> SimulatedRun:
        error = session.failure
        if error is not None:
            self._report(JobFailed(detail=str(error), hint=error.hint))
            raise error
        folder, last, left_out = self.folder, coordinator.model, insecure(self.job.spec)
        self._rounds.complete(0 if last is None else last.round)
        finished, real = self._rounds.finished, self._rounds.real
        rounds = rounds_of(session.rounds.result, finished, real, timed=self.schedule.timed)
        metrics = dict(finished[max(finished)].metrics) if finished else {}
        model: dict[str, Any] = {}
        if last is not None:
            document = bytes(last.model)
            write_durably(folder.model, document)
            model = decode(document, max_bytes=len(document))
        self._report(
            JobFinished(
                # The field `model` names a sealed model, and there is none.
                detail=left_out
                if last is not None
                else f"the app ran no round, so that there is no model; {left_out}",
                seconds=seconds,
                metrics=metrics,
            )
        )
        write_durably(folder.path / _HISTORY, history_json(rounds))
        shutil.rmtree(folder.simulation)
        return SimulatedRun(folder=folder.path, model=model, history=rounds, insecure=left_out)

    def _report(self, event: Event) -> None:
        """Keep an event, and show it."""
        self._rounds.note(event)
        now = _now()
        self._recorder.add(event, unix_ms=now, sequence=self._recorder.sequence + 1)
        self._show(event, now)

    def _show(self, event: Event, unix_ms: int) -> None:
        if self.show is not None:
            with printing_to(self._streams):
                self.show.show(event, unix_ms=unix_ms)


def _server_node_config(setup: SimulationSetup, folders: Mapping[str, Path]) -> dict[str, Any]:
    """Return what the ServerApp finds in its context: the folder of its test data, if any."""
    if setup.data is None or not setup.data.server_test:
        return {}
    return {"data": str(next(iter(folders.values())).parent)}


def insecure(spec: JobSpec) -> str:
    """Return what a simulation of a job leaves out, in words."""
    return INSECURE if spec.privacy is None else f"{INSECURE}; {NOISE_FROM_SEED}"


def _plan(job: SimulatedJob) -> JobPlan:
    spec = job.spec
    secret = b""
    if spec.privacy is not None:
        Budget.require(spec.privacy, spec.rounds)
        secret = simulated_secret(spec.privacy, seed=spec.seed)
    return JobPlan(spec=spec, bundle=job.bundle, noise_secret=secret)


def _schedule(setup: SimulationSetup, spec: JobSpec, folders: Mapping[str, Path]) -> Schedule:
    if setup.time is None:
        return InOrder()
    return VirtualTime.of(setup.time, spec.seed, spec.sites, examples_in(folders))


def _folder(job: SimulatedJob, folder: Path | None, *, resume: bool) -> tuple[RunFolder, bool]:
    """Return the folder of the run, and whether it is a temporary one."""
    spec = job.spec
    about = About(
        job=spec.name,
        metric=spec.evaluate.metric,
        tee="none",
        digest=spec.digest(),
        bundle=hashlib.sha256(job.bundle).digest(),
        simulated=True,
    )
    if folder is None:
        if resume:
            raise ConfigError("is needed to resume a run", key="folder")
        path = Path(tempfile.mkdtemp(prefix="fedlearn-simulation-")) / "run"
        made, temporary = RunFolder.create(path, about), True
    elif resume:
        made, temporary = RunFolder.load(folder), False
        _check_same(made, about)
        return made, temporary
    else:
        made, temporary = RunFolder.create(folder, about), False
    made.job.write_text(spec.to_toml(), encoding="utf-8")
    return made, temporary


def _check_same(folder: RunFolder, about: About) -> None:
    where, begun = str(folder.path), folder.about
    if not begun.simulated:
        raise ConfigError(
            "is the run of a trial, not of a simulation",
            where=where,
            hint="`fedlearn job try --resume` continues it",
        )
    for what, before, now in (
        ("job", begun.digest, about.digest),
        ("app", begun.bundle, about.bundle),
    ):
        if before != now:
            raise ConfigError(
                f"the {what} was changed since this run began",
                where=where,
                hint="take the change back, or begin a run without resuming",
            )


def _raised(error: BaseException, code: Path, coordinator: SimulatedCoordinator) -> JobError:
    """Put the traceback into the log of the job, and return the failure of the job."""
    found = app_traceback(error, code)
    for line in found.lines:
        coordinator.log(line, level="error")
    return JobError(
        f"the application raised an exception: {found.reason}",
        hint="the log of the job has the traceback",
    )


def _again(folder: Path) -> str:
    return f"`simulate(..., folder={str(folder)!r}, resume=True)`"


def _finished(folder: RunFolder, spec: JobSpec) -> SimulatedRun:
    """Return a run that has finished."""
    model: dict[str, Any] = {}
    if folder.model.exists():
        document = folder.model.read_bytes()
        model = decode(document, max_bytes=len(document))
    return SimulatedRun(
        folder=folder.path,
        model=model,
        history=history_of((folder.path / _HISTORY).read_bytes()),
        insecure=insecure(spec),
    )


def _now() -> int:
    return int(time.time() * 1000)
