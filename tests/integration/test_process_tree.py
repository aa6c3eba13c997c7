"""Killing a process with all below it, while it starts more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from croft.adapters.process_tree import kill_with_descendants, stat_fields, stop_below

STEADY = """
import os, signal, time
for _ in range(3):
    if os.fork() == 0:
        while True:
            if os.fork() == 0:
                signal.pause()
            else:
                time.sleep(0.003)
signal.pause()
"""


def alive_with(marker: str) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                state = (process / "stat").read_bytes().rpartition(b")")[2].split()[0]
            except OSError:
                continue
            if marker.encode() in words and state not in (b"Z", b"X"):
                found.append(int(process.name))
    return found


def start_forking(marker: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", STEADY, marker])
    while len(alive_with(marker)) < 6:
        time.sleep(0.001)
    return process


@pytest.mark.parametrize("round", range(5))
def test_nothing_below_a_killed_process_lives_though_it_forks_meanwhile(round: int) -> None:
    marker = f"forking-{os.getpid()}-{round}"
    process = start_forking(marker)

    kill_with_descendants(process.pid)
    process.wait()

    deadline = time.monotonic() + 5
    while alive_with(marker) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert alive_with(marker) == []


def test_what_was_stopped_starts_nothing_more() -> None:
    marker = f"stopping-{os.getpid()}"
    process = start_forking(marker)
    try:
        stopped = stop_below(process.pid)
        seen = alive_with(marker)
        time.sleep(0.1)
        assert sorted([process.pid, *stopped]) == sorted(seen) == sorted(alive_with(marker))
    finally:
        kill_with_descendants(process.pid)
        process.wait()


def test_a_process_that_has_ended_is_no_error() -> None:
    process = subprocess.Popen(["true"])
    while stat_fields(process.pid)[0] != b"Z":
        time.sleep(0.001)

    kill_with_descendants(process.pid)

    assert process.wait() == 0
