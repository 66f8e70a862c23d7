"""``fedlearn audit backdoor``: a trigger that makes the model answer what an attacker wants.

The attackers train, with the app itself, on data of which a part carries a pattern of pixels and
the attacker's label. They multiply their update so that the mean becomes their model (model
replacement, Bagdasaryan et al. 2020, arXiv:1807.00459). After each round two numbers are measured:
the accuracy on examples that nobody trains on, and the part of these examples, of other labels,
that get the attacker's label once they carry the pattern. Without an attacker the second is the
baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.audit.attacks.trigger import replacement_scale, stamp
from fedlearn.audit.poisoning import Rule, choose_attackers
from fedlearn.audit.runs import SIMULATED, finite, run_variant, temporary, write_data
from fedlearn.audit.site_data import Records, compose
from fedlearn.audit.target import AuditTarget, Predictor
from fedlearn.errors import ConfigError
from fedlearn.job.constraints.robust_rules import too_few_updates
from fedlearn.job.strategies import APP
from fedlearn.simulation import Call, Hook

__all__ = ["BackdoorResult", "BackdoorRun", "audit_backdoor"]

Arrays = Mapping[str, NDArray[Any]]

THRESHOLD: Final = 0.5
"""A backdoor counts as planted when it gets this much more of the examples than without attack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackdoorRun:
    """One rule with or without the attackers. By round; empty where ``refused`` states why."""

    rule: str
    attacked: bool
    accuracy: tuple[float, ...]
    success: tuple[float, ...]
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackdoorResult:
    """All rules, each with and without the attackers."""

    job: str
    attackers: tuple[str, ...]
    sites: int
    label: int
    scale: float
    start: int
    runs: tuple[BackdoorRun, ...]

    def run(self, rule: str, *, attacked: bool) -> BackdoorRun:
        """Return one run."""
        return next(r for r in self.runs if r.rule == rule and r.attacked is attacked)

    def planted(self, rule: str) -> bool:
        """Whether the backdoor is in the last model, beyond the baseline."""
        with_it, without = self.run(rule, attacked=True), self.run(rule, attacked=False)
        return bool(with_it.success) and with_it.success[-1] >= without.success[-1] + THRESHOLD

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules, in order."""
        return tuple(dict.fromkeys(run.rule for run in self.runs))

    @property
    def verdict(self) -> str:
        """What was found for each rule."""
        parts = []
        for rule in self.rules:
            with_it, without = self.run(rule, attacked=True), self.run(rule, attacked=False)
            if with_it.refused:
                parts.append(f"{rule}: not run ({with_it.refused})")
                continue
            parts.append(
                f"{rule}: "
                + ("the backdoor is planted" if self.planted(rule) else "the attack failed")
                + f", success {with_it.success[-1]:.3f} (without it {without.success[-1]:.3f}), "
                f"accuracy {with_it.accuracy[-1]:.3f} (without it {without.accuracy[-1]:.3f})"
            )
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the result."""
        return {
            "audit": "backdoor",
            "job": self.job,
            "note": SIMULATED,
            "attackers": list(self.attackers),
            "sites": self.sites,
            "label": self.label,
            "scale": self.scale,
            "first_attacked_round": self.start,
            "runs": [
                {
                    "rule": run.rule,
                    "attacked": run.attacked,
                    "accuracy": [finite(value) for value in run.accuracy],
                    "attack_success": [finite(value) for value in run.success],
                    "refused": run.refused,
                }
                for run in self.runs
            ],
            "verdict": self.verdict,
        }


class _Models(Hook):  # type: ignore[misc, unused-ignore]
    """Measures the model after each round, as it is sent out for the next one."""

    def __init__(self, measure: Any) -> None:
        self.measure = measure
        self.found: dict[int, tuple[float, float]] = {}

    def asked(self, call: Call, arrays: Arrays) -> Arrays:
        kind = call.kind.split(".")[0]
        after = call.round - 1 if kind == "train" else call.round
        if after >= 1 and after not in self.found:
            self.found[after] = self.measure(arrays)
        return arrays


class _Replace(Hook):  # type: ignore[misc, unused-ignore]
    """Multiplies the updates of the attackers from a round on; before it they send no change."""

    def __init__(self, attackers: frozenset[str], scale: float, start: int) -> None:
        self.attackers = attackers
        self.scale = scale
        self.start = start

    def answered(
        self, call: Call, asked: Arrays, arrays: Arrays, metrics: Mapping[str, Any]
    ) -> Arrays:
        if call.kind.split(".")[0] != "train" or call.site not in self.attackers:
            return arrays
        if call.round < self.start:
            return asked  # no change, so that nothing shows before
        return {name: _scaled(asked[name], array, self.scale) for name, array in arrays.items()}


def _scaled(before: NDArray[Any], after: NDArray[Any], scale: float) -> NDArray[Any]:
    if not np.issubdtype(after.dtype, np.floating):
        return after
    start = before.astype(np.float64)
    found = start + scale * (after.astype(np.float64) - start)
    if not np.isfinite(found).all():
        raise ConfigError(
            "an update contains NaN or infinity after it was multiplied",
            where="--scale",
            hint="lower it, or the learning rate of the app",
        )
    return found.astype(after.dtype)


