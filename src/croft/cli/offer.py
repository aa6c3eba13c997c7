"""`croft offer`: what this peer lends to whom, besides what its settings say."""

from __future__ import annotations

import time
from typing import Any

import click

from croft.cli.group import Group
from croft.cli.output import done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import rate_bytes_per_s, resources, show_duration, show_rate
from croft.model.amounts import show_amount


@click.group(cls=Group, alone="list", unnamed="lend", unnamed_has="=")
def offer() -> None:
    """Lend to others: see, make and withdraw offers.

    \b
    croft offer cpu=4 mem=8G --to friends --when 20-08
    croft offer camera=/dev/video0 --to bo
    croft offer relay 20Mbit
    croft offer capability ocr.py:read_page --to friends
    """


@offer.command()
@click.argument("what", nargs=-1, required=True, metavar="cpu=4 mem=8G disk=200G gpu=1 camera=PATH …")
@click.option("--to", "to", multiple=True, metavar="WHO", help="friends, mine, members, or a name. Default: members.")
@click.option("--when", "when", default="", metavar="WHEN", help="Such as 20-08 or `sat,sun`. Default: always.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lend(what: tuple[str, ...], to: tuple[str, ...], when: str, as_json: bool) -> None:
    """Lend processors, memory, disk and devices; the word `lend` may be left out.

    Where several offers are for somebody, the largest of each resource counts. A device is a path or a number of units;
    it has one holder at a time. Every offer is for your own devices too.
    """
    lent, places = resources(what)
    made = LocalApi(Home.find().control_socket).lend(
        schema.LendWanted(lent=lent, places=places, to=list(to), when=when)
    )
    if as_json:
        print_json("", made)
        return
    done(f"Offer {made.number}", f"{_lent(made)} for {', '.join(made.to)}{f', {made.when}' if made.when else ''}")
    say(f"See who holds it: `croft leases`. Take it back: `croft offer withdraw {made.number}`")


@offer.command()
@click.argument("rate")
@click.option("--to", "to", multiple=True, metavar="COMMUNITY", help="To whom; again for more. Default: all of yours.")
@click.option("--per-peer", metavar="RATE", help="The most that one peer may use.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def relay(rate: str, to: tuple[str, ...], per_peer: str | None, as_json: bool) -> None:
    """Relay for members who cannot reach each other, at most RATE (such as 20Mbit) in all.

    The relay sees who talks to whom, and nothing of what is said. This machine must be reachable by the others. A new
    offer takes the place of the former one.
    """
    api = LocalApi(Home.find().control_socket)
    made = api.offer_relay(rate_bytes_per_s(rate), rate_bytes_per_s(per_peer) if per_peer else None, list(to))
    if as_json:
        print_json("", made)
        return
    done("Relaying", f"{show_rate(made.amount)} for {', '.join(made.to)}")
    say("See who uses it: `croft net`. Take it back: `croft offer withdraw relay`")


@offer.command()
@click.argument("what", metavar="[FILE.py:FUNCTION]", required=False, default="")
@click.option("--command", default="", metavar="LINE", help="A command instead, such as 'tesseract {page:file} -'.")
@click.option("--http", default="", metavar="URL", help="An endpoint of this machine, which takes JSON by POST.")
@click.option("--data", default="", metavar="FOLDER", help="A folder instead, whose files callers list and read.")
@click.option("--parameter", multiple=True, metavar="NAME:TYPE=DEFAULT", help="Of an endpoint; again for more.")
@click.option("--returns", default="text", metavar="TYPE", help="Of those: text, bytes, json, lines or none.")
@click.option("--name", help="What others call it by. Default: the function's name.")
@click.option("--text", help="What it does. Default: the function's docstring.")
@click.option(
    "--to", multiple=True, metavar="WHO", help="members, friends, mine, a name or community. Default: members."
)
@click.option(
    "--consent",
    type=click.Choice(["auto", "ask", "deny"]),
    default="auto",
    show_default=True,
    help="What becomes of calls; see `croft consent`.",
)
@click.option("--needs", default="", metavar="GPU,…", help="What it uses of this machine, shown to callers.")
@click.option("--example", multiple=True, metavar="CALL", help="A call as people write it, shown to callers.")
@click.option("--price", type=float, default=0.0, metavar="FAVOURS", help="Per call, shown to callers.")
@click.option("--idempotent", is_flag=True, help="A call may be made twice: it is made again where a peer is lost.")
@click.option("--slots", type=int, default=1, show_default=True, help="Calls at a time, each in a process of its own.")
@click.option("--timeout", default="10m", show_default=True, metavar="TIME", help="How long one call may take.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def capability(
    what: str,
    command: str,
    http: str,
    data: str,
    parameter: tuple[str, ...],
    returns: str,
    timeout: str,
    as_json: bool,
    **terms: Any,
) -> None:
    """Let others call a Python function of yours by its name, or a command, an endpoint, or read a folder.

    It runs in a process of its own on this machine with your rights, loaded by the Python that runs this command. Its
    annotations say what it takes: whatever does not fit is refused before it runs.

    Of a command, `{name:type=default}` are the parameters: text, int, number or file. No shell reads it.
    """
    from croft.cli.capability import offered, source_of

    made = LocalApi(Home.find().control_socket).offer_capability(
        offered(source_of(what, command, http, data, parameter, returns), timeout, **terms)
    )
    if as_json:
        print_json("", made)
        return
    done(f"Offered {made.name}", f"for {', '.join(made.to)}")
    say(made.shown)
    say(f"Take it back: `croft offer withdraw {made.name}`")


@offer.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_offers(as_json: bool) -> None:
    """What this peer offers, and what others offer to it."""
    api = LocalApi(Home.find().control_socket)
    offers, own = api.offers(), [one for one in api.capabilities() if one.is_own]
    if as_json:
        print_json("", {"offers": offers, "capabilities": own})
        return
    called = [[one.name, f"{one.by} (this peer)", one.shown, ", ".join(one.to), "always", one.consent] for one in own]
    print_table(["OFFER", "BY", "WHAT", "TO", "WHEN", "STATE"], [*map(_row, offers), *called])


@offer.command()
@click.argument("what", default="relay")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def withdraw(what: str, as_json: bool) -> None:
    """Take an offer back, by its number or name, or `relay`; who uses it is cut off, but for commands that run."""
    api = LocalApi(Home.find().control_socket)
    if what != "relay" and not what.isdecimal():
        taken_back = api.withdraw_capability(what)
        if as_json:
            print_json("", taken_back)
        else:
            done("Withdrawn", f"{taken_back.name} for {', '.join(taken_back.to)}")
        return
    withdrawn = api.withdraw_offer(what)
    if as_json:
        print_json("", withdrawn)
    else:
        done("Withdrawn", f"{_lent(withdrawn)} for {', '.join(withdrawn.to)}")


def _row(offer: schema.Offer) -> list[str]:
    number = "relay" if offer.what == "relay" else str(offer.number) if offer.number else "settings"
    who = offer.name + (" (this peer)" if offer.is_own else "")
    state = "stands" if offer.is_standing else "not now"
    if offer.expires_at:
        state += f", told for {show_duration(max(0.0, offer.expires_at - time.time()))} more"
    return [number, who, _lent(offer), ", ".join(offer.to), offer.when or "always", state]


def _lent(offer: schema.Offer) -> str:
    if offer.what == "relay":
        return f"relay {show_rate(offer.amount)}{''.join(f' at {place}' for place in offer.places)}"
    return ", ".join(show_amount(name, amount) for name, amount in offer.lent.items())
