"""``fedlearn audit epsilon``: a lower bound on epsilon from one run, beside the claim.

*Canary sites*, for a job whose unit of privacy is the site. The job runs with many sites, all of
them canaries: each has one number of the model for itself, and a fair coin decides whether it
moves that number by the clip in every round, or sends no change (Dirac canaries, Nasr et al. 2023,
arXiv:2302.07956; one run, Steinke et al. 2023, arXiv:2305.08846). The auditor sees the released
models. The other numbers of the model have noise alone, whose standard deviation is compared with
the claim. Before its update is replaced, each site's own is compared with the clip.

*Canary examples*, for a job whose unit is the example: records with wrong labels, each in the data
of its site or not; the score of a canary is the loss that it lost by training.

The bound is of one run, so it may be far below the truth. A bound above the claim refutes the
claim; one below does not prove it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.audit.attacks.member_inference import logit_scaled
from fedlearn.audit.attacks.one_run import Bound, epsilon_lower_bound, noise_interval
from fedlearn.audit.runs import SIMULATED, finite, run_variant, temporary, write_data
from fedlearn.audit.site_data import Records, compose
from fedlearn.audit.target import AuditTarget
from fedlearn.errors import ConfigError
from fedlearn.privacy.accountant import epsilon as epsilon_spent
from fedlearn.privacy.spec import PrivacySpec
from fedlearn.simulation import Call, Hook

__all__ = ["EpsilonResult", "NoiseTest", "audit_epsilon"]

Arrays = Mapping[str, NDArray[Any]]
Vector = NDArray[np.float64]

CANARIES: Final = ("sites", "examples")
_DELTA: Final = 1e-5
_CLIP: Final = 1.0
_SLACK: Final = 1e-6
_FEWEST_NUMBERS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseTest:
    """The noise on numbers of the model that no site moved, beside its claim.

    ``claimed``    standard deviation on the sum of the updates, in the units of the model
    ``measured``   the same, with an interval ``low`` to ``high`` of 99.9%
    ``numbers``    that were measured
    """

    claimed: float
    measured: float
    low: float
    high: float
    numbers: int

    @property
    def fails(self) -> bool:
        """Whether there is less noise than claimed, with confidence."""
        return self.high < self.claimed


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonResult:
    """What an audit of epsilon found.

    ``claim``      epsilon of the rounds that ran, by the job's accountant; infinity without
                   ``[privacy]``
    ``clip_fault`` what a site sent beyond the clip; empty for nothing
    ``scores``, ``included``
                   of the canaries
    """

    job: str
    canaries: str
    claim: float
    delta: float
    rounds: int
    confidence: float
    bound: Bound
    noise: NoiseTest | None
    clip_fault: str
    scores: Vector = field(repr=False)
    included: NDArray[np.bool_] = field(repr=False)

    @property
    def fails(self) -> bool:
        """Whether the claim is refuted."""
        noise = self.noise is not None and self.noise.fails
        return self.bound.epsilon > self.claim or noise or bool(self.clip_fault)

    @property
    def verdict(self) -> str:
        """What was found, in a few sentences."""
        found = (
            f"epsilon is at least {self.bound.epsilon:.3f} with confidence {self.confidence:.0%} "
            f"({self.bound.right} of {self.bound.guesses} guesses right)"
        )
        parts = []
        if math.isinf(self.claim):
            parts.append(f"{found}; the job claims nothing")
        elif self.bound.epsilon > self.claim:
            parts.append(f"THE CLAIM IS REFUTED: {found}, and the claim is {self.claim:.3f}")
        else:
            parts.append(f"{found}, below the claim of {self.claim:.3f}: it is not refuted")
        if self.noise is not None and self.noise.fails:
            parts.append(
                f"THE NOISE IS TOO SMALL: its standard deviation is {self.noise.measured:.4g}, "
                f"at most {self.noise.high:.4g}, and the claim is {self.noise.claimed:.4g}"
            )
        if self.clip_fault:
            parts.append(f"THE CLIP IS NOT KEPT: {self.clip_fault}")
        if self.bound.epsilon <= self.claim < math.inf and self.bound.ceiling <= self.claim:
            parts.append(
                f"this audit cannot refute the claim: with {self.bound.canaries} canaries the "
                f"bound is at most {self.bound.ceiling:.3f}"
            )
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the result without the scores."""
        noise = self.noise
        return {
            "audit": "epsilon",
            "job": self.job,
            "note": SIMULATED,
            "canaries": self.canaries,
            "count": self.bound.canaries,
            "included": int(self.included.sum()),
            "rounds": self.rounds,
            "delta": self.delta,
            "claim": finite(self.claim),
            "lower_bound": self.bound.epsilon,
            "largest_bound_possible": self.bound.ceiling,
            "confidence": self.confidence,
            "guesses": self.bound.guesses,
            "right": self.bound.right,
            "noise": None
            if noise is None
            else {
                "claimed": noise.claimed,
                "measured": noise.measured,
                "interval": [noise.low, noise.high],
                "numbers": noise.numbers,
                "fails": noise.fails,
            },
            "clip_fault": self.clip_fault,
            "refuted": self.fails,
            "verdict": self.verdict,
        }


