"""Ends a process and everything below it, though it may be starting more at that moment.

A signal is only noted when it is sent: a process that is inside clone(2) on another processor finishes that first, and
its child appears after the list of processes was read. So each process must be *seen* to have stopped before its
children are listed. Imports only the standard library: the keeper of a box uses it too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping

STOP_ROUNDS_MAX = 1000
STOPPED_S_MAX = 1.0
"""A process in an uninterruptible sleep may not stop sooner; it starts nothing either."""
LOOK_EVERY_S = 0.0005

_STOPPED_STATES = (b"T", b"t", b"Z", b"X")


def stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/<pid>/stat from `state` on; empty if the process is gone."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            return os.read(descriptor, 4096).rpartition(b")")[2].split()
        finally:
            os.close(descriptor)
    except OSError:
        return []


def children_of_all() -> dict[int, list[int]]:
    """The children of every process that has any."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = stat_fields(int(name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(name))
    return children


def descendants(pid: int, children: Mapping[int, list[int]]) -> list[int]:
    """`pid` and all below it, parents before their children."""
    found = [pid]
    for parent in found:
        found.extend(children.get(parent, ()))
    return found


def stop_below(pid: int) -> list[int]:
    """Stops all descendants of `pid`, so that none starts another while they are killed. Blocks; returns them."""
    stopped: dict[int, None] = {}
    for _ in range(STOP_ROUNDS_MAX):
        fresh = [found for found in descendants(pid, children_of_all())[1:] if found not in stopped]
        if not fresh:
            break
        for found in fresh:
            _send(found, signal.SIGSTOP)
        for found in fresh:
            _wait_stopped(found)
        stopped |= dict.fromkeys(fresh)
    return list(stopped)


def go_on_below(pid: int) -> None:
    """Lets all descendants of `pid` go on that `stop_below` stopped."""
    for found in descendants(pid, children_of_all())[1:]:
        _send(found, signal.SIGCONT)


def kill_with_descendants(pid: int) -> None:
    """Kills a process that its parent, the caller, has not reaped yet, and all below it. Blocks.

    A box that is being made does not die with bubblewrap: its first process may still wait for it.
    """
    _send(pid, signal.SIGSTOP)
    _wait_stopped(pid)
    for found in reversed([pid, *stop_below(pid)]):
        _send(found, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _wait_stopped(pid: int) -> None:
    deadline = time.monotonic() + STOPPED_S_MAX
    while (fields := stat_fields(pid)) and fields[0] not in _STOPPED_STATES and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S)
