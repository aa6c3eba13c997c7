"""`croft completion`: what the shell needs to complete commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for a shell; save it where that shell looks.

    \b
    bash: ~/.local/share/bash-completion/completions/croft
    zsh:  a folder of your $fpath, as _croft
    fish: ~/.config/fish/completions/croft.fish
    """
    from croft.cli.main import croft

    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    click.echo(kind(croft, {}, "croft", "_CROFT_COMPLETE").source())
