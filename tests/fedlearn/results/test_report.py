"""The report of any job: what it shows, what it leaves out, and that nothing can be markup."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from fedlearn.job import events
from fedlearn.results.evidence import WORDS, insecure_text
from fedlearn.results.history import RunHistory
from fedlearn.results.report import ReportFacts, report_page
from tests.fedlearn.results.story import STORY, TIMED

VOID = {"meta", "br", "link", "img"}
EVIL = "<script>alert(1)</script>\x1b[31m"


class Checked(HTMLParser):
    """Collects what a page refers to, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [
            value or "" for name, value in attrs if name in {"src", "href", "action", "srcset"}
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def words(page: str) -> str:
    """Return the text of a page's body."""
    return " ".join(re.sub(r"<[^>]+>", " ", page[page.index("<main>") :]).split())


def test_the_page_is_complete_in_itself() -> None:
    page = report_page(RunHistory.of(TIMED))
    checked = Checked()
    checked.feed(page)
    assert checked.open == []
    assert checked.references == []
    assert "script" not in checked.tags
    assert not re.search(r"https?://|@import|url\(", page)
    assert "default-src 'none'" in page


def test_the_page_shows_the_compression_and_both_directions() -> None:
    done = events.RoundFinished(
        round=1, seconds=2.0, sites=1, bytes=3072, bytes_received=1024, bytes_saved=3072
    )
    started = events.JobStarted(job="j", rounds=1, compression="int8 with error feedback")
    text = words(report_page(RunHistory.of([(started, 1), (done, 2)])))
    assert "Traffic 2.0 KiB to sites, 1.0 KiB from them in 1 round" in text
    assert "Compression int8 with error feedback: 1.0 KiB instead of 4.0 KiB" in text
    plain = words(report_page(RunHistory.of(TIMED)))
    assert "Compression" not in plain
    assert "to sites" not in plain


def test_the_page_shows_what_happened() -> None:
    facts = ReportFacts(
        metric="auc", source="coordinator.example:9444", about=[("Policy", "77" * 32)]
    )
    text = words(report_page(RunHistory.of(TIMED), facts))
    for wanted in (
        "medpar finished",
        "1 site took part in 1 round.",
        "The model medpar is sealed.",
        "coordinator.example:9444",
        "0.660 auc, last round",
        "1/2 rounds with a model",
        "2/1 sites admitted / clients refused",
        "Refused: rogue not admitted",
        "The coordinator answered: wrong app",
        "Quarantined during round 1: b stopped",
        "app aa bb",
        "1 update of b did not count, the last one because: too late",
        "Spent: epsilon 1.234 of 8 at delta 1e-05, unit site",
        "TPM 2.0: a TPM signed",
        "1 site: a.",
        "Slowest round 1: 0.42 s",
        "7777",
        "fedlearn job metrics medpar",
    ):
        assert wanted in text, wanted
    page = report_page(RunHistory.of(TIMED), facts)
    assert page.index("<h3>auc</h3>") < page.index("<h3>loss</h3>")


def test_sample_evidence_is_the_first_thing_on_the_page() -> None:
    text = words(report_page(RunHistory.of(TIMED)))
    assert text.startswith("No proof of hardware. The evidence of 1 of 2 sites is sample evidence")
    other = words(report_page(RunHistory.of(TIMED), ReportFacts(insecure="Software TPMs only.")))
    assert other.startswith("No proof of hardware. Software TPMs only.")
    genuine = [e for e in STORY if getattr(e, "tee", "") != "sample"]
    assert "No proof" not in words(report_page(RunHistory.of((e, 1) for e in genuine)))
    assert insecure_text([]) == ""
    assert "all sites" in insecure_text(["sample", "sample"])


def test_evidence_of_a_refused_client_is_not_that_of_a_site() -> None:
    reported = [
        events.ClientRefused(site="x", reason="no", tee="sample"),
        events.ClientAdmitted(site="y", tee="tdx"),
    ]
    text = words(report_page(RunHistory.of((event, 1) for event in reported)))
    assert "No proof" not in text
    assert "Intel TDX: the processor signed" in text
    assert WORDS["sample"] not in text


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (events.JobFailed(detail="no quorum", hint="start b"), "The job is failed: no quorum"),
        (events.JobFailed(detail="no quorum", hint="start b"), "What to do: start b"),
        (events.JobCancelled(), "The job is cancelled: no reason was given"),
        (events.ClientLost(site="a", reason="gone"), "a was lost: gone"),
        (
            events.RoundFinished(round=2, rounds=2, seconds=1.0, sites=0, bytes=0),
            "Round 2 made no model, so that the one before stays: no update could be used",
        ),
    ],
)
def test_what_went_wrong_is_stated(event: events.Event, sentence: str) -> None:
    reported = [events.JobStarted(job="j", rounds=2, sites=("a",)), event]
    text = words(report_page(RunHistory.of((each, 1000) for each in reported)))
    assert "What went wrong" in text
    assert sentence in text


