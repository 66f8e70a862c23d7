"""The report of an experiment: tables, figures, and one HTML page that has all of them in it.

::

    report/report.html      the page; it loads nothing, images are in it
    report/TABLE.md|csv|tex the tables
    report/FIGURE.png|pdf   the figures

It is made of the results of the cells alone. It states what is missing: cells without a result,
files that were cut short, figures that the results have no values for, and results of different
versions of the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attestation.durable import write_durably
from fedlearn import __version__
from fedlearn.experiment.figures import Figures, draw_figures
from fedlearn.experiment.schedule import duration_text
from fedlearn.experiment.spec import ExperimentSpec
from fedlearn.experiment.statistics import arms
from fedlearn.experiment.store import CellResult
from fedlearn.experiment.text_tables import (
    TextTable,
    comparison_tables,
    fairness_table,
    summary_table,
)
from fedlearn.results.markup import (
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
    image,
    items,
    note,
    paragraph,
    section,
    table,
    tiles,
)

__all__ = ["LEFT_OUT", "Report", "make_report"]

LEFT_OUT: str = (
    "These are simulations: attestation, TLS and sealing were left out, and the clients' data was "
    "on one machine. What was computed is the same as in a deployment; nothing here is evidence "
    "about one."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A report that was made.

    ``missing``  cells without a result, and what else the report lacks
    """

    page: str
    tables: tuple[TextTable, ...]
    figures: Figures
    missing: tuple[str, ...]

    def write(self, folder: Path) -> Path:
        """Write every file below ``folder``, each atomically, and return the path of the page."""
        folder.mkdir(parents=True, exist_ok=True)
        for each in self.tables:
            for suffix, text in (
                ("md", each.markdown()),
                ("csv", each.csv()),
                ("tex", each.latex()),
            ):
                write_durably(folder / f"{each.name}.{suffix}", text.encode(), mode=0o644)
        for figure in self.figures.drawn:
            write_durably(folder / f"{figure.name}.png", figure.png, mode=0o644)
            write_durably(folder / f"{figure.name}.pdf", figure.pdf, mode=0o644)
        page = folder / "report.html"
        write_durably(page, self.page.encode(), mode=0o644)
        return page


def make_report(
    spec: ExperimentSpec,
    results: Sequence[CellResult],
    *,
    missing: Sequence[str] = (),
    faults: Sequence[str] = (),
) -> Report:
    """Return the report.

    :param results: in the order of the grid.
    :param missing: the names of cells without a result.
    :param faults: a sentence for each file that cannot be used.
    :raises ConfigError: when matplotlib is not installed.
    """
    found = arms(results)
    tables = [summary_table(spec, found), *comparison_tables(spec, found)]
    if (fairness := fairness_table(spec, found)) is not None:
        tables.append(fairness)
    figures = draw_figures(spec, found)
    lacking = [*_missing(missing), *faults, *_mixed(results), *figures.omitted]
    without = [each.cell.name for each in results if not each.series(spec.metric)]
    if without:
        known = sorted({name for each in results for name in each.metrics})
        lacking.insert(
            0,
            f"{spec.metric}: no round of {_few(without)} has a finite value of it; "
            f"the metrics are {', '.join(known) or 'none'}",
        )
    return Report(
        page=_page(spec, results, tables, figures, lacking),
        tables=tuple(tables),
        figures=figures,
        missing=tuple(lacking),
    )


def _page(
    spec: ExperimentSpec,
    results: Sequence[CellResult],
    tables: Sequence[TextTable],
    figures: Figures,
    lacking: Sequence[str],
) -> str:
    title = spec.report.title or spec.name
    seconds = sum(each.cpu_seconds or each.seconds for each in results)
    return document(
        f"{title}: report of an experiment",
        header(
            title, f"{counted(len(results), 'cell')} of {spec.name}, compared by {spec.metric}."
        ),
        banner("Simulated.", LEFT_OUT),
        tiles(
            (
                (str(len(results)), "cells with a result"),
                (str(len(arms(results))), "arms"),
                (str(len({each.cell.seed for each in results})), "seeds"),
                (duration_text(seconds), "of processor time"),
            )
        ),
        *(section(each.title, _table(each), note(each.note)) for each in tables if each.rows),
        *(
            section(each.title, image(each.png, f"{each.title}. {each.caption}", each.caption))
            for each in figures.drawn
        ),
        section("What this report lacks", items(lacking)) if lacking else Html(),
        _provenance(results),
        footer(f"Made by fedlearn {__version__}."),
    )


def _table(each: TextTable) -> Html:
    heads = [Head(name, numeric=name in each.numbers) for name in each.head]
    return table(heads, each.rows)


def _provenance(results: Sequence[CellResult]) -> Html:
    versions = {
        f"{name}": ", ".join(sorted({str(value) for value in values if value}))
        for name, values in _collected([r.content.get("versions", {}) for r in results]).items()
    }
    machines = sorted({f"{r.environment.get('processor', '')}" for r in results} - {""})
    return section(
        "What ran",
        definitions(
            (
                *((f"version of {name}", value) for name, value in versions.items()),
                ("processors", ", ".join(machines)),
            )
        ),
        details(
            "Keys of the cells",
            paragraph("The digest of everything that a result depends on; also in cells.parquet."),
            table(
                [Head("cell"), Head("key"), Head("seconds", numeric=True)],
                [(r.cell.name, code(r.key), f"{r.seconds:.1f}") for r in results],
            ),
        ),
    )


def _mixed(results: Sequence[CellResult]) -> list[str]:
    versions = _collected([each.content.get("versions", {}) for each in results])
    return [
        f"the cells were computed by {len(values)} versions of {name}; run the older ones again "
        "before you compare them"
        for name, values in versions.items()
        if len(values) > 1
    ]


def _collected(found: Sequence[Mapping[str, str]]) -> dict[str, set[str]]:
    names = dict.fromkeys(name for each in found for name in each)
    return {name: {each.get(name, "") for each in found} for name in names}


def _missing(names: Sequence[str]) -> list[str]:
    return [f"{counted(len(names), 'cell')} without a result: {_few(names)}"] if names else []


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
