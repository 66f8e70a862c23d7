"""The demo, step by step, with the public commands and API.

:func:`perform` runs the demo and returns its outcome as plain values. It shows the progress through
a :class:`Narrator`; its caller writes the report.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from attestation.config import dumps
from attestation.evidence import Tee
from fedlearn import __version__
from fedlearn.cli.demo.impostor import IMPOSTOR, impostor
from fedlearn.cli.demo.proofs import Opened, OwnerKey, check_ledger, open_model
from fedlearn.demo import app, baselines, data
from fedlearn.demo.data import DEFAULT_SEED, DEFAULT_SITES
from fedlearn.demo.outcome import DemoOutcome, LedgerFacts, RefusedSite, RoundFacts, SiteFacts
from fedlearn.errors import JobError
from fedlearn.job import events
from fedlearn.job.spec import JobSpec
from fedlearn.job.state import JobStatus
from fedlearn.local.children import Children
from fedlearn.local.federation import Federation
from fedlearn.local.machines import TeeChoice, choose_tee
from fedlearn.local.policy import policy_text
from fedlearn.results.history import RunHistory, Site
from fedlearn.terminal.progress import Show

__all__ = ["MakeFederation", "Narrator", "Options", "perform"]

_DEADLINE_SECONDS: Final = 120
_ALTERATION: Final = (
    "\n\nWEIGHTS_SEEN = []  # the altered client would keep every model that it gets\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options. ``rounds`` is None for the app's own number.

    ``program``  the command line before its options
    ``limits``   what this run does not show, for the report, in addition to the common limits
    """

    data: str = "medpar"
    sites: int = DEFAULT_SITES
    rounds: int | None = None
    tee: TeeChoice = "auto"
    seed: int = DEFAULT_SEED
    output: Path = Path("fedlearn-demo")
    program: str = "fedlearn demo"
    limits: tuple[str, ...] = ()

    def command(self, rounds: int) -> str:
        """Return the command line that repeats the run."""
        return (
            f"{self.program} --data {self.data} --sites {self.sites} --rounds {rounds} "
            f"--tee {self.tee} --seed {self.seed}"
        )


class Narrator(Protocol):
    """Shows the progress, as text or as JSON."""

    def act(self, title: str) -> None:
        """A new step begins."""
        ...

    def note(self, text: str, *, warning: bool = False) -> None:
        """A fact about the run."""
        ...

    def ran(self, command: str, answer: str) -> None:
        """A public command was run, with this output."""
        ...

    def job(self, metric: str) -> contextlib.AbstractContextManager[Show]:
        """The job begins: show its events until the context ends."""
        ...


class MakeFederation(Protocol):
    """Makes the coordinator and the sites of a demo."""

    def __call__(self, folder: Path, children: Children, *, tee: Tee) -> Federation:
        """Return a federation that has not been started."""
        ...