def audit_backdoor(
    target: AuditTarget,
    *,
    rules: Sequence[Rule],
    share: float = 0.1,
    label: int = 0,
    poisoned: float = 0.5,
    trigger: int = 2,
    scale: float | None = None,
    start: int = 1,
    rounds: int | None = None,
    seed: int = 0,
    progress: Callable[[str], object] = lambda _: None,
) -> BackdoorResult:
    """Plant a backdoor under each rule.

    :param share: of the sites that are malicious.
    :param label: that examples with the trigger are to get.
    :param poisoned: the part of an attacker's examples that carry the trigger.
    :param trigger: side of the square of pixels.
    :param scale: by which an attacker multiplies its update; by default what replaces the model.
    :param start: the first round that is attacked.
    :param rounds: those of the job by default.
    :raises ConfigError: when the job, its data or ``audit.toml`` have not what the attack needs.
    """
    if not rules:
        raise ConfigError("an audit needs a rule", where="--rules")
    if not 0 <= label < target.classes:
        raise ConfigError(f"must be from 0 to {target.classes - 1}, not {label}", where="--label")
    if not 0 < poisoned <= 1:
        raise ConfigError(f"must be above 0, up to 1, not {poisoned:g}", where="--poisoned")
    total = rounds or target.job.rounds
    if not 1 <= start <= total:
        raise ConfigError(f"must be from 1 to {total}, not {start}", where="--start")
    predict = target.predictor()
    attackers = choose_attackers(target.job.sites, share, seed)
    train, others = target.divided()
    weights = {site: float(len(records)) for site, records in train.items()}
    if scale is None:
        scale = replacement_scale(list(weights.values()), [weights[site] for site in attackers])
    changed = {
        site: compose(
            _backdoored(target, train[site], label, poisoned, trigger, seed),
            others[site] if len(others[site]) else train[site],
            target.spec.trained,
        )
        for site in attackers
    }
    measure = _Measure.of(target, predict, others, label=label, size=trigger)
    runs = []
    with temporary() as folder:
        data = write_data(target, folder / "data", changed)
        for rule in rules:
            fitted = rule.for_attackers(target.job.sites, attackers)
            few = too_few_updates(fitted.name, fitted.options, target.job.quorum)
            for attacked in (False, True):
                if few:
                    runs.append(
                        BackdoorRun(
                            rule=rule.title, attacked=attacked, accuracy=(), success=(), refused=few
                        )
                    )
                    continue
                progress(f"{rule.title}: {'with' if attacked else 'without'} the attack")
                models = _Models(measure)
                hooks: list[Hook] = [models]
                if attacked:
                    hooks.append(_Replace(frozenset(attackers), scale, start))
                changes: dict[str, Any] = {"rounds": total}
                if fitted.name != APP:
                    changes["strategy"] = {"name": fitted.name, "options": dict(fitted.options)}
                model = run_variant(
                    target,
                    folder / f"run-{len(runs)}",
                    changes=changes,
                    data=data if attacked else target.data,
                    hooks=hooks,
                    seed=seed,
                ).model
                models.found[total] = measure(model)
                by_round = [models.found.get(number) for number in range(1, total + 1)]
                pairs = [(math.nan, math.nan) if pair is None else pair for pair in by_round]
                runs.append(
                    BackdoorRun(
                        rule=rule.title,
                        attacked=attacked,
                        accuracy=tuple(pair[0] for pair in pairs),
                        success=tuple(pair[1] for pair in pairs),
                    )
                )
    if all(run.refused for run in runs):
        raise ConfigError(f"no rule can run: {runs[0].refused}", where="--rules")
    return BackdoorResult(
        job=target.job.name,
        attackers=attackers,
        sites=len(target.job.sites),
        label=label,
        scale=scale,
        start=start,
        runs=tuple(runs),
    )


def _backdoored(
    target: AuditTarget, records: Records, label: int, poisoned: float, size: int, seed: int
) -> Records:
    """Return the records, of which a part carries the trigger and the label."""
    count = max(1, round(poisoned * len(records)))
    chosen = np.random.default_rng([seed, 7]).permutation(len(records))[:count]
    x, y = np.array(records.x), records.y.copy()
    value = target.in_file(target.spec.high)
    x[chosen] = stamp(x[chosen], image=target.image, value=value, size=size)
    y[chosen] = label
    return Records(x=x, y=y, header=records.header)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """Accuracy, and the part of the examples of other labels that get the attacker's label."""

    predict: Predictor
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    stamped: NDArray[np.float32]
    label: int

    @classmethod
    def of(
        cls,
        target: AuditTarget,
        predict: Predictor,
        others: Mapping[str, Records],
        *,
        label: int,
        size: int,
    ) -> _Measure:
        rows = [records for records in others.values() if len(records)]
        if not rows:
            raise ConfigError(
                "there are no examples that the app does not train on, and a backdoor is measured "
                "on them",
                where=str(target.spec_file),
                key="trained",
                hint="state the part of the file that the app trains on, or add test.npz at a site",
            )
        x = np.concatenate([records.x for records in rows])
        y = np.concatenate([records.y for records in rows])
        if not (y != label).any():
            raise ConfigError(f"all examples have the label {label}", where="--label")
        value = target.in_file(target.spec.high)
        marked = stamp(np.asarray(x[y != label]), image=target.image, value=value, size=size)
        return cls(
            predict=predict,
            x=target.inputs(x),
            y=y,
            stamped=target.inputs(marked),
            label=label,
        )

    def __call__(self, arrays: Arrays) -> tuple[float, float]:
        right = self.predict(arrays, self.x).argmax(axis=1) == self.y
        taken = self.predict(arrays, self.stamped).argmax(axis=1) == self.label
        return float(right.mean()), float(taken.mean())
