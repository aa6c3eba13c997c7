"""The iroh transport: the shared suite over loopback, and what only it has to deal with."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from iroh import iroh_ffi
from transport_suite import PROTOCOL, Run, TransportSuite, World, pair

from croft.adapters import iroh_copy
from croft.adapters.iroh_transport import IrohTransport
from croft.errors import Failed, Unreachable
from croft.model.ids import PeerId
from croft.ports import RelayAccess, Transport
from support.relays import RelayProcess


def secret_key(number: int) -> bytes:
    return number.to_bytes(32, "big")


class Loopback:
    """A world of real sockets on 127.0.0.1."""

    async def open(self, key: int, port: int = 0) -> Transport:
        return await IrohTransport.open(secret_key(key), [PROTOCOL], f"127.0.0.1:{port}")

    def stranger(self, key: int) -> PeerId:
        public_key = Ed25519PrivateKey.from_private_bytes(secret_key(key)).public_key()
        return PeerId(public_key.public_bytes_raw().hex())

    async def vanish(self, transport: Transport) -> None:
        await transport.close()

    @contextlib.asynccontextmanager
    async def relay(self, *members: Transport) -> AsyncIterator[RelayAccess]:
        process = await asyncio.to_thread(RelayProcess, self.stranger(99))
        try:
            process.admit(member.peer_id for member in members)
            yield RelayAccess(process.url)
        finally:
            await asyncio.to_thread(process.stop)


@pytest.fixture
def run() -> Run:
    def start(story: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            await story(Loopback())

        asyncio.run(main())

    return start


class TestIrohTransport(TransportSuite):
    """Over iroh."""


def seconds_of(write: Any, data: bytes) -> float:
    builder = iroh_ffi._UniffiRustBufferBuilder()
    started = time.perf_counter()
    write(builder, data)
    elapsed = time.perf_counter() - started
    builder.finalize().free()
    return elapsed


def test_the_replaced_copy_is_still_needed() -> None:
    assert iroh_copy.install()
    data = bytes(256 << 10)
    ours = min(seconds_of(iroh_copy.bulk_write, data) for _ in range(5))
    theirs = min(seconds_of(iroh_copy.original_write, data) for _ in range(3))
    assert theirs > 10 * ours, "the binding now copies in bulk by itself: remove croft.adapters.iroh_copy"


def test_a_fixed_port_is_kept_and_a_taken_one_is_named_with_a_remedy() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            holder.bind(("0.0.0.0", 0))
            port = holder.getsockname()[1]
            with pytest.raises(Failed, match=f"port {port} is taken") as caught:
                await IrohTransport.open(secret_key(1), [PROTOCOL], f"0.0.0.0:{port}")
            assert caught.value.remedy
        transport = await IrohTransport.open(secret_key(1), [PROTOCOL], f"0.0.0.0:{port}")
        assert f"127.0.0.1:{port}" == transport.addresses()[-1]
        await transport.close()

    asyncio.run(main())


@pytest.mark.parametrize("bind", ["localhost:0", "nonsense", "1.2.3.4:0", "127.0.0.1:99999"])
def test_an_address_that_cannot_be_bound_is_refused_with_a_remedy(bind: str) -> None:
    with pytest.raises(Failed) as caught:
        asyncio.run(IrohTransport.open(secret_key(1), [PROTOCOL], bind))
    assert caught.value.remedy


CRASHING_PEER = """
import asyncio, os, signal, sys
from croft.adapters.iroh_transport import IrohTransport
async def main():
    transport = await IrohTransport.open((7).to_bytes(32, "big"), [b"croft/test/1"], sys.argv[1])
    print(transport.peer_id, transport.addresses()[0], flush=True)
    connection = await transport.accept()
    stream = await connection.accept_stream()
    await stream.write(await stream.read(100))
    await connection.wait_closed()
asyncio.run(main())
"""


def start_peer(bind: str) -> tuple[subprocess.Popen[str], PeerId, str]:
    child = subprocess.Popen([sys.executable, "-c", CRASHING_PEER, bind], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    peer, address = child.stdout.readline().split()
    return child, PeerId(peer), address


def test_a_killed_peer_can_be_dialled_again_at_its_port() -> None:
    async def main() -> None:
        transport = await IrohTransport.open(secret_key(1), [PROTOCOL], "127.0.0.1:0")
        child, peer, address = start_peer("127.0.0.1:0")
        for _ in range(3):
            connection = await transport.dial(peer, [address], PROTOCOL, 5.0)
            stream = await connection.open_stream()
            await stream.write(b"alive")
            assert await asyncio.wait_for(stream.read(10), 5) == b"alive"
            child.kill()
            child.wait()
            with pytest.raises(Unreachable):
                await transport.dial(peer, [address], PROTOCOL, 0.3)
            child, _, _ = start_peer(address)
        child.kill()
        child.wait()
        await transport.close()

    asyncio.run(main())


def test_a_process_that_closes_its_transport_exits_cleanly_and_soon() -> None:
    program = """
import asyncio
from croft.adapters.iroh_transport import IrohTransport
async def main():
    a = await IrohTransport.open(bytes(31) + b"a", [b"x"], "127.0.0.1:0")
    b = await IrohTransport.open(bytes(31) + b"b", [b"x"], "127.0.0.1:0")
    c = await a.dial(b.peer_id, b.addresses(), b"x", 5)
    d = await b.accept()
    stream = await c.open_stream()
    waiting = [asyncio.create_task(call) for call in (stream.read(1), d.accept_stream(), a.accept())]
    await asyncio.sleep(0.1)
    await a.close()
    await b.close()
    await asyncio.gather(*waiting, return_exceptions=True)
asyncio.run(main(), debug=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (0, "")
    assert "never" not in done.stderr
    assert "Traceback" not in done.stderr


def test_an_open_stream_survives_ten_thousand_cancelled_reads() -> None:
    async def main() -> None:
        async with pair(Loopback()) as two:
            near, far = await two.streams()
            for _ in range(10_000):
                reading = asyncio.ensure_future(far.read(10))
                await asyncio.sleep(0)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
            await near.write(b"still here")
            assert await asyncio.wait_for(far.read(20), 5) == b"still here"

    asyncio.run(main())
