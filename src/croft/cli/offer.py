"""`croft offer`: what this peer lends to whom, besides processors and disk, which the settings say."""

from __future__ import annotations

import time

import click

from croft.cli.output import done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import rate_bytes_per_s, show_duration, show_rate


@click.group()
def offer() -> None:
    """Lend bandwidth: see, make and withdraw offers."""


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


@offer.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_offers(as_json: bool) -> None:
    """What this peer offers, and what others offer to it."""
    offers = LocalApi(Home.find().control_socket).offers()
    if as_json:
        print_json("offers", offers)
        return
    print_table(["WHAT", "BY", "HOW MUCH", "TO", "WHERE", "UNTIL"], [_row(one) for one in offers])


@offer.command()
@click.argument("what", default="relay")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def withdraw(what: str, as_json: bool) -> None:
    """Take an offer back; who used it is cut off."""
    withdrawn = LocalApi(Home.find().control_socket).withdraw_offer(what)
    if as_json:
        print_json("", withdrawn)
    else:
        done("Withdrawn", f"{withdrawn.what} for {', '.join(withdrawn.to)}")


def _row(offer: schema.Offer) -> list[str]:
    until = show_duration(max(0.0, offer.expires_at - time.time())) if offer.expires_at else "withdrawn"
    who = offer.name + (" (this peer)" if offer.is_own else "")
    return [offer.what, who, show_rate(offer.amount), ", ".join(offer.to), ", ".join(offer.places), until]
