"""`croft service`: the peer as a systemd user unit, started at login and kept running."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

from croft.cli.group import Group
from croft.cli.output import done, say
from croft.control.home import Home
from croft.errors import Failed

UNIT_NAME = "croft.service"


def unit_text(home: Home, python: str) -> str:
    """The unit. `Delegate=yes` hands the peer a cgroup of its own, for hard limits on the work of others."""
    return f"""[Unit]
Description=Croft peer
After=network-online.target

[Service]
ExecStart={python} -m croft.node.daemon
Environment=CROFT_HOME={home.state}
Restart=always
RestartSec=2
Delegate=yes
CPUWeight=20
KillMode=mixed
TimeoutStopSec=15

[Install]
WantedBy=default.target
"""


def unit_path() -> Path:
    """Where systemd looks for units of this user."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "systemd" / "user" / UNIT_NAME


@click.group(cls=Group)
def service() -> None:
    """Run the peer as a systemd user unit."""


@service.command()
@click.option("--no-start", is_flag=True, help="Write the unit only.")
def install(no_start: bool) -> None:
    """Write the unit, start it now and at every login."""
    path = unit_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(unit_text(Home.find(), sys.executable), encoding="utf-8")
    done("Wrote the unit", str(path))
    if no_start:
        return
    _systemctl("daemon-reload")
    _systemctl("enable", "--now", UNIT_NAME)
    done("Peer running as a unit", "see `systemctl --user status croft`")
    say("To keep it running while you are logged out: `loginctl enable-linger`")


@service.command()
def remove() -> None:
    """Stop the unit and remove it."""
    path = unit_path()
    if not path.exists():
        say("There was no unit.")
        return
    if shutil.which("systemctl"):
        subprocess.run(["systemctl", "--user", "disable", "--now", UNIT_NAME], check=False, capture_output=True)
    path.unlink()
    done("Removed the unit", str(path))


@service.command()
def show() -> None:
    """Print the unit without writing it."""
    click.echo(unit_text(Home.find(), sys.executable), nl=False)


def _systemctl(*arguments: str) -> None:
    if not shutil.which("systemctl"):
        raise Failed("there is no systemd here", remedy="Start the peer with `croft up`.")
    result = subprocess.run(["systemctl", "--user", *arguments], check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise Failed(
            f"systemctl --user {arguments[0]} failed: {result.stderr.strip()}",
            remedy="Log in as this user first, or start the peer with `croft up`.",
        )