@dataclass(slots=True)
class _Clock:
    """The duration of each step, and the time since the start."""

    began: float = field(default_factory=time.time)
    acts: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def act(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.acts[name] = time.monotonic() - started


def perform(
    options: Options,
    folder: Path,
    narrator: Narrator,
    federation: MakeFederation = Federation,
) -> DemoOutcome:
    """Run the demo with all state below ``folder``; return its outcome.

    :param federation: makes the federation; by default its sites are processes.

    :raises FedlearnError: when a step fails. All processes have ended then.
    """
    clock = _Clock()
    tee, warning = choose_tee(options.tee)
    narrator.note(warning, warning=True)
    environment = {"FLWR_HOME": str(folder / "flower"), "PYTHONUNBUFFERED": "1"}
    with Children(folder / "logs", environment) as children:
        made = federation(folder, children, tee=tee)
        try:
            return _Stage(options, folder, narrator, clock, children, made).play()
        finally:
            made.close()


class _Stage:
    def __init__(
        self,
        options: Options,
        folder: Path,
        narrator: Narrator,
        clock: _Clock,
        children: Children,
        federation: Federation,
    ) -> None:
        self._options, self._folder, self._narrator = options, folder, narrator
        self._clock, self._children, self._federation = clock, children, federation
        self._history = RunHistory()
        self._refused: list[RefusedSite] = []
        self._owner = OwnerKey.make(folder / "owner" / "owner.pem")
        self._stranger = OwnerKey.make(folder / "stranger" / "stranger.pem")

    def play(self) -> DemoOutcome:
        """Run all steps in order."""
        with self._clock.act("data"):
            dealt = self._deal()
        # Flower takes a second to import; the coordinator's processes start meanwhile.
        with self._clock.act("coordinator"), ThreadPoolExecutor(max_workers=1) as pool:
            bundles = pool.submit(self._bundles, dealt)
            self._open_house(dealt)
            bundle, altered = bundles.result()
        with self._clock.act("sites"):
            self._enroll(dealt, sha256(bundle).digest())
        with self._clock.act("training"):
            spec = self._write_job(dealt, sha256(bundle).digest())
            self._run_job(spec, bundle, altered)
        with self._clock.act("comparison"):
            compared = self._compare(dealt)
        with self._clock.act("proofs"):
            self._narrator.act("The ledger, and the sealed model")
            ledger = check_ledger(self._federation, self._narrator.ran)
            opened = open_model(
                self._federation,
                self._history.model or spec.name,
                owner=self._owner,
                stranger=self._stranger,
                out=self._options.output / "model.flsw",
                narrate=self._narrator.ran,
            )
        return self._outcome(dealt, spec, compared, ledger, opened)

    # --- the steps --------------------------------------------------------------------

    def _deal(self) -> data.DemoData:
        self._narrator.act("Data at the sites")
        options = self._options
        dealt = data.prepare(options.data, sites=options.sites, seed=options.seed)
        self._narrator.note(f"{dealt.source}; to {dealt.task}")
        self._narrator.note(f"{dealt.partition}; each site has its own data only")
        for site in dealt.sites:
            data.write(site, self._data_folder(site.name))
        return dealt

    def _bundles(self, dealt: data.DemoData) -> tuple[bytes, bytes]:
        """Return the app's bundle, and one of the app with an altered client."""
        from server.flower.application import bundle

        altered = self._folder / IMPOSTOR / "app" / dealt.app
        shutil.copytree(
            app.folder(dealt.app), altered, ignore=shutil.ignore_patterns("__pycache__")
        )
        client = altered / f"{dealt.app}_app" / "client_app.py"
        client.write_text(client.read_text() + _ALTERATION)
        return bundle.build(app.folder(dealt.app)), bundle.build(altered)

    def _open_house(self, dealt: data.DemoData) -> None:
        self._narrator.act("A coordinator, and machines for the sites")
        names = [site.name for site in dealt.sites]
        self._federation.open(names, pinned=[IMPOSTOR])
        kind = "software TPM" if self._federation.tee is Tee.TPM else "development key"
        self._narrator.note(f"coordinator in a process of its own, attested by its {kind}")

    def _enroll(self, dealt: data.DemoData, bundle: bytes) -> None:
        self._narrator.act(f"{len(dealt.sites)} sites enroll, each with a token for one use")
        for site in dealt.sites:
            self._federation.join(
                site.name, data={dealt.name: self._data_folder(site.name)}, bundle=bundle
            )
            self._narrator.note(f"{site.name}: {site.train_rows + site.test_rows} {dealt.unit}")
        self._federation.await_connected(site.name for site in dealt.sites)

    def _write_job(self, dealt: data.DemoData, bundle: bytes) -> JobSpec:
        names = [site.name for site in dealt.sites]
        text = policy_text(
            self._federation, name=dealt.name, bundle=bundle, app=dealt.app, sites=names
        )
        (self._folder / "policy.toml").write_text(text)
        settings = baselines.settings_of(dealt, rounds=self._options.rounds)
        job = {
            "name": dealt.name,
            "app": str(app.folder(dealt.app)),
            "rounds": settings["num-server-rounds"],
            "sites": names,
            "quorum": len(names),
            "deadline_s": _DEADLINE_SECONDS,
            "policy": "policy.toml",
            "seed": dealt.seed,
            "owner_key": self._owner.public,
            "config": {**dealt.settings, "seed": dealt.seed, "min-sites": len(names)},
            "evaluate": {"metric": dealt.metric},
            "data": {name: {"set": dealt.name} for name in names},
        }
        path = self._folder / "job.toml"
        path.write_text(dumps(job))
        return JobSpec.load(path)

    def _run_job(self, spec: JobSpec, bundle: bytes, altered: bytes) -> None:
        self._narrator.act(f"{spec.rounds} rounds; in the middle an impostor requests admission")
        policy = (self._folder / "policy.toml").read_text()
        operator = self._federation.operator
        with impostor(
            self._federation, spec, bundle=bundle, altered=altered, policy=policy
        ) as rogue:
            operator.submit_job(job_toml=spec.to_toml(), bundle=bundle, policy_toml=policy)
            with self._narrator.job(spec.evaluate.metric) as show:
                for item in operator.follow_job(spec.name):
                    event = events.Event.decode(item.kind, item.json)
                    if not rogue.concerns(event):
                        show.show(event, unix_ms=item.unix_ms)
                        self._history.add(event, unix_ms=item.unix_ms)
                    if isinstance(event, events.RoundStarted) and rogue.due(event.round):
                        self._refused.append(rogue.act(event.round))
                        for line in _refusal_lines(self._refused[-1]):
                            show.show(events.Log(line=line, site=IMPOSTOR, level="warning"))
                    if event.final:
                        break
        if self._history.status == "failed":
            raise JobError(f"the job failed: {self._history.detail}", hint=self._history.hint)
        state = operator.get_job(spec.name)
        if state.status is not JobStatus.FINISHED:
            raise JobError(f"the job is {state.status}: {state.detail}")

    def _compare(self, dealt: data.DemoData) -> baselines.Baselines:
        self._narrator.act("What each site reaches alone, for comparison")
        settings = baselines.settings_of(dealt, rounds=self._options.rounds)
        return baselines.compare(dealt, settings)

    # --- the outcome ------------------------------------------------------------------

    def _outcome(
        self,
        dealt: data.DemoData,
        spec: JobSpec,
        compared: baselines.Baselines,
        ledger: LedgerFacts,
        opened: Opened,
    ) -> DemoOutcome:
        history, weights = self._history, opened.weights
        judge = baselines.judge(dealt, baselines.settings_of(dealt))
        pooled = dealt.pooled()
        scored = judge.score(weights, pooled.test)
        last = history.finished[-1].metrics if history.finished else {}
        reported = float(last.get(dealt.metric, math.nan))
        # The order of sums differs between one batch and many: the result of one row may change.
        matches = math.isfinite(reported) and abs(scored - reported) <= 1 / pooled.test_rows
        return DemoOutcome(
            data=dealt.name,
            title=dealt.title,
            task=dealt.task,
            source=dealt.source,
            licence=dealt.licence,
            partition=dealt.partition,
            unit=dealt.unit,
            metric=dealt.metric,
            federated=reported,
            error=float(last.get(f"{dealt.metric}-error", math.nan)),
            pooled=compared.pooled,
            member=compared.member,
            members=compared.members,
            seed=dealt.seed,
            started=datetime.fromtimestamp(self._clock.began, UTC).isoformat(timespec="seconds"),
            seconds=time.time() - self._clock.began,
            version=__version__,
            command=self._options.command(spec.rounds),
            policy=spec.policy_digest.hex(),
            gain=judge.gain(weights, [site.weights for site in compared.sites], pooled.test),
            insecure=self._insecure(),
            sites=tuple(self._site_facts(site, judge, compared, opened) for site in dealt.sites),
            refused=tuple(self._refused),
            rounds=tuple(
                RoundFacts(
                    number=each.number,
                    seconds=each.seconds,
                    sites=each.sites,
                    bytes=each.bytes,
                    metric=float(each.metrics.get(dealt.metric, math.nan)),
                    loss=float(each.metrics.get("loss", math.nan)),
                )
                for each in history.finished
            ),
            ledger=ledger,
            model=dataclasses.replace(opened.facts, matches=matches),
            timings=dict(self._clock.acts),
            limits=self._limits(),
        )

    def _site_facts(
        self,
        site: data.SiteData,
        judge: baselines.Judge,
        compared: baselines.Baselines,
        opened: Opened,
    ) -> SiteFacts:
        seen = self._history.sites.get(site.name, Site(name=site.name))
        alone = next(each for each in compared.sites if each.site == site.name)
        pooled = compared.test
        admitted = seen.admitted_unix_ms
        return SiteFacts(
            name=site.name,
            tee=seen.tee,
            train=site.train_rows,
            test=site.test_rows,
            members=len(site.members),
            admitted=admitted / 1000 - self._clock.began if admitted else math.nan,
            rounds=seen.updates,
            bytes=seen.bytes,
            alone=alone.all,
            alone_own=alone.own,
            federated_own=judge.score(opened.weights, site.test),
            gain=judge.gain(opened.weights, [alone.weights], pooled),
            gain_own=judge.gain(opened.weights, [alone.weights], site.test),
            hardware_id=self._federation.machines[site.name].hardware_id.hex(),
        )

    def _insecure(self) -> str:
        _, warning = choose_tee(self._options.tee)
        return warning[:1].upper() + warning[1:] + "."

    def _limits(self) -> tuple[str, ...]:
        return (
            *self._options.limits,
            "All parties ran as one user on one machine, so only their folders separated "
            "their files.",
            "The model was trained without differential privacy: the records did not leave "
            "their sites, but the model may reveal some of them.",
        )

    # --- small pieces -----------------------------------------------------------------

    def _data_folder(self, site: str) -> Path:
        return self._folder / "sites" / site / "data"


def _refusal_lines(refused: RefusedSite) -> Iterator[str]:
    yield f"REFUSED {refused.name}: {refused.reason}"
    for finding in refused.against:
        yield (
            f"  {finding.get('claim')}: expected {finding.get('expected')}, "
            f"found {finding.get('actual')}"
        )
