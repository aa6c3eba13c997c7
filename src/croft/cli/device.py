"""`croft device`: the machines that are yours."""

from __future__ import annotations

import click

from croft.cli.group import Group
from croft.cli.output import ago, done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.control.quantities import duration_s, show_duration
from croft.model.ids import short


@click.group(cls=Group, alone="list")
def device() -> None:
    """Your own machines: add one, list them, shut out a lost one."""


@device.command()
@click.option("--for", "lifetime", default="1h", show_default=True, help="How long the line is good for.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def add(lifetime: str, as_json: bool) -> None:
    """Make a line that turns a fresh machine into one more device of yours.

    Your key stays here; the new device gets a certificate, your memberships and your contacts. It can neither add nor
    revoke devices, nor invite.
    """
    lifetime_s = duration_s(lifetime)
    made = LocalApi(Home.find().control_socket).add_device(lifetime_s=lifetime_s)
    if as_json:
        print_json("", made)
        return
    say(f"This works once, within {show_duration(lifetime_s)}. On your other machine, which must be fresh:")
    say()
    click.echo(f"croft up --join {made.line}")
    say()
    say("Whoever uses it acts as you. Give it to nobody.")


@device.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_devices(as_json: bool) -> None:
    """Your devices; revoked ones last."""
    known = LocalApi(Home.find().control_socket).devices()
    if as_json:
        print_json("devices", known)
        return
    rows = [
        [
            one.name + (" (this device)" if one.is_self else ""),
            short(one.peer),
            one.link,
            {True: "here", False: "not here", None: "–"}[one.holds_key],
            "now" if one.link in ("self", "direct", "relayed") else ago(one.revoked_at or one.seen_at),
        ]
        for one in known
    ]
    print_table(["NAME", "ID", "LINK", "YOUR KEY", "SEEN"], rows)


@device.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def revoke(name: str, as_json: bool) -> None:
    """Shut out a device of yours that is lost, for ever and everywhere."""
    revoked = LocalApi(Home.find().control_socket).revoke_device(name)
    if as_json:
        print_json("", revoked)
        return
    done("Revoked", f"{name} ({short(revoked.peer)})")
    say("Every peer that hears of it cuts its links to that device at once, and lets it in no more.")
