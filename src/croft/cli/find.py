"""`croft find peers | key` and `croft provide`: who has what, without anybody who keeps a list."""

from __future__ import annotations

import click

from croft.cli.group import Group
from croft.cli.output import done, print_json, print_table, say
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import duration_s, show_duration, show_size, size_bytes
from croft.errors import NotFound
from croft.model.ids import short

CPUS_MAX = 65_536


@click.group(cls=Group, alone="peers")
def find() -> None:
    """Find peers by what they have free, or whoever has what a key names."""


@find.command("peers")
@click.option("--cpu", "cpus", type=click.IntRange(0, CPUS_MAX), default=0, help="Lent processors that are free.")
@click.option("--mem", "memory", default="0", metavar="SIZE", help="Lent memory that is free, like 8G.")
@click.option("--disk", default="0", metavar="SIZE", help="Lent disk, like 50G.")
@click.option("--rtt", metavar="TIME", help="No farther than this, like 50ms; peers that are not linked are measured.")
@click.option("--arch", "machine", default="", help="Processor architecture, like x86_64 or aarch64.")
@click.option("--label", "labels", multiple=True, help="A word from the peer's setting `labels`; may be repeated.")
@click.option("--grade", default="", help="Isolation grade: this one or a better one.")
@click.option("--python", default="", metavar="X.Y", help="The Python that its boxes run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def find_peers(
    cpus: int,
    memory: str,
    disk: str,
    rtt: str | None,
    machine: str,
    labels: tuple[str, ...],
    grade: str,
    python: str,
    as_json: bool,
) -> None:
    """Members that are alive and have all of this, most free processors first."""
    wanted = schema.PeersWanted(
        cpus=cpus,
        memory_bytes=size_bytes(memory),
        disk_bytes=size_bytes(disk),
        round_trip_s=None if rtt is None else duration_s(rtt),
        machine=machine,
        labels=list(labels),
        grade=grade,
        python=python,
    )
    found = LocalApi(Home.find().control_socket).find_peers(wanted)
    if as_json:
        print_json("peers", found)
        return
    if not found:
        raise NotFound("no member that is here has all of this", remedy="See what there is: `croft peers`.")
    rows = [
        [
            peer.name + (" (this peer)" if peer.is_self else ""),
            short(peer.peer),
            f"{max(0, peer.slots - peer.slots_busy)} of {peer.slots}",
            show_size(peer.memory_bytes),
            show_size(peer.disk_bytes),
            show_duration(peer.round_trip_s) if peer.round_trip_s is not None else "–",
            peer.grade,
            peer.machine,
            " ".join(peer.labels),
        ]
        for peer in found
    ]
    print_table(["NAME", "ID", "FREE", "MEMORY", "DISK", "RTT", "GRADE", "MACHINE", "LABELS"], rows)


@find.command("key")
@click.argument("key")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def find_key(key: str, as_json: bool) -> None:
    """Whoever has what KEY names, as `croft provide KEY` tells it."""
    located = LocalApi(Home.find().control_socket).find_key(key)
    if as_json:
        print_json("", located)
        return
    if not located.providers:
        raise NotFound(
            f"no peer says that it has `{key}`",
            remedy="Whoever has it may be offline; try again, or check how the key is written.",
        )
    for peer in located.providers:
        click.echo(f"{peer.name}{' (this peer)' if peer.is_self else ''}\t{peer.peer}")
    say(f"{located.asked} peers asked, {show_duration(located.took_s)}")


@click.command()
@click.argument("key", required=False)
@click.option("--stop", is_flag=True, help="Provide this key no longer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def provide(key: str | None, stop: bool, as_json: bool) -> None:
    """Let others find that this machine has what KEY names; without KEY, list what it provides."""
    api = LocalApi(Home.find().control_socket)
    if key is None:
        keys = api.provided()
    elif stop:
        keys = api.withdraw_key(key)
    else:
        keys = api.provide(key)
    if as_json:
        print_json("provided", keys)
    elif key is None:
        for one in keys:
            click.echo(one)
    elif stop:
        done("No longer provided", key)
    else:
        done("Provided", f"{key} · others find it by `croft find key`")
