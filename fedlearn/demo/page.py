"""The report of a demo run as one HTML page that loads nothing from the network.

Its parts are those of the report of any job (:mod:`fedlearn.results.markup`); the comparison with
sites that train alone, the proofs and the impostor are the demo's own.
"""

from __future__ import annotations

import math

from fedlearn.demo.comparison import own_rows_section, together_section
from fedlearn.demo.outcome import DemoOutcome, RefusedSite
from fedlearn.results.charts import Mark, Series, curves
from fedlearn.results.evidence import findings_table
from fedlearn.results.markup import (
    NOT_KNOWN,
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
    preformatted,
    section,
    shortened,
    side_by_side,
    table,
    tag,
    tiles,
)
from fedlearn.results.text import bytes_text, seconds_text

__all__ = ["page"]


def page(outcome: DemoOutcome) -> str:
    """Return the whole page."""
    end = (
        f"fedlearn {outcome.version}, {outcome.started}. This page is complete and loads nothing "
        "from the network."
    )
    return document(
        f"{outcome.title}: a federated run",
        banner("No proof of hardware.", outcome.insecure) if outcome.insecure else Html(),
        _head(outcome),
        _tiles(outcome),
        section(
            "What went wrong", items(outcome.faults) if outcome.faults else "", style="refused"
        ),
        _training(outcome),
        together_section(outcome),
        own_rows_section(outcome),
        *(_refused(site) for site in outcome.refused),
        side_by_side(_model(outcome), _ledger(outcome)),
        side_by_side(_about(outcome), _timings(outcome)),
        section("What this run does not show", items(outcome.limits) if outcome.limits else ""),
        footer(end),
    )


def _head(outcome: DemoOutcome) -> Html:
    count = len(outcome.sites)
    how = "made by software on this machine, " if outcome.insecure else ""
    return header(
        f"{outcome.title}: one model, {count} sites, no data moved",
        f"{count} sites trained together to {outcome.task}. The coordinator verified the evidence "
        f"of each, {how}before it admitted the site. Each sent its updates over mutual TLS and "
        f"kept its {outcome.unit} to itself. An altered client was refused, the model is sealed "
        "on disk, and every decision is in a ledger that can be verified.",
    )


def _tiles(outcome: DemoOutcome) -> Html:
    values = [
        (number_text(outcome.federated), f"federated {outcome.metric_name}"),
        (number_text(outcome.alone), f"a site alone, mean of {len(outcome.sites)}"),
    ]
    if outcome.gain.known:
        word = "significant" if outcome.gain.significant else "not significant"
        span = f"95% interval {outcome.gain.low:+.3f} to {outcome.gain.high:+.3f}"
        values.append((f"{outcome.gain.value:+.3f}", f"difference, {word}: {span}"))
    if outcome.member is not None:
        values.append((number_text(outcome.member), f"a hospital alone, mean of {outcome.members}"))
    values += [
        (number_text(outcome.pooled), "all data in one place, for comparison"),
        (f"{len(outcome.sites)}/{len(outcome.refused)}", "sites admitted / refused"),
        (_median_round(outcome), f"median round of {len(outcome.rounds)}"),
    ]
    return tiles(values)


def _training(outcome: DemoOutcome) -> Html:
    marks = [
        Mark(value=outcome.pooled, name="pooled", style="pooled"),
        Mark(value=outcome.alone, name="site alone", style="alone"),
    ]
    if outcome.member is not None:
        marks.append(Mark(value=outcome.member, name="hospital alone", style="member"))
    values = [(float(each.number), each.metric) for each in outcome.rounds]
    heads = ["Round", outcome.metric_name, "Loss", "Updates", "Received", "Time"]
    rows = [
        [
            str(each.number),
            number_text(each.metric),
            number_text(each.loss),
            str(each.sites),
            bytes_text(each.bytes),
            _seconds(each.seconds),
        ]
        for each in outcome.rounds
    ]
    error = ""
    if math.isfinite(outcome.error):
        low = outcome.federated - 1.96 * outcome.error
        high = outcome.federated + 1.96 * outcome.error
        error = f" The 95% interval of the last value is {low:.3f} to {high:.3f}."
    return section(
        "Round by round",
        note(
            f"{outcome.metric_name} of the global model on the {outcome.test:,} test "
            f"{outcome.unit} of all sites, computed from what the sites report.{error}"
        ),
        curves([Series(name="federated", points=values)], marks, name=outcome.metric_name),
        details("The numbers", table([Head(head, numeric=True) for head in heads], rows)),
    )


def _refused(site: RefusedSite) -> Html:
    when = f" during round {site.round}" if site.round else ""
    return section(
        joined(f"Refused{when}: {site.name} ", tag("not admitted", "bad")),
        paragraph(site.story),
        paragraph(f"The coordinator answered: {shortened(site.reason)}"),
        findings_table(site.against),
        style="refused",
    )


def _model(outcome: DemoOutcome) -> Html:
    model = outcome.model
    opened = _yes(model.opened, "opened by its owner", "not opened by its owner")
    same = _yes(model.matches, "the same metric as reported", "another metric than reported")
    refused = _yes(bool(model.refusal), "refused to another key", "opened for another key")
    br = Html("<br>")
    inside = f"{model.parameters:,} numbers in {counted(model.tensors, 'tensor')}"
    return section(
        "The sealed model",
        definitions(
            [
                ("Model", f"{model.name}, version {model.version}"),
                ("File", joined(code(model.file), f", {bytes_text(model.bytes)}")),
                ("SHA-256", code(model.sha256)),
                ("Inside", inside),
                ("Owner", joined(opened, " ", same, br, code(model.owner))),
                ("Stranger", joined(refused, br, code(model.stranger))),
                ("Its answer", model.refusal),
            ]
        ),
    )


def _ledger(outcome: DemoOutcome) -> Html:
    ledger = outcome.ledger
    rows = [[kind, f"{count:,}"] for kind, count in sorted(ledger.kinds.items())]
    return section(
        "The ledger",
        paragraph(_yes(not ledger.fault, "every entry verified", ledger.fault)),
        definitions(
            [
                ("Entries", f"{ledger.entries:,}"),
                ("Head", code(ledger.head)),
                ("Signed by", code(ledger.key)),
            ]
        ),
        Html("<h3>What was decided</h3>"),
        table([Head("Kind"), Head("Entries", numeric=True)], rows),
    )


def _about(outcome: DemoOutcome) -> Html:
    return section(
        "What ran",
        definitions(
            [
                ("Data", outcome.source),
                ("Licence", outcome.licence),
                ("Partition", outcome.partition),
                ("Rows", f"{outcome.train:,} for training, {outcome.test:,} for testing"),
                ("Seed", str(outcome.seed)),
                ("Policy", code(outcome.policy) if outcome.policy else ""),
            ]
        ),
        Html("<h3>Again</h3>"),
        preformatted(outcome.command),
    )


def _timings(outcome: DemoOutcome) -> Html:
    rows = [[step, _seconds(value)] for step, value in outcome.timings.items()]
    rows.append(["Everything", _seconds(outcome.seconds)])
    heads = [Head("Step"), Head("Time", numeric=True)]
    return section("Where the time went", table(heads, rows))


def _yes(good: bool, yes: str, no: str) -> Html:
    return tag(yes if good else no, "good" if good else "bad")


def _seconds(value: float) -> str:
    return seconds_text(value) if math.isfinite(value) else NOT_KNOWN


def _median_round(outcome: DemoOutcome) -> str:
    seconds = sorted(each.seconds for each in outcome.rounds)
    return _seconds(seconds[len(seconds) // 2]) if seconds else NOT_KNOWN
