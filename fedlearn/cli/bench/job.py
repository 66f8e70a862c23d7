"""The job that is compared: one of the demo's apps on its data, at sites on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedlearn.demo import app, baselines, data, fashion
from fedlearn.errors import ConfigError

__all__ = ["APPS", "Job", "make_job"]

APPS: Final = tuple(data.DATA_SETS)
_FASHION: Final = "fashion"
_IMAGES: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job, and the folder of data of each of its sites.

    ``title``        what it trains, in words
    ``config``       overrides of the app's run config
    ``environment``  of every process: one thread for numerics each, on both sides
    """

    name: str
    title: str
    app: str
    bundle: bytes
    sites: tuple[str, ...]
    data: Mapping[str, Path]
    rounds: int
    config: Mapping[str, Any]
    metric: str
    environment: Mapping[str, str]


def make_job(name: str, folder: Path, *, sites: int, rounds: int, images: int) -> Job:
    """Write the data of each site below ``folder`` and return the job.

    :param images: of each site, where the app is ``fashion``.
    :raises ConfigError: when the data set is not installed, or has too few images.
    """
    from server.flower.application import bundle

    if name == _FASHION:
        if sites * images > _IMAGES:
            raise ConfigError(
                f"{sites} sites with {images} images each; there are {_IMAGES} in all",
                where="--images",
                hint=f"choose at most {_IMAGES // sites}",
            )
        dealt = fashion.load(sites=sites, seed=data.DEFAULT_SEED, per_site=images)
    else:
        dealt = data.prepare(name, sites=sites, seed=data.DEFAULT_SEED)
    places = {}
    for site in dealt.sites:
        places[site.name] = folder / "data" / site.name
        data.write(site, places[site.name])
    settings = baselines.settings_of(dealt, rounds=rounds)
    count = sum(len(next(iter(site.train.values()))) for site in dealt.sites)
    return Job(
        name=dealt.name,
        title=f"{dealt.title}: {count:,} {dealt.unit} to train on, {sites} sites, {rounds} rounds",
        app=dealt.app,
        bundle=bundle.build(app.folder(dealt.app)),
        sites=tuple(places),
        data=places,
        rounds=rounds,
        config={
            **dealt.settings,
            "num-server-rounds": settings["num-server-rounds"],
            "seed": dealt.seed,
            "min-sites": sites,
        },
        metric=dealt.metric,
        environment={**os.environ, "OMP_NUM_THREADS": "1", "FLWR_HOME": str(folder / "flower")},
    )
