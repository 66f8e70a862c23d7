"""The comparison of a demo's report: each site alone and all together, and how sure that is."""

from __future__ import annotations

import math

from fedlearn.demo.outcome import DemoOutcome, SiteFacts
from fedlearn.demo.significance import Gain
from fedlearn.results.charts import Mark, Row, dumbbells
from fedlearn.results.markup import (
    NOT_KNOWN,
    Cell,
    Head,
    Html,
    joined,
    note,
    number_text,
    paragraph,
    section,
    table,
    tag,
)
from fedlearn.results.text import seconds_text

__all__ = ["gain_text", "own_rows_section", "own_rows_text", "together_section"]


def gain_text(gain: Gain, metric: str) -> str:
    """Return a difference with its interval, and whether it is significant, as a sentence."""
    if not gain.known:
        return "There are too few test rows for an interval of the difference."
    verdict = (
        "significant: it excludes 0"
        if gain.significant
        else "not significant: it includes 0, so chance alone may explain the difference"
    )
    return (
        f"The difference in {metric} is {gain.value:+.3f}, its 95% interval {gain.low:+.3f} to "
        f"{gain.high:+.3f}. This is {verdict} ({gain.method}). The interval is about the choice "
        "of test rows; it does not cover other splits and seeds."
    )


def own_rows_text(outcome: DemoOutcome) -> str:
    """Return which sites do better alone on their own test rows, and how sure that is."""
    known = [s for s in outcome.sites if math.isfinite(s.alone_own + s.federated_own)]
    if not known:
        return "No site has test rows on which the metric is defined."
    losing, where = outcome.better_alone, f"On its own test {outcome.unit}"
    if not losing:
        return f"{where}, no site does better with the model that it trained alone."
    names = ", ".join(site.name for site in losing)
    do = "does" if len(losing) == 1 else "do"
    clear = [site.name for site in losing if site.gain_own.significant]
    sure = f"significant at {', '.join(clear)}" if clear else "significant at none of them"
    rows = [site.test for site in known]
    return (
        f"{where}, {len(losing)} of {len(known)} sites {do} better with the model that each "
        f"trained alone: {names}. Own test {outcome.unit} are few ({min(rows):,} to "
        f"{max(rows):,} a site): the difference is {sure}."
    )


def together_section(outcome: DemoOutcome) -> Html:
    """Return both models on the test rows of all sites."""
    heads = [
        Head("Site"),
        Head(outcome.unit.capitalize(), numeric=True),
        Head("Evidence"),
        Head("Admitted after", numeric=True),
        Head("Rounds", numeric=True),
        Head("Alone", numeric=True),
        Head("Federated", numeric=True),
        Head("Difference", numeric=True),
        Head("95% interval", numeric=True),
    ]
    rows: list[list[Cell | str]] = [
        [
            _site_name(site),
            f"{site.train:,} + {site.test:,}",
            _tee(site),
            _seconds(site.admitted),
            str(site.rounds),
            number_text(site.alone),
            number_text(outcome.federated),
            _difference(outcome.federated - site.alone),
            _interval(site.gain),
        ]
        for site in outcome.sites
    ]
    return section(
        "Alone and together",
        note(
            f"Each site also trained alone, with as many passes over its own {outcome.unit}. Both "
            f"models are judged on the same test {outcome.unit}, those of all sites."
        ),
        paragraph(
            f"The federated model reaches {number_text(outcome.federated)}, a site alone "
            f"{number_text(outcome.alone)} in the mean. ",
            gain_text(outcome.gain, outcome.metric_name),
        ),
        dumbbells(
            [Row(name=s.name, left=s.alone, right=outcome.federated) for s in outcome.sites],
            [Mark(value=outcome.pooled, name="pooled", style="pooled")],
            name=f"{outcome.metric_name} on the test {outcome.unit} of all sites",
            left_name="trained alone",
            right_name="federated",
        ),
        table(
            heads,
            rows,
            caption=f"{outcome.unit.capitalize()} are training + test. An interval covers the "
            "choice of test rows, for one comparison.",
            cards=True,
        ),
    )


def own_rows_section(outcome: DemoOutcome) -> Html:
    """Return both models on the test rows of each site; empty where no metric is defined."""
    known = [s for s in outcome.sites if math.isfinite(s.alone_own + s.federated_own)]
    if not known:
        return Html()
    heads = [
        Head("Site"),
        Head("Own test rows", numeric=True),
        Head("Alone", numeric=True),
        Head("Federated", numeric=True),
        Head("Difference", numeric=True),
        Head("95% interval", numeric=True),
    ]
    rows: list[list[Cell | str]] = [
        [
            site.name,
            f"{site.test:,}",
            number_text(site.alone_own),
            number_text(site.federated_own),
            _difference(site.federated_own - site.alone_own),
            _interval(site.gain_own),
        ]
        for site in outcome.sites
    ]
    return section(
        "What each site gains on its own rows",
        paragraph(own_rows_text(outcome)),
        dumbbells(
            [Row(name=s.name, left=s.alone_own, right=s.federated_own) for s in outcome.sites],
            name=f"{outcome.metric_name} on the site's own test {outcome.unit}",
            left_name="trained alone",
            right_name="federated",
        ),
        table(heads, rows, cards=True),
    )


def _site_name(site: SiteFacts) -> Html:
    inside = Html(f"<br><small>{site.members} hospitals</small>") if site.members else Html()
    return joined(site.name, inside)


def _tee(site: SiteFacts) -> Html:
    if site.tee == "sample":
        return tag("sample, insecure", "warn")
    if site.tee == "tpm":
        return tag("tpm, software", "warn")
    return tag(site.tee or "unknown", "good")


def _difference(value: float) -> Cell:
    if not math.isfinite(value):
        return Cell(NOT_KNOWN)
    return Cell(f"{value:+.3f}", "gain" if value > 0 else "loss")


def _interval(gain: Gain) -> str:
    return f"{gain.low:+.3f} to {gain.high:+.3f}" if gain.known else NOT_KNOWN


def _seconds(value: float) -> str:
    return seconds_text(value) if math.isfinite(value) else NOT_KNOWN
