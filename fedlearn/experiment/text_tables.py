"""The tables of a report as Markdown, CSV and LaTeX.

Each table is a list of columns and of rows of text. CSV is RFC 4180 with the rules of
:mod:`fedlearn.results.export` against formulas. LaTeX needs the package ``booktabs``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedlearn.experiment.figures import panels, worst_tenth
from fedlearn.experiment.spec import ExperimentSpec
from fedlearn.experiment.statistics import TEST, Arm, Choice, Comparison, compare, summarize
from fedlearn.results.export import csv_text
from fedlearn.results.tables import Column, Table
from fedlearn.results.text import bytes_text
from fedlearn.terminal.plaintext import printable

__all__ = ["TextTable", "comparison_tables", "fairness_table", "summary_table"]

_MOST_PAIRS: Final = 200
_LATEX: Final[Mapping[str, str]] = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """One table; the first column names its rows, and the columns of ``numbers`` end flush."""

    name: str
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()
    note: str = ""

    def markdown(self) -> str:
        """Return it as a table of Markdown, with its title and note."""
        lines = [f"## {_markdown(self.title)}", "", _row(self.head)]
        lines.append(_row("---:" if name in self.numbers else "---" for name in self.head))
        lines += [_row(map(_markdown, row)) for row in self.rows]
        if self.note:
            lines += ["", _markdown(self.note)]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Return it as CSV with a header."""
        names = [
            name if self.head.index(name) == index else f"{name} ({index})"
            for index, name in enumerate(self.head)
        ]
        columns = tuple(Column(name=name, kind="text") for name in names)
        return csv_text(Table(columns, [dict(zip(names, row, strict=True)) for row in self.rows]))

    def latex(self) -> str:
        """Return it as a ``tabular`` of LaTeX in a ``table``."""
        kinds = "".join("r" if name in self.numbers else "l" for name in self.head)
        body = " \\\\\n".join(" & ".join(map(_latex, row)) for row in self.rows)
        note = f"\n\\par\\footnotesize {_latex(self.note)}" if self.note else ""
        return (
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{_latex(self.title)}}}\n\\begin{{tabular}}{{{kinds}}}\n\\toprule\n"
            f"{' & '.join(map(_latex, self.head))} \\\\\n\\midrule\n{body} \\\\\n\\bottomrule\n"
            f"\\end{{tabular}}{note}\n\\end{{table}}\n"
        )


def summary_table(spec: ExperimentSpec, arms: Sequence[Arm]) -> TextTable:
    """Return one row an arm: the metric over the seeds, bytes, times and the budget spent."""
    percent = _as_percent(spec, arms)
    unit = " (%)" if percent else ""
    head = [*(axis.name for axis in spec.grid)] or ["arm"]
    choices: tuple[Choice, ...] = ("best", "last")
    numbers = [f"{spec.metric}, {choice} round{unit}" for choice in choices]
    others = [f"{metric}, last round" for metric in spec.report_metrics[1:]]
    numbers += [*others, "rounds", "bytes", "simulated s", "s", "epsilon spent"]
    rows = []
    for arm in arms:
        labels = [arm.labels.get(name, "") for name in head] if arm.labels else [arm.name]
        if spec.search is not None:
            labels = [arm.name]
        cells = [
            summarize(list(arm.values(spec.metric, choice, maximize=spec.maximize).values())).text(
                percent=percent
            )
            for choice in choices
        ]
        cells += [
            summarize(list(arm.values(metric, "last", maximize=True).values())).text()
            for metric in spec.report_metrics[1:]
        ]
        rows.append((*labels, str(len(arm.cells)), *cells, *_costs(arm)))
    table = TextTable(
        name="summary",
        title=f"{spec.metric} by arm",
        head=(*head, "seeds", *numbers),
        rows=tuple(rows),
        numbers=frozenset({"seeds", *numbers}),
        note=(
            "Mean ± sample standard deviation over the seeds. The best round is chosen by the same "
            "values that it reports, so it is biased towards better values; the last round is not."
        ),
    )
    return _without_empty_columns(table)


def comparison_tables(spec: ExperimentSpec, arms: Sequence[Arm]) -> list[TextTable]:
    """Return the paired tests of the compared axis, for the last and for the best round."""
    pairs = _pairs(spec, arms)
    shown = pairs[:_MOST_PAIRS]
    tables = []
    choices: tuple[Choice, ...] = ("last", "best")
    for choice in choices:
        found = compare(shown, spec.metric, choice, maximize=spec.maximize)
        if not found:
            continue
        note = (
            f"{TEST} over all {len(found)} comparisons of this table (Holm 1979). The interval is "
            "of the difference alone, at 95%, and not corrected. With few seeds such a test finds "
            "large differences only."
        )
        if len(pairs) > len(shown):
            note += f" The first {len(shown)} of {len(pairs)} pairs are compared."
        tables.append(
            TextTable(
                name=f"comparisons-{choice}",
                title=f"{spec.metric}, {choice} round: differences between arms",
                head=("arm", "less", "seeds", "difference", "95% interval", "p", "p (Holm)"),
                rows=tuple(map(_comparison_row, found)),
                numbers=frozenset({"seeds", "difference", "p", "p (Holm)"}),
                note=note,
            )
        )
    return tables