class _CanarySites(Hook):  # type: ignore[misc, unused-ignore]
    """Each site moves one number of the model by the clip, or sends no change."""

    def __init__(
        self, included: Mapping[str, bool], *, clip: float, both: bool, checked: bool, seed: int
    ) -> None:
        self.included = included
        self.clip = clip
        self.both = both
        self.checked = checked
        self.seed = seed
        self.fault = ""
        self.models: dict[int, Vector] = {}
        self.number: dict[str, int] = {}
        self.free: NDArray[np.int64] = np.zeros(0, np.int64)

    def asked(self, call: Call, arrays: Arrays) -> Arrays:
        if call.kind.split(".")[0] == "train" and call.round not in self.models:
            self.models[call.round] = flat(arrays)
            if not self.number:
                self._place(len(self.models[call.round]))
        return arrays

    def _place(self, count: int) -> None:
        if count < len(self.included):
            raise ConfigError(
                f"the model has {count} numbers, and each of {len(self.included)} canaries needs "
                "one",
                where="--canaries",
                hint="lower it",
            )
        order = np.random.default_rng([self.seed, 5]).permutation(count)
        self.number = {site: int(place) for site, place in zip(self.included, order, strict=False)}
        self.free = np.sort(order[len(self.included) :])

    def answered(
        self, call: Call, asked: Arrays, arrays: Arrays, metrics: Mapping[str, Any]
    ) -> Arrays:
        if call.kind.split(".")[0] != "train":
            return arrays
        norm = float(np.linalg.norm(flat(arrays) - flat(asked)))
        if self.checked and norm > self.clip * (1 + _SLACK):
            self.fault = (
                f"site {call.site} sent an update of norm {norm:.6g} in round {call.round}, and "
                f"the clip is {self.clip:g}"
            )
        step = self.clip if self.included[call.site] else -self.clip * self.both
        return moved(asked, self.number[call.site], step)


def flat(arrays: Arrays) -> Vector:
    """Return the floating-point numbers of a model as one vector."""
    return np.concatenate(
        [
            array.astype(np.float64).reshape(-1)
            for array in arrays.values()
            if np.issubdtype(array.dtype, np.floating)
        ]
    )


def moved(arrays: Arrays, place: int, step: float) -> dict[str, NDArray[Any]]:
    """Return the arrays with one number moved by at most ``step``, rounded towards the old one."""
    found: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items():
        found[name] = array
        if not np.issubdtype(array.dtype, np.floating):
            continue
        if 0 <= place < array.size and step:
            changed = array.copy()
            old = changed.reshape(-1)[place]
            new = np.asarray(float(old) + step).astype(array.dtype)[()]
            if abs(float(new) - float(old)) > abs(step):
                new = np.nextafter(new, old)
            changed.reshape(-1)[place] = new
            found[name] = changed
        place -= array.size
    return found


