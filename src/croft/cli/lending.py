"""`croft pause`, `resume`: lend nothing for a while; `croft leases`: who uses what of this machine, and used."""

from __future__ import annotations

import click

from croft.cli.output import ago, counted, done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import duration_s, show_duration, show_size
from croft.model.amounts import show_amount


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


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def leases(as_json: bool) -> None:
    """What others hold of this machine, and what they used and held before, newest first."""
    found = LocalApi(Home.find().control_socket).leases()
    if as_json:
        print_json("leases", found)
        return
    header = ["LEASE", "HOLDER", "FOR", "HOLDS", "STATE", "SINCE", "USED", "ENDED BY"]
    print_table(header, [_lease_row(lease) for lease in found], none="Nobody holds or held anything of this machine.")


def _lease_row(lease: schema.Lease) -> list[str]:
    held = ", ".join(show_amount(name, amount) for name, amount in lease.amounts.items() if name != "box")
    used = f"{lease.cpu_s:.1f} CPU s, {show_size(lease.memory_peak_bytes)}, {counted(lease.tasks, 'task')}"
    row = [str(lease.number), lease.holder, lease.purpose, held, lease.stage, ago(lease.granted_at)]
    return [*row, used if lease.ended_at else "–", lease.death]