def fairness_table(spec: ExperimentSpec, arms: Sequence[Arm]) -> TextTable | None:
    """Return how the metric is distributed over the clients of each arm; None without values."""
    rows = []
    for arm in arms:
        found = [
            [v for v in cell.clients.get(spec.metric, {}).values() if math.isfinite(v)]
            for cell in arm.cells
        ]
        found = [values for values in found if len(values) >= 2]
        if found:
            rows.append(
                (
                    arm.name,
                    str(len(found[0])),
                    summarize([summarize(values).mean for values in found]).text(),
                    summarize([summarize(values).deviation for values in found]).text(),
                    summarize(
                        [worst_tenth(values, maximize=spec.maximize) for values in found]
                    ).text(),
                    summarize(
                        [min(values) if spec.maximize else max(values) for values in found]
                    ).text(),
                )
            )
    if not rows:
        return None
    numbers = ("clients", "mean", "sd over clients", "worst tenth", "worst client")
    return TextTable(
        name="fairness",
        title=f"{spec.metric} over clients, last evaluation",
        head=("arm", *numbers),
        rows=tuple(rows),
        numbers=frozenset(numbers),
        note="Each value: mean ± sample standard deviation over the seeds. Clients count equally.",
    )


def _pairs(spec: ExperimentSpec, arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    pairs = []
    for panel in panels(spec, arms):
        baseline = [arm for label, arm in panel.lines if label == spec.report.baseline]
        members = [arm for _, arm in panel.lines]
        if spec.report.baseline:
            pairs += [(arm, baseline[0]) for arm in members if baseline and arm is not baseline[0]]
        else:
            pairs += [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]
    return pairs


def _comparison_row(each: Comparison) -> tuple[str, ...]:
    interval = f"{each.low:+.4f} to {each.high:+.4f}" if math.isfinite(each.low) else ""
    difference = f"{each.difference:+.4f}" if math.isfinite(each.difference) else ""
    p = f"{each.p:.4f}" if math.isfinite(each.p) else each.note
    corrected = f"{each.corrected:.4f}" if math.isfinite(each.corrected) else ""
    return (each.left, each.right, str(each.seeds), difference, interval, p, corrected)


def _costs(arm: Arm) -> tuple[str, ...]:
    rounds = sorted({cell.last_round for cell in arm.cells})
    totals = [sum(r.bytes_down + r.bytes_up for r in cell.rounds) for cell in arm.cells]
    virtual = [c.rounds[-1].virtual_seconds for c in arm.cells if c.rounds]
    epsilon = [c.rounds[-1].epsilon for c in arm.cells if c.rounds]
    known = [value for value in virtual if value is not None]
    spent = [value for value in epsilon if value is not None]
    return (
        " to ".join(str(n) for n in dict.fromkeys((rounds[0], rounds[-1]))) if rounds else "",
        bytes_text(round(summarize(totals).mean)) if any(totals) else "",
        f"{summarize(known).mean:.1f}" if known else "",
        f"{summarize([sum(r.seconds for r in cell.rounds) for cell in arm.cells]).mean:.1f}",
        f"{summarize(spent).mean:.3f}" if spent else "",
    )


def _as_percent(spec: ExperimentSpec, arms: Sequence[Arm]) -> bool:
    """A metric within 0 and 1 that is an accuracy or a rate is shown in percent."""
    values = [
        value
        for arm in arms
        for value in arm.values(spec.metric, "best", maximize=spec.maximize).values()
    ]
    named = any(word in spec.metric.lower() for word in ("acc", "auc", "f1", "recall", "precision"))
    return named and bool(values) and all(0 <= value <= 1 for value in values)


def _without_empty_columns(table: TextTable) -> TextTable:
    kept = [
        index
        for index, _ in enumerate(table.head)
        if index == 0 or any(row[index] for row in table.rows)
    ]
    return TextTable(
        name=table.name,
        title=table.title,
        head=tuple(table.head[index] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in table.rows),
        numbers=table.numbers,
        note=table.note,
    )


def _row(cells: object) -> str:
    return f"| {' | '.join(cells)} |"  # type: ignore[arg-type]


def _markdown(text: str) -> str:
    plain = printable(text)
    for character in "\\`*_{}[]<>|#":
        plain = plain.replace(character, f"\\{character}")
    return plain


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in printable(text))
