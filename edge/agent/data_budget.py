"""One privacy budget for each data set, over all jobs: its charges, and what is left. Pure.

A site names a limit for a data set in ``site.toml`` (``epsilon`` and ``delta`` of ``[data.NAME]``).
Every job with ``[privacy]`` that trains on the data is a :class:`Charge`. The charges of a data
set are those made under its name, and those whose data is the same path or claim, is below it,
or contains it. So a second name for the same data has no budget of its own, and neither a new name
nor a new place alone makes a new budget.

The cost is the composition of all charged rounds by Renyi differential privacy
(:func:`fedlearn.privacy.accountant.composed_epsilon`), at the ``delta`` of the data set. It is that
of the unit of the data set: the site's whole contribution from this data, that of each user, or
that of each example. A job that protects another unit is converted, never to less than what is true
(:func:`fedlearn.privacy.accountant.costs_for`); where no conversion exists it does not fit. A job
is charged with the updates that left the
site, and while it runs with at least those that it may ask for.

The page is docs/adr/0014-data-budget.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from fedlearn.errors import ConfigError, PrivacyError
from fedlearn.privacy.spec import PrivacySpec

if TYPE_CHECKING:
    from edge.config.site import SiteConfig
    from fedlearn.job.spec import JobSpec

__all__ = [
    "MAX_CHARGES",
    "BudgetAccounts",
    "Charge",
    "Limit",
    "again",
    "limits",
    "limits_on",
    "new_charge",
    "refusals",
    "unbounded",
]

MAX_CHARGES: Final = 10_000
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """The budget of one data set; ``place`` is its absolute path, or the name of its claim.

    ``unit`` and ``records`` (the most of one user) as in :class:`edge.config.site.DataSet`.
    """

    name: str
    place: str
    epsilon: float
    delta: float
    unit: str = "site"
    records: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one job has cost, or may cost, the data that it trains on.

    ``digest``      the job's digest: a job that is resumed is the same job
    ``sets``        names of the site's data sets that its data belonged to
    ``place``       absolute path, or name of the claim
    ``privacy``     None for a job whose updates no bound covers
    ``reserved``    rounds that were reserved for it when it was accepted
    ``spent``       updates that left
    ``last``        the question that the last of them answered
    ``assignment``  under which it runs; empty once it has ended
    """

    job: str
    digest: str
    sets: tuple[str, ...]
    place: str
    privacy: PrivacySpec | None
    reserved: int
    spent: int = 0
    last: str = ""
    assignment: str = ""

    @property
    def rounds(self) -> int:
        """The rounds that count."""
        return max(self.reserved, self.spent) if self.assignment else self.spent

    def concerns(self, name: str, place: str) -> bool:
        """Return whether it counts for the data set ``name`` at ``place``."""
        return name in self.sets or _overlap(self.place, place)


@dataclass(frozen=True, slots=True)
class BudgetAccounts:
    """All charges of one site, in the order in which the jobs were first accepted."""

    charges: tuple[Charge, ...] = field(default=())

    def of(self, digest: str, place: str) -> Charge | None:
        """Return the charge of a job on its data."""
        return next((c for c in self.charges if (c.digest, c.place) == (digest, place)), None)

    def running(self, assignment: str) -> Charge | None:
        """Return the charge of the job that runs under an assignment."""
        return next((c for c in self.charges if assignment and c.assignment == assignment), None)

    def put(self, charge: Charge) -> BudgetAccounts:
        """Return the accounts with ``charge`` replacing the one for the same job and data.

        :raises PrivacyError: when the accounts are full.
        """
        known = self.of(charge.digest, charge.place)
        if known is not None:
            return BudgetAccounts(tuple(charge if c is known else c for c in self.charges))
        if len(self.charges) >= MAX_CHARGES:
            raise PrivacyError(
                f"this site's budget holds {MAX_CHARGES} jobs, and no more can be added",
                hint="move the data to a site with a new state, and keep this state for the record",
            )
        return BudgetAccounts((*self.charges, charge))

    def concerning(self, name: str, place: str) -> tuple[Charge, ...]:
        """Return the charges that count for a data set."""
        return tuple(c for c in self.charges if c.concerns(name, place))

    def epsilon(self, limit: Limit) -> float:
        """Return what all charges of a data set cost at its ``delta``."""
        return _composed(self.concerning(limit.name, limit.place), limit)

    def exceeded(self, limit: Limit, charge: Charge) -> str:
        """Return why ``charge`` does not fit into a budget beside the others, or an empty text."""
        others = [
            c
            for c in self.concerning(limit.name, limit.place)
            if (c.digest, c.place) != (charge.digest, charge.place)
        ]
        after = _composed([*others, charge], limit)
        if after <= limit.epsilon:
            return ""
        privacy = charge.privacy
        if privacy is not None and not math.isfinite(_composed([charge], limit)):
            return (
                f"the job protects each {privacy.unit} and bounds nothing for the unit "
                f"{limit.unit}, which the budget of the data set {limit.name} is for"
            )
        before = _composed(others, limit)
        return (
            f"{charge.rounds} rounds of the job bring the data set {limit.name} to epsilon "
            f"{after:.4g} at delta {limit.delta:g}; its budget over all jobs is "
            f"{limit.epsilon:g}, and the others have spent or reserved {before:.4g}"
        )

    # --- bytes ------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Return the accounts as JSON."""
        rows = [
            {
                "job": c.job,
                "digest": c.digest,
                "sets": list(c.sets),
                "place": c.place,
                "privacy": None if c.privacy is None else c.privacy.to_mapping(),
                "reserved": c.reserved,
                "spent": c.spent,
                "last": c.last,
                "assignment": c.assignment,
            }
            for c in self.charges
        ]
        return json.dumps({"format": _FORMAT, "charges": rows}, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes, where: str) -> BudgetAccounts:
        """Return what :meth:`to_bytes` wrote.

        :raises ConfigError: for another format. The caller has verified that this site wrote it.
        """
        document: Any = json.loads(data)
        if document.get("format") != _FORMAT:
            raise ConfigError(
                f"has format {document.get('format')!r}; this version reads {_FORMAT}",
                where=where,
                hint="update fedlearn-edge",
            )
        return cls(tuple(map(_charge, document["charges"])))


