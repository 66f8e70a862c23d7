"""``completion``: the script by which a shell completes the commands of a program."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and files in SHELL.

    \b
    bash, zsh:  eval "$(fedlearn completion bash)"   in ~/.bashrc or ~/.zshrc
    fish:       fedlearn completion fish | source    in ~/.config/fish/config.fish
    """
    root = ctx.find_root().command
    program = root.name or ""
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"this version of click completes nothing in {shell}")
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    click.echo(found(root, {}, program, variable).source())
