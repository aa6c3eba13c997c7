"""`croft init | up | down | status | peers`: this machine's peer, and who else is here."""

from __future__ import annotations

import time

import click

from croft.cli.output import ago, bar, counted, done, print_json, print_table, say, style
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import show_duration, show_size
from croft.errors import NotFound, Unreachable
from croft.model.ids import short

WATCH_EVERY_S = 1.0
LOG_LINES = 40


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def init(as_json: bool) -> None:
    """Make this machine's identity without starting anything."""
    from croft.node.identity import load_identity

    home = Home.find()
    home.make()
    own, is_new = load_identity(home)
    if as_json:
        print_json("", {"twin": own.twin, "peer": own.peer, "name": own.nickname, "is_new": is_new})
        return
    done("Created your identity" if is_new else "You have an identity", f"{own.nickname} ({short(own.peer)})")
    click.echo(own.peer)


@click.command()
@click.option("--foreground", is_flag=True, help="Stay in the foreground and log to the terminal.")
@click.option("--join", "code", help="Join with this invitation once up.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting for this start only.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def up(foreground: bool, code: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Start this machine's peer; the first time, make its identity."""
    from croft.node.launch import run_here, start_in_background

    home = Home.find()
    flags = dict(_setting(text) for text in settings)
    if foreground:
        run_here(home, flags)
        return
    started = start_in_background(home, flags)
    api = LocalApi(home.control_socket)
    status = api.status()
    if code:
        joined = api.join(code)
        api.await_twin(joined.twin)
        status = api.status()
    if as_json:
        print_json("", status)
        return
    if started.is_new_identity:
        done("Created your identity", f"{status.name} ({short(status.peer)})")
    if started.was_running:
        done("Peer is running already", f"{status.name}, process {status.process}")
    else:
        done("Peer running", ", ".join(status.addresses[:2]))
    done("Lending", _lending(status.lending) + " · change with `croft config edit`")
    if code:
        done("Joined", f"{joined.name}, {counted(joined.members, 'device')}")
    for warning in status.health:
        _show_warning(warning)
    if status.next_step:
        say(status.next_step)


@click.command()
def down() -> None:
    """Stop this machine's peer."""
    from croft.node.launch import stop

    if stop(Home.find()):
        done("Peer stopped")
    else:
        say("The peer was not running.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Again every second; with --json one line each.")
@click.option("--log", "with_log", is_flag=True, help="The end of the daemon's log instead.")
def status(as_json: bool, watch: bool, with_log: bool) -> None:
    """Who am I, who is here, what is wrong, what next."""
    home = Home.find()
    if with_log:
        _show_log(home)
        return
    api = LocalApi(home.control_socket)
    while True:
        now = api.status()
        if as_json:
            print_json("", now)
        else:
            if watch:
                click.clear()
            _show_status(now)
        if not watch:
            return
        time.sleep(WATCH_EVERY_S)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def peers(as_json: bool) -> None:
    """Every member known here, and what it lends."""
    known = LocalApi(Home.find().control_socket).peers()
    if as_json:
        print_json("peers", known)
        return
    rows = [
        [
            peer.name + (" (this peer)" if peer.is_self else ""),
            short(peer.peer),
            peer.link,
            f"{peer.slots_busy} of {peer.slots}",
            show_size(peer.memory_bytes),
            peer.grade,
            peer.python,
            peer.machine,
            "now" if peer.link in ("direct", "relayed", "self") else ago(peer.seen_at),
        ]
        for peer in known
    ]
    print_table(["NAME", "ID", "LINK", "BUSY", "MEMORY", "GRADE", "PYTHON", "MACHINE", "SEEN"], rows)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE")
    return key, value


def _lending(lending: schema.Lending) -> str:
    if lending.slots == 0:
        return "no processors"
    if lending.slots_now == 0:
        return f"nothing now: {lending.reason}"
    cores = counted(lending.slots, "core")
    return f"{cores} · {show_size(lending.memory_bytes)} memory · {show_size(lending.disk_bytes)} disk"


def _show_status(status: schema.Status) -> None:
    health = style("● healthy", fg="green") if not status.health else style("● needs a look", fg="yellow")
    uptime = show_duration(max(0.0, time.time() - status.started_at))
    click.echo(f"{style(status.name, bold=True)}   up {uptime}   {health}   lending {_lending(status.lending)}")
    grade = f"isolation grade {status.lending.grade}"
    click.echo(grade + (f": {status.lending.grade_reason}" if status.lending.grade_reason else ""))
    for community in status.communities:
        click.echo(f"community {community.name} · {counted(community.members, 'device')}")
    others = [peer for peer in status.peers if not peer.is_self]
    if others:
        click.echo()
        print_table(["NAME", "LINK", "RTT", "CPU", "DISK", "BUSY", "SEEN"], [_peer_row(peer) for peer in others])
    for warning in status.health:
        _show_warning(warning)
    if status.next_step:
        say(status.next_step)


def _peer_row(peer: schema.Peer) -> list[str]:
    is_here = peer.link != "offline"
    return [
        peer.name,
        peer.link,
        show_duration(peer.round_trip_s) if peer.round_trip_s is not None else "–",
        bar(peer.cpu) if is_here else "–",
        bar(peer.disk) if is_here else "–",
        f"{peer.slots_busy} of {peer.slots}" if is_here else "–",
        "now" if is_here else ago(peer.seen_at),
    ]


def _show_warning(warning: schema.HealthWarning) -> None:
    say(
        f"{style('!', error=True, fg='yellow', bold=True)} {warning.title}"
        + (f" {warning.remedy}" if warning.remedy else "")
    )


def _show_log(home: Home) -> None:
    try:
        lines = home.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise NotFound(f"there is no log at {home.log_file}", remedy="Start the peer: `croft up`.") from None
    except OSError as error:
        raise Unreachable(f"cannot read {home.log_file}: {error.strerror}") from None
    for line in lines[-LOG_LINES:]:
        click.echo(line)
