"""The report as one HTML page that loads nothing from the network.

Every text is escaped: names, reasons and findings come from sites. The page's policy
(``Content-Security-Policy``) lets a browser load nothing except the style in the page.
"""

from __future__ import annotations

import importlib.resources
import math
import string
from collections.abc import Iterable
from html import escape

from fedlearn.demo.charts import Mark, Row, dumbbells, progress
from fedlearn.demo.outcome import DemoOutcome, RefusedSite, SiteFacts

__all__ = ["page"]


def page(outcome: DemoOutcome) -> str:
    """Return the whole page."""
    frame = importlib.resources.files("fedlearn.demo").joinpath("report.html").read_text()
    parts = [
        _head(outcome),
        _tiles(outcome),
        _faults(outcome),
        _training(outcome),
        _sites(outcome),
        *(_refused(site) for site in outcome.refused),
        '<div class="pair">',
        _model(outcome),
        _ledger(outcome),
        "</div>",
        '<div class="pair">',
        _about(outcome),
        _timings(outcome),
        "</div>",
        _limits(outcome),
        f"<footer>fedlearn {escape(outcome.version)}, {escape(outcome.started)}. "
        "This page is complete and loads nothing from the network.</footer>",
    ]
    body = "\n".join(part for part in parts if part)
    title = f"{outcome.title}: a federated run"
    return string.Template(frame).substitute(title=escape(title), body=body)


def _head(outcome: DemoOutcome) -> str:
    count = len(outcome.sites)
    return (
        "<header><p class='kicker'>Federated confidential learning</p>"
        f"<h1>{escape(outcome.title)}: one model, {count} sites, no data moved</h1>"
        f"<p class='lead'>{count} sites trained together to {escape(outcome.task)}. Each was "
        "admitted only after its evidence verified, sent its updates over mutual TLS, and kept "
        f"its {escape(outcome.unit)} to itself. An altered client was refused, the model "
        "is sealed on disk, and every decision is in a ledger that can be verified.</p>"
        "</header>"
    )


def _tiles(outcome: DemoOutcome) -> str:
    tiles = [
        (_number(outcome.federated), f"federated {outcome.metric_name}", " first"),
        (_number(outcome.alone), f"a site alone, mean of {len(outcome.sites)}", ""),
    ]
    if outcome.member is not None:
        tiles.append((_number(outcome.member), f"a hospital alone, mean of {outcome.members}", ""))
    tiles += [
        (_number(outcome.pooled), "all data in one place, for comparison", ""),
        (f"{len(outcome.sites)} / {len(outcome.refused)}", "sites admitted / refused", ""),
        (_median_round(outcome), f"median round of {len(outcome.rounds)}", ""),
    ]
    return (
        "<div class='tiles'>"
        + "".join(
            f"<div class='tile{style}'><span class='value'>{escape(value)}</span>"
            f"<span class='what'>{escape(what)}</span></div>"
            for value, what, style in tiles
        )
        + "</div>"
    )


def _faults(outcome: DemoOutcome) -> str:
    if not outcome.faults:
        return ""
    return (
        "<section class='refused' role='alert'><h2>What went wrong</h2>"
        + _list(outcome.faults)
        + "</section>"
    )


def _training(outcome: DemoOutcome) -> str:
    marks = [
        Mark(value=outcome.pooled, name="pooled", style="pooled"),
        Mark(value=outcome.alone, name="site alone", style="alone"),
    ]
    if outcome.member is not None:
        marks.append(Mark(value=outcome.member, name="hospital alone", style="member"))
    values = [(r.number, r.metric) for r in outcome.rounds]
    chart = ""
    if any(math.isfinite(value) for _, value in values):
        chart = progress(values, marks, name=outcome.metric_name)
    rows = [
        (
            f"<th scope='row' class='n'>{r.number}</th>",
            _cell(_number(r.metric)),
            _cell(_number(r.loss)),
            _cell(str(r.sites)),
            _cell(_bytes(r.bytes)),
            _cell(_seconds(r.seconds)),
            _cell(_seconds(r.overhead)),
        )
        for r in outcome.rounds
    ]
    error = ""
    if math.isfinite(outcome.error):
        low = outcome.federated - 1.96 * outcome.error
        high = outcome.federated + 1.96 * outcome.error
        error = f" The 95% interval of the last value is {low:.3f} to {high:.3f}."
    return (
        "<section><h2>Round by round</h2>"
        f"<p class='note'>{escape(outcome.metric_name)} of the global model on the "
        f"{outcome.test:,} test {escape(outcome.unit)} of all sites, computed from what the "
        f"sites report.{error}</p>{chart}"
        "<details><summary>The numbers</summary><div class='scroll'>"
        + _table(
            ["Round", outcome.metric_name, "Loss", "Updates", "Received", "Seconds", "Overhead"],
            rows,
            numeric=range(7),
        )
        + "</div></details></section>"
    )


