"""For which sites a round waits, and when it stops waiting."""

from __future__ import annotations

import pytest

from fedlearn.errors import QuorumNotReached
from fedlearn.job.events import RoundWaiting
from fedlearn.job.spec import JobSpec
from server.admission.absence import Absence, SiteWaits

SPEC = JobSpec.from_toml(
    'name = "heart"\napp = "app"\nrounds = 400\nsites = ["north", "south"]\npolicy = "p.toml"\n'
    f'policy_digest = "{bytes(32).hex()}"\n'
)
UNTIL = 47_110_000  # 13:05:10
EVENT = RoundWaiting(round=26, sites=("north", "south"), until_unix_ms=UNTIL)


def waits(absences: dict[str, Absence], live: set[str] | None = None) -> SiteWaits:
    return SiteWaits(SPEC, absence=absences.__getitem__, live=lambda: live or set())


def test_the_reasons_are_stated_once_and_again_when_they_change() -> None:
    absences = {
        "north": Absence("removed", final=True, seconds=12),
        "south": Absence("not connected"),
    }
    live: set[str] = set()
    waiting = waits(absences, live)
    first = waiting.begin(EVENT)
    assert first is not None
    assert first.detail == "north (removed 12 s ago), south (not connected)"
    assert (first.round, first.rounds) == (26, 400)
    absences["north"] = Absence("removed", final=True, seconds=17)
    assert waiting.begin(EVENT) is None
    assert waiting.text() == (
        "round 26/400 waits for north (removed 17 s ago), south (not connected) until 13:05:10 UTC"
    )
    absences["south"] = Absence("its client is not admitted yet")
    assert waiting.begin(EVENT) is not None
    live |= {"north", "south"}
    waiting = waits(absences, live)
    waiting.begin(EVENT)
    assert waiting.text() == ""


def test_a_text_names_a_hundred_sites_and_counts_the_others() -> None:
    names = tuple(f"site-{number}" for number in range(2000))
    waiting = waits(dict.fromkeys(names, Absence("not connected")))
    stated = waiting.begin(RoundWaiting(round=1, sites=names, until_unix_ms=UNTIL))
    assert stated is not None
    assert stated.detail.startswith("site-0 (not connected), site-1 (not connected), ")
    assert stated.detail.endswith("site-99 (not connected), and 1900 more")


def test_nothing_is_stated_once_the_round_goes_on() -> None:
    waiting = waits({"north": Absence("not connected"), "south": Absence("not connected")})
    assert waiting.text() == ""
    waiting.begin(EVENT)
    waiting.end()
    assert waiting.text() == ""


def test_a_round_does_not_wait_for_sites_that_cannot_come_back() -> None:
    gone = {
        "north": Absence("removed", final=True, seconds=3),
        "south": Absence("excluded by operator alice: stolen disk", final=True),
    }
    assert waits(gone, live={"south"}).away() == "north (removed 3 s ago)"
    with pytest.raises(QuorumNotReached, match=r"round 26 needs .* north \(removed 3 s") as caught:
        waits(gone).begin(EVENT)
    assert "fedlearn job resume heart" in caught.value.hint
