"""`croft limit`: how much bandwidth of this machine Croft may use, for whom, for what, and when."""

from __future__ import annotations

import click

from croft.cli.group import Group
from croft.cli.output import done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import rate_bytes_per_s, show_rate


@click.group(cls=Group, alone="list")
def limit() -> None:
    """Rate limits; what you ask for yourself goes first."""


@limit.command(name="set")
@click.argument("rate")
@click.option("--peer", default="", help="Only for this peer; by default all peers together.")
@click.option("--purpose", default="", metavar="tasks|tunnel", help="Only for this.")
@click.option("--when", default="", metavar="HOURS", help="Only in these hours of the day, such as 08-18.")
@click.option("--up", "direction", flag_value="up", help="Only what leaves this machine.")
@click.option("--down", "direction", flag_value="down", help="Only what comes in.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def set_limit(rate: str, peer: str, purpose: str, when: str, direction: str | None, as_json: bool) -> None:
    """Use no more than RATE, such as 5Mbit, each way. Of several limits that apply, each holds."""
    wanted = schema.LimitWanted(
        rate=rate_bytes_per_s(rate), peer=peer, purpose=purpose, direction=direction or "", hours=when
    )
    made = LocalApi(Home.find().control_socket).set_limit(wanted)
    if as_json:
        print_json("", made)
        return
    done("Limited", _shown(made))
    say(f"Undo it: croft limit remove {made.number}")


@limit.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_limits(as_json: bool) -> None:
    """The limits that are set."""
    known = LocalApi(Home.find().control_socket).limits()
    if as_json:
        print_json("limits", known)
        return
    rows = [
        [
            str(one.number),
            show_rate(one.rate),
            one.peer or "all",
            one.purpose or "all",
            one.direction or "each way",
            one.hours or "always",
        ]
        for one in known
    ]
    print_table(["LIMIT", "RATE", "PEER", "FOR", "WAY", "HOURS"], rows, none="None. Set one: `croft limit set 5Mbit`.")


@limit.command(name="remove")
@click.argument("number", type=int)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def remove_limit(number: int, as_json: bool) -> None:
    """Remove a limit by its number in the list."""
    removed = LocalApi(Home.find().control_socket).remove_limit(number)
    if as_json:
        print_json("", removed)
    else:
        done("No longer limited", _shown(removed))


def _shown(one: schema.Limit) -> str:
    parts = [show_rate(one.rate), one.peer, one.purpose, one.direction, one.hours]
    return " · ".join(part for part in parts if part)
