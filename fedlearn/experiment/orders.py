"""Orders: what the process of a cell runs, checked and digested before any cell begins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from attestation.config import SchemaError, parse
from fedlearn import config as reading
from fedlearn.errors import ConfigError, JobError
from fedlearn.experiment.cells import Cell
from fedlearn.experiment.keys import cell_key, code_versions, path_digest
from fedlearn.experiment.spec import ExperimentSpec
from fedlearn.experiment.store import read_sealed, write_sealed
from fedlearn.job.tables import Scalar

if TYPE_CHECKING:
    from fedlearn.simulation import SimulationSetup
    from fedlearn.simulation.jobs import SimulatedJob

__all__ = ["Order", "Orders"]

_SCHEMA: Final = "fedlearn experiment order/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the process of one cell runs.

    ``content``  everything that the result depends on; ``key`` is the digest of it
    ``job``      the base job; ``overrides``, its keys with other values
    ``setup``    the table of simulation.toml with the cell's values, None without one; paths in it
                 start from ``setup_base``
    ``rounds``   of the job
    """

    key: str
    cell: Cell
    content: Mapping[str, Any]
    job: Path
    rounds: int
    overrides: Mapping[str, Scalar]
    setup: Mapping[str, Any] | None = None
    setup_base: Path = Path()
    data: Path | None = None
    hooks: str = ""

    def write(self, folder: Path) -> None:
        """Write the order into the folder of its cell."""
        folder.mkdir(parents=True, exist_ok=True)
        body = {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "cell": {
                **{
                    field.name: getattr(self.cell, field.name) for field in dataclasses.fields(Cell)
                },
                "labels": dict(self.cell.labels),
                "values": dict(self.cell.values),
            },
            "content": dict(self.content),
            "overrides": dict(self.overrides),
            "setup": None if self.setup is None else dict(self.setup),
            "job": str(self.job),
            "setup_base": str(self.setup_base),
            "data": None if self.data is None else str(self.data),
        }
        write_sealed(folder / "order.json", _SCHEMA, body)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the order of a cell.

        :raises StoreError: when its file was cut short or changed.
        """
        body = read_sealed(folder / "order.json", _SCHEMA)
        return cls(
            **{
                **body,
                "cell": Cell(**body["cell"]),
                "job": Path(body["job"]),
                "setup_base": Path(body["setup_base"]),
                "data": None if body["data"] is None else Path(body["data"]),
            }
        )


class Orders:
    """Makes the orders of an experiment's cells. Files are read and digested once.

    :raises ConfigError: when a file that all cells share is missing or wrong.
    """

    def __init__(self, spec: ExperimentSpec) -> None:
        self._spec = spec
        self._setup = None if spec.setup is None else _document(spec.setup, "the setup")
        self._digest: Callable[[Path], str] = cache(path_digest)
        self._fingerprint: Callable[[str], str] = cache(_fingerprint)
        self._hooks = _hooks_digest(spec.hooks, spec.job.parent) if spec.hooks else ""

    def order(self, cell: Cell) -> Order:
        """Return the order of a cell.

        :raises ConfigError: naming the cell, when its values do not make a job.
        """
        try:
            return self._order(cell)
        except (ConfigError, JobError) as error:
            raise ConfigError(f"the cell {cell.name}: {error}", hint=error.hint) from None

    def _order(self, cell: Cell) -> Order:
        from fedlearn.simulation import SimulationSetup

        spec = self._spec
        table, setup = None, None
        if self._setup is not None and spec.setup is not None:
            table = _with_values(self._setup, cell.setup_keys, str(spec.setup))
            setup = reading.read(
                SimulationSetup, table, where=str(spec.setup), base=spec.setup.parent
            )
        job = self._job_of(cell, setup)
        described = json.loads(job.spec.canonical())
        for name in ("policy_digest", "name"):
            described.pop(name, None)
        content = {
            "job": described,
            "job_digest": sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
            "app_digest": sha256(job.bundle).hexdigest(),
            "setup": table,
            "data_digest": self._data_digest(setup),
            "seed": cell.seed,
            "hooks": [self._hooks, cell.hook_keys] if spec.hooks else [],
            "versions": code_versions(),
        }
        return Order(
            key=cell_key(content),
            cell=cell,
            content=content,
            job=spec.job,
            rounds=job.spec.rounds,
            overrides=MappingProxyType(cell.job_keys),
            setup=table,
            setup_base=spec.setup.parent if spec.setup is not None else Path(),
            data=spec.data,
            hooks=spec.hooks,
        )

    def _job_of(self, cell: Cell, setup: SimulationSetup | None) -> SimulatedJob:
        from fedlearn.simulation.jobs import read_job

        clients = setup.clients.count if setup is not None else 0
        return read_job(
            self._spec.job, clients=clients or None, seed=cell.seed, overrides=cell.job_keys
        )

    def _data_digest(self, setup: SimulationSetup | None) -> str:
        """Return the digest of the content of everything that the data comes from."""
        found = [] if self._spec.data is None else [self._digest(self._spec.data)]
        if setup is not None and setup.data is not None:
            found.append(self._fingerprint(setup.data.source))
        found += [self._digest(path) for path in _paths(setup)]
        return sha256(json.dumps(found).encode()).hexdigest()


def _paths(value: object) -> Iterator[Path]:
    """Yield the files that a setup names besides its data, such as traces."""
    if isinstance(value, Path):
        yield value
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from _paths(getattr(value, each.name))


def _fingerprint(source: str) -> str:
    from fedlearn.data.sources import fingerprint

    return fingerprint(source)


def _document(path: Path, what: str) -> dict[str, Any]:
    data = reading.file_bytes(path, what=what)
    try:
        return dict(parse(data, where=str(path)).table)
    except SchemaError as error:
        raise ConfigError(str(error)) from None


def _with_values(
    document: Mapping[str, Any], values: Mapping[str, Scalar], where: str
) -> dict[str, Any]:
    """Return a copy of a document in which the dotted keys have these values."""
    changed: dict[str, Any] = json.loads(json.dumps(document))
    for key, value in values.items():
        *tables, last = key.split(".")
        at = changed
        for name in tables:
            at = at.setdefault(name, {})
            if not isinstance(at, dict):
                raise ConfigError(f"{name!r} is not a table", where=where, key=key)
        at[last] = value
    return changed


def _hooks_digest(hooks: str, base: Path) -> str:
    place = hooks.rpartition(":")[0]
    # A module of a package is covered by the version of that package.
    return path_digest(base / place) if place.endswith(".py") else hooks
