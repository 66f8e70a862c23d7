"""``fedlearn local``: a coordinator and sites on this machine that stay.

The page is docs/how-to/run-it-all-on-one-machine.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedlearn.terminal.console import (
    ERROR,
    Commands,
    json_option,
    line,
    print_json,
    printable,
)

if TYPE_CHECKING:
    from fedlearn.local.resident import Part, ResidentFederation

__all__ = ["group"]


@click.group(cls=Commands, name="local")
def group() -> None:
    """Keep a coordinator and sites on this machine, to which jobs are submitted.

    Insecure: their evidence is a sample, which proves nothing about hardware, and the sites run
    any code. It is for trying things out.
    """


def _folder_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--folder",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        metavar="DIR",
        help="Where all of it is.  [default: ~/.local/share/fedlearn/local]",
    )(command)


def _open(folder: Path | None) -> ResidentFederation:
    from fedlearn.local.resident import ResidentFederation, default_place

    return ResidentFederation(folder or default_place())


def _pairs(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, Path]:
    found = {}
    for name, _, place in (text.partition("=") for text in value):
        if not name or not place:
            raise click.BadParameter("write NAME=PATH, such as my-job=my-job/data")
        found[name] = Path(place)
    return found


@group.command("up")
@click.option(
    "--sites",
    default="",
    metavar="NUMBER|NAMES",
    help="How many sites, or their names with commas between them.  [default for new ones: 2]",
)
@click.option(
    "--data",
    multiple=True,
    callback=_pairs,
    metavar="NAME=PATH",
    help="A data set, by the name that jobs use; each site gets the folder of its name in PATH, "
    "or else PATH. Repeat it for more.",
)
@click.option(
    "--install-login",
    "install",
    is_flag=True,
    help="Make the operator's login the one that `fedlearn` uses here without --operator.",
)
@_folder_option
@json_option
def up(
    sites: str, data: dict[str, Path], install: bool, folder: Path | None, as_json: bool
) -> None:
    """Start a coordinator and sites, or those of them that do not run.

    They stay when the command has ended, and are logged in and enrolled: jobs are submitted to
    them as in the field. Data sets may be added later by another `up`.
    """
    from fedlearn.local.resident import site_names

    federation = _open(folder)
    if install:
        federation.check_login()
    started = federation.up(_chosen(federation, sites, site_names), data)
    if install:
        federation.install_login()
    parts = federation.status()
    if as_json:
        print_json({"started": list(started), **_json(federation, parts)})
        return
    _show(parts)
    line("INSECURE: the evidence is a sample, and the sites run any code", style="yellow")
    if not install:
        line("Next, in each shell that submits jobs:")
        line(f"  export FEDLEARN_OPERATOR={federation.login}", bold=True)
    if not federation.data:
        line("The sites have no data set; add one:")
        line("  fedlearn local up --data my-job=my-job/data", bold=True)
    line("then:  fedlearn job submit my-job/job.toml --follow")


def _chosen(
    federation: ResidentFederation, sites: str, read: Callable[[str], tuple[str, ...]]
) -> tuple[str, ...]:
    """Return the sites that are asked for; empty for those that there are."""
    if sites:
        return read(sites)
    return () if federation.made else read("2")


@group.command("status")
@_folder_option
@json_option
def status(folder: Path | None, as_json: bool) -> int:
    """Show what runs; the status is 1 where something does not."""
    federation = _open(folder)
    parts = federation.status()
    if as_json:
        print_json(_json(federation, parts))
    else:
        _show(parts)
        line(f"login        {federation.login}")
        if not all(part.pid for part in parts):
            line("`fedlearn local up` starts what does not run", bold=True)
    return 0 if all(part.pid for part in parts) else ERROR


@group.command("add-site")
@click.argument("name")
@_folder_option
@json_option
def add_site(name: str, folder: Path | None, as_json: bool) -> None:
    """Invite and enroll one more site, with the data sets that there are, and start its agent."""
    federation = _open(folder)
    federation.add_site(name)
    if as_json:
        print_json(_json(federation, federation.status()))
    else:
        line(f"site {name} is enrolled and connected", style="green")


@group.command("down")
@click.option("--purge", is_flag=True, help="Delete its folder too: keys, models and the ledger.")
@_folder_option
@json_option
def down(purge: bool, folder: Path | None, as_json: bool) -> None:
    """End all of it. `fedlearn local up` continues it, unless it is deleted."""
    federation = _open(folder)
    ended = federation.down(purge=purge)
    if as_json:
        print_json({"ended": list(ended), "purged": purge})
        return
    line(f"ended: {', '.join(ended) or 'nothing ran'}")
    if purge:
        line(f"deleted {federation.folder}")


def _show(parts: tuple[Part, ...]) -> None:
    width = max(len(part.name) for part in parts)
    for number, part in enumerate(parts):
        text = f"process {part.pid}" if part.pid else f"does not run; its log is {part.log}"
        if number and part.pid:
            text += ", connected" if part.connected else ", not connected"
        line(f"{printable(part.name):<{width}}  {text}", style="green" if part.pid else "red")


def _json(federation: ResidentFederation, parts: tuple[Part, ...]) -> dict[str, Any]:
    return {
        "folder": str(federation.folder),
        "operator": str(federation.login),
        "parts": [
            {
                "name": part.name,
                "running": bool(part.pid),
                "pid": part.pid,
                "connected": part.connected,
                "log": str(part.log),
            }
            for part in parts
        ],
    }
