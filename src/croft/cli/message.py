"""`croft message`: write to people and into rooms; `croft twin`: what one says of oneself, and who stands in."""

from __future__ import annotations

import sys
import time

import click

from croft.cli.group import Group
from croft.cli.output import ago, done, print_json, print_table, say, style
from croft.client.local_api import LocalApi
from croft.client.messages import Messages
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import duration_s
from croft.errors import TimedOut, Usage

COLUMNS_OF_TEXT = 60


@click.group(cls=Group, alone="list")
def message() -> None:
    """Write to people and into rooms; it reaches them also if you are never up at the same time."""


@message.command(name="send")
@click.argument("words", nargs=-1, required=True, metavar="[WHO[,WHO…]] TEXT…")
@click.option("--room", default="", help="Write into this room of a community: no WHO then.")
@click.option("--community", default="", help="In which community, where there are several.")
@click.option("--answer", "answers", default="", metavar="ID", help="It answers this message.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def send_message(words: tuple[str, ...], room: str, community: str, answers: str, as_json: bool) -> None:
    """Write TEXT to WHO, or with --room into a room. `-` takes the text from standard input.

    Nobody but the readers can read it. While they are away, their delegates and some other members keep it for them.
    """
    people = [] if room else [who for who in words[0].split(",") if who]
    text = " ".join(words if room else words[1:])
    if not text:
        raise Usage("a message without text", remedy="`croft message send WHO TEXT`, or `-` for standard input.")
    if text == "-":
        text = sys.stdin.read()
    sent = Messages(_api()).send(text, to=people, room=room, community=community, answers=answers)
    if as_json:
        print_json("messages", sent)
        return
    for one in sent:
        done("Written", f"to {_place(one)} · {one.message[:8]}")


@message.command(name="list")
@click.argument("who", required=False, default="")
@click.option("--room", default="", help="Only of this room.")
@click.option("--community", default="", help="Of which community, where there are several.")
@click.option("--new", "only_new", is_flag=True, help="Only those that you have not seen.")
@click.option("-n", "--count", default=30, show_default=True, help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; they do not count as seen.")
def list_messages(who: str, room: str, community: str, only_new: bool, count: int, as_json: bool) -> None:
    """Messages, with WHO, of a room, or all; oldest first. Those shown count as seen."""
    found = Messages(_api()).find(
        who, room=room, community=community, only_new=only_new, count=count, marks=not as_json
    )
    if as_json:
        print_json("messages", found)
        return
    for one in found:
        _show(one)
    if not found:
        say("No message yet. Write one: `croft message send WHO TEXT`." if not only_new else "Nothing new.")


@message.command()
@click.argument("who", required=False, default="")
@click.option("--room", default="", help="Only of this room.")
@click.option("--community", default="", help="Of which community, where there are several.")
@click.option("--for", "limit", default="", help="Give up after this time, like 10m; without it, wait for ever.")
@click.option("--after", default=-1, metavar="NUMBER", help="Begin after this message number.")
@click.option("--once", is_flag=True, help="End with the first message of somebody else.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line per message.")
def wait(who: str, room: str, community: str, limit: str, after: int, once: bool, as_json: bool) -> None:
    """Print messages as they come."""
    api = _api()
    deadline = time.monotonic() + duration_s(limit) if limit else None
    if after < 0:
        newest = api.messages(schema.MessagesWanted(count=1))
        after = newest[0].number if newest else 0
    while deadline is None or time.monotonic() < deadline:
        left = 20.0 if deadline is None else min(20.0, max(0.1, deadline - time.monotonic()))
        wanted = schema.MessagesWanted(
            who=who, room=room, community=community, after=after, wait_s=left, marks=not as_json
        )
        for one in api.messages(wanted):
            after = one.number
            if as_json:
                print_json("", one)
            else:
                _show(one)
            if once and not one.is_own:
                return
    if once:
        raise TimedOut("no message came", remedy="See who is up: `croft peers`.")


@message.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rooms(as_json: bool) -> None:
    """Rooms in which something was written. Whoever writes into a room that is not there yet, opens it."""
    found = _api().rooms()
    if as_json:
        print_json("rooms", found)
        return
    rows = [[one.room, one.community_name, str(one.new)] for one in found]
    none = "No room yet. Open one: `croft message send --room NAME TEXT`."
    print_table(["ROOM", "COMMUNITY", "NEW"], rows, none=none)


@click.group(cls=Group, alone="show")
def twin() -> None:
    """Your stand-in: what it says of you, and which peers keep letters for you while you are away."""


@twin.command(name="show")
@click.argument("who", required=False, default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_twin(who: str, as_json: bool) -> None:
    """What WHO, or without it you yourself, says of themselves; also while they are away."""
    api = _api()
    one = api.twin(who) if who else api.twins()[0]
    if as_json:
        print_json("", one)
        return
    click.echo(f"{style(one.name, bold=True)} ({one.twin[:10]})")
    if one.profile:
        click.echo(one.profile)
    click.echo(f"devices    {', '.join(one.devices) or '–'}; up now: {', '.join(one.alive) or 'none'}")
    click.echo(f"delegates  {', '.join(one.delegates) or '–'}")
    click.echo(f"in         {', '.join(one.communities) or '–'}")
    if one.said_at:
        click.echo(f"said       {ago(one.said_at)} ago")
    if one.kept_letters is not None:
        click.echo(f"keeps      {one.kept_letters} letters for others")


@twin.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_twins(as_json: bool) -> None:
    """Everybody in your communities, and what they say of themselves."""
    found = _api().twins()
    if as_json:
        print_json("twins", found)
        return
    rows = [[one.name, one.twin[:10], str(len(one.devices)), _brief(one.profile)] for one in found]
    print_table(["NAME", "ID", "DEVICES", "PROFILE"], rows)


@twin.command()
@click.argument("text")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def profile(text: str, as_json: bool) -> None:
    """Say TEXT of yourself to all your communities; an empty one takes it back."""
    _said(_api().say(schema.TwinWanted(profile=text)), as_json)


@twin.command()
@click.argument("peers", nargs=-1)
@click.option("--none", is_flag=True, help="Nobody stands in for you any more.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def delegates(peers: tuple[str, ...], none: bool, as_json: bool) -> None:
    """Name the PEERS that are to stand in for you: they keep your letters while you are away, and cannot read them."""
    if bool(peers) == none:
        raise Usage("name peers, or say --none", remedy="See who is here: `croft peers`.")
    _said(_api().say(schema.TwinWanted(delegates=list(peers))), as_json)


def _said(one: schema.Twin, as_json: bool) -> None:
    if as_json:
        print_json("", one)
        return
    done("Said", f"{_brief(one.profile) or 'no profile'} · delegates: {', '.join(one.delegates) or 'none'}")


def _show(one: schema.Message) -> None:
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.written_at))
    state = f" ({one.state})" if one.is_own or one.state == "new" else ""
    if one.missing:
        click.echo(style(f"… {one.missing} messages of {one.by} never came", dim=True))
    text = one.text if one.kind != "sealed" else "(sealed for other devices of yours: read it there)"
    arrow = f" → {_place(one)}" if one.is_own or one.room else ""
    click.echo(f"{style(f'{at} {one.by}{arrow}{state}', bold=True)} {one.message[:8]}")
    for line in text.splitlines():
        click.echo(f"  {_printable(line)}")


def _printable(line: str) -> str:
    """What somebody wrote does not steer this terminal."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "�" for letter in line)


def _place(one: schema.Message) -> str:
    return f"#{one.room}" if one.room else one.to


def _brief(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= COLUMNS_OF_TEXT else line[: COLUMNS_OF_TEXT - 1] + "…"


def _api() -> LocalApi:
    return LocalApi(Home.find().control_socket)
