"""Measures croft's transport between two processes on loopback, beside TCP with TLS in the same run.

    python bench/transport.py [--json FILE] [--megabytes N] [--rounds N]

A ratio above 1 means that croft is faster. Each figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import ipaddress
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from croft.adapters.iroh_transport import IrohConnection, IrohTransport
from croft.errors import ConnectionLost
from croft.model.ids import PeerId

PROTOCOL = b"croft/bench/1"
HOST = "127.0.0.1"
MESSAGE_BYTES = 64
BATCH_BYTES = 64 << 10
PIECE_BYTES = 1 << 20
READ_BYTES = 1 << 20
PINGS = 1_500
CALLS = 1_000
CALLS_AT_ONCE = 50
BULK_STREAMS = (1, 4, 8)
ECHO, COUNT = b"e", b"c"
"""First byte of a channel: send everything back, or answer with a number of bytes once so many have come."""
SUM_BYTES = 8


class Channel(Protocol):
    """A stream of either transport."""

    async def read(self, size_bytes_max: int) -> bytes: ...

    async def write(self, data: bytes | memoryview) -> None: ...

    async def finish(self) -> None: ...


class Link(Protocol):
    """The way to the other process."""

    async def channel(self) -> Channel: ...

    async def close(self) -> None: ...


async def exactly(channel: Channel, size_bytes: int) -> bytes:
    """That many bytes."""
    received = b""
    while len(received) < size_bytes:
        part = await channel.read(size_bytes - len(received))
        if not part:
            raise EOFError
        received += part
    return received


async def answer(channel: Channel) -> None:
    """What the other process does with a channel."""
    try:
        if await exactly(channel, 1) == ECHO:
            while part := await channel.read(READ_BYTES):
                await channel.write(part)
        else:
            expected, received = int.from_bytes(await exactly(channel, SUM_BYTES), "big"), 0
            while received < expected:
                received += len(await channel.read(READ_BYTES))
            await channel.write(received.to_bytes(SUM_BYTES, "big"))
        await channel.finish()
    except (ConnectionLost, ConnectionError, EOFError):
        return


# --- croft -------------------------------------------------------------------------------------------------


class CroftLink:
    """One connection, many streams."""

    def __init__(self, transport: IrohTransport, connection: IrohConnection) -> None:
        self._transport = transport
        self._connection = connection

    @classmethod
    async def to(cls, place: list[str]) -> CroftLink:
        transport = await IrohTransport.open(os.urandom(32), [PROTOCOL], f"{HOST}:0")
        return cls(transport, await transport.dial(PeerId(place[0]), place[1:], PROTOCOL, 10.0))

    async def channel(self) -> Channel:
        return await self._connection.open_stream()

    async def close(self) -> None:
        await self._transport.close()


async def serve_croft() -> None:
    transport = await IrohTransport.open(os.urandom(32), [PROTOCOL], f"{HOST}:0")
    print(transport.peer_id, *transport.addresses(), flush=True)
    connection = await transport.accept()
    assert connection is not None
    with contextlib.suppress(ConnectionLost):
        tasks = set()
        while True:
            task = asyncio.create_task(answer(await connection.accept_stream()))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    await transport.close()


# --- TCP with TLS ------------------------------------------------------------------------------------------


class TlsChannel:
    """A TCP connection of its own. TLS has no half-close, and the protocol above needs none."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, size_bytes_max: int) -> bytes:
        return await self._reader.read(size_bytes_max)

    async def write(self, data: bytes | memoryview) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def finish(self) -> None:
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


