"""Measures a pipeline of three stages on three peers: its wall time, and what its submitter moves.

python -m bench.pipelines [--json FILE] [--items N] [--stage-s S]

Each of `items` values of 10 MB is made by the first stage, changed by the second, and summed up by the third; every
stage takes `stage-s` seconds on an item besides. The submitter's traffic is what its peer says of all its ways.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.figures import report
from croft.adapters.box_process import remove_folder
from croft.client.grid import Grid, connect
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.node.launch import start_in_background, stop

ITEM_BYTES = 10_000_000
NAMES = ("submitter", "first", "second", "third")
WAIT_S_MAX = 60.0
COUNTED_S = 3.0
STAGES = f"""
import time, zlib

def first(number: int, seconds: float) -> bytes:
    time.sleep(seconds)
    return bytes([number % 251]) * {ITEM_BYTES}

def second(data: bytes, seconds: float) -> bytes:
    time.sleep(seconds)
    return data[::-1]

def third(data: bytes, seconds: float) -> int:
    time.sleep(seconds)
    return zlib.crc32(data)
"""


def traffic(api: LocalApi) -> int:
    """What a peer has sent and received, all ways together, once that is counted."""
    time.sleep(COUNTED_S)
    return sum(
        way.direct_sent_bytes + way.direct_received_bytes + way.relayed_sent_bytes + way.relayed_received_bytes
        for way in api.net().ways
    )


def measure(grid: Grid, items: int, stage_s: float) -> dict[str, float]:
    """Every figure of one run."""
    stages = grid.pipeline()
    for name in NAMES[1:]:
        stages = stages.then(name, seconds=stage_s)
    list(stages.run([0]).results())  # the processes are warm
    before = traffic(grid.api)
    started = time.perf_counter()
    results = list(stages.run(range(items)).results())
    wall_s = time.perf_counter() - started
    assert len(results) == items
    return {
        "wall s": wall_s,
        "of the slowest stage": wall_s / (items * stage_s),
        "submitter's traffic MB": (traffic(grid.api) - before) / 1e6,
    }


def main() -> None:
    """Starts four peers, measures, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--items", type=int, default=30)
    parser.add_argument("--stage-s", type=float, default=0.5)
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="croft-bench-"))
    (base / "stages.py").write_text(STAGES, encoding="utf-8")
    homes = [Home.find(base / name) for name in NAMES]
    try:
        apis = []
        for home, name in zip(homes, NAMES, strict=True):
            home.make()
            start_in_background(home, {"bind": "127.0.0.1", "name": name})
            apis.append(LocalApi(home.control_socket))
        for api, name in zip(apis[1:], NAMES[1:], strict=True):
            api.join(apis[0].invite(is_spoken=False).line)
            command = [sys.executable, "-m", "croft.cli.main", "--home", str(base / name)]
            subprocess.run(
                [*command, "offer", "capability", f"{base}/stages.py:{name}"], check=True, capture_output=True
            )
        deadline = time.monotonic() + WAIT_S_MAX
        while len(apis[0].capabilities()) < len(NAMES) - 1:
            assert time.monotonic() < deadline, "the submitter hears of no capability"
            time.sleep(0.05)
        with connect(homes[0].state) as grid:
            report(measure(grid, arguments.items, arguments.stage_s), arguments.json)
    finally:
        for home in homes:
            stop(home)
        remove_folder(base)


if __name__ == "__main__":
    main()