def audit_epsilon(
    target: AuditTarget,
    *,
    kind: str = "",
    canaries: int = 500,
    confidence: float = 0.95,
    delta: float | None = None,
    rounds: int | None = None,
    seed: int = 0,
) -> EpsilonResult:
    """Audit the epsilon that a job claims.

    :param kind: ``sites`` or ``examples``; by default what the job's ``[privacy]`` protects, and
        sites without one.
    :param canaries: how many; each needs a number of the model, or a record.
    :param delta: of the bound; that of the job by default, or 1e-5 without ``[privacy]``.
    :param rounds: those of the job by default.
    :raises ConfigError: when the job, its data or ``audit.toml`` have not what the audit needs.
    """
    privacy = target.job.privacy
    kind = kind or ("examples" if privacy is not None and privacy.unit != "site" else "sites")
    if kind not in CANARIES:
        raise ConfigError(f"{kind!r} is none of {', '.join(CANARIES)}", where="--kind")
    if not 0.5 < confidence < 1:
        raise ConfigError(
            f"must be above 0.5 and below 1, not {confidence:g}", where="--confidence"
        )
    if canaries < 2:
        raise ConfigError(f"must be at least 2, not {canaries}", where="--canaries")
    run = rounds or target.job.rounds
    coins = np.random.default_rng([seed, 4]).random(canaries) < 0.5
    noise: NoiseTest | None = None
    fault = ""
    if kind == "sites":
        scores, noise, fault = _of_sites(target, coins, run, seed)
    else:
        scores = _of_examples(target, coins, run, seed)
    used = delta if delta is not None else _DELTA if privacy is None else privacy.delta
    return EpsilonResult(
        job=target.job.name,
        canaries=kind,
        claim=math.inf if privacy is None else epsilon_spent(privacy, run),
        delta=used,
        rounds=run,
        confidence=confidence,
        bound=epsilon_lower_bound(scores, coins, delta=used, confidence=confidence),
        noise=noise,
        clip_fault=fault,
        scores=scores,
        included=coins,
    )


def _of_sites(
    target: AuditTarget, coins: NDArray[np.bool_], rounds: int, seed: int
) -> tuple[Vector, NoiseTest | None, str]:
    privacy = target.job.privacy
    sites = tuple(f"canary-{number:05d}" for number in range(len(coins)))
    included = dict(zip(sites, coins.tolist(), strict=True))
    clip = _CLIP if privacy is None else privacy.clip
    hook = _CanarySites(
        included,
        clip=clip,
        both=privacy is not None and privacy.adjacency == "replace-one",
        checked=privacy is not None,
        seed=seed,
    )
    with temporary() as folder:
        data = _shared_data(target, folder / "data", sites)
        model = run_variant(
            target,
            folder / "job",
            changes={
                "sites": list(sites),
                "data": None,
                "placement": None,
                "quorum": len(sites),
                "rounds": rounds,
                "strategy": {"name": "fedavg"},
                "compression": None,
                "evaluate": {"every": rounds, "fraction": 0.0, "metric": ""},
                "privacy": _for_all(privacy, len(sites)),
            },
            data=data,
            hooks=[hook],
            seed=seed,
        ).model
    released = [hook.models[number] for number in sorted(hook.models)] + [flat(model)]
    steps = np.diff(np.array(released), axis=0) * len(sites)
    places = np.array([hook.number[site] for site in sites])
    return steps[:, places].sum(axis=0) / clip, _noise(steps, hook, privacy), hook.fault


