# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)
"""``site.toml``: one site, and what it runs on its data.

::

    state = "state"                    # keys and certificates of this site

    [launcher]
    kind = "process"                   # or "kubernetes"

    [data.medpar]                      # what a job calls the data set
    path = "/srv/medpar"               # or claim = "a PersistentVolumeClaim"
    jobs = ["mortality-*"]             # which jobs may use it; all that are accepted by default
    epsilon = 20.0                     # what all jobs together may spend; no limit by default
    delta = 1e-6

    [accept]
    bundles = ["9f86d081..."]          # SHA-256 of the app bundles that were reviewed
    other_bundles = "refuse"           # "ask" for approval here, or "insecure-accept"
    approval = "automatic"             # "manual": a person here approves every job
    hours = "20:00-06:00"              # UTC; always by default
    data_paths = ["/srv"]              # below these a job may name a path of its own
    visible_updates = false            # true: also jobs whose app receives single updates
    sandbox = "best-effort"            # "full": no job where the kernel lacks a protection
    app_logs = "off"                   # "sealed": the job's owner may read what the app writes

    [privacy]                          # the least that a job must promise
    required = true
    max_epsilon = 8.0
    insecure_exact_metrics = false     # true: also jobs whose metrics leave without noise
    filters = [{ kind = "clip", norm = 1.0 }]  # what is done to each update before it leaves

    [caps]                             # the most that one client gets
    # [kubernetes]                     # for launcher.kind = "kubernetes"; see kubernetes.py
    [attester]                         # what makes this site's evidence; see attesterfile
    [trust]                            # anchors for verifying the coordinator; see trustfile

The page is docs/reference/site.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from attestation.config import (
    FieldType,
    InconsistentValues,
    InvalidValue,
    ReadContext,
    choice,
    each,
    file_path,
    flag,
    hexadecimal,
    matching,
    number,
    option,
    seq,
    table,
    tables,
    toml,
    whole,
)
from edge.config.kubernetes import KubernetesSettings
from fedlearn import config
from fedlearn.config import NAME
from fedlearn.config.attesterfile import AttesterSettings
from fedlearn.config.filters import MOST_FILTERS, FilterSpec, order_fault
from fedlearn.config.trustfile import Trust
from fedlearn.job.placement import LAUNCHERS
from fedlearn.privacy.spec import UNITS

__all__ = ["Accept", "Caps", "DataSet", "Hours", "Launcher", "PrivacyFloor", "SiteConfig"]

_JOB_PATTERN: Final = re.compile(r"[a-z0-9*][a-z0-9*-]{0,62}")
_HOURS: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """A part of every day in minutes since midnight, UTC; it may pass midnight."""

    start: int
    end: int

    def contain(self, minute: int) -> bool:
        """Return whether ``minute`` (0 to 1439) is in it; the end is not."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def __str__(self) -> str:
        start, end = (f"{at // 60:02d}:{at % 60:02d}" for at in (self.start, self.end))
        return f"{start}-{end} UTC"


