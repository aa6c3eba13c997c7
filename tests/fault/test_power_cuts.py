"""Power cuts: what a store of chunks acknowledged is there when the power is back, whatever the disk had not synced."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from croft.adapters.chunk_store import DiskChunkStore
from croft.adapters.system import SystemEntropy
from croft.errors import Failed, NotFound
from support import lossy_disk
from support.peers import until

CAMPAIGN_IS_LONG = os.environ.get("CROFT_CAMPAIGN") == "long"
ROUNDS = 100 if CAMPAIGN_IS_LONG else 6
ACKNOWLEDGED_MIN, ACKNOWLEDGED_MAX = 50, 600
OWNER = b"a" * 32

WRITER = """
import asyncio, os, sys
from pathlib import Path
from croft.adapters import chunk_segments
from croft.adapters.chunk_store import DiskChunkStore
from croft.adapters.system import SystemEntropy
from croft.ports import Chunk

folder, first, is_careless = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "careless"
if is_careless:
    chunk_segments.sync_data = lambda file: None

async def write(store, number):
    while True:
        size = 1 + number * 7919 % 60_000
        key = number.to_bytes(32, "big")
        await store.put([Chunk(b"a" * 32, key, bytes([number % 251]) * size)])
        os.write(1, b"+%d\\n" % number)
        if number % 3:
            os.write(1, b"?%d\\n" % number)
            await store.delete(b"a" * 32, [key])
            os.write(1, b"-%d\\n" % number)
        number += 8

async def main():
    store = await DiskChunkStore.open(folder, SystemEntropy(), 1 << 20)
    await asyncio.gather(*(write(store, first + lane) for lane in range(8)))

asyncio.run(main())
"""

EMPTIER = """
import asyncio, os, sys
from pathlib import Path
from croft.adapters.chunk_store import DiskChunkStore
from croft.adapters.system import SystemEntropy
from croft.ports import Chunk

async def main():
    owner, folder = b"a" * 32, Path(sys.argv[1])
    store = await DiskChunkStore.open(folder, SystemEntropy(), 1 << 20)
    await store.put([Chunk(owner, b"1" * 32, b"x" * (1 << 20))])
    await store.close()
    store = await DiskChunkStore.open(folder, SystemEntropy(), 1 << 20)
    await store.delete(owner, [b"1" * 32])
    await store.put([Chunk(owner, (2).to_bytes(32, "big"), bytes([2]) * (1 + 2 * 7919 % 60_000))])
    os._exit(0)

asyncio.run(main())
"""
"""A full segment, all of it deleted; then a put, and an end without closing anything."""


class PoweredDisk:
    """A folder on the disk that loses power, and what its writers were told."""

    def __init__(self, base: Path) -> None:
        self.folder = base / "disk"
        self.folder.mkdir()
        self._state = base / "state"
        self._coin = random.Random(7)
        self.kept: set[int] = set()
        self.gone: set[int] = set()
        self._next = 0

    @contextmanager
    def powered(self) -> Iterator[subprocess.Popen[bytes]]:
        """The disk is there inside; its process is given."""
        seed = self._coin.randrange(1 << 30)
        served = subprocess.Popen([sys.executable, lossy_disk.__file__, str(self.folder), str(self._state), str(seed)])
        try:
            until(lambda: os.path.ismount(self.folder), "the disk is mounted")
            yield served
        finally:
            served.kill()
            served.wait()
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def write_until_the_power_goes(self, *, is_careless: bool = False) -> None:
        """A process puts and deletes; the power goes at some moment."""
        with self.powered() as served:
            manner = "careless" if is_careless else "careful"
            writer = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(self.folder), str(self._next), manner],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # the disk goes while it writes
            )
            assert writer.stdout is not None
            count = self._coin.randint(ACKNOWLEDGED_MIN, ACKNOWLEDGED_MAX)
            lines = [writer.stdout.readline() for _ in range(count)]
            served.send_signal(signal.SIGUSR1)
            served.wait(30)
            writer.kill()
            lines += writer.stdout.read().splitlines(keepends=True)
            writer.wait()
            writer.stdout.close()
        for line in lines:
            if not line.endswith(b"\n"):
                continue
            number = int(line[1:])
            self._next = max(self._next, number + 8)
            if line[:1] == b"+":
                self.kept.add(number)
            else:
                self.kept.discard(number)  # perhaps gone
                if line[:1] == b"-":
                    self.gone.add(number)

    @staticmethod
    def content(number: int) -> bytes:
        """What the chunk of this number holds."""
        return bytes([number % 251]) * (1 + number * 7919 % 60_000)

    def lost(self) -> tuple[int, int]:
        """How many chunks are missing or changed though acknowledged, and how many came back though deleted."""

        async def count() -> tuple[int, int]:
            store = await DiskChunkStore.open(self.folder, SystemEntropy(), 1 << 20)
            try:
                lost = 0
                for number in self.kept:
                    try:
                        lost += await store.read(OWNER, number.to_bytes(32, "big")) != self.content(number)
                    except (NotFound, Failed):
                        lost += 1
                held = {int.from_bytes(key, "big") for key, _ in await store.keys(OWNER, count_max=1 << 20)}
                return lost, len(held & self.gone)
            finally:
                await store.close()

        with self.powered() as served:
            found = asyncio.run(count())
            served.send_signal(signal.SIGUSR1)  # what a reader does may be cut as well
            served.wait(30)
        return found


@pytest.fixture
def disk(tmp_path: Path) -> PoweredDisk:
    return PoweredDisk(tmp_path)


def test_power_cuts_take_nothing_acknowledged_and_bring_nothing_deleted_back(disk: PoweredDisk) -> None:
    for round_number in range(ROUNDS):
        disk.write_until_the_power_goes()
        assert disk.lost() == (0, 0), f"after power cut {round_number + 1}"
    assert len(disk.kept) > 10 * ROUNDS and len(disk.gone) > 10 * ROUNDS, "enough was at stake"


def test_a_segment_whose_chunks_are_all_deleted_does_not_hide_those_that_follow(disk: PoweredDisk) -> None:
    for _ in range(ROUNDS):
        with disk.powered() as served:
            subprocess.run([sys.executable, "-c", EMPTIER, str(disk.folder)], check=True)
            served.send_signal(signal.SIGUSR1)
            served.wait(30)
        disk.kept = {2}
        assert disk.lost() == (0, 0)


def test_the_disk_would_show_a_store_that_does_not_sync(disk: PoweredDisk) -> None:
    disk.write_until_the_power_goes(is_careless=True)
    lost, _ = disk.lost()
    assert lost > 0
