"""The summary at the end of a demo run, as text."""

from __future__ import annotations

import math

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedlearn.demo.comparison import gain_text, own_rows_text
from fedlearn.demo.outcome import DemoOutcome, RefusedSite, SiteFacts
from fedlearn.terminal.console import printable

__all__ = ["findings_table", "site_table", "summary"]


def summary(outcome: DemoOutcome) -> RenderableType:
    """Return the closing table and the lines below it."""
    return Group(site_table(outcome), *_lines(outcome))


def site_table(outcome: DemoOutcome) -> Table:
    """Return one row a site: its TEE, its rounds, and its gain."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    table.add_column("site", footer="all")
    table.add_column(outcome.unit, justify="right", footer=f"{outcome.train + outcome.test:,}")
    table.add_column("TEE")
    table.add_column("admitted", justify="right")
    table.add_column("rounds", justify="right", footer=str(len(outcome.rounds)))
    table.add_column(f"alone ({outcome.metric_name})", justify="right", footer=_n(outcome.alone))
    table.add_column("federated", justify="right", footer=_n(outcome.federated))
    table.add_column("gain", justify="right", footer=_gain(outcome.federated - outcome.alone))
    for site in outcome.sites:
        table.add_row(
            Text(site.name),
            f"{site.train + site.test:,}",
            _tee(site),
            f"{site.admitted:.1f} s" if math.isfinite(site.admitted) else "n/a",
            str(site.rounds),
            _n(site.alone),
            _n(outcome.federated),
            _gain(outcome.federated - site.alone),
        )
    for refused in outcome.refused:
        table.add_row(
            Text(printable(refused.name), style="red"),
            "",
            Text(printable(refused.tee)),
            Text("refused", style="bold red"),
            "0",
            "",
            "",
            "",
        )
    return table


def findings_table(site: RefusedSite) -> Table:
    """Return what the coordinator expected of a refused client and what it found."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("claim", "expected", "found", "what would help"):
        table.add_column(head, overflow="fold")
    for finding in site.against:
        keys = ("claim", "expected", "actual", "remedy")
        table.add_row(*(Text(printable(str(finding.get(key, "")))) for key in keys))
    return table


def _lines(outcome: DemoOutcome) -> list[Text]:
    ledger, model = outcome.ledger, outcome.model
    compared = f"all data in one place {_n(outcome.pooled)}"
    if outcome.member is not None:
        compared += f", a hospital alone {_n(outcome.member)} (mean of {outcome.members})"
    lines = [
        Text(f"for comparison: {compared}"),
        Text(gain_text(outcome.gain, outcome.metric_name)),
        Text(printable(own_rows_text(outcome))),
        _check(
            not ledger.fault,
            f"ledger: {ledger.entries} entries verified, head {ledger.head[:16]}",
            f"ledger: {ledger.fault}",
        ),
        _check(
            model.opened and model.matches,
            f"sealed model: opened by its owner ({model.parameters:,} numbers), "
            "and it gives the metric that was reported",
            "sealed model: not opened by its owner, or not the model that was reported",
        ),
        _check(
            bool(model.refusal),
            f"sealed model: refused to another key ({model.refusal})",
            "sealed model: it opened for another key",
        ),
    ]
    limits = (outcome.insecure, *outcome.limits) if outcome.insecure else outcome.limits
    lines += [Text(f"note: {limit}", style="yellow") for limit in limits]
    return lines


def _check(good: bool, yes: str, no: str) -> Text:
    return Text(f"ok   {yes}", style="green") if good else Text(f"FAIL {no}", style="bold red")


def _tee(site: SiteFacts) -> Text:
    if site.tee == "sample":
        return Text("sample (insecure)", style="yellow")
    return Text(f"{site.tee} (software)" if site.tee == "tpm" else printable(site.tee))


def _n(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "n/a"


def _gain(value: float) -> Text:
    if not math.isfinite(value):
        return Text("")
    return Text(f"{value:+.3f}", style="green" if value > 0 else "red")
