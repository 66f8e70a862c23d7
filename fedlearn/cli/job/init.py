"""``fedlearn job init``: an example job in a new folder."""

from __future__ import annotations

from pathlib import Path

import click

from fedlearn.config import NAME
from fedlearn.errors import ConfigError
from fedlearn.terminal.console import json_option, line, print_json

__all__ = ["init"]


def _site_names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    wrong = [one for one in names if not NAME.fullmatch(one)]
    if wrong:
        raise click.BadParameter(
            f"{wrong[0][:80]!r} is not a name of a site: use 1 to 63 of a-z, 0-9 and '-'"
        )
    if len(set(names)) < len(names):
        raise click.BadParameter("names a site twice")
    return names


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), default=Path("my-job"))
@click.option("--name", default=None, help="Name of the job; that of the directory by default.")
@click.option(
    "--sites",
    default="site-a,site-b",
    show_default=True,
    callback=_site_names,
    help="The sites that take part, with commas between them.",
)
@click.option(
    "--owner-key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=None,
    metavar="FILE",
    help="The public key to whose holder the model opens, as `fedlearn model keygen` makes it.",
)
@click.option(
    "--new-owner-key",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="Make that key pair too, with the private key in this new file.",
)
@json_option
def init(
    directory: Path,
    name: str | None,
    sites: tuple[str, ...],
    owner_key: Path | None,
    new_owner_key: Path | None,
    as_json: bool,
) -> None:
    """Write an example job: job.toml, policy.toml, a Flower app in torch and data for its sites.

    DIRECTORY (my-job) must be new or empty. It is written atomically.
    """
    from fedlearn.cli.job import template
    from fedlearn.identity.keyfile import check_new_pair, make_key_pair, public_file
    from fedlearn.job.owner_key import read_owner_key

    chosen = name or directory.resolve().name
    if name is None and not NAME.fullmatch(chosen):
        raise ConfigError(
            f"{chosen!r} cannot name a job",
            where=str(directory),
            hint="name the job with --name: 1 to 63 of a-z, 0-9 and '-'",
        )
    if owner_key is not None and new_owner_key is not None:
        raise click.UsageError("--owner-key and --new-owner-key exclude each other")
    if owner_key is not None:
        read_owner_key(str(owner_key), "--owner-key", Path())
    if new_owner_key is not None:
        check_new_pair(new_owner_key)
        owner_key = public_file(new_owner_key)
    files = template.write(directory, chosen, sites=sites, owner_key=owner_key)
    if new_owner_key is not None:
        files += (new_owner_key, make_key_pair(new_owner_key))
    if as_json:
        print_json({"name": chosen, "files": [str(path) for path in files]})
        return
    for path in files:
        line(f"  {path}")
    line("")
    line(f"Next:  fedlearn job validate {directory / 'job.toml'}", bold=True)
