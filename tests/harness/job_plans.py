"""Plans of jobs for tests, from values that are named as flat as a test reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedlearn.compression.spec import CompressionSpec
from fedlearn.job.spec import JobSpec
from fedlearn.job.tables import AggregationSpec, EvaluateSpec, StrategySpec
from fedlearn.privacy import PrivacySpec
from server.flower.job_plan import JobPlan


def job_plan(
    bundle: bytes = b"bundle",
    *,
    job: str = "j",
    sites: Sequence[str] = ("a", "b"),
    rounds: int = 1,
    quorum: int = 1,
    seconds: float = 5.0,
    seed: int = 1,
    stragglers: str = "drop",
    strategy: str = "app",
    options: Mapping[str, Any] | None = None,
    updates: str = "aggregated",
    aggregation: Mapping[str, Any] | None = None,
    evaluate_every: int = 1,
    evaluate_fraction: float = 1.0,
    run_config: Mapping[str, Any] | None = None,
    privacy: PrivacySpec | None = None,
    compression: CompressionSpec | None = None,
    **plan: Any,
) -> JobPlan:
    """Return the plan of a job; ``plan`` are fields of :class:`JobPlan` itself."""
    spec = JobSpec(
        name=job,
        app="app",
        policy="policy.toml",
        policy_digest=bytes(range(32)),
        rounds=rounds,
        sites=tuple(sites),
        quorum=quorum,
        deadline_s=seconds,
        seed=seed,
        stragglers=stragglers,
        strategy=StrategySpec(name=strategy, options=options or {}),
        aggregation=AggregationSpec(**{"updates": updates, **(aggregation or {})}),
        evaluate=EvaluateSpec(every=evaluate_every, fraction=evaluate_fraction),
        config=run_config or {},
        privacy=privacy,
        compression=compression or CompressionSpec(),
    )
    return JobPlan(spec=spec, bundle=bundle, **plan)
