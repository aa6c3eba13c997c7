"""`croft contacts`: what people are called here, how far they are trusted, who is blocked."""

from __future__ import annotations

import click

from croft.cli.group import Group
from croft.cli.output import counted, done, print_json, print_table
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home

LEVELS = ("none", "low", "normal", "high")


@click.group(cls=Group, alone="list")
def contacts() -> None:
    """People, by the names you give them."""


@contacts.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_contacts(as_json: bool) -> None:
    """Everybody whom you noted, and how far you trust them."""
    known = _api().contacts()
    if as_json:
        print_json("contacts", known)
        return
    rows = [
        [one.petname or "–", "blocked" if one.is_blocked else one.trust, one.twin[:10], ", ".join(one.devices) or "–"]
        for one in known
    ]
    none = "Nobody yet. Note somebody: `croft contacts add PEER [NAME]`."
    print_table(["NAME", "TRUST", "ID", "DEVICES"], rows, none=none)


@contacts.command()
@click.argument("peer")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def add(peer: str, name: str | None, as_json: bool) -> None:
    """Note the person whose device PEER is, under NAME or what the device calls itself."""
    _show("Noted", _api().note(schema.ContactWanted(who=peer, petname=name)), as_json)


@contacts.command()
@click.argument("who")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rename(who: str, name: str, as_json: bool) -> None:
    """Call somebody otherwise; only here, nobody else sees it."""
    _show("Renamed", _api().note(schema.ContactWanted(who=who, petname=name)), as_json)


@contacts.command()
@click.argument("who")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def remove(who: str, as_json: bool) -> None:
    """Forget what is noted of somebody: the name, the trust and a block."""
    _show("Forgotten", _api().forget(who), as_json)


@contacts.command()
@click.argument("who")
@click.argument("level", type=click.Choice(LEVELS))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def trust(who: str, level: str, as_json: bool) -> None:
    """How far somebody's code may come here.

    none: nothing runs here. low: only at isolation grade A. normal: as the setting sandbox.required_grade says.
    high: like your own devices.
    """
    _show("Trusted", _api().note(schema.ContactWanted(who=who, trust=level)), as_json)


@contacts.command()
@click.argument("who")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def block(who: str, as_json: bool) -> None:
    """Take nothing from somebody and give nothing, from this moment on: links, jobs and tunnels end."""
    _show("Blocked", _api().note(schema.ContactWanted(who=who, is_blocked=True)), as_json)


@contacts.command()
@click.argument("who")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def unblock(who: str, as_json: bool) -> None:
    """Undo `block`."""
    _show("No longer blocked", _api().note(schema.ContactWanted(who=who, is_blocked=False)), as_json)


def _api() -> LocalApi:
    return LocalApi(Home.find().control_socket)


def _show(what: str, contact: schema.Contact, as_json: bool) -> None:
    if as_json:
        print_json("", contact)
        return
    trust = "blocked" if contact.is_blocked else f"trust {contact.trust}"
    done(what, f"{contact.petname or contact.twin[:10]} · {trust} · {counted(len(contact.devices), 'device')} known")
