"""``fedlearn audit membership``: whether the final model shows on which examples it was trained.

The job runs several times, each time on another random half of every site's examples: one run is
attacked, the others are the attacker's shadow models. The shadow models come in pairs with
complementary halves, so that each example is in exactly half of them.

The baseline is the confidence alone (Yeom et al. 2018, arXiv:1709.01604), which needs no shadow
model, and chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.audit.attacks.member_inference import confidences, lira, logit_scaled, rmia
from fedlearn.audit.runs import SIMULATED, run_variant, temporary, write_data
from fedlearn.audit.site_data import Records, compose
from fedlearn.audit.statistics import Rate, area, area_interval, roc, true_positive_rate
from fedlearn.audit.target import AuditTarget
from fedlearn.errors import ConfigError

__all__ = ["RATES", "MembershipResult", "MembershipScore", "audit_membership"]

RATES: Final = (0.001, 0.01)
"""The false positive rates that are reported."""

_EACH: Final = 0.99
"""Confidence of each interval of an area, so that the five together have 95% (Bonferroni)."""

_RESERVED: Final = 0.2
"""The part of the examples that nobody trains on, where the files have no others."""

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipScore:
    """One attack: its curve, the area with an interval, and the rates at :data:`RATES`."""

    name: str
    false_positive: Vector = field(repr=False)
    true_positive: Vector = field(repr=False)
    area: float
    low: float
    high: float
    rates: tuple[Rate, ...]

    @property
    def works(self) -> bool:
        """Whether the attack is better than chance, with confidence."""
        return self.low > 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipResult:
    """What the attacks found.

    ``accuracy``  of the attacked model on members and on the other half
    """

    job: str
    examples: int
    members: int
    shadows: int
    private: str
    accuracy: tuple[float, float]
    scores: tuple[MembershipScore, ...]

    @property
    def verdict(self) -> str:
        """What was found, in one sentence for each attack."""
        return "; ".join(
            f"{score.name}: AUC {score.area:.3f} [{score.low:.3f}, {score.high:.3f}], "
            + ("better than chance" if score.works else "not better than chance: it failed")
            for score in self.scores
        )

    @property
    def note(self) -> str:
        """What limits the result; empty for nothing."""
        rates = [f"{rate:.1%}" for rate in RATES if (self.examples - self.members) * rate < 1]
        if not rates:
            return ""
        return (
            f"{self.examples - self.members} examples outside of the training data do not resolve "
            f"a false positive rate of {' and '.join(rates)}: there the true positive rate is "
            "that without any false positive"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result without the curves' points."""
        return {
            "audit": "membership",
            "job": self.job,
            "note": SIMULATED,
            "privacy": self.private,
            "examples": self.examples,
            "members": self.members,
            "shadow_models": self.shadows,
            "accuracy_on_members": self.accuracy[0],
            "accuracy_on_others": self.accuracy[1],
            "intervals": "AUC: 99% each, 95% for the five together, by Hanley and McNeil 1982; "
            "rates: 95%, by Clopper and Pearson 1934",
            "attacks": [
                {
                    "name": score.name,
                    "auc": score.area,
                    "auc_interval": [score.low, score.high],
                    "better_than_chance": score.works,
                    "rates": [
                        {
                            "false_positive_rate": rate.false_positive,
                            "true_positive_rate": rate.true_positive,
                            "interval": [rate.low, rate.high],
                            "resolved": rate.resolved,
                        }
                        for rate in score.rates
                    ],
                }
                for score in self.scores
            ],
            "limit": self.note,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """The examples of each site that may be trained on, and those that nobody trains on."""

    train: Mapping[str, Records]
    others: Mapping[str, Records]

    def halves(self, rng: np.random.Generator) -> Mask:
        """Return a random half of each site's examples, as one mask over all sites."""
        parts = []
        for records in self.train.values():
            half = np.zeros(len(records), dtype=np.bool_)
            half[rng.permutation(len(records))[: len(records) // 2]] = True
            parts.append(half)
        return np.concatenate(parts)

    def of_site(self, mask: Mask) -> dict[str, Mask]:
        """Divide a mask over all sites among them."""
        cuts = np.cumsum([len(records) for records in self.train.values()])[:-1]
        return dict(zip(self.train, np.split(mask, cuts), strict=True))


def audit_membership(
    target: AuditTarget,
    *,
    shadows: int = 16,
    gamma: float = 2.0,
    rounds: int | None = None,
    seed: int = 0,
    progress: Callable[[str], object] = lambda _: None,
) -> MembershipResult:
    """Attack the final model of a job.

    :param shadows: runs of the job for the attacker, an even number from 4 on.
    :param gamma: of RMIA.
    :param rounds: those of the job by default.
    :raises ConfigError: when the job, its data or ``audit.toml`` have not what the attack needs.
    """
    if shadows < 4 or shadows % 2:
        raise ConfigError(f"must be an even number from 4 on, not {shadows}", where="--shadows")
    predict = target.predictor()
    pool = _pool(target)
    x, y = _joined(target, pool.train)
    population_x, population_y = _joined(target, pool.others)
    rng = np.random.default_rng([seed, 3])
    members = [pool.halves(rng)]
    for _ in range(shadows // 2):
        half = pool.halves(rng)
        members += [half, ~half]
    scaled, found, population = [], [], []
    accuracy = (0.0, 0.0)
    for number, mask in enumerate(members):
        progress(f"run {number + 1} of {len(members)}")
        with temporary() as folder:
            data = write_data(
                target,
                folder / "data",
                {
                    site: compose(
                        pool.train[site].rows(part), pool.others[site], target.spec.trained
                    )
                    for site, part in pool.of_site(mask).items()
                },
            )
            changes = {} if rounds is None else {"rounds": rounds}
            model = run_variant(
                target,
                folder / "job",
                changes=changes,
                data=data,
                seed=(target.job.seed + 1000 * seed + number) % 2**63,
            ).model
        logits = predict(model, x)
        scaled.append(logit_scaled(logits, y))
        found.append(confidences(logits, y))
        population.append(confidences(predict(model, population_x), population_y))
        if number == 0:
            right = logits.argmax(axis=1) == y
            accuracy = (float(right[mask].mean()), float(right[~mask].mean()))
    observed = {"confidence": found[0]}
    truth, known = members[0], np.array(members[1:])
    for offline in (False, True):
        suffix = " offline" if offline else ""
        observed["LiRA" + suffix] = lira(scaled[0], np.array(scaled[1:]), known, offline=offline)
        observed["RMIA" + suffix] = rmia(
            found[0],
            np.array(found[1:]),
            known,
            population[0],
            np.array(population[1:]),
            offline=offline,
            gamma=gamma,
        )
    return MembershipResult(
        job=target.job.name,
        examples=len(y),
        members=int(truth.sum()),
        shadows=shadows,
        private="" if target.job.privacy is None else str(target.job.privacy.mechanism),
        accuracy=accuracy,
        scores=tuple(_score(name, values, truth) for name, values in observed.items()),
    )


def _score(name: str, values: Vector, truth: Mask) -> MembershipScore:
    false, true = roc(values, truth)
    low, high = area_interval(values, truth, confidence=_EACH)
    return MembershipScore(
        name=name,
        false_positive=false,
        true_positive=true,
        area=area(values, truth),
        low=low,
        high=high,
        rates=tuple(true_positive_rate(values, truth, rate) for rate in RATES),
    )


def _pool(target: AuditTarget) -> _Pool:
    train, others = target.divided()
    if not any(len(records) for records in others.values()):
        kept = {site: round(len(records) * (1 - _RESERVED)) for site, records in train.items()}
        others = {site: train[site].rows(slice(kept[site], None)) for site in train}
        train = {site: train[site].rows(slice(kept[site])) for site in train}
    for site, records in train.items():
        if len(records) < 4:
            raise ConfigError(
                f"site {site} has {len(records)} examples to train on, and a random half needs 4",
                where=str(target.data / site / target.spec.file),
            )
    return _Pool(train=train, others=others)


def _joined(
    target: AuditTarget, records: Mapping[str, Records]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rows = list(records.values())
    return (
        target.inputs(np.concatenate([row.x for row in rows])),
        np.concatenate([row.y for row in rows]),
    )
