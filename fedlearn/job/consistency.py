"""What the parts of a job must not be together: what one table allows and another one excludes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from attestation.config import toml
from fedlearn.job.robust_rules import root_fault
from fedlearn.job.strategies import APP, MEAN_FAMILY

if TYPE_CHECKING:
    from fedlearn.job.spec import JobSpec

__all__ = ["MAX_NAMES_BYTES", "faults_of"]

MAX_NAMES_BYTES: Final = 192 * 1024
"""Upper bound of the names of a job's sites, as JSON."""

Fault = tuple[toml.Path, str]


def faults_of(spec: JobSpec) -> Iterator[Fault]:
    """Yield the key and the description of each contradiction in a job."""
    yield from _of_sites(spec)
    name, options = spec.strategy.name, spec.strategy.options
    if fault := root_fault(name, options, spec.sites, spec.placement.choose):
        yield ("strategy", "options", "root_site"), fault
    if spec.privacy is not None:
        yield from _of_privacy(spec)
    if spec.app_logs == "sealed":
        yield from _of_logs(spec)


def _of_sites(spec: JobSpec) -> Iterator[Fault]:
    most = spec.placement.choose or len(spec.sites)
    for key, count, limit in (
        (("placement", "choose"), spec.placement.choose, len(spec.sites)),
        (("quorum",), spec.quorum, most),
    ):
        if count > limit:
            yield key, f"must be at most the {limit} sites, not {count}"
    names = sum(map(len, spec.sites)) + 3 * len(spec.sites)
    if names > MAX_NAMES_BYTES:
        yield (
            ("sites",),
            f"their names have {names} bytes with quotes and commas, and one entry of the "
            f"ledger names them all: at most {MAX_NAMES_BYTES}; use shorter names",
        )
    for site in spec.data:
        if site not in spec.sites:
            near = difflib.get_close_matches(site, spec.sites, n=1)
            wish = f"did you mean {near[0]!r}?" if near else "add it to `sites`"
            yield ("data", site), f"is not a site of this job; {wish}"


def _of_privacy(spec: JobSpec) -> Iterator[Fault]:
    if spec.strategy.name not in {APP, *MEAN_FAMILY}:
        yield (
            ("strategy", "name"),
            f'"{spec.strategy.name}" needs the updates of single sites, and [privacy] '
            f"releases their noised mean only; use {', '.join(sorted(MEAN_FAMILY))}, "
            "or remove [privacy]",
        )
    if spec.aggregation.visible:
        yield (
            ("aggregation", "updates"),
            '"visible-to-app" shows the app what [privacy] protects: the update of each '
            'site; use "aggregated", or remove [privacy]',
        )
    for key, fault in spec.compression.private_faults():
        yield ("compression", key), fault


def _of_logs(spec: JobSpec) -> Iterator[Fault]:
    if not spec.owner_key:
        wish = 'needs owner_key: logs are sealed to the owner of the job; make a key, or set "off"'
        yield ("app_logs",), wish
    if spec.privacy is not None:
        yield (
            ("app_logs",),
            "an app can write records of its site into its log, and no budget of [privacy] "
            'counts them; set "off" (`fedlearn job try` shows what the app writes), or remove '
            "[privacy]",
        )