def _charge(row: dict[str, Any]) -> Charge:
    privacy = row["privacy"]
    return Charge(
        job=row["job"],
        digest=row["digest"],
        sets=tuple(row["sets"]),
        place=row["place"],
        privacy=None if privacy is None else PrivacySpec.from_mapping(privacy),
        reserved=row["reserved"],
        spent=row["spent"],
        last=row["last"],
        assignment=row["assignment"],
    )


def unbounded(config: SiteConfig, spec: JobSpec) -> str:
    """Return why no epsilon bounds what a job reveals; empty when one does.

    Exact metrics are not a reason where the site allows them by name.
    """
    privacy = spec.privacy
    if privacy is None:
        return "it promises no privacy"
    if privacy.insecure_deterministic_noise:
        return "its noise is derived from its seed"
    if privacy.insecure_exact_metrics and not config.privacy.insecure_exact_metrics:
        return "its metrics leave the site exactly (insecure_exact_metrics)"
    if not privacy.protects(config.privacy.unit):
        return (
            f"it protects each {privacy.unit} as far as its app does, and privacy.unit of this "
            f"site is {config.privacy.unit}"
        )
    return ""


def new_charge(config: SiteConfig, spec: JobSpec, place: str, assignment: str) -> Charge:
    """Return the charge of a job that is accepted for the first time."""
    return Charge(
        job=spec.name,
        digest=spec.digest().hex(),
        sets=tuple(
            name for name, data in sorted(config.data.items()) if _overlap(data.place, place)
        ),
        place=place,
        privacy=None if unbounded(config, spec) else spec.privacy,
        reserved=spec.rounds if spec.privacy is None else spec.privacy.participations(spec.rounds),
        assignment=assignment,
    )


def again(charge: Charge, known: Charge | None) -> Charge:
    """Return ``charge`` with what the same job has spent before."""
    if known is None:
        return charge
    return replace(
        charge,
        sets=tuple(sorted({*known.sets, *charge.sets})),
        reserved=max(known.reserved, charge.reserved),
        spent=known.spent,
        last=known.last,
    )


def limits_on(config: SiteConfig, charge: Charge) -> Iterator[Limit]:
    """Yield the budgets that a charge has to fit into."""
    for limit in limits(config):
        if charge.concerns(limit.name, limit.place):
            yield limit


def limits(config: SiteConfig) -> Iterator[Limit]:
    """Yield the budget of every data set that has one."""
    for name, data in sorted(config.data.items()):
        if data.epsilon is not None and data.delta is not None:
            yield Limit(
                name=name,
                place=data.place,
                epsilon=data.epsilon,
                delta=data.delta,
                unit=data.unit,
                records=data.records_per_user,
            )


def refusals(config: SiteConfig, spec: JobSpec, place: str, book: BudgetAccounts) -> Iterator[str]:
    """Return why a job does not fit into the budgets of its data at ``place``."""
    first = new_charge(config, spec, place, assignment="asked")
    charge = again(first, book.of(first.digest, place))
    for limit in limits_on(config, charge):
        if why := unbounded(config, spec):
            yield f"the data set {limit.name} has a privacy budget, and the job no bound: {why}"
        elif why := book.exceeded(limit, charge):
            yield why


def _composed(charges: Iterable[Charge], limit: Limit) -> float:
    bounded = [(c.privacy, c.rounds) for c in charges if c.privacy is not None and c.rounds]
    if not bounded:
        return 0.0
    # The accountant takes a second to import.
    from fedlearn.privacy.accountant import composed_epsilon

    return composed_epsilon(bounded, limit.delta, unit=limit.unit, records=limit.records)


def _overlap(one: str, other: str) -> bool:
    """Return whether two places contain the same data, at least in part."""
    if not (one.startswith("/") and other.startswith("/")):
        return one == other
    first, second = PurePosixPath(one), PurePosixPath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)
