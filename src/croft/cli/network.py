"""`croft net`: how this peer is reached, and the ways to the others."""

from __future__ import annotations

import click

from croft.cli.output import print_json, print_table, say, style
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import show_duration, show_rate, show_size


@click.command()
@click.option("--measure", "peer", metavar="PEER", help="Send as much as goes to a peer for some seconds, each way.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def net(peer: str | None, as_json: bool) -> None:
    """How this peer is reached: NAT, relays; and for each peer the way, its speed, and what could make it better."""
    api = LocalApi(Home.find().control_socket)
    if peer is not None:
        way = api.measure(peer)
        if as_json:
            print_json("", way)
        else:
            _show_measured(way)
        return
    report = api.net()
    if as_json:
        print_json("", report)
    else:
        _show(report)


def _show_measured(way: schema.Way) -> None:
    to, back = way.measured_to_per_s or 0.0, way.measured_from_per_s or 0.0
    click.echo(f"{way.name}   {_link(way)}   to it {show_rate(to)}   from it {show_rate(back)}")
    if way.advice:
        say(way.advice)


def _show(report: schema.Net) -> None:
    outside = ", ".join(report.outside) or "no outside address"
    nat = {"none": "no NAT", "unknown": "NAT unknown"}.get(report.nat, f"NAT {report.nat}")
    click.echo(f"{style(nat, bold=True)}   seen at {outside}   listening at {', '.join(report.addresses)}")
    for relay in report.relays:
        use = "reached by" if relay.is_home else "in reserve:"
        click.echo(f"{use} the relay of {relay.name}   {show_duration(relay.round_trip_s)}   {relay.url}")
    if report.relayed or report.relay_clients:
        total = sum(one.received_bytes for one in report.relayed)
        click.echo(f"relaying for {report.relay_clients} peers now   {show_size(total)} passed on so far")
        for one in report.relayed:
            click.echo(f"  {one.name}   from it {show_size(one.received_bytes)}   to it {show_size(one.sent_bytes)}")
    if report.ways:
        print_table(["NAME", "LINK", "RTT", "NOW", "MEASURED", "DIRECT", "RELAYED", "ENERGY", "NAT"], _rows(report))
        say(f"Energy is estimated: {report.energy_assumption}.")
    for way in report.ways:
        if way.advice:
            say(f"{way.name}: {way.advice}")
    if report.advice:
        say(report.advice)


def _rows(report: schema.Net) -> list[list[str]]:
    return [
        [
            way.name,
            _link(way),
            show_duration(way.round_trip_s) if way.round_trip_s is not None else "–",
            show_rate(way.sent_per_s + way.received_per_s),
            show_rate(min(way.measured_to_per_s, way.measured_from_per_s or 0.0)) if way.measured_to_per_s else "–",
            show_size(way.direct_sent_bytes + way.direct_received_bytes),
            show_size(way.relayed_sent_bytes + way.relayed_received_bytes),
            f"{way.energy_wh:.2g} Wh",
            way.nat or "–",
        ]
        for way in report.ways
    ]


def _link(way: schema.Way) -> str:
    return f"relayed by {way.relay_by or way.address}" if way.link == "relayed" else way.link
