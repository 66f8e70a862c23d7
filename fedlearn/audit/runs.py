"""Runs of variants of a job in the simulator, as every audit makes them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attestation.config import dumps
from fedlearn.audit.site_data import Records, write_site
from fedlearn.audit.target import AuditTarget
from fedlearn.job.tables import MAX_ROUNDS

if TYPE_CHECKING:
    from fedlearn.simulation import Hook, SimulatedRun

__all__ = ["SIMULATED", "finite", "run_variant", "temporary", "write_data"]

SIMULATED: Final = "simulated: attestation, TLS and sealing were left out"
"""Every result of an audit states it."""


@contextmanager
def temporary() -> Iterator[Path]:
    """Yield a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="fedlearn-audit-") as made:
        yield Path(made)


def write_data(target: AuditTarget, folder: Path, changed: Mapping[str, Records]) -> Path:
    """Write a data folder in which some sites have other records, and return it.

    The folders of the other sites are linked.
    """
    folder.mkdir(parents=True)
    for site in target.job.sites:
        source = (target.data / site).resolve()
        if site in changed:
            write_site(source, folder / site, target.spec.file, changed[site])
        else:
            (folder / site).symlink_to(source, target_is_directory=True)
    return folder


def run_variant(
    target: AuditTarget,
    folder: Path,
    *,
    changes: Mapping[str, Any],
    data: Path,
    hooks: Sequence[Hook] = (),
    seed: int | None = None,
    evaluate: bool = False,
) -> SimulatedRun:
    """Run the job with some keys changed, in this process.

    :param folder: is made; the variant's job and its run are kept in it.
    :param changes: keys and tables in place of those of the job's file; None removes one.
    :param evaluate: whether the sites evaluate the model of each round.
    :param data: a folder with a folder of data for each site.
    :raises ConfigError: when the changed job is not consistent.
    """
    from fedlearn.simulation import simulate

    folder.mkdir(parents=True)
    table = target.job.to_table()
    table["app"] = str((target.path.parent / target.job.app).resolve())
    every, share = (1, 1.0) if evaluate else (MAX_ROUNDS, 0.0)
    table["evaluate"] = {**table["evaluate"], "every": every, "fraction": share}
    table.update(changes)
    table = {key: value for key, value in table.items() if value is not None}
    file = folder / "job.toml"
    file.write_text(dumps(table))
    return simulate(file, data=data, hooks=tuple(hooks), seed=seed, folder=folder / "run")


def finite(value: float) -> float | None:
    """Return a number as JSON has it: None for what is not finite."""
    return value if math.isfinite(value) else None
