"""Measures a Dask cluster over two peers beside Dask's own local cluster: the same work, in the same run.

    python -m bench.dask_cluster [--json FILE] [--rounds N]

Both have two workers of one thread. Of Croft's, one is on each of two peers, in a box; whatever passes between
them or to the program goes over iroh.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

from bench.peers import LINK_TIMEOUT_S
from croft.client.grid import connect
from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.dask import GridCluster
from croft.node.launch import start_in_background, stop

TASKS = 2_000
ARRAY = 12_500_000
"""Numbers of 8 bytes: 100 MB."""
SIDE, CHUNK = 4_000, 1_000
WAIT_S = 60.0


@contextlib.contextmanager
def peers() -> Iterator[Home]:
    """A consumer that lends nothing, and two peers that lend a processor each."""
    base = Path(tempfile.mkdtemp(prefix="croft-bench-"))
    homes = [Home.find(base / name) for name in ("consumer", "one", "two")]
    try:
        for home, cpus in zip(homes, ("0", "1", "1"), strict=True):
            start_in_background(home, {"bind": "127.0.0.1", "lend.cpus": cpus, "lend.memory": "3G"})
        consumer = LocalApi(homes[0].control_socket)
        for home in homes[1:]:
            LocalApi(home.control_socket).join(consumer.invite(is_spoken=False).line)
        deadline = time.monotonic() + LINK_TIMEOUT_S
        while sum(peer.link == "direct" for peer in consumer.peers()) < 2:
            if time.monotonic() > deadline:
                raise TimeoutError("the peers did not find each other")
            time.sleep(0.02)
        yield homes[0]
    finally:
        for home in homes:
            stop(home)
        shutil.rmtree(base, ignore_errors=True)


def measured(make: Callable[[], Any]) -> dict[str, float]:
    """One round of all figures on one cluster."""
    began = time.perf_counter()
    with make() as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=WAIT_S)
        one, two = client.scheduler_info()["workers"]
        client.submit(int, workers=[one]).result(WAIT_S)
        figures = {"start to first result s": time.perf_counter() - began}
        client.gather(client.map(int, range(100), pure=False))

        began = time.perf_counter()
        client.gather(client.map(int, range(TASKS), pure=False))
        figures["no-op tasks/s, map"] = TASKS / (time.perf_counter() - began)

        made = client.submit(np.ones, ARRAY, workers=[one])
        made_s = client.submit(np.sum, made, workers=[one])
        made_s.result(WAIT_S)
        began = time.perf_counter()
        client.submit(np.sum, made, workers=[two], pure=False).result(WAIT_S)
        figures["array of 100 MB from worker to worker s"] = time.perf_counter() - began
        began = time.perf_counter()
        made.result(WAIT_S)
        figures["array of 100 MB as result s"] = time.perf_counter() - began

        began = time.perf_counter()
        x = da.ones((SIDE, SIDE), chunks=(CHUNK, CHUNK))
        (x @ x.T).sum().compute()
        figures["product of two matrices of 128 MB s"] = time.perf_counter() - began
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {"Croft": [], "Dask's LocalCluster": []}
    with peers() as home, connect(home.state) as grid:
        for _ in range(arguments.rounds):
            rounds["Croft"].append(measured(lambda: GridCluster(grid, 2, mem="2G", dashboard_address="127.0.0.1:0")))
            rounds["Dask's LocalCluster"].append(
                measured(lambda: LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0"))
            )
    figures = {
        engine: {name: statistics.median(figures[name] for figures in taken) for name in taken[0]}
        for engine, taken in rounds.items()
    }
    for name in figures["Croft"]:
        print(f"{name:<42}" + "  ".join(f"{engine} {figures[engine][name]:.3g}" for engine in figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
