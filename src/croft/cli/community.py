"""`croft community`: who belongs together here, in what role, by which rules, and what was done."""

from __future__ import annotations

import time

import click

from croft.cli.group import Group
from croft.cli.output import done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import show_duration
from croft.errors import Usage

ROLES = ("admin", "member", "guest")
ACTS = {
    "create": "founded {value}",
    "admit": "let in {subject}",
    "role": "made {subject} {value}",
    "remove": "removed {subject}",
    "rule": "set {subject} to {value!r}",
    "leave": "left",
}

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_community = click.option("--community", default="", metavar="NAME", help="Which one, if you are in several.")


@click.group(cls=Group, alone="list")
def community() -> None:
    """Groups of people who share: members, roles, rules."""


@community.command(name="list")
@_json
def list_communities(as_json: bool) -> None:
    """The communities that this peer is in."""
    _list(as_json)


@community.command()
@click.argument("name")
@_json
def new(name: str, as_json: bool) -> None:
    """Found a community called NAME, with you as its founder."""
    made = _api().new_community(name)
    if as_json:
        print_json("", made)
        return
    done("Founded", f"{made.name} ({made.community[:10]})")
    say(f"Invite somebody: croft community invite {_quoted(made.name)}")


@community.command()
@click.argument("name", default="")
@click.option("--for", "lifetime", default="1h", show_default=True, help="How long it is good for, such as 10m or 2d.")
@click.option("--line-only", is_flag=True, help="Make no spoken code: nothing is announced on the LAN.")
@click.option("--guest", "is_for_guest", is_flag=True, help="They come in as a guest: nothing for members is theirs.")
@_json
def invite(name: str, lifetime: str, line_only: bool, is_for_guest: bool, as_json: bool) -> None:
    """Invite somebody to the community NAME: one line that works once."""
    from croft.cli.invitation import show_new

    show_new(lifetime, name, line_only, is_for_guest, as_json)


@community.command()
@click.argument("name", default="")
@_json
def members(name: str, as_json: bool) -> None:
    """Everybody in the community NAME."""
    known = _api().community_members(name)
    if as_json:
        print_json("members", known)
        return
    rows = [
        [one.name + (" (you)" if one.is_self else ""), one.role, one.twin[:10], ", ".join(one.devices) or "–"]
        for one in known
    ]
    print_table(["NAME", "ROLE", "ID", "DEVICES"], rows)


@community.command()
@click.argument("who")
@click.argument("role", type=click.Choice(ROLES))
@_community
@_json
def role(who: str, role: str, community: str, as_json: bool) -> None:
    """Make WHO an admin, a member or a guest.

    Admins invite, remove and set rules. A guest uses only what is offered to them by name, and invites nobody.
    """
    made = _api().set_role(who, role, community=community)
    _show("Role set", made, as_json)


@community.command()
@click.argument("who")
@_community
@_json
def remove(who: str, community: str, as_json: bool) -> None:
    """Remove WHO: everybody's links to them end within seconds.

    What they do without knowing of it has no effect. An admin lets them in again by a new invitation.
    """
    _show("Removed", _api().remove_member(who, community=community), as_json)


@community.command()
@click.argument("name")
@_json
def leave(name: str, as_json: bool) -> None:
    """Leave the community NAME, and forget what was told there."""
    left = _api().leave_community(name)
    if as_json:
        print_json("", left)
    else:
        done("Left", left.name)


@community.command()
@click.argument("arguments", nargs=-1, metavar="[NAME] [KEY=VALUE…]")
@_community
@_json
def rules(arguments: tuple[str, ...], community: str, as_json: bool) -> None:
    """Show the rules of the community NAME, or set some.

    invite=founders|admins|members: who may invite. text=…: a word to all members.
    """
    if arguments and "=" not in arguments[0]:
        community, arguments = arguments[0], arguments[1:]
    wanted: dict[str, str] = {}
    for text in arguments:
        key, equals, value = text.partition("=")
        if not equals:
            raise Usage(f"{text!r} is not KEY=VALUE", remedy="For example: croft community rules invite=admins")
        wanted[key] = value
    now = _api().set_rules(wanted, community=community)
    if as_json:
        print_json("", now)
        return
    print_table(["RULE", "VALUE"], [["invite", now.invite], ["text", now.text or "–"]])


@community.command()
@click.argument("name", default="")
@click.option("--last", type=click.IntRange(min=0), default=100, show_default=True, help="So many acts; 0: all.")
@_json
def log(name: str, last: int, as_json: bool) -> None:
    """Who did what in the community NAME, in order; and what had no effect, and why."""
    acts = _api().community_log(name, last=last)
    if as_json:
        print_json("acts", acts)
        return
    rows = [[_ago(one.at), one.author, _told(one), one.why_not and f"no effect: {one.why_not}"] for one in acts]
    print_table(["AGO", "WHO", "DID", ""], rows)


def _list(as_json: bool) -> None:
    known = _api().communities()
    if as_json:
        print_json("communities", known)
        return
    rows = [[one.name, one.role or "–", str(one.members), one.invite, one.community[:10]] for one in known]
    none = "None yet. Found one: `croft community new NAME`."
    print_table(["NAME", "YOU ARE", "MEMBERS", "WHO INVITES", "ID"], rows, none=none)
    for one in known:
        if one.text:
            say(f"{one.name}: {one.text}")


def _api() -> LocalApi:
    return LocalApi(Home.find().control_socket)


def _show(what: str, member: schema.CommunityMember, as_json: bool) -> None:
    if as_json:
        print_json("", member)
    else:
        done(what, f"{member.name} · {member.role}")


def _told(act: schema.CommunityAct) -> str:
    return ACTS.get(act.act, act.act + " {subject}").format(subject=act.subject, value=act.value)


def _ago(at: float) -> str:
    return show_duration(max(0.0, time.time() - at))


def _quoted(name: str) -> str:
    import shlex

    return shlex.quote(name)
