"""`croft recovery` and `croft recover`: twenty-four words bring back who you are, and what is yours."""

from __future__ import annotations

import sys
import time

import click

from croft.cli.group import Group
from croft.cli.output import counted, done, print_json, say
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.errors import NotFound, Usage
from croft.model.ids import short

HOLDERS_S_MAX = 10.0
ASK_EVERY_S = 0.5
COLUMNS = 4
ROWS = 6


@click.group(cls=Group)
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
    if not as_json:
        done("Joined", f"{joined.name}, {counted(joined.members, 'device')}")
    _bring_files(api, as_json)


@recovery.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def files(as_json: bool) -> None:
    """Take in the list of your files from peers that hold it, if none was up when you came back."""
    _bring_files(LocalApi(Home.find().control_socket), as_json)


def _bring_files(api: LocalApi, as_json: bool) -> None:
    # Links to the members that the inviter named are just being made.
    deadline = time.monotonic() + HOLDERS_S_MAX
    while True:
        try:
            found = api.recover_files()
            break
        except NotFound as nothing:
            if time.monotonic() > deadline:
                if as_json:
                    raise
                say(f"{nothing.message[:1].upper()}{nothing.message[1:]}. {nothing.remedy}")
                return
        time.sleep(ASK_EVERY_S)
    if as_json:
        print_json("", found)
        return
    done("Your files are listed", f"{found.files}; get them: `croft ls`, `croft get NAME`")
    done("Your contacts are back", str(found.contacts))
    if found.communities:
        done("Your communities are back", str(found.communities))


def _asked() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.read()
    words: str = click.prompt("Your twenty-four words", hide_input=True, err=True)
    return words
