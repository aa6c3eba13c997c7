"""Real peers for tests: daemons in homes of their own, driven by the command line and the Python API.

A peer may live on a host of a lab. Its sockets are files, so the Python API reaches it from outside too. Whatever was
started is ended by its process id, and its home removed, also after a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import croft
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.errors import CroftError
from croft.node.launch import running_process

T = TypeVar("T")

SOURCE = Path(__file__).parents[2] / "src"
COMMAND_S_MAX = 60.0
WAIT_S_MAX = 30.0
STOP_S_MAX = 10.0
POLL_S = 0.02
LOG_LINES_SHOWN = 40
SMALL = {
    "lend.cpus": "2",
    "lend.memory": "1G",
    "lend.disk": "256M",
    "sandbox.required_grade": "B",
    "sandbox.own_devices_grade": "B",
}
"""Settings of a peer that does little: two slots, boxes of 256 MiB."""

NOTHING: Mapping[str, str] = {}
LIVING: list[RealPeer] = []
"""Peers whose logs are shown beside a test that fails."""


class Host(Protocol):
    """Where a peer runs."""

    def command(self, *arguments: str) -> list[str]: ...


@dataclass
class RealPeer:
    """One home, and the daemon that runs in it. `wrap` precedes every command, for instance to be another user."""

    name: str
    home: Path
    host: Host | None = None
    wrap: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home.mkdir(mode=0o700, exist_ok=True)
        if self.settings:
            lines = [f'{key} = "{value}"' for key, value in self.settings.items()]
            (self.home / "config.toml").write_text("\n".join(lines) + "\n")

    # --- commands ----------------------------------------------------------------------------------------------------

    def command(self, *arguments: str) -> list[str]:
        """The whole command line of `croft ARGUMENTS` for this peer."""
        command = [*self.wrap, sys.executable, "-m", "croft.cli.main", *arguments]
        return command if self.host is None else self.host.command(*command)

    def variables(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of its commands; nothing of the caller's settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CROFT_", "XDG_"))}
        own = {"CROFT_HOME": str(self.home), "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
        return {**kept, **own, **self.environment, **(more or {})}

    def croft(
        self,
        *arguments: str,
        input: str | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs `croft ARGUMENTS` to its end."""
        return subprocess.run(
            self.command(*arguments),
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=cwd,
            env=self.variables(environment),
            timeout=COMMAND_S_MAX,
        )

    def ok(self, *arguments: str, input: str | None = None, cwd: Path | None = None) -> str:
        """What `croft ARGUMENTS` prints. Asserts that it succeeds."""
        ended = self.croft(*arguments, input=input, cwd=cwd)
        assert ended.returncode == 0, f"croft {' '.join(arguments)}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def json(self, *arguments: str) -> dict[str, Any]:
        """What `croft ARGUMENTS --json` prints."""
        answer: dict[str, Any] = json.loads(self.ok(*arguments, "--json"))
        return answer

    def begin(self, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Starts `croft ARGUMENTS` as the leader of a process group, as a terminal does; the caller waits for it."""
        return subprocess.Popen(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=self.variables(),
            start_new_session=True,
        )

    # --- the daemon --------------------------------------------------------------------------------------------------

    @property
    def files(self) -> Home:
        """Where its files are."""
        return Home.find(self.home)

    @property
    def api(self) -> LocalApi:
        """Its daemon's local API."""
        return LocalApi(self.files.control_socket)

    @property
    def process(self) -> int | None:
        """The daemon's process, if it runs."""
        return running_process(self.files)

    def grid(self) -> croft.Grid:
        """The Python API of this peer; close it."""
        return croft.connect(self.home)

    def start(self, *arguments: str) -> RealPeer:
        """`croft up`."""
        self.ok("up", *arguments)
        return self

    def stop(self) -> None:
        """Ends the daemon by SIGTERM. Fails, and ends it by force, if it does not obey."""
        process = self.process
        if process is None:
            return
        _signal(process, signal.SIGTERM)
        try:
            until(lambda: self.process is None, f"{self.name} ends when it is told to\n{self.log()}", STOP_S_MAX)
        except AssertionError:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL, and waits until it is gone."""
        process = self.process
        assert process is not None, f"{self.name} runs"
        _signal(process, signal.SIGKILL)
        until(lambda: self.process is None, f"{self.name} is dead")

    @property
    def resident_bytes(self) -> int:
        """Memory that its daemon holds now."""
        pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def log(self) -> str:
        """All that its daemon has logged."""
        try:
            return self.files.log_file.read_text(errors="replace")
        except OSError:
            return ""

    # --- what is left ------------------------------------------------------------------------------------------------

    def job_folders(self) -> list[str]:
        """Folders of commands that run here, or were left."""
        return sorted(entry.name for entry in self.files.jobs.iterdir())

    def is_idle(self) -> bool:
        """Whether it runs nothing for anybody."""
        return self.api.status().lending.slots_busy == 0 and not self.job_folders()


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def until(condition: Callable[[], T], what: str, limit_s: float = WAIT_S_MAX) -> T:
    """The first true value of `condition`, asked again and again; what Croft cannot answer yet counts as false."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            value = condition()
        except CroftError:
            value = None  # type: ignore[assignment]  # not yet
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {limit_s:g} s in vain: {what}"
        time.sleep(POLL_S)


@contextlib.contextmanager
def homes() -> Iterator[Path]:
    """A folder for homes; its path is short, so that sockets fit into it. Peers in it are ended with it."""
    base = Path(tempfile.mkdtemp(prefix="croft-t-"))
    before = len(LIVING)
    try:
        yield base
    finally:
        peers = LIVING[before:]
        del LIVING[before:]
        with ThreadPoolExecutor(max(1, len(peers))) as pool:
            list(pool.map(RealPeer.stop, peers))
        shutil.rmtree(base, ignore_errors=True)


def make(base: Path, name: str, host: Host | None = None, **changes: Any) -> RealPeer:
    """A peer that does not run yet. On no host it listens on the loopback interface alone."""
    settings = {"name": name, **SMALL, **({"bind": "127.0.0.1"} if host is None else {})}
    settings.update(changes.pop("settings", {}))
    peer = RealPeer(name, base / name, host, settings=settings, **changes)
    LIVING.append(peer)
    return peer


def start(
    base: Path, names: Sequence[str], hosts: Sequence[Host | None] | None = None, settings: Mapping[str, str] = NOTHING
) -> list[RealPeer]:
    """Peers that run, each alone."""
    made = [
        make(base, name, host, settings=settings)
        for name, host in zip(names, hosts or [None] * len(names), strict=True)
    ]
    with ThreadPoolExecutor(len(made)) as pool:
        return list(pool.map(RealPeer.start, made))


def community(
    base: Path, names: Sequence[str], hosts: Sequence[Host | None] | None = None, settings: Mapping[str, str] = NOTHING
) -> list[RealPeer]:
    """Peers that run, joined by real invitations of the first one, each linked to every other."""
    peers = start(base, names, hosts, settings)
    lines = [peers[0].api.invite(is_spoken=False).line for _ in peers[1:]]
    with ThreadPoolExecutor(len(peers)) as pool:
        list(pool.map(lambda pair: pair[0].api.join(pair[1]), zip(peers[1:], lines, strict=True)))
    await_links(peers)
    return peers


def await_links(peers: Sequence[RealPeer]) -> None:
    """Waits until every one of these has a live link to every other."""
    names = {peer.name for peer in peers}
    for peer in peers:
        until(lambda peer=peer: names <= linked(peer) | {peer.name}, f"{peer.name} is linked to all")  # type: ignore[misc]


def linked(peer: RealPeer) -> set[str]:
    """What those call themselves to whom this one has a live link."""
    return {other.self_name for other in peer.api.peers() if other.link in ("direct", "relayed")}


def two_lines(ended: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The error and the hint of a command that failed. Asserts that it said just these, without a traceback."""
    # What a command of its own says before, as a shell does whose child is killed, is not ours.
    lines = [line for line in ended.stderr.strip().splitlines() if line != "Killed"]
    assert ended.returncode != 0, ended.stdout
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), ended.stderr
    return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")
