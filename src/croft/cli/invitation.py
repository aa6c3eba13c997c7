"""`croft invite` and `croft join`: how a new peer comes in."""

from __future__ import annotations

import time

import click

from croft.cli.group import Group
from croft.cli.output import counted, done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.control.quantities import duration_s, show_duration
from croft.errors import Usage


@click.group(cls=Group, alone="new")
def invite() -> None:
    """Invite somebody: one line that works once."""


@invite.command()
@click.option("--for", "lifetime", default="1h", show_default=True, help="How long it is good for, such as 10m or 2d.")
@click.option("--line-only", is_flag=True, help="Make no spoken code: nothing is announced on the LAN.")
@click.option("--community", default="", metavar="NAME", help="To which one, if you are in several.")
@click.option("--guest", "is_for_guest", is_flag=True, help="They come in as a guest: nothing for members is theirs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def new(lifetime: str, line_only: bool, community: str, is_for_guest: bool, as_json: bool) -> None:
    """Make a line that works once; the word `new` may be left out."""
    show_new(lifetime, community, line_only, is_for_guest, as_json)


def show_new(lifetime: str, community: str, line_only: bool, is_for_guest: bool, as_json: bool) -> None:
    """Makes an invitation and tells how it is used."""
    lifetime_s = duration_s(lifetime)
    api = LocalApi(Home.find().control_socket)
    made = api.invite(lifetime_s=lifetime_s, is_spoken=not line_only, community=community, is_for_guest=is_for_guest)
    if as_json:
        print_json("", made)
        return
    whom = ", for a guest" if is_for_guest else ""
    say(f"This works once{whom}, within {show_duration(lifetime_s)}. On the other machine:")
    say()
    click.echo(f"croft up --join {made.line}")
    say()
    if made.code:
        say(f"On the same network it is enough to say:  croft up --join {made.code}")
    say(f"Take it back with:  croft invite withdraw {made.invitation}")


@invite.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_invitations(as_json: bool) -> None:
    """Invitations made here."""
    made = LocalApi(Home.find().control_socket).invitations()
    if as_json:
        print_json("invitations", made)
        return
    rows = [
        [one.invitation, one.state, show_duration(max(0.0, one.expires_at - time.time())), one.used_by[:10] or "–"]
        for one in made
    ]
    print_table(["INVITATION", "STATE", "GOOD FOR", "USED BY"], rows, none="None. Make one: `croft invite`.")


@invite.command()
@click.argument("invitation")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def withdraw(invitation: str, as_json: bool) -> None:
    """Make an open invitation worthless."""
    withdrawn = LocalApi(Home.find().control_socket).withdraw(invitation)
    if as_json:
        print_json("", withdrawn)
    else:
        done("Withdrawn", withdrawn.invitation)


@click.command()
@click.argument("code", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def join(code: tuple[str, ...], as_json: bool) -> None:
    """Join a community by the line or the spoken code of an invitation; or become a device of yours by its line."""
    text = "-".join(code)
    if not text.strip():
        raise Usage("the code is empty", remedy="Ask for a new one: `croft invite` on a member's machine.")
    api = LocalApi(Home.find().control_socket)
    joined = api.join(text)
    api.await_twin(joined.twin)
    if as_json:
        print_json("", joined)
        return
    done("Joined", f"{joined.name}, {counted(joined.members, 'device')}")
    say("See who is here: `croft peers`. Run something there: `croft run -- hostname`.")
