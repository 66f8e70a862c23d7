"""``fedlearn policy keygen``: the key pair with which an operator signs policies."""

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
    default=Path("policy-key.pem"),
    show_default=True,
    help="Where to write the private key; the public one is written beside it.",
)
@click.option(
    "--passphrase", "encrypt", is_flag=True, help="Ask for a passphrase that encrypts the key."
)
@json_option
def keygen(out: Path, encrypt: bool, as_json: bool) -> None:
    """Make the key pair with which an operator signs policies (Ed25519), and print its digest.

    Coordinators and sites name the digest as `policy_keys`: `--policy-key` of their `init`.
    Existing files are not overwritten.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from attestation.policy.sign import operator_key_digest

    asked = ""
    if encrypt:
        asked = click.prompt("passphrase", hide_input=True, confirmation_prompt=True, err=True)
    public = make_key_pair(out, passphrase=asked, signing=True)
    key = load_pem_public_key(public.read_bytes())
    if not isinstance(key, Ed25519PublicKey):
        raise TypeError("an Ed25519 key is made")
    digest = operator_key_digest(key).hex()
    if as_json:
        print_json({"private": str(out), "public": str(public), "sha256": digest})
        return
    line(f"{out}  signs:  fedlearn policy sign policy.toml --key {out}", style="green")
    line(f"{public}  its digest is {digest}")
