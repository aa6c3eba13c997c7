"""Starts and stops the daemon of a home: in the background without systemd, or here in the foreground."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from croft.control.home import Home
from croft.errors import Failed, by_code

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02
LOG_TAIL_LINES = 5


@dataclass(frozen=True, slots=True)
class Started:
    """How the daemon came to run."""

    was_running: bool
    is_new_identity: bool


def start_in_background(home: Home, flags: Mapping[str, str]) -> Started:
    """Starts the daemon and waits until it answers. Raises Failed with the reason it gave."""
    home.make()
    if running_process(home) is not None:
        return Started(was_running=True, is_new_identity=False)
    is_new = not any(home.keys.iterdir())
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "croft.node.daemon", "--ready-fd", str(writer)]
    for key, value in flags.items():
        command += ["--set", f"{key}={value}"]
    with home.log_file.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(home),
            pass_fds=(writer,),
            start_new_session=True,
            cwd="/",
        )
    os.close(writer)
    with os.fdopen(reader, "r", encoding="utf-8") as ready:
        _await_ready(home, process, ready.fileno())
    return Started(was_running=False, is_new_identity=is_new)


def run_here(home: Home, flags: Mapping[str, str]) -> None:
    """Runs the daemon in this process until it is told to end."""
    from croft.node.daemon import run

    home.make()
    run(home, flags, ready_fd=None, log_to_terminal=True)


def stop(home: Home) -> bool:
    """Ends the daemon: asks, then insists. Whether there was one."""
    process = running_process(home)
    if process is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while running_process(home) == process:
        if time.monotonic() > deadline:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            deadline = time.monotonic() + STOP_TIMEOUT_S
        time.sleep(POLL_S)
    return True


def running_process(home: Home) -> int | None:
    """The id of the daemon's process, if one holds this home's lock."""
    try:
        with home.lock_file.open("r", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = file.read().strip()
                return int(text) if text.isdigit() else None
            return None
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def hold_lock(home: Home) -> Iterator[None]:
    """Makes this process the one daemon of the home. Raises Failed if there is another."""
    with home.lock_file.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(
                f"a peer runs already in {home.state}", remedy="Stop it with `croft down`, or name another home."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _environment(home: Home) -> dict[str, str]:
    """The daemon finds the same home as we did."""
    is_default = home.config_file.parent != home.state
    return dict(os.environ) if is_default else {**os.environ, "CROFT_HOME": str(home.state)}


def _await_ready(home: Home, process: subprocess.Popen[bytes], ready: int) -> None:
    """Reads what the daemon says of its start: a line of JSON; nothing if it died."""
    import select

    said = b""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not said.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([ready], [], [], left)[0]:
            process.kill()
            raise Failed(f"the peer did not start within {START_TIMEOUT_S:g} s", remedy="See `croft status --log`.")
        part = os.read(ready, 65536)
        if not part:
            break
        said += part
    if not said:
        tail = home.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        raise Failed("the peer ended while it started:\n" + "\n".join(tail), remedy="See `croft status --log`.")
    answer = json.loads(said)
    if "error" in answer:
        raise by_code(answer["code"], answer["error"], answer["remedy"])