def _noise(
    steps: NDArray[np.float64], hook: _CanarySites, privacy: PrivacySpec | None
) -> NoiseTest | None:
    """Compare the noise on the numbers that nobody moved with its claim."""
    values = steps[:, hook.free].reshape(-1)
    if privacy is None or len(values) < _FEWEST_NUMBERS:
        return None
    measured, low, high = noise_interval(values, confidence=0.999)
    return NoiseTest(
        claimed=privacy.noise_multiplier * privacy.sensitivity,
        measured=measured,
        low=low,
        high=high,
        numbers=len(values),
    )


def _for_all(privacy: PrivacySpec | None, sites: int) -> dict[str, Any] | None:
    """Return the job's ``[privacy]`` for a run of all sites in each round.

    No amplification by sampling is credited, so the claim is the same. Noise is from the seed, so
    that an audit repeats to the bit; the auditor does not use the seed.
    """
    if privacy is None:
        return None
    table = {
        key: value
        for key, value in privacy.to_mapping().items()
        if key not in {"sampling", "sampling_rate", "sample_size", "population"}
    }
    if table.get("expected_cohort") is not None:
        table["expected_cohort"] = float(sites)
    return {**table, "insecure_deterministic_noise": True}


def _shared_data(target: AuditTarget, folder: Path, sites: tuple[str, ...]) -> Path:
    """Give each canary the data of one of the job's sites: what it trains is replaced."""
    folder.mkdir()
    own = [(target.data / site).resolve() for site in target.job.sites]
    for source in own:
        if not source.is_dir():
            raise ConfigError("is no folder with the data of a site", where=str(source))
    for number, site in enumerate(sites):
        (folder / site).symlink_to(own[number % len(own)], target_is_directory=True)
    return folder


def _of_examples(target: AuditTarget, coins: NDArray[np.bool_], rounds: int, seed: int) -> Vector:
    predict = target.predictor()
    train, others = target.divided()
    rng = np.random.default_rng([seed, 6])
    owner = np.arange(len(coins)) % len(train)
    canaries: dict[str, Records] = {}
    changed: dict[str, Records] = {}
    for number, (site, records) in enumerate(train.items()):
        mine = np.flatnonzero(owner == number)
        if len(mine) > len(records):
            raise ConfigError(
                f"site {site} has {len(records)} examples, and {len(mine)} canaries are to be made "
                "of them",
                where="--canaries",
                hint="lower it",
            )
        chosen = rng.choice(len(records), size=len(mine), replace=False)
        wrong = rng.integers(1, target.classes, size=len(mine))
        plain = records.rows(np.setdiff1d(np.arange(len(records)), chosen))
        canaries[site] = Records(
            x=records.x[chosen],
            y=(records.y[chosen] + wrong) % target.classes,
            header=records.header,
        )
        kept = plain.joined(canaries[site].rows(coins[mine]))
        # In any order: an app may take batches in that of the file.
        kept = kept.rows(rng.permutation(len(kept)))
        changed[site] = compose(kept, others[site], target.spec.trained)
    first = _FirstModel()
    privacy = target.job.privacy
    changes: dict[str, Any] = {"rounds": rounds}
    if privacy is not None:
        changes["privacy"] = privacy.to_mapping()
    with temporary() as folder:
        data = write_data(target, folder / "data", changed)
        model = run_variant(
            target, folder / "job", changes=changes, data=data, hooks=[first], seed=seed
        ).model
    scores = np.zeros(len(coins))
    for number, records in enumerate(canaries.values()):
        x = target.inputs(records.x)
        gain = logit_scaled(predict(model, x), records.y) - logit_scaled(
            predict(first.arrays, x), records.y
        )
        scores[owner == number] = gain
    return scores


class _FirstModel(Hook):  # type: ignore[misc, unused-ignore]
    """Keeps the model before the first round."""

    def __init__(self) -> None:
        self.arrays: dict[str, NDArray[Any]] = {}

    def asked(self, call: Call, arrays: Arrays) -> Arrays:
        if not self.arrays:
            self.arrays = {name: np.array(array) for name, array in arrays.items()}
        return arrays
