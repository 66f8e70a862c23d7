"""``fedlearn audit poisoning``: what malicious sites do to the model, for each aggregation rule.

Each cell of the result is one run of the job: an attack, a rule, and the accuracy that the honest
sites report for the model of the last round. The attackers know the updates of the honest sites
of the round and the rule; the rule knows how many attackers there may be. Both are the strongest
cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.audit.attacks.byzantine import STRENGTHS, flip_labels, malicious_updates
from fedlearn.audit.runs import SIMULATED, finite, run_variant, temporary, write_data
from fedlearn.audit.site_data import Records, divide
from fedlearn.audit.target import AuditTarget
from fedlearn.errors import ConfigError
from fedlearn.job.constraints.robust_rules import too_few_updates
from fedlearn.job.strategies import APP, BY_MALICIOUS, STRATEGIES
from fedlearn.simulation import Call, Hook

__all__ = [
    "ATTACKS",
    "Cell",
    "HonestAccuracy",
    "PoisoningResult",
    "Rule",
    "audit_poisoning",
    "choose_attackers",
    "parse_rule",
    "parse_strengths",
]

NONE: Final = "none"
LABEL_FLIP: Final = "label-flip"
ATTACKS: Final = (LABEL_FLIP, *STRENGTHS)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An aggregation rule with its options; ``title`` is as the user wrote it."""

    name: str
    options: Mapping[str, Any]
    title: str

    def for_attackers(self, sites: Sequence[str], attackers: Sequence[str]) -> Rule:
        """Return the rule with what it may know of the attackers, unless it is given.

        That is how many they are (Krum, Multi-Krum, Bulyan, nearest-neighbor mixing), and with it
        ``beta`` of the trimmed mean; and for FLTrust a site that is not one of them.
        """
        options = dict(self.options)
        malicious = len(attackers)
        if self.name in BY_MALICIOUS or options.get("pre_aggregation") == "nnm":
            options.setdefault("num_malicious_nodes", malicious)
        if self.name == "multikrum":
            options.setdefault("num_nodes_to_select", len(sites) - malicious)
        if self.name == "fedtrimmedavg":
            # Rounded up, so that the whole number of trimmed updates is not one less.
            share = math.ceil(1000 * malicious / len(sites)) / 1000
            options.setdefault("beta", min(share, 0.499))
        if self.name == "fltrust":
            options.setdefault("root_site", next(s for s in sites if s not in attackers))
        return Rule(name=self.name, options=options, title=self.title)


def parse_rule(text: str) -> Rule:
    """Return a rule of the form ``name`` or ``name:key=value:key=value``.

    ``app`` is the strategy of the job as it is.

    >>> parse_rule("fedtrimmedavg:beta=0.3").options
    {'beta': 0.3}

    :raises ConfigError: for an unknown rule or option.
    """
    name, *rest = text.split(":")
    if name not in STRATEGIES:
        raise ConfigError(
            f"{name!r} is no aggregation rule",
            where="--rules",
            hint=f"one of {', '.join(sorted(STRATEGIES))}",
        )
    options: dict[str, Any] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals or key not in STRATEGIES[name]:
            raise ConfigError(
                f"{part!r} is no option of {name}",
                where="--rules",
                hint=f"it has {', '.join(STRATEGIES[name])}, each written KEY=VALUE",
            )
        options[key] = _value(value)
    return Rule(name=name, options=options, title=text)


def parse_strengths(texts: Sequence[str]) -> dict[str, float]:
    """Return the strengths of attacks, from ``attack=number`` each; the defaults for the others.

    >>> parse_strengths(["sign-flip=1"])["sign-flip"]
    1.0

    :raises ConfigError: for an unknown attack, or what is no positive number.
    """
    found = dict(STRENGTHS)
    for text in texts:
        attack, _, number = text.partition("=")
        value = _value(number)
        if attack not in STRENGTHS or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise ConfigError(
                f"{text!r} is not an attack and a positive number",
                where="--strength",
                hint=f"for example sign-flip=4; attacks: {', '.join(STRENGTHS)}",
            )
        found[attack] = float(value)
    return found


