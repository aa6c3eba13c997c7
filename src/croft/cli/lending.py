"""`croft pause`, `resume`: lend nothing for a while."""

from __future__ import annotations

import click

from croft.cli.output import done, print_json, say
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.control.quantities import duration_s, show_duration


@click.command()
@click.option("--for", "how_long", default="", metavar="TIME", help="Such as 2h; by default until `croft resume`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pause(how_long: str, as_json: bool) -> None:
    """Lend no processor time for a while; tasks of others go elsewhere."""
    for_s = duration_s(how_long) if how_long else None
    lending = LocalApi(Home.find().control_socket).pause(for_s)
    if as_json:
        print_json("", lending)
        return
    done("Paused", f"for {show_duration(for_s)}" if for_s is not None else "until `croft resume`")
    if lending.slots_busy:
        say("A command of somebody that runs already goes on to its end.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def resume(as_json: bool) -> None:
    """Lend processor time again."""
    lending = LocalApi(Home.find().control_socket).resume()
    if as_json:
        print_json("", lending)
        return
    if lending.slots_now:
        done("Lending", f"{lending.slots_now} of this machine's processors")
    else:
        say(f"No longer paused, but nothing is lent now: {lending.reason}.")
