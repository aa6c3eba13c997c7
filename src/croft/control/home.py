"""Where a peer keeps its things on this machine, and how its programs find it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from croft.errors import Failed, Usage

SOCKET_PATH_BYTES_MAX = 100
"""The kernel takes 107; the rest is for the file's name."""


@dataclass(frozen=True, slots=True)
class Home:
    """One peer's folders. `state` holds keys, database, log; `config_file` the owner's settings; `run` the sockets."""

    state: Path
    config_file: Path
    run: Path

    @classmethod
    def find(cls, given: Path | None = None) -> Home:
        """The home named by the caller, by CROFT_HOME, or the user's default one (XDG base directories)."""
        named = given or (Path(value) if (value := os.environ.get("CROFT_HOME")) else None)
        if named is not None:
            state = named.expanduser().absolute()
            config_file = state / "config.toml"
        else:
            state = _folder("XDG_DATA_HOME", ".local/share") / "croft"
            config_file = _folder("XDG_CONFIG_HOME", ".config") / "croft" / "config.toml"
        return cls(state, config_file, _run_folder(state))

    @property
    def control_socket(self) -> Path:
        """The local API's HTTP side."""
        return self.run / "control.sock"

    @property
    def work_socket(self) -> Path:
        """The local API's side for work that streams."""
        return self.run / "work.sock"

    @property
    def log_file(self) -> Path:
        """What the daemon logs."""
        return self.state / "log" / "croft.log"

    @property
    def database(self) -> Path:
        """The daemon's state."""
        return self.state / "croft.db"

    @property
    def lock_file(self) -> Path:
        """Held by the one daemon of this home."""
        return self.state / "lock"

    @property
    def keys(self) -> Path:
        """Private keys; readable by the owner alone."""
        return self.state / "keys"

    @property
    def jobs(self) -> Path:
        """Work folders of commands that run here for others."""
        return self.state / "jobs"

    @property
    def chunks(self) -> Path:
        """What is held here for others: shares of their data."""
        return self.state / "chunks"

    @property
    def environments(self) -> Path:
        """Wheels of jobs, and what was built of them."""
        return self.state / "environments"

    def make(self) -> None:
        """Makes the folders, closed to other users. Raises Failed if they cannot be made or written."""
        try:
            for folder in (self.state, self.run, self.keys, self.jobs, self.log_file.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.state):
                pass
        except OSError as error:
            raise Failed(
                f"cannot write to the home {self.state}: {error.strerror}",
                remedy="Free some space or mend its permissions, or name another one: CROFT_HOME=FOLDER.",
            ) from None


def _folder(variable: str, default: str) -> Path:
    value = os.environ.get(variable)
    if value and not Path(value).is_absolute():
        raise Usage(f"{variable} is not an absolute path: {value}", remedy="Give it in full, or unset it.")
    return Path(value) if value else Path.home() / default


def _run_folder(state: Path) -> Path:
    """Inside the home, unless its path is too long for a Unix socket."""
    inside = state / "run"
    if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES_MAX - len("/control.sock"):
        return inside
    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    return base / f"croft-{os.getuid()}-{digest}"
