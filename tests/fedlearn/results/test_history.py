"""The history of a run: rounds, sites, refusals, privacy and times, from its events."""

from __future__ import annotations

import pytest

from fedlearn.job import events
from fedlearn.results.history import RunHistory
from tests.fedlearn.results.story import STORY, TIMED


def started(rounds: int = 3, resumed_from: int = 0) -> events.JobStarted:
    return events.JobStarted(job="ecg", rounds=rounds, sites=("a", "b"), resumed_from=resumed_from)


def a_round(number: int, *, seconds: float = 2.0, sites: int = 2) -> list[events.Event]:
    return [
        events.RoundStarted(round=number, rounds=3, sites=("a", "b")),
        *(
            events.UpdateReceived(round=number, site=site, bytes=100, examples=7)
            for site in ("a", "b")[:sites]
        ),
        events.RoundFinished(round=number, rounds=3, seconds=seconds, sites=sites, bytes=200),
    ]


def of(*seen: events.Event) -> RunHistory:
    return RunHistory.of((event, 1000 * (number + 1)) for number, event in enumerate(seen))


def test_what_was_reported_is_known() -> None:
    history = RunHistory.of(TIMED)
    assert (history.job, history.status, history.round) == ("medpar", "finished", 1)
    assert (history.planned, history.model) == (2, "medpar")
    first = history.finished[0]
    assert (first.seconds, first.sites, first.bytes) == (0.42, 1, 2048)
    assert first.updates["a"].examples == 10
    assert first.rejected == {"b": "too late"}
    assert first.privacy is history.privacy[0]
    assert history.checkpoints[0].round == 1
    assert history.sites["a"].state == "done"
    assert history.sites["a"].bytes == 2048
    assert history.sites["b"].state == "quarantined"
    assert history.sites["b"].rejected == 1
    assert history.sites["rogue"].state == "refused"
    assert history.elapsed() == len(STORY) - 1


def test_refusals_carry_what_speaks_against_the_client() -> None:
    history = RunHistory.of(TIMED)
    refused, quarantined = history.refusals
    assert (refused.site, refused.reason, refused.round) == ("rogue", "wrong app", 0)
    assert [finding["claim"] for finding in refused.against] == ["app"]
    assert (quarantined.site, quarantined.quarantined, quarantined.round) == ("b", True, 1)


def test_a_refusal_in_the_same_words_is_counted() -> None:
    again = [events.ClientRefused(site="x", reason="wrong app") for _ in range(5)]
    history = of(started(), *again, events.ClientRefused(site="x", reason="another"))
    assert [(each.reason, each.count) for each in history.refusals] == [
        ("wrong app", 5),
        ("another", 1),
    ]


def test_endless_refusals_are_bounded_and_what_is_left_out_is_counted() -> None:
    history = of(started(), *(events.ClientRefused(site="", reason=str(n)) for n in range(1005)))
    assert len(history.refusals) == 1000
    assert history.refusals_left_out == 5
    assert "" not in history.sites


def test_affirming_findings_do_not_speak_against_a_client() -> None:
    findings = (
        {"claim": "app", "tier": "contraindicated", "actual": "x"},
        {"claim": "app", "tier": "contraindicated", "actual": "x"},
        {"claim": "debug", "tier": "affirming", "actual": False},
        {"claim": "boot", "tier": "warning", "actual": ["list"]},
    )
    history = of(events.ClientRefused(site="x", reason="no", findings=findings))
    assert [finding["claim"] for finding in history.refusals[0].against] == ["app", "boot"]


def test_a_round_waits_for_the_sites_that_did_not_answer() -> None:
    seen = [
        started(),
        events.RoundStarted(round=1, rounds=3, sites=("a", "b")),
        events.UpdateReceived(round=1, site="b", bytes=1),
    ]
    assert of(*seen).waits_for == ("a",)
    assert of(*seen, events.UpdateRejected(round=1, site="a", reason="late")).waits_for == ()


def test_a_run_waits_for_absent_sites_until_a_round_begins() -> None:
    waiting = events.RoundWaiting(round=2, rounds=3, sites=("b",), detail="b (removed 12 s ago)")
    history = of(started(), *a_round(1), waiting)
    assert (history.waits_for, history.waiting) == (("b",), waiting)
    for event in (
        events.RoundStarted(round=2, rounds=3, sites=("a",)),
        started(resumed_from=1),
        events.JobCancelled(),
    ):
        again = of(started(), *a_round(1), waiting, event)
        assert again.waiting is None


def test_before_the_first_round_a_run_waits_for_sites_that_are_not_admitted() -> None:
    seen = [started(), events.ClientAdmitted(site="a", tee="tpm")]
    assert of(*seen).waits_for == ("b",)
    history = of(*seen, events.JobFailed(detail="no quorum", hint="start b"))
    assert history.waits_for == ()
    assert (history.status, history.detail, history.hint) == ("failed", "no quorum", "start b")