def _hours() -> FieldType[Hours]:
    def convert(value: object, path: toml.Path, context: ReadContext) -> Hours:
        found = _HOURS.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise InvalidValue
        start, end = (60 * int(found[i]) + int(found[i + 1]) for i in (1, 3))
        if start == end:
            raise InvalidValue("begins and ends at the same time: leave it out for the whole day")
        return Hours(start=start, end=end)

    json = {"type": "string", "pattern": f"^(?:{_HOURS.pattern})$"}
    return FieldType('hours of the day such as "20:00-06:00"', convert, json=json)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """How the site starts clients.

    ``kind``     as processes of this machine, or in a cluster
    ``start_s``  seconds that a client may take to start
    ``stop_s``   seconds that a client may take to stop
    """

    kind: str = option(choice(*LAUNCHERS), default="process")
    start_s: float = option(number(1, 3600), default=60.0)
    stop_s: float = option(number(0.1, 600), default=10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One data set: a path, or a PersistentVolumeClaim, and the jobs that may use it.

    ``path``     where the data is on this machine
    ``claim``    the PersistentVolumeClaim that holds the data
    ``jobs``     which jobs may use it; all that are accepted by default
    ``epsilon``, ``delta``
                 what all jobs together may spend (:mod:`edge.agent.data_budget`); no limit by
                 default
    ``unit``     what the budget is for: a ``site``, each ``user`` or each ``example``
    ``records_per_user``
                 for the unit ``user``: the most records that one user has; without it, a job that
                 protects examples has no bound for a user
    """

    path: Path | None = option(file_path(), default=None)
    claim: str = option(config.name(), default="")
    jobs: tuple[str, ...] = option(
        seq(matching(_JOB_PATTERN, "a job's name, in which * stands for anything"), most=1000),
        default=("*",),
    )
    epsilon: float | None = option(number(1e-6, 1e6), default=None)
    delta: float | None = option(number(1e-15, 0.5), default=None)
    unit: str = option(choice(*UNITS), default="site")
    records_per_user: int | None = option(whole(1, 10**9), default=None)

    def __post_init__(self) -> None:
        if self.records_per_user is not None and self.unit != "user":
            raise InconsistentValues((("records_per_user",), 'only for unit = "user"'))
        if (self.path is None) == (not self.claim):
            raise InconsistentValues(((), "needs exactly one of path and claim"))
        if (self.epsilon is None) != (self.delta is None):
            missing = "delta" if self.delta is None else "epsilon"
            raise InconsistentValues(((missing,), "a privacy budget states epsilon and delta"))

    @property
    def place(self) -> str:
        """Where the data is: an absolute path without links, or the name of a claim."""
        return str(self.path.resolve()) if self.path is not None else self.claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """Which jobs this site runs.

    ``bundles``          SHA-256 of the app bundles that were reviewed
    ``other_bundles``    ``ask`` for approval here, ``refuse``, or ``insecure-accept``
    ``approval``         ``manual``: a person here approves every job
    ``hours``            of the day, UTC, in which jobs may run; always by default
    ``data_paths``       below these a job may name a path of its own
    ``policy_keys``      SHA-256 of the SPKI of keys that must have signed a job's policy
    ``visible_updates``  whether to run jobs whose app receives this site's update by itself
                         (``updates = "visible-to-app"``), and not only what was aggregated
    ``sandbox``          "full": a client runs no app where the kernel lacks one of
                         :data:`fedlearn.sandbox.FULL`
    ``app_logs``         ``sealed``: what an app writes here is sealed to the owner of its job, if
                         the job asks for it and has no ``[privacy]``; ``insecure-plain``: it is
                         written into a file of this machine, whose attester is an insecure
                         one; ``off``: it is discarded
    """

    bundles: tuple[bytes, ...] = option(seq(hexadecimal(32), most=10_000, unique=True), default=())
    other_bundles: str = option(choice("refuse", "ask", "insecure-accept"), default="refuse")
    approval: str = option(choice("automatic", "manual"), default="automatic")
    hours: Hours | None = option(_hours(), default=None)
    data_paths: tuple[Path, ...] = option(seq(file_path(), most=100), default=())
    policy_keys: tuple[bytes, ...] = option(seq(hexadecimal(32), most=100), default=())
    visible_updates: bool = option(flag(), default=False)
    sandbox: str = option(choice("best-effort", "full"), default="best-effort")
    app_logs: str = option(choice("off", "sealed", "insecure-plain"), default="off")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyFloor:
    """The least that a job must promise about what leaves this site.

    ``required``                only jobs with ``[privacy]``
    ``max_epsilon``             the largest epsilon of a job
    ``max_delta``               the largest delta of a job
    ``min_noise_multiplier``    the smallest noise multiplier of a job
    ``unit``                    the smallest unit that a job must protect. With ``user`` or
                                ``example`` jobs run here whose app clips, or adds the noise,
                                itself; with ``site`` fedlearn's own code does it
    ``insecure_exact_metrics``  also run jobs whose metrics leave the site without noise
    ``filters``                 what a client does to every update before it leaves
                                (:mod:`fedlearn.config.filters`), in this order
    """

    required: bool = option(flag(), default=False)
    max_epsilon: float = option(number(1e-6, 1e6), default=1e6)
    max_delta: float = option(number(1e-15, 0.5), default=0.5)
    min_noise_multiplier: float = option(number(0, 1e6), default=0.0)
    unit: str = option(choice(*UNITS), default="site")
    insecure_exact_metrics: bool = option(flag(), default=False)
    filters: tuple[FilterSpec, ...] = option(tables(FilterSpec, most=MOST_FILTERS), default=())

    def __post_init__(self) -> None:
        faults = [(("filters", place), fault) for place, fault in order_fault(self.filters)]
        if faults:
            raise InconsistentValues(*faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """The most that one client gets.

    ``cpu``         cores
    ``memory_mib``  memory in MiB
    ``gpu``         number of GPUs
    ``jobs``        how many jobs run at once
    ``cost``        of one client's hour, in the unit that the federation agreed on; a coordinator
                    that chooses sites receives it
    """

    cpu: float = option(number(0.1, 1024), default=1024.0)
    memory_mib: int = option(whole(64, 16 * 1024 * 1024), default=16 * 1024 * 1024)
    gpu: int = option(whole(0, 64), default=64)
    jobs: int = option(whole(1, 1000), default=8)
    cost: float | None = option(number(0, 1e9), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConfig:
    """One site. Paths are relative to the file that named them.

    ``state``  the folder of the keys and certificates of this site
    """

    state: Path = option(file_path())
    launcher: Launcher = option(table(Launcher), factory=Launcher)
    attester: AttesterSettings = option(table(AttesterSettings), factory=AttesterSettings)
    data: Mapping[str, DataSet] = option(
        each(table(DataSet), key=NAME), factory=lambda: MappingProxyType({})
    )
    accept: Accept = option(table(Accept), factory=Accept)
    privacy: PrivacyFloor = option(table(PrivacyFloor), factory=PrivacyFloor)
    caps: Caps = option(table(Caps), factory=Caps)
    trust: Trust = option(table(Trust), factory=Trust)
    kubernetes: KubernetesSettings | None = option(table(KubernetesSettings), default=None)

    def __post_init__(self) -> None:
        inside = self.launcher.kind == "kubernetes"
        if inside and self.kubernetes is None:
            raise InconsistentValues(
                (("launcher", "kind"), "needs a table [kubernetes] with an image")
            )
        if self.accept.app_logs == "insecure-plain" and (inside or not self.attester.insecure):
            wish = (
                '"insecure-plain" writes what apps print into a file of this machine; it needs '
                'launcher.kind = "process" and an attester of an insecure kind'
            )
            raise InconsistentValues((("accept", "app_logs"), wish))
        for name, found in self.data.items():
            if found.claim and not inside:
                raise InconsistentValues(
                    (("data", name, "claim"), 'needs launcher.kind = "kubernetes"')
                )
            if found.path is not None and inside:
                wish = "a pod cannot read a path of this machine: name a claim"
                raise InconsistentValues((("data", name, "path"), wish))

    @classmethod
    def load(cls, path: Path) -> SiteConfig:
        """Return the configuration in ``path``.

        :raises ConfigError: naming file, line and key of everything that is wrong.
        """
        return config.read_file(cls, path, made_by="fedlearn-edge init")
