"""`croft recovery` and `croft recover`: twenty-four words bring back who you are, and what is yours."""

from __future__ import annotations

import sys

import click

from croft.cli.output import done, print_json, say
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.errors import Usage
from croft.model.ids import short

COLUMNS = 4
ROWS = 6


@click.group()
def recovery() -> None:
    """The words that bring everything back when all your machines are gone."""


@recovery.command()
def show() -> None:
    """Show your recovery words, to be written on paper."""
    from croft.node.identity import own_words

    words = own_words(Home.find()).split()
    if not sys.stdout.isatty():
        click.echo(" ".join(words))
        return
    say("Write these words on paper, in this order, and keep it where you keep what matters.")
    say("Whoever has them is you: reads your files, acts in your name.")
    say()
    for row in range(ROWS):
        cells = [f"{column * ROWS + row + 1:>2} {words[column * ROWS + row]:<10}" for column in range(COLUMNS)]
        click.echo("  ".join(cells).rstrip())
    say()
    say("Then see that you wrote them down right: `croft recovery test`.")


@recovery.command()
def test() -> None:
    """See whether the words on your paper are the right ones."""
    from croft.identity.keys import from_recovery_words
    from croft.node.identity import own_words

    own = own_words(Home.find())
    given = _asked()
    if given.lower().split() != own.split():
        from_recovery_words(given)  # raises Usage if they are nobody's words
        raise Usage("these are the words of another identity", remedy="Write down those of `croft recovery show`.")
    done("Your paper is right", "it brings you back")


@click.command()
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def recover(code: str | None, as_json: bool) -> None:
    """Become yourself again on a fresh machine, by your words and one contact.

    CODE is an invitation by anybody in your community, made by `croft invite`. The words are asked for, or read
    from what is piped in.
    """
    from croft.identity.keys import from_recovery_words
    from croft.node.identity import bring_back
    from croft.node.launch import start_in_background

    home = Home.find()
    bring_back(home, from_recovery_words(_asked()))
    start_in_background(home, {})
    api = LocalApi(home.control_socket)
    status = api.status()
    if not as_json:
        done("You are back", f"{status.name} ({short(status.twin)})")
    if code is None:
        if as_json:
            print_json("", status)
        else:
            say("Now ask a contact for an invitation (`croft invite`), and use it here: `croft join CODE`.")
        return
    joined = api.join(code)
    if as_json:
        print_json("", joined)
        return
    done("Joined", f"{joined.name}, {joined.members} members")


def _asked() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.read()
    words: str = click.prompt("Your twenty-four words", hide_input=True, err=True)
    return words
