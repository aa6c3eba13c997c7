"""`croft offer`: what this peer lends to whom, besides what its settings say."""

from __future__ import annotations

import time

import click

from croft.cli.output import done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import rate_bytes_per_s, resources, show_duration, show_rate
from croft.model.amounts import show_amount


class _Offer(click.Group):
    """Takes `croft offer cpu=4 …` as one more command, which needs no name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts that command's name before what is to be lent."""
        if any("=" in arg for arg in args[:1]) or (args and args[0].startswith("--") and args[0] != "--help"):
            args = ["lend", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Offer)
def offer() -> None:
    """Lend to others: see, make and withdraw offers.

    \b
    croft offer cpu=4 mem=8G --to friends --when 20-08
    croft offer camera=/dev/video0 --to bo
    croft offer relay 20Mbit
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


@offer.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_offers(as_json: bool) -> None:
    """What this peer offers, and what others offer to it."""
    offers = LocalApi(Home.find().control_socket).offers()
    if as_json:
        print_json("offers", offers)
        return
    print_table(["OFFER", "BY", "WHAT", "TO", "WHEN", "STATE"], [_row(one) for one in offers])


@offer.command()
@click.argument("what", default="relay")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def withdraw(what: str, as_json: bool) -> None:
    """Take an offer back, by its number, or `relay`; who used it is cut off, but for commands that run."""
    withdrawn = LocalApi(Home.find().control_socket).withdraw_offer(what)
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
