"""The events of a job with everything in it: refusals, a late site, privacy, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedlearn.job import events

__all__ = ["busy_run"]

_SITES = ("north", "south", "hospitals-of-the-east-3")
_TEES = ("tdx", "snp", "sample")
_FINDINGS = (
    {
        "claim": "app",
        "tier": "contraindicated",
        "expected": "5ee8" * 16,
        "actual": "c1d0" * 16,
        "remedy": "run the app bundle that the job names, or add it to [reference]",
    },
    {
        "claim": "hardware_id",
        "tier": "contraindicated",
        "expected": "one of those that are listed",
        "actual": "ab" * 32,
        "remedy": "enroll the machine",
    },
)


def busy_run(
    name: str, *, lift: float = 0.0, rounds: int = 12, sites: Sequence[str] = _SITES
) -> list[tuple[events.Event, int]]:
    """Return the events, each with its time; ``lift`` is added to the accuracy."""
    now = 1_700_000_000_000
    timed: list[tuple[events.Event, int]] = []

    def add(event: events.Event, milliseconds: int = 400) -> None:
        nonlocal now
        now += milliseconds
        timed.append((event, now))

    every = tuple(sites)
    add(events.JobSubmitted(job=name, rounds=rounds, sites=every))
    for index, site in enumerate(every):
        add(events.ClientStarting(site=site))
        add(events.ClientAdmitted(site=site, tee=_TEES[index % 3]))
    add(events.JobStarted(job=name, rounds=rounds, sites=every))
    reason = f"app is {'c1d0' * 16}, expected {'5ee8' * 16}, and 1 more"
    add(events.ClientRefused(site="rogue", tee="tpm", reason=reason, findings=_FINDINGS))
    for number in range(1, rounds + 1):
        add(events.RoundStarted(round=number, rounds=rounds, sites=every))
        answered = every if number != 5 else ()
        for index, site in enumerate(answered):
            if (number, index) == (3, 1):
                add(events.UpdateRejected(round=number, site=site, reason="the update was late"))
                continue
            metrics = {"loss": 1 / (number + index + 1), "accuracy": 0.5 + number * 0.03}
            add(
                events.UpdateReceived(
                    round=number, site=site, bytes=184_000, examples=1200, metrics=metrics
                ),
                200,
            )
        add(
            events.PrivacySpent(
                round=number,
                epsilon=0.4 * math.sqrt(number),
                delta=1e-5,
                unit="record",
                sampling="full participation",
                accountant="rdp",
                limit=4.0,
            ),
            10,
        )
        add(events.CheckpointSealed(round=number, model=name, version=number, bytes=1_400_000), 10)
        reached = 1 - math.exp(-number / 4)
        add(
            events.RoundFinished(
                round=number,
                rounds=rounds,
                seconds=1.2 + 0.1 * (number % 3),
                sites=len(answered),
                bytes=len(answered) * 184_000,
                metrics={
                    "loss": 0.9 / (1 + 0.2 * number) - lift,
                    "accuracy": 0.62 + 0.25 * reached + lift,
                    "f1": 0.5 + 0.2 * reached,
                },
            ),
            900,
        )
    add(events.JobFinished(model=name, seconds=30.0))
    return timed
