"""Measures the store of chunks on the disk it is given, beside `dd conv=fdatasync` on the same disk in the same run.

    python -m bench.chunks [--json FILE] [--rounds N] [--shares N] [FOLDER]

Large chunks are put by four callers at once, as peers do it. The many small ones are there to see what a holder of as
many shares needs: a new process that opens the store and reads ten thousand of them, and a whole peer that starts with
them on its disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.daemon import resident_mb
from croft.adapters.chunk_store import DiskChunkStore
from croft.adapters.system import SystemEntropy
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.node.launch import running_process, start_in_background, stop
from croft.ports import Chunk

OWNER = b"o" * 32
LARGE_BYTES = 1 << 20
LARGE_COUNT = 512
SMALL_BYTES = 20 << 10
SMALL_COUNT = 5_000
SHARE_BYTES = 200
BATCH = 500
CALLERS = 4
READS = 10_000
FLAGS = {"bind": "127.0.0.1", "lend.cpus": "1", "lend.disk": "16G", "lan": "off"}


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def put(store: DiskChunkStore, size: int, count: int, batch: int) -> float:
    """Seconds to put `count` chunks of `size` bytes, so many in one call."""
    data = [os.urandom(size) for _ in range(16)]
    batches = iter(range(0, count, batch))

    async def caller() -> None:
        for first in batches:
            await store.put(
                [Chunk(OWNER, key(number), data[number % 16]) for number in range(first, min(first + batch, count))]
            )

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return time.perf_counter() - begin


async def rates(folder: Path) -> dict[str, float]:
    """MB/s and chunks/s of one round."""
    figures: dict[str, float] = {}
    store = await DiskChunkStore.open(folder / "large", SystemEntropy())
    seconds = await put(store, LARGE_BYTES, LARGE_COUNT, 4)
    figures["put, 1 MiB each, MB/s"] = LARGE_BYTES * LARGE_COUNT / 1e6 / seconds
    begin = time.perf_counter()
    for number in range(LARGE_COUNT):
        await store.read(OWNER, key(number))
    figures["read, 1 MiB each, MB/s"] = LARGE_BYTES * LARGE_COUNT / 1e6 / (time.perf_counter() - begin)
    await store.close()
    store = await DiskChunkStore.open(folder / "small", SystemEntropy())
    figures["put, 20 KiB each, chunks/s"] = SMALL_COUNT / await put(store, SMALL_BYTES, SMALL_COUNT, 50)
    await store.close()
    return figures


def dd(folder: Path) -> float:
    """MB/s of what everybody has."""
    begin = time.perf_counter()
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={folder / 'dd'}", "bs=1M", f"count={LARGE_COUNT}", "conv=fdatasync"],
        check=True,
        capture_output=True,
    )
    return LARGE_BYTES * LARGE_COUNT / 1e6 / (time.perf_counter() - begin)


async def fill(folder: Path, shares: int) -> None:
    """Puts so many small chunks."""
    store = await DiskChunkStore.open(folder, SystemEntropy())
    await put(store, SHARE_BYTES, shares, BATCH)
    await store.close()


async def hold(folder: Path, shares: int) -> None:
    """Opens what `fill` made, reads, and prints seconds and bytes."""
    begin = time.perf_counter()
    store = await DiskChunkStore.open(folder, SystemEntropy())
    held = await store.held_bytes()
    started = time.perf_counter() - begin
    draw = random.Random(1)
    for _ in range(READS):
        await store.read(OWNER, key(draw.randrange(shares)))
    assert held >= shares * SHARE_BYTES
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    print(json.dumps([started, resident]))
    await store.close()


def peer(home: Home) -> tuple[float, float]:
    """Seconds that a daemon takes from its start to its first answer, and the bytes that it takes then."""
    begin = time.perf_counter()
    start_in_background(home, FLAGS)
    try:
        LocalApi(home.control_socket).status()
        started, process = time.perf_counter() - begin, running_process(home)
        assert process is not None, "it answers"
        return started, resident_mb(process)
    finally:
        stop(home)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", default=tempfile.gettempdir(), type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shares", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--hold", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.hold is not None:
        asyncio.run(hold(given.hold, given.shares))
        return
    rounds: list[dict[str, float]] = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory(dir=given.folder) as base:
            rounds.append({"dd conv=fdatasync, MB/s": dd(Path(base)), **asyncio.run(rates(Path(base)))})
            shutil.rmtree(base, ignore_errors=True)
            os.makedirs(base)
    figures = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    ratios = [one["put, 1 MiB each, MB/s"] / one["dd conv=fdatasync, MB/s"] for one in rounds]
    figures["put, of dd"] = statistics.median(ratios)
    with tempfile.TemporaryDirectory(dir=given.folder) as base:
        home = Home.find(Path(base) / "home")
        empty_s, empty_mb = peer(home)
        asyncio.run(fill(home.chunks, given.shares))
        command = [sys.executable, "-m", "bench.chunks", "--hold", str(home.chunks), "--shares", str(given.shares)]
        started, resident = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        full_s, full_mb = peer(home)
    figures[f"{given.shares:,} shares: start s"] = started
    figures[f"{given.shares:,} shares: resident MB"] = resident / 1e6
    figures["a peer that holds nothing: start s"] = empty_s
    figures["a peer that holds nothing: resident MB"] = empty_mb
    figures["a peer that holds them: start s"] = full_s
    figures["a peer that holds them: resident MB"] = full_mb
    for name, value in figures.items():
        print(f"{name:36} {value:,.3g}" if value < 100 else f"{name:36} {value:,.0f}")
    if given.json is not None:
        given.json.write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
