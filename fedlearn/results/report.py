"""The report of a run as one HTML page: rounds, sites, refusals, privacy, evidence, resources.

The page loads nothing from the network. Every text is escaped: names, reasons and findings come
from sites. :func:`report_page` makes it from the events alone; :class:`ReportFacts` has what the
caller knows in addition.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn import __version__
from fedlearn.results.charts import Mark, Series, curves
from fedlearn.results.evidence import (
    evidence_section,
    insecure_text,
    refusal_sections,
    tee_tag,
)
from fedlearn.results.history import Round, RunHistory, Site
from fedlearn.results.markup import (
    NOT_KNOWN,
    Cell,
    Head,
    Html,
    banner,
    code,
    counted,
    definitions,
    details,
    document,
    footer,
    header,
    items,
    joined,
    note,
    number_text,
    paragraph,
    section,
    shortened,
    table,
    tag,
    tiles,
)
from fedlearn.results.text import (
    bytes_text,
    compression_text,
    privacy_text,
    ranked_metrics,
    seconds_text,
    time_text,
)

__all__ = ["ReportFacts", "report_page"]

_METRICS: Final = 4
_CHARTS: Final = 2
_FINDINGS: Final = 30
_SKIPPED: Final = 10
_TONES: Final[Mapping[str, str]] = {
    "admitted": "good",
    "done": "good",
    "training": "good",
    "finished": "good",
    "refused": "bad",
    "quarantined": "bad",
    "rejected": "bad",
    "failed": "bad",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFacts:
    """What a report shows besides the events.

    ``metric``    the metric that is shown first
    ``source``    where the run was, as in ``coordinator.example:9444``
    ``insecure``  why the evidence proves nothing, where it does not; empty to derive it from events
    ``about``     names and values of the section *What ran*, as digests of job and policy
    ``notes``     what the run does not show
    """

    metric: str = ""
    source: str = ""
    insecure: str = ""
    about: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default=())


def report_page(history: RunHistory, facts: ReportFacts = ReportFacts()) -> str:
    """Return the whole page."""
    name = history.job or "job"
    return document(
        f"{name}: report of a run",
        _banner(history, facts),
        _head(history, facts),
        _tiles(history, facts),
        _faults(history),
        _rounds(history, facts),
        _sites(history, facts),
        *refusal_sections(history),
        _privacy(history),
        evidence_section(history),
        _resources(history),
        _about(history, facts),
        section("What this report does not show", items(facts.notes)) if facts.notes else Html(),
        footer(_footer(history)),
    )


# --- the top --------------------------------------------------------------------------


def _banner(history: RunHistory, facts: ReportFacts) -> Html:
    admitted = [site.tee for site in history.sites.values() if site.admissions]
    text = facts.insecure or insecure_text(admitted)
    return banner("No proof of hardware.", text) if text else Html()


def _head(history: RunHistory, facts: ReportFacts) -> Html:
    took_part = sum(site.updates > 0 for site in history.sites.values())
    rounds = counted(len(history.finished), "round")
    words = [f"{counted(took_part, 'site')} took part in {rounds}."]
    if history.model:
        words.append(f"The model {history.model} is sealed.")
    if facts.source:
        words.append(f"It ran at {facts.source}.")
    state = tag(history.status, _TONES.get(history.status, "warn"))
    return header(joined(f"{history.job or 'job'} ", state), " ".join(words))


def _tiles(history: RunHistory, facts: ReportFacts) -> Html:
    done = history.finished
    last = next((each.metrics for each in reversed(done) if each.metrics), {})
    names = [name for name in _names(history, facts)[:2] if name in last]
    shown = [(number_text(last[name]), f"{name}, last round") for name in names]
    rounds = f"{len(done)}/{history.planned}" if history.planned else str(len(done))
    admitted = sum(site.admissions > 0 for site in history.sites.values())
    refused = sum(not each.quarantined for each in history.refusals)
    seconds = [each.seconds for each in done]
    values = [
        *shown,
        (rounds, "rounds with a model, of those planned"),
        (f"{admitted}/{refused}", "sites admitted / clients refused"),
    ]
    if seconds:
        values.append((seconds_text(statistics.median(seconds)), "median round"))
    if history.elapsed():
        values.append((seconds_text(history.elapsed()), "from first to last event"))
    if history.privacy:
        values.append((f"{history.privacy[-1].epsilon:.2f}", "epsilon spent; see Privacy"))
    return tiles(values)


def _faults(history: RunHistory) -> Html:
    found: list[str] = []
    if history.status in ("failed", "cancelled", "interrupted"):
        found.append(f"The job is {history.status}: {history.detail or 'no reason was given'}")
        if history.hint:
            found.append(f"What to do: {history.hint}")
    for each in history.skipped[:_SKIPPED]:
        why = each.skip or "no update could be used"
        found.append(f"Round {each.number} made no model, so that the one before stays: {why}")
    if len(history.skipped) > _SKIPPED:
        found.append(f"{len(history.skipped) - _SKIPPED} more rounds made no model.")
    for site in list(history.sites.values())[:_FINDINGS]:
        if site.state == "lost":
            found.append(f"{site.name} was lost: {site.note}")
        if site.rejected:
            found.append(
                f"{counted(site.rejected, 'update')} of {site.name} did not count, the last one "
                f"because: {_last_rejection(history, site) or site.note}"
            )
    return section("What went wrong", items(found), style="refused") if found else Html()


def _last_rejection(history: RunHistory, site: Site) -> str:
    reasons = (each.rejected.get(site.name) for each in reversed(history.rounds))
    return next((reason for reason in reasons if reason), "")


# --- rounds and sites -----------------------------------------------------------------


def _names(history: RunHistory, facts: ReportFacts) -> list[str]:
    """Return the names of the metrics, that to show first before the others."""
    found = {name: 0.0 for each in history.rounds for name in each.metrics}
    return ranked_metrics(found, facts.metric)


def _rounds(history: RunHistory, facts: ReportFacts) -> Html:
    done = history.finished
    if not done:
        return section("Round by round", paragraph("No round has finished."))
    names = _names(history, facts)
    charts = [
        joined(Html(f"<h3>{joined(name)}</h3>"), chart)
        for name in names[:_CHARTS]
        if (chart := curves(_by_stage(done, name), name=name))
    ]
    heads = [Head("Round", numeric=True)]
    heads += [Head(name, numeric=True) for name in names[:_METRICS]]
    heads += [Head(name, numeric=True) for name in ("Updates", "Received", "Time", "Epsilon")]
    rows = [
        [
            _round_name(history, each),
            *(number_text(each.metrics.get(name)) for name in names[:_METRICS]),
            f"{each.sites} of {len(each.asked)}" if each.asked else str(each.sites),
            bytes_text(each.bytes),
            seconds_text(each.seconds),
            number_text(each.privacy.epsilon) if each.privacy else NOT_KNOWN,
        ]
        for each in done
    ]
    left_out = names[_METRICS:]
    caption = f"Not shown: {', '.join(left_out[:20])}." if left_out else ""
    small = "Metrics are those that the job's code reports."
    return section(
        "Round by round",
        note(small),
        *charts,
        details("The numbers", table(heads, rows, caption=caption, cards=len(names) > 2)),
    )


def _by_stage(done: Sequence[Round], name: str) -> list[Series]:
    stages = sorted({each.stage for each in done})[-4:]
    return [
        Series(
            name=name if len(stages) == 1 else f"{name}, strategy {stage}",
            points=[
                (each.number, each.metrics[name])
                for each in done
                if each.stage == stage and name in each.metrics
            ],
        )
        for stage in stages
    ]


def _round_name(history: RunHistory, each: Round) -> str:
    return f"{each.stage}.{each.number}" if history.stage > 1 else str(each.number)


def _sites(history: RunHistory, facts: ReportFacts) -> Html:
    everyone = list(history.sites.values())
    if not everyone:
        return Html()
    reported = {each.site for each in history.refusals}
    names = ranked_metrics({n: 0.0 for s in everyone for n in s.metrics}, facts.metric)[:2]
    heads = [
        Head("Site"),
        Head("Evidence"),
        Head("State"),
        Head("Admitted after", numeric=True),
        Head("Updates", numeric=True),
        Head("Not counted", numeric=True),
        Head("Sent", numeric=True),
        Head("Examples", numeric=True),
        *(Head(name, numeric=True) for name in names),
        Head("Note"),
    ]
    rows: list[list[Cell | str]] = [
        [
            site.name,
            tee_tag(site.tee),
            tag(site.state, _TONES.get(site.state, "warn")),
            _after(history, site),
            str(site.updates),
            str(site.rejected) if site.rejected else NOT_KNOWN,
            bytes_text(site.bytes),
            f"{site.examples:,}" if site.examples else NOT_KNOWN,
            *(number_text(site.metrics.get(name)) for name in names),
            "see below" if site.name in reported else shortened(site.note) or NOT_KNOWN,
        ]
        for site in everyone
    ]
    caption = "Examples and metrics are those that a site reports with its last update."
    return section("Sites", table(heads, rows, caption=caption, cards=True))


def _after(history: RunHistory, site: Site) -> str:
    if not site.admitted_unix_ms or not history.started_unix_ms:
        return NOT_KNOWN
    return seconds_text((site.admitted_unix_ms - history.started_unix_ms) / 1000)


# --- privacy, evidence, resources -----------------------------------------------------


def _privacy(history: RunHistory) -> Html:
    if not history.privacy:
        return Html()
    last = history.privacy[-1]
    points = [(float(index + 1), each.epsilon) for index, each in enumerate(history.privacy)]
    marks = [Mark(value=last.limit, name="limit", style="pooled")] if last.limit else []
    return section(
        "Privacy",
        paragraph(f"Spent: {privacy_text(last)}."),
        curves(
            [Series(name="epsilon", points=points)], marks, name="epsilon spent", x_name="release"
        ),
        note("The budget is charged before a release. It counts releases of this job only."),
    )


def _resources(history: RunHistory) -> Html:
    done = history.finished
    if not done:
        return Html()
    slowest = max(done, key=lambda each: each.seconds)
    sealed = [each.bytes for each in history.checkpoints]
    total = sum(each.seconds for each in done)
    return section(
        "Resources",
        definitions(
            [
                ("Start", time_text(history.started_unix_ms) or ""),
                ("End", time_text(history.ended_unix_ms) or ""),
                ("In rounds", f"{seconds_text(total)} of {seconds_text(history.elapsed())}"),
                ("Slowest round", f"{slowest.number}: {seconds_text(slowest.seconds)}"),
                ("Traffic", f"{_traffic(history)} in {counted(len(done), 'round')}"),
                (
                    "Compression",
                    compression_text(
                        history.compression, history.bytes_received, history.bytes_saved
                    ),
                ),
                (
                    "Sealed models",
                    f"{counted(len(sealed), 'version')}, the last of {bytes_text(sealed[-1])}"
                    if sealed
                    else "",
                ),
                ("Continued", counted(history.resumed, "time") if history.resumed else ""),
            ]
        ),
    )


def _traffic(history: RunHistory) -> str:
    received = history.bytes_received
    if not received:  # of a coordinator that does not tell the two apart
        return bytes_text(history.bytes)
    return f"{bytes_text(history.bytes - received)} to sites, {bytes_text(received)} from them"


def _about(history: RunHistory, facts: ReportFacts) -> Html:
    rows = [(name, code(value)) for name, value in facts.about]
    if history.job and facts.source:
        rows.append(("Numbers of this page", code(f"fedlearn job metrics {history.job}")))
    return section("What ran", definitions(rows)) if rows else Html()


def _footer(history: RunHistory) -> str:
    until = time_text(history.last_unix_ms)
    when = f", state of {until}" if until else ""
    return (
        f"fedlearn {__version__}{when}. This page is complete and loads nothing from the network."
    )