class TlsLink:
    """Every channel is a connection, since TCP has no streams."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port = port
        self._context = context
        self._channels: list[TlsChannel] = []

    @classmethod
    async def to(cls, place: list[str]) -> TlsLink:
        context = ssl.create_default_context(cafile=place[1])
        return cls(int(place[0]), context)

    async def channel(self) -> Channel:
        channel = TlsChannel(*await asyncio.open_connection(HOST, self._port, ssl=self._context, limit=READ_BYTES))
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        for channel in self._channels:
            channel.close()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for HOST, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_file, key_file


async def serve_tls() -> None:
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = self_signed(Path(folder))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await answer(TlsChannel(reader, writer))
            writer.close()

        server = await asyncio.start_server(serve, HOST, 0, ssl=context, limit=READ_BYTES)
        print(server.sockets[0].getsockname()[1], certificate, flush=True)
        await asyncio.to_thread(sys.stdin.read)


# --- measurements ------------------------------------------------------------------------------------------


async def ping_pong(link: Link, _: int) -> float:
    """Round trips of a small message on one open channel, in microseconds."""
    channel, message = await link.channel(), bytes(MESSAGE_BYTES)
    await channel.write(ECHO)
    started = time.perf_counter()
    for _ in range(PINGS):
        await channel.write(message)
        await exactly(channel, MESSAGE_BYTES)
    elapsed = time.perf_counter() - started
    await channel.finish()
    return elapsed / PINGS * 1e6


async def calls(link: Link, _: int) -> float:
    """Calls per second, each on a channel of its own, some dozens at a time."""
    message = ECHO + bytes(MESSAGE_BYTES)

    async def caller() -> None:
        for _ in range(CALLS // CALLS_AT_ONCE):
            channel = await link.channel()
            await channel.write(message)
            await exactly(channel, MESSAGE_BYTES)
            await channel.finish()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLS_AT_ONCE)))
    return CALLS / (time.perf_counter() - started)


async def messages(link: Link, megabytes: int) -> float:
    """Messages of 64 bytes per second, coalesced into few writes on one channel."""
    size = max(1, megabytes // 8) << 20
    elapsed = await send(link, size, BATCH_BYTES)
    return size / MESSAGE_BYTES / elapsed


def bulk(streams: int) -> Callable[[Link, int], Awaitable[float]]:
    """MB per second over some channels at once."""

    async def measure(link: Link, megabytes: int) -> float:
        size = (megabytes << 20) // streams
        started = time.perf_counter()
        await asyncio.gather(*(send(link, size, PIECE_BYTES) for _ in range(streams)))
        return size * streams / 1e6 / (time.perf_counter() - started)

    return measure


async def send(link: Link, size: int, piece_bytes: int) -> float:
    """Seconds until the other side has confirmed that many bytes."""
    channel, piece = await link.channel(), os.urandom(piece_bytes)
    started = time.perf_counter()
    await channel.write(COUNT + size.to_bytes(SUM_BYTES, "big"))
    for _ in range(size // piece_bytes):
        await channel.write(piece)
    await channel.write(piece[: size % piece_bytes])
    assert int.from_bytes(await exactly(channel, SUM_BYTES), "big") == size
    elapsed = time.perf_counter() - started
    await channel.finish()
    return elapsed


MEASUREMENTS: dict[str, tuple[str, bool, Callable[[Link, int], Awaitable[float]]]] = {
    "ping-pong on an open stream": ("µs", False, ping_pong),
    "calls, each on its own stream": ("1/s", True, calls),
    "64-byte messages, coalesced": ("1/s", True, messages),
    **{f"bulk over {count} streams": ("MB/s", True, bulk(count)) for count in BULK_STREAMS},
}


async def measure_all(link: Link, megabytes: int) -> dict[str, float]:
    """One round."""
    found = {name: await measure(link, megabytes) for name, (_, _, measure) in MEASUREMENTS.items()}
    await link.close()
    return found


def round_of(kind: str, megabytes: int) -> dict[str, float]:
    """One round against a fresh process of that kind."""
    command = [sys.executable, __file__, "--serve", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        place = other.stdout.readline().split()

        async def main() -> dict[str, float]:
            link: Link = await (CroftLink.to(place) if kind == "croft" else TlsLink.to(place))
            return await measure_all(link, megabytes)

        return uvloop.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--megabytes", type=int, default=256, help="size of a bulk transfer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", choices=("croft", "tls"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve_croft() if options.serve == "croft" else serve_tls())
        return
    rounds: dict[str, list[dict[str, float]]] = {"croft": [], "tls": []}
    for _ in range(options.rounds):
        for kind, found in rounds.items():  # by turns, so that both see the same load
            found.append(round_of(kind, options.megabytes))
    print(f"{'':32}{'unit':>6}{'croft':>12}{'TCP+TLS':>12}{'ratio':>8}")
    rows = []
    for name, (unit, is_rate, _) in MEASUREMENTS.items():
        ours, theirs = (statistics.median(found[name] for found in rounds[kind]) for kind in rounds)
        ratio = ours / theirs if is_rate else theirs / ours
        rows.append({"what": name, "unit": unit, "croft": ours, "tcp_tls": theirs, "ratio": ratio})
        print(f"{name:32}{unit:>6}{ours:>12,.0f}{theirs:>12,.0f}{ratio:>8.2f}")
    if options.json:
        options.json.write_text(json.dumps({"schema": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
