"""``fedlearn audit epsilon``: a lower bound on epsilon from one run, beside the claim.

*Canary sites*, for a job whose ``[privacy]`` protects sites. The job runs with many sites, all of
them canaries: each has one number of the model for itself, and a fair coin decides whether its
update moves that number by ten times the clip in every round, or nothing (Dirac canaries, Nasr et
al. 2023, arXiv:2302.07956; one run, Steinke et al. 2023, arXiv:2305.08846). The client clips it and
the noise is added as in the job. In place of the job's ClientApp a canary runs; the ServerApp and
its model are the job's. The auditor sees the released models. The other numbers of the model have
noise alone, whose standard deviation is compared with the claim.

*Canary examples*, for a job whose ``[privacy]`` protects examples: records with wrong labels, each
in the data of its site or not; the score of a canary is the confidence that it gained by training.
What protects sites protects examples, too. A canary that is left out makes the site's data smaller
by one, while the guarantee takes that number as public; the score does not use it.

The bound is of one run, so it may be far below the truth. A bound above the claim refutes the
claim; one below does not prove it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedlearn.audit.attacks.member_inference import logit_scaled
from fedlearn.audit.attacks.one_run import Bound, epsilon_lower_bound, noise_interval
from fedlearn.audit.canaries import canary_app, canary_places, write_canary
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
_BEYOND: Final = 10.0
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

    ``claim``     epsilon of the rounds that ran, by the job's accountant or as it was given;
                  infinity without a claim
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
    scores: Vector = field(repr=False)
    included: NDArray[np.bool_] = field(repr=False)

    @property
    def fails(self) -> bool:
        """Whether the claim is refuted."""
        return self.bound.epsilon > self.claim or (self.noise is not None and self.noise.fails)

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
            "refuted": self.fails,
            "verdict": self.verdict,
        }


class _Released(Hook):  # type: ignore[misc, unused-ignore]
    """Keeps the model before each round, and how many sites it was sent to."""

    def __init__(self) -> None:
        self.models: dict[int, Vector] = {}
        self.asked_sites: dict[int, int] = {}

    def asked(self, call: Call, arrays: Arrays) -> Arrays:
        if call.kind.split(".")[0] == "train":
            if call.round not in self.models:
                self.models[call.round] = flat(arrays)
            self.asked_sites[call.round] = self.asked_sites.get(call.round, 0) + 1
        return arrays


def flat(arrays: Arrays) -> Vector:
    """Return the floating-point numbers of a model as one vector."""
    return np.concatenate(
        [
            array.astype(np.float64).reshape(-1)
            for array in arrays.values()
            if np.issubdtype(array.dtype, np.floating)
        ]
    )


def audit_epsilon(
    target: AuditTarget,
    *,
    kind: str = "",
    canaries: int = 500,
    confidence: float = 0.95,
    delta: float | None = None,
    claim: float | None = None,
    rounds: int | None = None,
    seed: int = 0,
) -> EpsilonResult:
    """Audit the epsilon that a job claims.

    :param kind: ``sites`` or ``examples``; by default what the job's ``[privacy]`` protects, and
        sites without one.
    :param canaries: how many; each needs a number of the model, or a record.
    :param delta: of the bound; that of the job by default, or 1e-5 without ``[privacy]``.
    :param claim: the epsilon that the app claims, where the job has no ``[privacy]``.
    :param rounds: those of the job by default.
    :raises ConfigError: when the job, its data or ``audit.toml`` have not what the audit needs.
    """
    privacy = target.job.privacy
    unit = "site" if privacy is None else privacy.unit
    kind = kind or ("examples" if unit == "example" else "sites")
    if kind not in CANARIES:
        raise ConfigError(f"{kind!r} is none of {', '.join(CANARIES)}", where="--kind")
    if kind == "sites" and unit != "site":
        raise ConfigError(
            f"canary sites audit the unit site, and that of the job is {unit}",
            where=str(target.path),
            key="privacy.unit",
            hint="use --kind examples",
        )
    if not 0.5 < confidence < 1:
        raise ConfigError(
            f"must be above 0.5 and below 1, not {confidence:g}", where="--confidence"
        )
    if canaries < 2:
        raise ConfigError(f"must be at least 2, not {canaries}", where="--canaries")
    if claim is not None and privacy is not None:
        raise ConfigError("the job's own [privacy] states the claim", where="--claim")
    run = rounds or target.job.rounds
    used = delta if delta is not None else _DELTA if privacy is None else privacy.delta
    coins = np.random.default_rng([seed, 4]).random(canaries) < 0.5
    noise: NoiseTest | None = None
    if kind == "sites":
        scores, noise = _of_sites(target, coins, run, seed)
    else:
        scores = _of_examples(target, coins, run, seed)
    if privacy is not None:
        claim = epsilon_spent(dataclasses.replace(privacy, delta=used), run)
    return EpsilonResult(
        job=target.job.name,
        canaries=kind,
        claim=math.inf if claim is None else claim,
        delta=used,
        rounds=run,
        confidence=confidence,
        bound=epsilon_lower_bound(scores, coins, delta=used, confidence=confidence),
        noise=noise,
        scores=scores,
        included=coins,
    )


def _of_sites(
    target: AuditTarget, coins: NDArray[np.bool_], rounds: int, seed: int
) -> tuple[Vector, NoiseTest | None]:
    privacy = target.job.privacy
    clip = 1.0 if privacy is None else privacy.clip
    step = _BEYOND * clip if privacy is not None else clip
    both = privacy is not None and privacy.adjacency == "replace-one"
    sites = tuple(f"canary-{number:05d}" for number in range(len(coins)))
    released = _Released()
    with temporary() as folder:
        data = folder / "data"
        for number, (site, coin) in enumerate(zip(sites, coins.tolist(), strict=True)):
            moves = step if coin else -step if both else 0.0
            write_canary(data / site, number=number, step=moves, seed=seed)
        model = run_variant(
            target,
            folder / "job",
            changes={
                "app": str(canary_app(target, folder / "app")),
                "sites": list(sites),
                "data": None,
                "placement": None,
                "quorum": 0,
                "rounds": rounds,
                "strategy": {"name": "fedavg"},
                "compression": None,
                "privacy": _for_all(privacy, len(sites)),
            },
            data=data,
            hooks=[released],
            seed=seed,
        ).model
    models = np.array([released.models[n] for n in sorted(released.models)] + [flat(model)])
    order = canary_places(models.shape[1], seed)
    if len(order) < len(sites):
        raise ConfigError(
            f"the model has {len(order)} numbers, and each of {len(sites)} canaries needs one",
            where="--canaries",
            hint="lower it",
        )
    asked = np.array([released.asked_sites[n] for n in sorted(released.models)], dtype=np.float64)
    if privacy is not None and privacy.expected_cohort is not None:
        asked[:] = len(sites)
    sums = np.diff(models, axis=0) * asked[:, None]
    scores = sums[:, order[: len(sites)]].sum(axis=0) / clip
    return scores, _noise(sums[:, order[len(sites) :]], asked, privacy)


def _noise(
    sums: NDArray[np.float64], asked: Vector, privacy: PrivacySpec | None
) -> NoiseTest | None:
    """Compare the noise on the numbers that nobody moved, by round, with its claim."""
    if privacy is None or sums.size < _FEWEST_NUMBERS or privacy.clip_quantile is not None:
        return None
    claimed = privacy.update_multiplier * privacy.sensitivity
    if privacy.updates_are_private:
        sums = sums / np.sqrt(asked)[:, None]  # each client has noise of its own
    measured, low, high = noise_interval(sums.reshape(-1), confidence=0.999)
    return NoiseTest(claimed=claimed, measured=measured, low=low, high=high, numbers=sums.size)


def _for_all(privacy: PrivacySpec | None, sites: int) -> dict[str, Any] | None:
    """Return the job's ``[privacy]`` for a run of many sites.

    No amplification by sampling is credited, so the claim is that of full participation. Noise is
    from the seed, so that an audit repeats to the bit; the auditor does not use the seed.
    """
    if privacy is None:
        return None
    table: dict[str, Any] = privacy.to_mapping()
    if privacy.sampling == "fixed":
        table["sampling"] = "full"
        del table["sample_size"], table["population"]
    if privacy.expected_cohort is not None:
        table["expected_cohort"] = float(sites)
    if privacy.shares is not None:
        table["shares"] = sites
    return {**table, "insecure_deterministic_noise": True}


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
    changes = {"rounds": rounds}
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
