"""Measures a tunnel to a TCP service of another peer, beside `ssh -L` to the same service in the same run.

python -m bench.tunnel [--json FILE] [--megabytes N] [--rounds N]

The service and its client are two processes on loopback, and so are the two daemons, and ssh and sshd: what differs is
what stands between. Each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import uvloop

# The ssh server is that of the tests; where it is must be known before it is imported.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.peers import Pair
from bench.transport import HOST, Channel, CroftLink, Link, answer, bulk, ping_pong
from croft.client.local_api import LocalApi
from croft.client.tunnel import HeldTunnel
from croft.control.schema import ExposureWanted
from croft.control.work_messages import OpenForward
from support import ssh_server

START_S_MAX = 10.0


class SocketChannel:
    """A TCP connection, driven with as little work as there can be: what is measured lies between its ends."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._loop = asyncio.get_running_loop()

    async def read(self, size_bytes_max: int) -> bytes:
        return await self._loop.sock_recv(self._socket, size_bytes_max)

    async def write(self, data: bytes | memoryview) -> None:
        await self._loop.sock_sendall(self._socket, data)

    async def finish(self) -> None:
        """Nothing is left to be written."""

    def close(self) -> None:
        self._socket.close()


class TcpLink:
    """Every channel is a TCP connection to one port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._channels: list[SocketChannel] = []

    async def channel(self) -> Channel:
        channel = SocketChannel(socket.create_connection((HOST, self._port)))
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        for channel in self._channels:
            channel.close()


async def serve() -> None:
    """The service: what `bench.transport` answers, over TCP."""

    async def one(channel: SocketChannel) -> None:
        await answer(channel)
        channel.close()

    with socket.create_server((HOST, 0)) as listening:
        listening.setblocking(False)
        print(listening.getsockname()[1], flush=True)
        serving = set()
        while True:
            connection, _ = await asyncio.get_running_loop().sock_accept(listening)
            task = asyncio.create_task(one(SocketChannel(connection)))
            serving.add(task)
            task.add_done_callback(serving.discard)


@contextlib.contextmanager
def other_process(*command: str) -> Iterator[list[str]]:
    """A process of ours, and the words of its first line."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()
        finally:
            process.kill()


@contextlib.contextmanager
def ssh_forward(port: int) -> Iterator[int]:
    """`ssh -L` to a service on this machine, through an sshd of our own; the local port."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as cleanup:
        folder = Path(name)
        ssh_server.make_keys(folder)
        listening, local = free_port(), free_port()
        server = subprocess.Popen(ssh_server.server_command(folder, listening), stderr=subprocess.DEVNULL)
        cleanup.callback(end, server)
        await_port(listening)
        forward = ["-p", str(listening), "-L", f"{HOST}:{local}:{HOST}:{port}"]
        command = ["ssh", "-N", *ssh_server.client_options(folder), *forward, HOST]
        client = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        cleanup.callback(end, client)
        await_port(local)
        yield local


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(port: int) -> None:
    deadline = time.monotonic() + START_S_MAX
    while True:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port}")
        time.sleep(0.05)


def measured(link: Callable[[], Awaitable[Link]], megabytes: int) -> dict[str, float]:
    """Throughput in MB/s of one stream, and the round trip of a small message in ms."""

    async def main() -> dict[str, float]:
        made = await link()
        round_trip_us = await ping_pong(made, 0)
        rate = await bulk(1)(made, megabytes)
        await made.close()
        return {"MB/s": rate, "round trip ms": round_trip_us / 1000}

    return uvloop.run(main())


def measure(megabytes: int, rounds: int) -> dict[str, dict[str, float]]:
    """Every figure of every way."""
    found: dict[str, list[dict[str, float]]] = {}
    pair = Pair(1)
    try:
        with contextlib.ExitStack() as cleanup:
            [port] = cleanup.enter_context(other_process(sys.executable, "-m", "bench.tunnel", "--serve"))
            consumer, lender = LocalApi(pair.consumer.control_socket), LocalApi(pair.lender.control_socket)
            lender.expose(ExposureWanted(port=int(port), to=[consumer.status().peer]))
            opening = OpenForward(pair.lender_name, port, "tcp")
            ways = {
                "TCP, nothing in between": int(port),
                "croft tunnel": cleanup.enter_context(HeldTunnel(pair.consumer.work_socket, opening)).port,
            }
            if Path(ssh_server.SSHD).exists():
                ways["ssh -L"] = cleanup.enter_context(ssh_forward(int(port)))
            else:
                print(f"note: no {ssh_server.SSHD}: install openssh-server to compare with ssh -L", file=sys.stderr)
            for _ in range(rounds):  # by turns, so that all see the same load
                for name, local in ways.items():
                    found.setdefault(name, []).append(measured(lambda local=local: tcp(local), megabytes))
                found.setdefault("croft bulk stream", []).append(bulk_stream(megabytes))
    finally:
        pair.stop()
    return {
        name: {figure: statistics.median(one[figure] for one in rows) for figure in rows[0]}
        for name, rows in found.items()
    }


async def tcp(port: int) -> TcpLink:
    return TcpLink(port)


def bulk_stream(megabytes: int) -> dict[str, float]:
    """What one stream of Croft's own carries between two processes, with no sockets at its ends."""
    place = str(Path(__file__).with_name("transport.py"))
    with other_process(sys.executable, place, "--serve", "croft") as words:
        return measured(lambda: CroftLink.to(words), megabytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--megabytes", type=int, default=256, help="size of a bulk transfer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve())
        return
    found = measure(options.megabytes, options.rounds)
    direct = found["TCP, nothing in between"]["round trip ms"]
    rows = [
        {
            "way": name,
            "MB/s": figures["MB/s"],
            "of Croft's bulk stream": figures["MB/s"] / found["croft bulk stream"]["MB/s"],
            "round trip ms": figures["round trip ms"],
            "added ms": figures["round trip ms"] - direct,
        }
        for name, figures in found.items()
    ]
    for row in rows:
        print(f"{row['way']:26}" + "".join(f"{key} {row[key]:8.2f}   " for key in row if key != "way"))
    if options.json:
        options.json.write_text(json.dumps({"schema": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