def _sites(outcome: DemoOutcome) -> str:
    chart = dumbbells(
        [Row(name=s.name, left=s.alone, right=outcome.federated) for s in outcome.sites],
        [Mark(value=outcome.pooled, name="pooled", style="pooled")],
        name=f"{outcome.metric_name} on the test {outcome.unit} of all sites",
        left_name="trained alone",
        right_name="federated",
    )
    return (
        "<section><h2>Alone and together</h2>"
        f"<p class='note'>Each site also trained alone, with as many passes over its own "
        f"{escape(outcome.unit)}. Both models are judged on the test {escape(outcome.unit)} of "
        "all sites: on the next patient anywhere, not only on one's own.</p>"
        "<p class='legend'><span class='alone'>trained alone</span>"
        f"<span class='federated'>federated</span></p>{chart}<div class='scroll'>"
        + _site_table(outcome)
        + "</div></section>"
    )


def _site_table(outcome: DemoOutcome) -> str:
    heads = ["Site", outcome.unit.capitalize(), "TEE", "Admitted after", "Rounds"]
    heads += ["Alone", "Federated", "Gain", "Own: alone", "federated"]
    rows = []
    for site in outcome.sites:
        gain = outcome.federated - site.alone
        style = " gain" if gain > 0 else " loss"
        inside = f"<br><small>{site.members} hospitals</small>" if site.members else ""
        rows.append(
            (
                f"<th scope='row'>{escape(site.name)}{inside}</th>",
                _cell(f"{site.train:,} + {site.test:,}"),
                f"<td>{_tee(site)}</td>",
                _cell(_seconds(site.admitted)),
                _cell(str(site.rounds)),
                _cell(_number(site.alone)),
                _cell(_number(outcome.federated)),
                f"<td class='n{style}'>{f'{gain:+.3f}' if math.isfinite(gain) else 'n/a'}</td>",
                _cell(_number(site.alone_own)),
                _cell(_number(site.federated_own)),
            )
        )
    caption = (
        f"{outcome.unit.capitalize()} are training + test. The last two columns judge both models "
        "on the site's own test rows only, which are few."
    )
    return _table(heads, rows, numeric=(1, 3, 4, 5, 6, 7, 8, 9), caption=caption)


def _tee(site: SiteFacts) -> str:
    if site.tee == "sample":
        return "<span class='tag warn'>sample, insecure</span>"
    if site.tee == "tpm":
        return "<span class='tag good'>tpm, software</span>"
    return f"<span class='tag good'>{escape(site.tee or 'unknown')}</span>"


def _refused(site: RefusedSite) -> str:
    rows = [
        (
            f"<th scope='row'><code>{escape(str(finding.get('claim', '')))}</code></th>",
            f"<td><code>{escape(str(finding.get('expected', '')))}</code></td>",
            f"<td><code>{escape(str(finding.get('actual', '')))}</code></td>",
            f"<td>{escape(str(finding.get('remedy', '')))}</td>",
        )
        for finding in site.against
    ]
    when = f" during round {site.round}" if site.round else ""
    table = ""
    if rows:
        table = (
            "<div class='scroll'>"
            + _table(["Claim", "Expected", "Found", "What would help"], rows)
            + "</div>"
        )
    return (
        f"<section class='refused'><h2>Refused{when}: {escape(site.name)} "
        "<span class='tag bad'>not admitted</span></h2>"
        f"<p>{escape(site.story)}</p><p>The coordinator answered: "
        f"<strong>{escape(site.reason)}</strong></p>{table}</section>"
    )


