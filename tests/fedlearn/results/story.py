"""The events of a small job, with what a coordinator may report."""

from __future__ import annotations

from fedlearn.job import events

STORY: list[events.Event] = [
    events.JobSubmitted(job="medpar", rounds=2, sites=("a", "b")),
    events.JobStarted(job="medpar", rounds=2, sites=("a", "b")),
    events.ClientStarting(site="a"),
    events.ClientAdmitted(site="a", tee="tpm"),
    events.ClientAdmitted(site="b", tee="sample"),
    events.ClientRefused(
        site="rogue",
        reason="wrong app",
        findings=({"claim": "app", "tier": "contraindicated", "expected": "aa", "actual": "bb"},),
    ),
    events.RoundStarted(round=1, rounds=2, sites=("a", "b")),
    events.UpdateReceived(round=1, site="a", bytes=2048, examples=10),
    events.UpdateRejected(round=1, site="b", reason="too late"),
    events.RoundFinished(
        round=1, rounds=2, seconds=0.42, sites=1, bytes=2048, metrics={"auc": 0.66, "loss": 0.5}
    ),
    events.CheckpointSealed(round=1, model="medpar", version=1),
    events.PrivacySpent(
        round=1,
        epsilon=1.234,
        delta=1e-5,
        unit="site",
        sampling="full participation",
        accountant="rdp",
        limit=8,
    ),
    events.ClientQuarantined(site="b", reason="did not attest again"),
    events.Log(site="a", line="\x1b[31mhello"),
    events.OtherEvent(name="new.kind", body={"x": 1}),
    events.JobFinished(model="medpar"),
]


TIMED: list[tuple[events.Event, int]] = [
    (event, 1_700_000_000_000 + 1000 * number) for number, event in enumerate(STORY)
]
"""The same, one event a second."""
