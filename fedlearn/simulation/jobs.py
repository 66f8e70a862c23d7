"""The job of a simulation: read from its file, with other sites and other values where asked.

The policy of the job and the key of its owner are not used, and need not be there: nobody attests,
and nothing is sealed.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from attestation import config as toml_config
from attestation.config import toml
from fedlearn import config
from fedlearn.app.checks import MAX_BUNDLE_BYTES, check_folder
from fedlearn.errors import ConfigError
from fedlearn.job.asynchronous.options import ASYNCHRONOUS
from fedlearn.job.constraints.robust_rules import too_few_updates
from fedlearn.job.placement import MAX_SITES, Placement
from fedlearn.job.spec import MAX_JOB_TOML_BYTES, JobFiles, JobSpec
from fedlearn.job.strategies import APP
from fedlearn.simulation.setup import MAX_CLIENTS

__all__ = ["SimulatedJob", "metric_of", "name_of", "read_job"]

_NO_POLICY: Final = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedJob:
    """A job as it is simulated.

    ``file``    where it was read
    ``bundle``  the app
    """

    spec: JobSpec
    file: Path
    bundle: bytes = field(repr=False)


def read_job(
    job: str | Path | JobFiles,
    *,
    clients: int | None = None,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SimulatedJob:
    """Return the job to simulate.

    :param job: its file or the folder with a ``job.toml``, or what was read of it.
    :param clients: how many clients take the place of its sites.
    :param seed: in place of the job's.
    :param overrides: values by dotted key, in place of those of the file.
    :raises ConfigError: naming file, line and key of everything that is wrong.
    :raises JobError: when the app cannot run here.
    """
    if isinstance(job, JobFiles):
        file = job.policy_file.with_name("job.toml")
        source = toml.Source(table=job.spec.to_table(), lines={})
    else:
        file = Path(job)
        if file.is_dir():
            file /= "job.toml"
        source = _source(file)
    table = copy.deepcopy(source.table)
    for key, value in (overrides or {}).items():
        _set(table, key, value)
    if seed is not None:
        table["seed"] = seed
    # What an attested run needs, and a simulation does not have.
    for key in ("owner_key", "app_logs", "policy_digest", "launcher"):
        table.pop(key, None)
    table["policy"] = str(table.get("policy", "policy.toml"))
    quorum = 0 if clients is None else _use_clients(table, clients)
    where = str(file)
    lines = source.lines if clients is None else {}
    spec = config.read(JobSpec, toml.Source(table=table, lines=lines), where=where)
    spec = dataclasses.replace(spec, policy_digest=_NO_POLICY)
    if clients is not None:
        spec = _with_clients(spec, clients, quorum)
    elif spec.placement.choose:
        spec = spec.at(spec.sites[: spec.placement.choose])
    _check_sum(spec, where)
    if few := too_few_updates(spec.strategy.name, spec.strategy.options, spec.quorum):
        raise ConfigError(few, where=where, key="strategy.name")
    return SimulatedJob(spec=spec, file=file, bundle=_bundle(file.parent / spec.app))


def name_of(file: Path) -> str:
    """Return the name of the job in a file.

    :raises ConfigError: when it has none.
    """
    if file.is_dir():
        file /= "job.toml"
    name = _source(file).table.get("name")
    if not isinstance(name, str) or not config.NAME.fullmatch(name):
        raise ConfigError("has no name", where=str(file), key="name")
    return name


def metric_of(file: Path) -> str:
    """Return the metric that the job in a file shows first; empty where it names none."""
    if file.is_dir():
        file /= "job.toml"
    evaluate = _source(file).table.get("evaluate")
    metric = evaluate.get("metric") if isinstance(evaluate, dict) else None
    return metric if isinstance(metric, str) else ""


def _source(file: Path) -> toml.Source:
    data = config.file_bytes(
        file, limit=MAX_JOB_TOML_BYTES, what="the job", made_by="fedlearn job init"
    )
    with config.errors():
        return toml_config.parse(data, where=str(file))


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    """Set one value; ``config.learning-rate`` is the key ``learning-rate`` of ``[config]``."""
    parts = key.split(".")
    if parts[0] == "config":
        parts = ["config", key.removeprefix("config.")]
    inner: Any = table
    for depth, part in enumerate(parts[:-1]):
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{'.'.join(parts[: depth + 1])} is not a table", where="overrides", key=key
            )
    inner[parts[-1]] = value


def _use_clients(table: dict[str, Any], clients: int) -> int:
    """Put clients in the place of the sites, and drop what names single sites.

    :returns: the quorum of so many clients; 0 for the one that the strategy has by default.
    """
    kept = 0
    if not 1 <= clients <= MAX_CLIENTS:
        raise ConfigError(
            f"must be 1 to {MAX_CLIENTS}, not {clients}", where="simulation", key="clients"
        )
    sites, quorum = table.get("sites"), table.get("quorum", 0)
    strategy = table.get("strategy")
    if isinstance(strategy, dict) and strategy.get("name") in ASYNCHRONOUS:
        kept = quorum  # updates of a version, however many clients there are
    elif isinstance(sites, list) and sites and type(quorum) is int and 0 < quorum < len(sites):
        # The same share of the clients, as `quorum` states one of the sites.
        kept = math.ceil(quorum * clients / len(sites))
    for key in ("data", "placement", "quorum"):
        table.pop(key, None)
    table["sites"] = _names(min(clients, MAX_SITES))  # a file has no more
    return kept


def _with_clients(spec: JobSpec, clients: int, quorum: int) -> JobSpec:
    return dataclasses.replace(
        spec, sites=tuple(_names(clients)), quorum=quorum, placement=Placement(), data={}
    )


def _names(clients: int) -> list[str]:
    return [f"client-{number:04}" for number in range(clients)]


def _check_sum(spec: JobSpec, where: str) -> None:
    """Refuse rounds of more updates than can be added, before the first is computed."""
    if spec.strategy.name == APP or spec.strategy.name in ASYNCHRONOUS:
        return
    asked = int(float(spec.strategy.options.get("fraction_train", 1.0)) * len(spec.sites))
    if asked > MAX_SITES:
        raise ConfigError(
            f"each round asks {asked} clients, and the mean adds at most {MAX_SITES} updates",
            where=where,
            key="strategy.options.fraction_train",
            hint=f"set at most {MAX_SITES / len(spec.sites):.2g} for {len(spec.sites)} clients",
        )


def _bundle(app: Path) -> bytes:
    if app.is_file():
        return config.file_bytes(app, limit=MAX_BUNDLE_BYTES, what="the bundle")
    check_folder(app)
    from server.flower.application.bundle import build

    return build(app)
