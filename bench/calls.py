"""Measures calls of a capability beside gRPC and Dask actors: the same function, in the same run.

    python -m bench.calls [--json FILE] [--rounds N]

All call a warm function in another process of this machine, over loopback. Croft's calls go from the program to its
daemon, over iroh, encrypted, to the provider's daemon, which checks consent and writes the audit log, and into the
function's process; arguments and results are checked against its signature. gRPC's go straight, in the clear.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import msgspec
from distributed import Client, LocalCluster

from bench.peers import Pair
from croft.client.async_grid import connect_async
from croft.client.grid import connect
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.twins.capability_source import Source

CALLS = 1_000
AT_ONCE = 32
FUNCTION = """
def add(a: int, b: int) -> int:
    return a + b
"""
LATENCY, TAIL, RATE = "round trip, median ms", "round trip, 99 % ms", "calls/s, 32 at once"


def latency(call: Callable[[int], int]) -> dict[str, float]:
    """Of calls one after the other."""
    took = []
    for number in range(CALLS):
        began = time.perf_counter()
        assert call(number) == number + 1
        took.append((time.perf_counter() - began) * 1000)
    return {LATENCY: statistics.median(took), TAIL: statistics.quantiles(took, n=100)[-1]}


def rate(call: Callable[[int], int]) -> dict[str, float]:
    """Of calls by many threads."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        began = time.perf_counter()
        assert sum(pool.map(call, range(CALLS))) == CALLS * (CALLS + 1) // 2
        return {RATE: CALLS / (time.perf_counter() - began)}


# --- Croft -----------------------------------------------------------------------------------------------------------


def croft_figures() -> dict[str, float]:
    """Of two peers; many at once by asyncio."""
    pair = Pair(1)
    try:
        file = pair.lender.state / "able.py"
        file.write_text(FUNCTION)
        source = Source(python=sys.executable, file=str(file), function="add")
        encoded = msgspec.json.encode(source).decode()
        command = [sys.executable, "-m", "croft.twins.capability_worker", "--describe", encoded]
        described = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        wanted = schema.CapabilityWanted(name="add", source=source, signature=described["signature"])
        LocalApi(pair.lender.control_socket).offer_capability(wanted)
        with connect(pair.consumer.state) as grid:
            while not grid.capabilities():
                time.sleep(0.02)
            add = grid.capability("add")
            add(1, 1)
            figures = latency(lambda number: int(add(number, 1)))
        return {**figures, **asyncio.run(_croft_rate(str(pair.consumer.state)))}
    finally:
        pair.stop()


async def _croft_rate(home: str) -> dict[str, float]:
    async with await connect_async(home) as grid:
        add = await grid.capability("add")
        numbers = iter(range(CALLS))

        async def work() -> int:
            return sum([await add(number, 1) for number in numbers])

        began = time.perf_counter()
        sums = await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        assert sum(sums) == CALLS * (CALLS + 1) // 2
        return {RATE: CALLS / (time.perf_counter() - began)}


# --- gRPC ------------------------------------------------------------------------------------------------------------


class _Adder(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda data, _: json.dumps(sum(json.loads(data))).encode())


def serve_grpc() -> None:
    """A server in a process of its own; prints its port."""
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[_Adder()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


@contextlib.contextmanager
def grpc_call() -> Iterator[Callable[[int], int]]:
    """A call of that server."""
    server = subprocess.Popen([sys.executable, "-m", "bench.calls", "--serve-grpc"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        with grpc.insecure_channel(f"127.0.0.1:{int(server.stdout.readline())}") as channel:
            add = channel.unary_unary("/bench/add")
            yield lambda number: int(json.loads(add(json.dumps([number, 1]).encode())))
    finally:
        server.kill()
        server.wait()


def grpc_figures() -> dict[str, float]:
    with grpc_call() as call:
        call(1)
        return {**latency(call), **rate(call)}


# --- Dask actors -----------------------------------------------------------------------------------------------------


class Adder:
    """The actor."""

    def add(self, a: int, b: int) -> int:
        return a + b


def dask_figures() -> dict[str, float]:
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(1, threads_per_worker=1, dashboard_address=None, local_directory=folder) as cluster,
        Client(cluster) as client,
    ):
        actor = client.submit(Adder, actor=True).result()

        def call(number: int) -> int:
            return int(actor.add(number, 1).result())

        call(1)
        return {**latency(call), **rate(call)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve-grpc", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_grpc:
        serve_grpc()
        return
    engines = {"Croft": croft_figures, "gRPC": grpc_figures, "Dask actors": dask_figures}
    rounds = [{name: measure() for name, measure in engines.items()} for _ in range(arguments.rounds)]
    figures = {
        name: {what: statistics.median(one[name][what] for one in rounds) for what in rounds[0][name]}
        for name in engines
    }
    for what in figures["Croft"]:
        print(f"{what:26}" + "".join(f"{name:>14}: {figures[name][what]:10.3f}" for name in engines))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
