"""Measures bags of dependent tasks: a chain of large arrays from peer to peer, and what its submitter moves.

python -m bench.values [--json FILE] [--steps N]

Three peers: one submits and lends nothing, two lend. Each step of the chain takes the array of 100 MB that the step
before has made, and makes another one: first all on one lender, then from one to the other each time. The submitter's
traffic is what its peer says of all its ways.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import croft
from bench.figures import report
from bench.pipelines import traffic
from croft.adapters.box_process import remove_folder
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.node.launch import start_in_background, stop

ARRAY_BYTES = 100_000_000
NAMES = ("submitter", "one", "other")
LENT = {"lend.cpus": "2", "lend.memory": "4G"}
WAIT_S_MAX = 60.0


def make(number: int) -> Any:
    import numpy

    return numpy.full(ARRAY_BYTES // 8, number, dtype=numpy.int64)


def more(array: Any) -> Any:
    return array + 1


def first(array: Any) -> int:
    return int(array[0])


def chain(grid: croft.Grid, steps: int, on: tuple[str, ...]) -> float:
    """How many seconds a step takes, of a chain whose steps take turns at these peers."""
    there = [croft.task(on=name, memory="2G")(more) for name in on]
    value = grid.submit(croft.task(on=on[0], memory="2G")(make), 0)
    assert grid.submit(croft.task(on=on[0], memory="2G")(first), value).result() == 0
    started = time.perf_counter()
    for step in range(steps):
        value = grid.submit(there[(step + 1) % len(there)], value)
    assert grid.submit(croft.task(on=on[steps % len(on)], memory="2G")(first), value).result() == steps
    return (time.perf_counter() - started) / steps


def measure(grid: croft.Grid, steps: int) -> dict[str, float]:
    """Every figure of one run."""
    chain(grid, 2, NAMES[1:])  # the boxes are warm
    before = traffic(grid.api)
    alone, turns = chain(grid, steps, NAMES[1:2]), chain(grid, steps, NAMES[1:])
    moved = traffic(grid.api) - before
    value = grid.submit(croft.task(on="one", memory="2G")(make), 0)
    grid.submit(croft.task(on="one", memory="2G")(first), value).result()
    started = time.perf_counter()
    assert value.result()[0] == 0
    return {
        "a step on one peer s": alone,
        "a step from peer to peer s": turns,
        "submitter's traffic MB": moved / 1e6,
        "a kept array is asked for s": time.perf_counter() - started,
    }


def main() -> None:
    """Starts three peers, measures, prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="croft-bench-"))
    homes = [Home.find(base / name) for name in NAMES]
    try:
        apis = []
        for home, name in zip(homes, NAMES, strict=True):
            home.make()
            lends = {"lend.cpus": "0"} if name == NAMES[0] else LENT
            start_in_background(home, {"bind": "127.0.0.1", "name": name, **lends})
            apis.append(LocalApi(home.control_socket))
        for api in apis[1:]:
            api.join(apis[0].invite(is_spoken=False).line)
        deadline = time.monotonic() + WAIT_S_MAX
        while sum(peer.link == "direct" for peer in apis[0].peers()) < len(NAMES) - 1:
            assert time.monotonic() < deadline, "the submitter is not linked to all"
            time.sleep(0.05)
        with croft.connect(homes[0].state) as grid:
            report(measure(grid, arguments.steps), arguments.json)
    finally:
        for home in homes:
            stop(home)
        remove_folder(base)


if __name__ == "__main__":
    # Functions of `__main__` travel by value everywhere; imported by name they travel as they would for a user.
    from bench import values

    values.main()