def test_an_update_that_the_strategy_rejects_does_not_count() -> None:
    history = of(
        started(),
        events.RoundStarted(round=1, rounds=3, sites=("a", "b")),
        events.UpdateReceived(round=1, site="a", bytes=1),
        events.UpdateRejected(round=1, site="a", reason="outlier"),
    )
    assert history.current is not None
    assert not history.current.updates
    assert (history.sites["a"].updates, history.sites["a"].rejected) == (0, 1)


def test_a_round_in_which_the_strategy_made_no_model_is_skipped_with_the_reason() -> None:
    history = RunHistory()
    history.add(events.RoundStarted(round=1, rounds=2, sites=("north",)))
    history.add(events.RoundSkipped(round=1, rounds=2, reason="no model of 1 update"))
    history.add(events.RoundFinished(round=1, rounds=2, seconds=1.0, sites=1, bytes=9))
    history.add(events.RoundStarted(round=2, rounds=2, sites=("north",)))
    # An event of another round changes nothing.
    history.add(events.RoundSkipped(round=1, rounds=2, reason="late"))
    history.add(events.RoundFinished(round=2, rounds=2, seconds=1.0, sites=1, bytes=9))
    assert [(each.number, each.skip) for each in history.skipped] == [(1, "no model of 1 update")]


def test_a_round_without_updates_is_skipped() -> None:
    history = of(started(), *a_round(1), *a_round(2, sites=0))
    assert [each.number for each in history.skipped] == [2]


def test_a_round_that_is_run_again_replaces_the_earlier_attempt() -> None:
    first = events.RoundStarted(round=2, rounds=3, sites=("a", "b"))
    history = of(started(), *a_round(1), first, *a_round(2, sites=1))
    assert [each.number for each in history.finished] == [1, 2]
    assert history.finished[-1].asked == ("a", "b")


def test_a_job_that_was_resumed_goes_on_after_its_checkpoint() -> None:
    history = of(
        started(),
        *a_round(1),
        *a_round(2),
        events.RoundStarted(round=3, rounds=3, sites=("a", "b")),
        events.JobInterrupted(detail="the coordinator stopped"),
    )
    assert history.ended
    history.add(started(resumed_from=1), unix_ms=90_000)
    assert (history.status, history.detail, history.resumed) == ("running", "", 1)
    assert [each.number for each in history.rounds] == [1]
    for event in (*a_round(2, seconds=9.0), *a_round(3)):
        history.add(event)
    assert [(each.number, each.seconds) for each in history.finished] == [
        (1, 2.0),
        (2, 9.0),
        (3, 2.0),
    ]


def test_a_second_strategy_is_another_stage() -> None:
    history = of(started(), *a_round(1), started(), *a_round(1))
    assert [(each.stage, each.number) for each in history.rounds] == [(1, 1), (2, 1)]


def test_time_left_is_that_of_the_usual_round() -> None:
    history = of(started(), *a_round(1, seconds=4.0))
    assert history.remaining() == 8.0
    history.add(events.RoundStarted(round=2, rounds=3, sites=("a",)), unix_ms=60_000)
    assert history.remaining(now_unix_ms=61_000) == 7.0
    assert history.remaining(now_unix_ms=99_000) == 4.0
    history.add(events.JobFinished())
    assert history.remaining() is None
    assert of(started()).remaining() is None


def test_a_round_that_was_never_seen_to_start_counts() -> None:
    history = of(events.RoundFinished(round=4, rounds=9, seconds=1.0, sites=1, bytes=5))
    assert [each.number for each in history.finished] == [4]
    assert history.planned == 9


def test_a_checkpoint_that_is_sealed_while_the_next_round_trains_is_of_its_round() -> None:
    sealed = events.CheckpointSealed(round=1, model="m", version=1, bytes=9)
    history = of(
        started(),
        events.RoundStarted(round=1, rounds=3, sites=("a",)),
        events.RoundFinished(round=1, rounds=3, seconds=1.0, sites=1, bytes=5),
        events.RoundStarted(round=2, rounds=3, sites=("a",)),
        sealed,
    )
    assert [each.checkpoint for each in history.rounds] == [sealed, None]
    assert history.checkpoints == [sealed]


@pytest.mark.parametrize(
    "event",
    [
        events.UpdateReceived(round=0, site="a", bytes=1),
        events.UpdateReceived(round=7, site="a", bytes=1),
        events.UpdateRejected(round=7, site="a", reason="late"),
        events.CheckpointSealed(round=7, model="m"),
        events.OtherEvent(name="new", body={}),
    ],
)
def test_an_event_of_no_round_that_runs_changes_no_round(event: events.Event) -> None:
    history = of(started(), events.RoundStarted(round=1, rounds=3, sites=("a",)), event)
    assert history.current is not None
    assert history.current.number == 1
    assert not history.current.updates
    assert not history.current.rejected
    assert history.current.checkpoint is None
