"""An ssh server and its client, with keys and settings of their own: nothing of this machine's is read or changed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SSHD = "/usr/sbin/sshd"
HOST = "127.0.0.1"


def make_keys(folder: Path) -> None:
    """One for the host and one for the user, who is let in by it."""
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")


def server_command(folder: Path, port: int) -> list[str]:
    """Serves on the loopback interface alone, until killed."""
    Path("/run/sshd").mkdir(exist_ok=True)
    settings = {
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "StrictModes": "no",
        "UsePAM": "no",
        "PermitRootLogin": "prohibit-password",
        "ListenAddress": f"{HOST}:{port}",
        "PidFile": "none",
    }
    return [SSHD, "-D", "-e", "-f", "/dev/null", *_options(settings)]


def client_options(folder: Path) -> list[str]:
    """What `ssh` is to be told: the user's key, and that this host is met for the first time."""
    settings = {
        "StrictHostKeyChecking": "accept-new",
        "UserKnownHostsFile": folder / "known",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
    }
    return ["-F", "/dev/null", "-i", str(folder / "user"), *_options(settings)]


def _options(settings: dict[str, object]) -> list[str]:
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