def _value(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run. ``accuracy`` by round; empty where ``refused`` states why there was none."""

    attack: str
    rule: str
    accuracy: tuple[float, ...]
    refused: str = ""

    @property
    def final(self) -> float:
        """The accuracy after the last round; NaN where there was no run."""
        return self.accuracy[-1] if self.accuracy else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisoningResult:
    """The table: attacks and ``none`` by rules."""

    job: str
    metric: str
    sites: int
    attackers: tuple[str, ...]
    attacks: tuple[str, ...]
    rules: tuple[str, ...]
    cells: tuple[Cell, ...]

    def cell(self, attack: str, rule: str) -> Cell:
        """Return one run."""
        return next(c for c in self.cells if (c.attack, c.rule) == (attack, rule))

    def damage(self, attack: str, rule: str) -> float:
        """Return the accuracy that the attack costs under this rule."""
        return self.cell(NONE, rule).final - self.cell(attack, rule).final

    @property
    def verdict(self) -> str:
        """For each rule the attack that costs it most."""
        parts = []
        for rule in self.rules:
            damages = {a: self.damage(a, rule) for a in self.attacks}
            known = {a: d for a, d in damages.items() if math.isfinite(d)}
            if not known:
                parts.append(f"{rule}: not run ({self.cell(NONE, rule).refused})")
                continue
            worst = max(known, key=lambda a: known[a])
            clean = self.cell(NONE, rule).final
            if known[worst] < 0.01:
                parts.append(f"{rule}: no attack costs 0.01 of {clean:.3f}")
            else:
                parts.append(f"{rule}: {worst} costs {known[worst]:.3f} of {clean:.3f}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the result."""
        return {
            "audit": "poisoning",
            "job": self.job,
            "note": SIMULATED,
            "metric": self.metric,
            "sites": self.sites,
            "attackers": list(self.attackers),
            "cells": [
                {
                    "attack": cell.attack,
                    "rule": cell.rule,
                    "final": finite(cell.final),
                    "by_round": [finite(value) for value in cell.accuracy],
                    "refused": cell.refused,
                }
                for cell in self.cells
            ],
            "verdict": self.verdict,
        }


class HonestAccuracy(Hook):  # type: ignore[misc, unused-ignore]
    """Keeps what the honest sites report when they evaluate the model of each round."""

    def __init__(self, metric: str, weight: str, honest: frozenset[str]) -> None:
        self.metric = metric
        self.weight = weight
        self.honest = honest
        self.found: dict[int, list[tuple[float, float]]] = {}

    def answered(
        self, call: Call, asked: Arrays, arrays: Arrays, metrics: Mapping[str, Any]
    ) -> Arrays:
        if (
            call.kind.split(".")[0] == "evaluate"
            and call.site in self.honest
            and self.metric in metrics
        ):
            pair = (float(metrics[self.metric]), float(metrics.get(self.weight, 1)))
            self.found.setdefault(call.round, []).append(pair)
        return arrays

    def by_round(self) -> tuple[float, ...]:
        """Return the weighted mean of each round that was evaluated.

        :raises ConfigError: when no site reported the metric.
        """
        if not self.found:
            raise ConfigError(
                f"no honest site reported the metric {self.metric!r} when it evaluated",
                hint="set [evaluate] metric to one that the app's evaluation reports; a job with "
                "[privacy] reports none without insecure_exact_metrics",
            )
        means = []
        for _, pairs in sorted(self.found.items()):
            total = sum(weight for _, weight in pairs)
            means.append(
                sum(value * weight for value, weight in pairs) / total if total else math.nan
            )
        return tuple(means)


class _Poison(Hook):  # type: ignore[misc, unused-ignore]
    """Replaces the updates of the attackers, knowing those of the honest sites."""

    def __init__(self, attack: str, attackers: frozenset[str], strength: float, seed: int) -> None:
        self.attack = attack
        self.attackers = attackers
        self.strength = strength
        self.seed = seed
        self._model: Arrays = {}

    def answered(
        self, call: Call, asked: Arrays, arrays: Arrays, metrics: Mapping[str, Any]
    ) -> Arrays:
        if call.kind.split(".")[0] == "train":
            self._model = asked
        return arrays

    def round_answered(self, round: int, answers: Mapping[str, Arrays]) -> Mapping[str, Arrays]:  # noqa: A002
        honest = [site for site in answers if site not in self.attackers]
        own = [site for site in answers if site in self.attackers]
        if not own:
            return answers
        model = self._model
        matrix = {site: _vector(answers[site], model) for site in answers}
        sent = malicious_updates(
            self.attack,
            np.array([matrix[site] for site in honest]),
            np.array([matrix[site] for site in own]),
            strength=self.strength,
            rng=np.random.default_rng([self.seed, round]),
        )
        changed = {
            site: _arrays(vector, answers[site], model)
            for site, vector in zip(own, sent, strict=True)
        }
        return {site: changed.get(site, arrays) for site, arrays in answers.items()}


def _vector(arrays: Arrays, model: Arrays) -> NDArray[np.float64]:
    return np.concatenate(
        [
            (arrays[name].astype(np.float64) - model[name].astype(np.float64)).reshape(-1)
            for name in model
            if np.issubdtype(model[name].dtype, np.floating)
        ]
    )


def _arrays(vector: NDArray[np.float64], like: Arrays, model: Arrays) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    start = 0
    for name in model:
        array = like[name]
        if not np.issubdtype(model[name].dtype, np.floating):
            found[name] = array
            continue
        part = vector[start : start + array.size].reshape(array.shape)
        start += array.size
        found[name] = (model[name].astype(np.float64) + part).astype(array.dtype)
    return found


def choose_attackers(sites: Sequence[str], share: float, seed: int) -> tuple[str, ...]:
    """Return the malicious sites: the share, rounded, chosen by the seed.

    :raises ConfigError: when none or all of the sites would be malicious.
    """
    if not 0 < share < 1:
        raise ConfigError(f"must be above 0 and below 1, not {share:g}", where="--attackers")
    count = round(share * len(sites))
    if not 0 < count < len(sites):
        raise ConfigError(
            f"{share:g} of {len(sites)} sites is {count}; an attack needs an attacker and an "
            "honest site",
            where="--attackers",
            hint=f"from {1 / len(sites):.3g} to {1 - 1 / len(sites):.3g}, or use more sites",
        )
    chosen = np.random.default_rng([seed, 2]).choice(len(sites), size=count, replace=False)
    return tuple(sites[int(index)] for index in np.sort(chosen))


def audit_poisoning(
    target: AuditTarget,
    *,
    rules: Sequence[Rule],
    attacks: Sequence[str] = ATTACKS,
    share: float = 0.2,
    strengths: Mapping[str, float] = STRENGTHS,
    rounds: int | None = None,
    seed: int = 0,
    progress: Callable[[str], object] = lambda _: None,
) -> PoisoningResult:
    """Run the job once for each attack and each rule, and once for each rule without an attack.

    :param share: of the sites that are malicious.
    :param strengths: by attack, see :mod:`fedlearn.audit.attacks.byzantine`.
    :param rounds: those of the job by default.
    :raises ConfigError: for an unknown attack, a share without an attacker or an honest site, a job
        whose sites report no metric, or when no rule can run.
    """
    for attack in attacks:
        if attack not in ATTACKS:
            raise ConfigError(
                f"{attack!r} is no attack", where="--attacks", hint=f"one of {', '.join(ATTACKS)}"
            )
    if not rules or not attacks:
        raise ConfigError("an audit needs a rule and an attack")
    if not target.job.evaluate.metric:
        raise ConfigError(
            "is needed: the metric by which attacks are compared",
            where=str(target.path),
            key="evaluate.metric",
        )
    if target.job.privacy is not None and not target.job.privacy.insecure_exact_metrics:
        raise ConfigError(
            "under [privacy] the sites report no metric, and the attacks cannot be compared",
            where=str(target.path),
            key="privacy",
            hint="set insecure_exact_metrics = true in a copy of the job, or remove [privacy]",
        )
    attackers = choose_attackers(target.job.sites, share, seed)
    cells: list[Cell] = []
    with temporary() as folder:
        flipped = folder / "flipped"
        if LABEL_FLIP in attacks:
            write_data(target, flipped, _flipped(target, attackers))
        for rule in rules:
            for attack in (NONE, *attacks):
                progress(f"{rule.title}: {attack}")
                cells.append(
                    _cell(
                        target,
                        folder / f"run-{len(cells)}",
                        rule.for_attackers(target.job.sites, attackers),
                        attack,
                        attackers,
                        data=flipped if attack == LABEL_FLIP else target.data,
                        strength=strengths.get(attack, STRENGTHS.get(attack, 0.0)),
                        rounds=rounds,
                        seed=seed,
                    )
                )
    if all(cell.refused for cell in cells):
        raise ConfigError(f"no rule can run: {cells[0].refused}", where="--rules")
    return PoisoningResult(
        job=target.job.name,
        metric=target.job.evaluate.metric,
        sites=len(target.job.sites),
        attackers=attackers,
        attacks=tuple(attacks),
        rules=tuple(rule.title for rule in rules),
        cells=tuple(cells),
    )


def _flipped(target: AuditTarget, attackers: Sequence[str]) -> dict[str, Records]:
    """Return the attackers' records with flipped labels on the rows that they train on."""
    found = {}
    for site in attackers:
        train, others = divide(target.records[site], target.spec.trained)
        labels = flip_labels(train.y, target.classes).astype(np.int64)
        found[site] = Records(x=train.x, y=labels, header=train.header).joined(others)
    return found


def _cell(
    target: AuditTarget,
    folder: Path,
    rule: Rule,
    attack: str,
    attackers: tuple[str, ...],
    *,
    data: Path,
    strength: float,
    rounds: int | None,
    seed: int,
) -> Cell:
    job = target.job
    if few := too_few_updates(rule.name, rule.options, job.quorum):
        return Cell(attack=attack, rule=rule.title, accuracy=(), refused=few)
    weight = str(job.strategy.options.get("weighted_by_key", "num-examples"))
    honest = frozenset(job.sites) - frozenset(attackers)
    accuracy = HonestAccuracy(job.evaluate.metric, weight, honest)
    hooks: list[Hook] = [accuracy]
    if attack not in {NONE, LABEL_FLIP}:
        hooks.append(_Poison(attack, frozenset(attackers), strength, seed))
    changes: dict[str, Any] = {}
    if rule.name != APP:
        changes["strategy"] = {"name": rule.name, "options": dict(rule.options)}
    if rounds is not None:
        changes["rounds"] = rounds
    run_variant(target, folder, changes=changes, data=data, hooks=hooks, seed=seed, evaluate=True)
    return Cell(attack=attack, rule=rule.title, accuracy=accuracy.by_round())
