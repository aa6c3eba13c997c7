"""Measures files stored at five peers, any three of which give them back, beside a bulk stream to one of them.

python -m bench.storage [--json FILE] [--megabytes N] [--files N]

Six daemons on loopback share this machine, and every share is on disk before it is acknowledged. `put` and `get` are
what a user waits for, the daemon reading and writing the files. The bulk stream is what goes through between two of
these peers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.daemon import processor_s
from bench.figures import report
from croft.client.local_api import LocalApi
from croft.client.stored_files import StoredFiles
from croft.control.home import Home
from croft.control.work_messages import OpenGet
from croft.node.launch import running_process, start_in_background, stop

HOLDERS = 5
KEEP = "3of5"
SMALL_BYTES = 20 << 10
LINK_S_MAX = 20.0
FIRST_BYTES = 20


class Village:
    """An owner and the peers that hold its files; `stop` ends and removes them."""

    def __init__(self) -> None:
        self._base = Path(tempfile.mkdtemp(prefix="croft-bench-"))
        self.homes = [Home.find(self._base / name) for name in ("owner", *(f"holder{i}" for i in range(HOLDERS)))]
        for home in self.homes:
            start_in_background(home, {"bind": "127.0.0.1", "lend.cpus": "1", "lend.disk": "16G", "lan": "off"})
        self.owner = LocalApi(self.homes[0].control_socket)
        for home in self.homes[1:]:
            LocalApi(home.control_socket).join(self.owner.invite(is_spoken=False).line)
        self.await_links(HOLDERS)

    def await_links(self, count: int) -> None:
        deadline = time.monotonic() + LINK_S_MAX
        while sum(peer.link == "direct" for peer in self.owner.peers()) < count:
            assert time.monotonic() < deadline, "the peers did not find each other"
            time.sleep(0.02)

    def processor_s(self) -> list[float]:
        processes = [running_process(home) for home in self.homes]
        return [processor_s(process) if process is not None else 0.0 for process in processes]

    def stop(self) -> None:
        for home in self.homes:
            stop(home)
        shutil.rmtree(self._base, ignore_errors=True)


def timed(village: Village, work: object) -> tuple[float, float, float]:
    """Seconds that something takes, and processor seconds of the owner's daemon and of all holders'."""
    assert callable(work)
    before, started = village.processor_s(), time.perf_counter()
    work()
    took = time.perf_counter() - started
    used = [max(0.0, after - earlier) for after, earlier in zip(village.processor_s(), before, strict=True)]
    return took, used[0], sum(used[1:])


def measure(megabytes: int, count: int) -> dict[str, float]:
    """Every figure, from fresh homes."""
    village = Village()
    folder = Path(tempfile.mkdtemp(prefix="croft-bench-"))
    files = StoredFiles(village.homes[0], village.owner)
    figures: dict[str, float] = {}
    try:
        large, small = folder / "large", folder / "small"
        large.write_bytes(os.urandom(megabytes << 20))
        small.mkdir()
        for number in range(count):
            (small / str(number)).write_bytes(os.urandom(SMALL_BYTES))
        gib, mb = megabytes / 1024, (megabytes << 20) / 1e6
        peer = next(peer.peer for peer in village.owner.peers() if not peer.is_self)
        way = village.owner.measure(peer)
        bulk = (way.measured_to_per_s or 0.0) / 1e6
        figures["bulk stream, MB/s"] = bulk
        took, cpu, others = timed(village, lambda: files.put(large, "large", keep=KEEP))
        figures["put, MB/s"] = mb / took
        figures["put, of bulk · k/n"] = mb / took / (bulk * 3 / 5)
        figures["put, owner's CPU s/GiB"] = cpu / gib
        figures["put, all holders' CPU s/GiB"] = others / gib
        took, cpu, others = timed(village, lambda: files.fetch("large", folder / "back"))
        figures["get, MB/s"] = mb / took
        figures["get, of bulk"] = mb / took / bulk
        figures["get, owner's CPU s/GiB"] = cpu / gib
        assert (folder / "back").read_bytes() == large.read_bytes()
        firsts = []
        for _ in range(FIRST_BYTES):
            started = time.perf_counter()
            next(files.read(OpenGet(b"large")))
            firsts.append(1e3 * (time.perf_counter() - started))
        figures["first bytes, ms"] = statistics.median(firsts)
        took, _, _ = timed(village, lambda: files.put(small, "small", keep=KEEP))
        figures["small files put/s"] = count / took
        took, _, _ = timed(village, lambda: files.fetch("small", folder / "small-back"))
        figures["small files got/s"] = count / took
        assert (folder / "small-back" / "7").read_bytes() == (small / "7").read_bytes()
        for home in village.homes[-2:]:
            stop(home)
        took, _, _ = timed(village, lambda: files.fetch("large", folder / "again"))
        figures["get, two holders gone, of get"] = mb / took / figures["get, MB/s"]
        assert (folder / "again").read_bytes() == large.read_bytes()
    finally:
        village.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.storage")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--files", type=int, default=5_000)
    options = parser.parse_args(arguments)
    figures = measure(options.megabytes, options.files)
    report(figures, options.json)


if __name__ == "__main__":
    main()
