"""The folder of data that each simulated site has."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedlearn.errors import ConfigError
from fedlearn.simulation.jobs import SimulatedJob
from fedlearn.simulation.setup import SimulationSetup

__all__ = ["site_folders"]


def site_folders(
    job: SimulatedJob, *, data: Path | None, setup: SimulationSetup, numbered: bool
) -> Mapping[str, Path]:
    """Return the folder of each site; empty where a simulation has no data on disk.

    :param data: a folder with one folder for each site; None: ``data`` next to the job's file,
        if there is one.
    :param numbered: whether the sites are ``client-0000`` and so on. Where the folders have other
        names, they are then taken in the order of their names.
    :raises ConfigError: when a site has no data, or data is given twice.
    """
    spec = job.spec
    if setup.data is not None:
        if data is not None:
            raise ConfigError(
                "the data of the clients is given twice",
                key="data",
                hint="leave out --data, or [data] of the simulation's file",
            )
        from fedlearn.data import materialise

        return materialise(setup.data, _cache(), spec.sites, spec.seed)
    given = data is not None
    root = (job.file.parent / "data" if data is None else data).absolute()
    if not root.is_dir():
        if given:
            raise ConfigError("there is no such folder", where=str(root), key="data")
        return {}
    if numbered and not (root / spec.sites[0]).is_dir():
        return _in_order(root, spec.sites)
    missing = [site for site in spec.sites if not (root / site).is_dir()]
    if missing and numbered:
        raise _too_many(root, spec.sites, len(spec.sites) - len(missing))
    if missing:
        raise ConfigError(
            "there is no data of this site",
            where=str(root / missing[0]),
            hint=f"put the data of {missing[0]} there, or name another folder with --data",
        )
    return {site: root / site for site in spec.sites}


def _in_order(root: Path, sites: Sequence[str]) -> dict[str, Path]:
    found = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if len(found) < len(sites):
        raise _too_many(root, sites, len(found))
    return dict(zip(sites, found, strict=False))


def _too_many(root: Path, sites: Sequence[str], found: int) -> ConfigError:
    return ConfigError(
        f"{len(sites)} clients were asked for, and the data of {found} is there",
        where=str(root),
        key="clients",
        hint=f"ask for at most {found} clients, or divide the data among more "
        "([data] of the simulation's file)",
    )


def _cache() -> Path:
    """Return where divided data is kept, so that the next simulation finds it."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fedlearn" / "data"
