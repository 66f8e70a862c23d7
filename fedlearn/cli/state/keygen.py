"""``fedlearn model keygen``: the key pair of a model's owner."""

from __future__ import annotations

from pathlib import Path

import click

from fedlearn.identity.keyfile import make_key_pair
from fedlearn.terminal.console import json_option, line, print_json

__all__ = ["keygen"]


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("owner.pem"),
    show_default=True,
    help="Where to write the private key; the public one is written beside it.",
)
@click.option(
    "--passphrase", "encrypt", is_flag=True, help="Ask for a passphrase that encrypts the key."
)
@json_option
def keygen(out: Path, encrypt: bool, as_json: bool) -> None:
    """Make the key pair of a model's owner: who holds the private key can open the model.

    A job names the public key as `owner_key`. Existing files are not overwritten. A coordinator's
    recovery key is such a pair too.
    """
    asked = ""
    if encrypt:
        asked = click.prompt("passphrase", hide_input=True, confirmation_prompt=True, err=True)
    public = make_key_pair(out, passphrase=asked)
    if as_json:
        print_json({"private": str(out), "public": str(public)})
        return
    line(f"{out}      keep it: nothing else opens the models of its jobs", style="green")
    line(f"{public}  name it in job.toml:  fedlearn job init my-job --owner-key {public}")