def test_a_job_without_faults_reports_none() -> None:
    reported = [
        events.JobStarted(job="j", rounds=1, sites=("a",)),
        events.RoundFinished(round=1, rounds=1, seconds=1.0, sites=1, bytes=5),
        events.JobFinished(model="j"),
    ]
    text = words(report_page(RunHistory.of((each, 1000) for each in reported)))
    assert "What went wrong" not in text
    assert "Privacy" not in text
    assert "Refused" not in text


def test_a_job_that_has_not_begun_has_a_page() -> None:
    assert "No round has finished." in report_page(RunHistory())


def test_nothing_that_others_name_can_be_markup() -> None:
    finding = {"claim": EVIL, "expected": EVIL, "actual": EVIL, "remedy": EVIL}
    metrics = {EVIL: 1.0, "loss": math.nan}
    reported = [
        events.JobSubmitted(job=EVIL, rounds=1, sites=(EVIL,)),
        events.ClientAdmitted(site=EVIL, tee=EVIL),
        events.ClientRefused(site=EVIL, reason=EVIL, tee=EVIL, findings=(finding,)),
        events.RoundStarted(round=1, rounds=1, sites=(EVIL,)),
        events.UpdateReceived(round=1, site=EVIL, bytes=1, metrics=metrics),
        events.UpdateRejected(round=1, site=EVIL, reason=EVIL),
        events.PrivacySpent(
            round=1, epsilon=1.0, delta=0.1, unit=EVIL, sampling=EVIL, accountant=EVIL
        ),
        events.RoundFinished(round=1, rounds=1, seconds=1.0, sites=1, bytes=1, metrics=metrics),
        events.ClientLost(site=EVIL, reason=EVIL),
        events.JobFailed(detail=EVIL, hint=EVIL),
    ]
    facts = ReportFacts(source=EVIL, insecure=EVIL, about=[(EVIL, EVIL)], notes=[EVIL])
    page = report_page(RunHistory.of((each, 1) for each in reported), facts)
    assert "<script" not in page
    assert "\x1b" not in page


def test_endless_refusals_are_counted() -> None:
    reported = [events.ClientRefused(site="x", reason=f"reason {n}") for n in range(50)]
    page = report_page(RunHistory.of((each, 1) for each in reported))
    assert page.count('class="refused"') == 20
    assert "30 more are in the events of the job." in page


def test_a_job_of_many_rounds_and_sites_has_a_page_of_bounded_size() -> None:
    sites = tuple(f"site-{n}" for n in range(2000))
    history = RunHistory()
    history.add(events.JobStarted(job="j", rounds=9000, sites=sites))
    for number in range(1, 9001):
        history.add(
            events.RoundFinished(
                round=number,
                rounds=9000,
                seconds=1.0,
                sites=9,
                bytes=1,
                metrics={"loss": 1 / number},
            )
        )
    assert len(report_page(history)) < 1_500_000
