"""`croft expose | tunnel | ssh`: services of this machine for others, and theirs for this one."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
import threading
import time

import click

from croft.cli.group import Group
from croft.cli.output import done, print_json, print_table, say, show_error
from croft.client.local_api import LocalApi
from croft.client.tunnel import HeldTunnel
from croft.control import schema
from croft.control.home import Home
from croft.control.quantities import duration_s, show_duration
from croft.control.work_messages import OpenForward, OpenPipe, OpenProxy
from croft.errors import Failed, Unreachable, Usage

PIECE_BYTES = 256 << 10
SSH_SERVICE = "ssh"


@click.group(
    cls=Group, alone="list", unnamed="port", options_metavar="PORT[/udp] --to WHO | COMMAND", subcommand_metavar=""
)
def expose() -> None:
    """Let others reach a service of this machine: `croft expose 8000 --to bob`.

    Nobody else can, and nothing else of this machine can be reached. They use it by `croft tunnel`.
    """


@expose.command(name="port", options_metavar="[OPTIONS]")
@click.argument("port", metavar="PORT[/udp]")
@click.option("--to", "to", multiple=True, required=True, metavar="WHO", help="A contact, a peer or a community.")
@click.option("--name", default="", help="What others call it; by default its port.")
@click.option("--for", "lifetime", metavar="TIME", help="Until then, such as 2h; by default until it is removed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def expose_port(port: str, to: tuple[str, ...], name: str, lifetime: str | None, as_json: bool) -> None:
    """Expose a port of this machine's loopback interface; `croft expose PORT` is short for this."""
    number, _, protocol = port.partition("/")
    if not number.isdigit():
        raise Usage(f"`{port}` is not a port", remedy="Write it like 8000, or 53/udp.")
    wanted = schema.ExposureWanted(
        port=int(number),
        protocol=protocol or "tcp",
        name=name,
        to=list(to),
        lifetime_s=duration_s(lifetime) if lifetime else None,
    )
    api = LocalApi(Home.find().control_socket)
    made = api.expose(wanted)
    if as_json:
        print_json("", made)
        return
    done("Exposed", f"port {made.port}/{made.protocol} as `{made.name}` to {', '.join(made.to)}")
    say(f"There:  croft tunnel {shlex.quote(api.status().name)}:{made.name}" + _udp_flag(made.protocol))


@expose.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_exposures(as_json: bool) -> None:
    """What this machine exposes, and to whom."""
    known = LocalApi(Home.find().control_socket).exposures()
    if as_json:
        print_json("exposures", known)
        return
    rows = [
        [
            one.name,
            f"{one.port}/{one.protocol}",
            ", ".join(one.to),
            "–" if one.expires_at is None else show_duration(max(0.0, one.expires_at - time.time())),
            str(one.connections),
        ]
        for one in known
    ]
    none = "Nothing. Expose a port: `croft expose 8000 --to WHO`."
    print_table(["NAME", "PORT", "TO", "GOOD FOR", "IN USE"], rows, none=none)


@expose.command(name="remove")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def remove_exposure(name: str, as_json: bool) -> None:
    """Expose a service no more; connections to it end at once."""
    removed = LocalApi(Home.find().control_socket).unexpose(name)
    if as_json:
        print_json("", removed)
    else:
        done("No longer exposed", removed.name)


@click.command()
@click.argument("service", metavar="PEER:PORT|PEER:NAME", required=False)
@click.argument("local_port", metavar="[LOCALPORT]", type=int, required=False)
@click.option("--udp", is_flag=True, help="A UDP service.")
@click.option("--socks", "socks_port", type=int, metavar="PORT", help="A SOCKS5 port for the services of all peers.")
@click.option("--stdio", is_flag=True, help="One connection over standard input and output, as a proxy command.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def tunnel(
    service: str | None, local_port: int | None, udp: bool, socks_port: int | None, stdio: bool, as_json: bool
) -> None:
    """Reach a service that a peer exposes: `croft tunnel bob:8000`, until Ctrl-C.

    With --socks, programs reach any peer's services by name, such as bob.croft:8000.
    """
    work_socket = Home.find().work_socket
    if socks_port is not None:
        if service or stdio or udp:
            raise Usage("`--socks` leads to all services", remedy="Give it without PEER:PORT and other options.")
        _hold(HeldTunnel(work_socket, OpenProxy(socks_port)), "SOCKS5, names such as PEER.croft", as_json)
        return
    if service is None:
        raise Usage("no service is named", remedy="Give it like `croft tunnel bob:8000`, or use `--socks PORT`.")
    peer, name = _parts(service)
    if stdio:
        with HeldTunnel(work_socket, OpenPipe(peer, name)) as held:
            _pipe(held.connection)
        return
    opening = OpenForward(peer, name, "udp" if udp else "tcp", local_port or 0)
    _hold(HeldTunnel(work_socket, opening), f"{peer}:{name}" + ("/udp" if udp else ""), as_json)


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("peer", metavar="[USER@]PEER")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def ssh(peer: str, arguments: tuple[str, ...]) -> None:
    """A shell on a peer whose owner exposes its ssh server to you: `croft ssh bob`.

    ARGUMENTS go to the system's ssh, after the peer: a command, for instance.
    """
    home = Home.find()
    user, _, name = peer.rpartition("@")
    program = shutil.which("ssh")
    if program is None:
        raise Failed("there is no `ssh` on this machine", remedy="Install it: apt install openssh-client.")
    # Asked before ssh is, because its own words for a tunnel that is refused help nobody.
    HeldTunnel(home.work_socket, OpenPipe(name, SSH_SERVICE)).close()
    found = LocalApi(home.control_socket).find_peer(name)
    proxy = [sys.executable, "-m", "croft.cli.main", "--home", str(home.state), "tunnel", "--stdio"]
    options = [
        *("-o", f"ProxyCommand={shlex.join([*proxy, f'{found.peer}:{SSH_SERVICE}']).replace('%', '%%')}"),
        *("-o", f"HostKeyAlias=croft-{found.peer[:16]}"),
    ]
    # The alias stands for a key that Croft has checked: where the host is, is of no account.
    host = f"{user}@{found.peer[:16]}" if user else found.peer[:16]
    os.execv(program, [program, *options, host, *arguments])


def _parts(service: str) -> tuple[str, str]:
    peer, colon, name = service.rpartition(":")
    if not colon or not peer or not name:
        raise Usage(f"`{service}` names no service of a peer", remedy="Write it like bob:8000 or bob:wiki.")
    return peer, name


def _udp_flag(protocol: str) -> str:
    return " --udp" if protocol == "udp" else ""


def _hold(held: HeldTunnel, what: str, as_json: bool) -> None:
    with held:
        if as_json:
            print_json("", {"port": held.port})
        else:
            done("Tunnel open", f"127.0.0.1:{held.port} → {what}")
            say("It ends with this command: Ctrl-C.")
        sys.stdout.flush()
        for problem in held.problems():
            show_error(problem.message, problem.remedy)


def _pipe(connection: socket.socket) -> None:
    """Standard input to the service and the service to standard output, until the service ends."""

    def send() -> None:
        try:
            while piece := os.read(sys.stdin.fileno(), PIECE_BYTES):
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the service ended first, which the other direction sees

    threading.Thread(target=send, name="stdin", daemon=True).start()
    try:
        while piece := connection.recv(PIECE_BYTES):
            view = memoryview(piece)
            while view:
                view = view[os.write(sys.stdout.fileno(), view) :]
    except ConnectionResetError:
        raise Unreachable("the service's connection was cut short") from None
