"""The file ``simulation.toml``: how many clients a simulation has, of which data and speed.

>>> from fedlearn import config
>>> source = b'''
... [clients]
... count = 100
... [data]
... source = "fashion-mnist"
... partition = "dirichlet"
... alpha = 0.5
... '''
>>> setup = config.read(SimulationSetup, source, where="simulation.toml")
>>> setup.clients.count, setup.data.partition
(100, 'dirichlet')

The page is docs/how-to/simulate.md.
"""

# ruff: noqa: RUF009 (an option is a field specifier; each makes a new field)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attestation.config import InconsistentValues, option, table, tables, whole
from fedlearn import config
from fedlearn.config.filters import MOST_FILTERS, FilterSpec, order_fault
from fedlearn.data.setup import DataSetup
from fedlearn.simulation.virtual_time.setup import TimeSetup

__all__ = ["MAX_CLIENTS", "ClientsSetup", "SimulationSetup"]

MAX_CLIENTS: Final = 10_000
"""The most clients of one simulation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsSetup:
    """The clients of a simulation.

    ``count``    how many there are, ``client-0000`` and so on, in place of the job's sites; 0 keeps
                 those
    ``filters``  what each does to its updates before they leave, as ``[privacy] filters`` of a
                 site's ``site.toml``; the noise is derived from the job's seed
    """

    count: int = option(whole(0, MAX_CLIENTS), default=0)
    filters: tuple[FilterSpec, ...] = option(tables(FilterSpec, most=MOST_FILTERS), default=())

    def __post_init__(self) -> None:
        faults = [(("filters", place), fault) for place, fault in order_fault(self.filters)]
        if faults:
            raise InconsistentValues(*faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSetup:
    """What a simulation has beside the job.

    ``clients``  in place of the job's sites
    ``data``     of the clients; without it, each has a folder below the folder ``data``
    ``time``     how long the clients take and when they are there; without it, no time passes
    """

    clients: ClientsSetup = option(table(ClientsSetup), factory=ClientsSetup)
    data: DataSetup | None = option(table(DataSetup), default=None)
    time: TimeSetup | None = option(table(TimeSetup), default=None)

    @classmethod
    def load(cls, path: Path) -> SimulationSetup:
        """Read the file. Relative paths in it start from its folder.

        :raises ConfigError: naming file, line and key of everything that is wrong.
        """
        return config.read_file(cls, path)