def _model(outcome: DemoOutcome) -> str:
    model = outcome.model
    opened = _yes(model.opened, "opened by its owner", "not opened by its owner")
    same = _yes(model.matches, "the same metric as reported", "another metric than reported")
    refused = _yes(bool(model.refusal), "refused to another key", "opened for another key")
    answer = f"<dt>Its answer</dt><dd>{escape(model.refusal)}</dd>" if model.refusal else ""
    return (
        "<section><h2>The sealed model</h2><dl>"
        f"<dt>Model</dt><dd>{escape(model.name)}, version {model.version}</dd>"
        f"<dt>File</dt><dd><code>{escape(model.file)}</code>, {_bytes(model.bytes)}</dd>"
        f"<dt>SHA-256</dt><dd><code>{escape(model.sha256)}</code></dd>"
        f"<dt>Inside</dt><dd>{model.parameters:,} numbers in {model.tensors} "
        f"{'tensor' if model.tensors == 1 else 'tensors'}</dd>"
        f"<dt>Owner</dt><dd>{opened} {same}<br><code>{escape(model.owner)}</code></dd>"
        f"<dt>Stranger</dt><dd>{refused}<br><code>{escape(model.stranger)}</code></dd>"
        f"{answer}</dl></section>"
    )


def _ledger(outcome: DemoOutcome) -> str:
    ledger = outcome.ledger
    state = _yes(not ledger.fault, "every entry verified", ledger.fault)
    kinds = [
        (f"<th scope='row'>{escape(kind)}</th>", _cell(f"{count:,}"))
        for kind, count in sorted(ledger.kinds.items())
    ]
    return (
        f"<section><h2>The ledger</h2><p>{state}</p><dl>"
        f"<dt>Entries</dt><dd>{ledger.entries:,}</dd>"
        f"<dt>Head</dt><dd><code>{escape(ledger.head)}</code></dd>"
        f"<dt>Signed by</dt><dd><code>{escape(ledger.key)}</code></dd></dl>"
        "<h3>What was decided</h3>"
        + _table(["Kind", "Entries"], kinds, numeric=(1,))
        + "</section>"
    )


def _about(outcome: DemoOutcome) -> str:
    policy = f"<dt>Policy</dt><dd><code>{escape(outcome.policy)}</code></dd>"
    return (
        "<section><h2>What ran</h2><dl>"
        f"<dt>Data</dt><dd>{escape(outcome.source)}</dd>"
        f"<dt>Licence</dt><dd>{escape(outcome.licence)}</dd>"
        f"<dt>Partition</dt><dd>{escape(outcome.partition)}</dd>"
        f"<dt>Rows</dt><dd>{outcome.train:,} for training, {outcome.test:,} for testing</dd>"
        f"<dt>Seed</dt><dd>{outcome.seed}</dd>{policy if outcome.policy else ''}</dl>"
        f"<h3>Again</h3><pre>{escape(outcome.command)}</pre></section>"
    )


def _timings(outcome: DemoOutcome) -> str:
    rows = [
        (f"<th scope='row'>{escape(step)}</th>", _cell(_seconds(value)))
        for step, value in outcome.timings.items()
    ]
    rows.append(("<th scope='row'>Everything</th>", _cell(_seconds(outcome.seconds))))
    return (
        "<section><h2>Where the time went</h2>"
        + _table(["Step", "Seconds"], rows, numeric=(1,))
        + "</section>"
    )


def _limits(outcome: DemoOutcome) -> str:
    if not outcome.limits:
        return ""
    return "<section><h2>What this run does not show</h2>" + _list(outcome.limits) + "</section>"


# --- small pieces ---------------------------------------------------------------------


def _table(
    heads: list[str],
    rows: Iterable[tuple[str, ...]],
    *,
    numeric: Iterable[int] = (),
    caption: str = "",
) -> str:
    right = set(numeric)
    top = "".join(
        f"<th scope='col'{' class=n' if i in right else ''}>{escape(head)}</th>"
        for i, head in enumerate(heads)
    )
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    heading = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{heading}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _cell(text: str) -> str:
    return f"<td class='n'>{escape(text)}</td>"


def _yes(good: bool, yes: str, no: str) -> str:
    return f"<span class='tag {'good' if good else 'bad'}'>{escape(yes if good else no)}</span>"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "n/a"


def _seconds(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "n/a"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _median_round(outcome: DemoOutcome) -> str:
    seconds = sorted(r.seconds for r in outcome.rounds)
    return _seconds(seconds[len(seconds) // 2] if seconds else None)
