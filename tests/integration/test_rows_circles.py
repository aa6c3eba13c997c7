"""Streams between a program and its boxes on several real lenders: who gets through, what arrives, and what ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from croft.client.circle import HomeMember
from croft.client.command import CommandEvents, run_command
from croft.compute.worker_messages import OWN_PYTHON
from croft.control.work_messages import CommandEnded, OpenCommandJob
from croft.errors import NotFound
from support import peers
from support.peers import RealPeer, until

SOME_BYTES = bytes(range(256)) * (3 << 12)  # 3 MiB, more than all that is buffered on the way
SAYS = """
import asyncio, hashlib, socket, sys
from croft.client.circle import BoxMember

async def echo(stream):
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(stream, 1 << 16):
        await loop.sock_sendall(stream, data)
    stream.shutdown(socket.SHUT_WR)
    stream.close()

async def read_all(stream):
    parts = []
    while part := await asyncio.get_running_loop().sock_recv(stream, 1 << 20):
        parts.append(part)
    return b"".join(parts)
"""
ECHO = (
    SAYS
    + """
async def main():
    member = BoxMember()
    streams = set()
    def taken(sender, stream):
        task = asyncio.ensure_future(echo(stream))
        streams.add(task)
    member.listen(taken)
    print("listening", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
)
ASK = (
    SAYS
    + """
async def ask(member, target):
    stream = await member.connect(target)
    loop = asyncio.get_running_loop()
    said = bytes(range(256)) * (3 << 12)
    async def send():
        await loop.sock_sendall(stream, said)
        stream.shutdown(socket.SHUT_WR)
    sending = asyncio.ensure_future(send())
    heard = await read_all(stream)
    await sending
    print(target, heard == said, flush=True)

async def main():
    member = BoxMember()
    for target in sys.argv[1:]:
        try:
            await ask(member, target)
        except Exception as error:
            print(target, error, flush=True)

asyncio.run(main())
"""
)


@pytest.fixture(scope="module")
def trio() -> Iterator[list[RealPeer]]:
    with peers.homes() as base:
        yield peers.community(base, ["ada", "bob", "cyd"])


class Circle:
    """A circle of one peer's program."""

    def __init__(self, consumer: RealPeer) -> None:
        self.consumer = consumer
        self.home = HomeMember(consumer.files.work_socket)
        self.printed: dict[str, list[str]] = {}
        self.commands: list[asyncio.Task[CommandEnded]] = []

    def command(self, name: str, on: RealPeer, program: str, *arguments: str) -> asyncio.Task[CommandEnded]:
        """Starts a member on one peer."""
        only = [self.consumer.api.find_peer(on.name).peer]
        opening = OpenCommandJob(
            [OWN_PYTHON, "-c", program, *arguments],
            {},
            [],
            [],
            only,
            [],
            memory_bytes=128 << 20,
            circle=self.home.circle,
            member=name,
        )
        lines = self.printed[name] = []
        events = CommandEvents(lambda _, data: lines.extend(data.decode().splitlines()))
        running = asyncio.create_task(run_command(self.consumer.files.work_socket, opening, events))
        self.commands.append(running)
        return running

    async def listening(self, name: str, on: RealPeer) -> asyncio.Task[CommandEnded]:
        """Starts a member that sends back what it is told, and waits until it listens."""
        running = self.command(name, on, ECHO)
        async with asyncio.timeout(peers.WAIT_S_MAX):
            while "listening" not in self.printed[name]:
                assert not running.done(), (running.result(), self.printed)
                await asyncio.sleep(peers.POLL_S)
        return running


@contextlib.asynccontextmanager
async def circle_of(consumer: RealPeer) -> AsyncIterator[Circle]:
    circle = Circle(consumer)
    await circle.home.open()
    try:
        yield circle
    finally:
        circle.home.close()
        for task in circle.commands:
            task.cancel()
        await asyncio.gather(*circle.commands, return_exceptions=True)


async def echoed(stream: socket.socket, said: bytes) -> bytes:
    loop, heard = asyncio.get_running_loop(), bytearray()

    async def send() -> None:
        await loop.sock_sendall(stream, said)
        stream.shutdown(socket.SHUT_WR)

    sending = asyncio.create_task(send())
    while part := await loop.sock_recv(stream, 1 << 20):
        heard += part
    await sending
    stream.close()
    return bytes(heard)


def test_members_on_two_peers_and_the_program_reach_each_other_by_name(trio: list[RealPeer]) -> None:
    ada, bob, cyd = trio

    async def story() -> None:
        async with circle_of(ada) as circle:
            loop = asyncio.get_running_loop()
            told: list[str] = []

            async def send_back(sender: str, stream: socket.socket) -> None:
                told.append(sender)
                while data := await loop.sock_recv(stream, 1 << 16):
                    await loop.sock_sendall(stream, data)
                stream.close()

            circle.home.listen(lambda sender, stream: told.append(loop.create_task(send_back(sender, stream)) and ""))
            await circle.listening("b1", bob)
            ended = await circle.command("c1", cyd, ASK, "b1", "home", "nobody")
            from_home = await echoed(await circle.home.connect("b1"), SOME_BYTES)

            assert ended.exit_code == 0
            assert circle.printed["c1"][:2] == ["b1 True", "home True"]
            assert "no `nobody` is in this circle" in circle.printed["c1"][2]
            assert "c1" in told
            assert from_home == SOME_BYTES
            with pytest.raises(NotFound, match="no `c1` is in this circle"):
                await circle.home.connect("c1")

    asyncio.run(story())


def test_a_box_of_another_consumer_on_the_same_lender_reaches_nobody(trio: list[RealPeer]) -> None:
    ada, bob, cyd = trio

    async def story() -> None:
        async with circle_of(ada) as circle, circle_of(bob) as other:
            await circle.listening("b1", cyd)
            await other.command("spy", cyd, ASK, "b1", "home")

            assert "no `b1` is in this circle" in other.printed["spy"][0]
            assert "home True" not in other.printed["spy"]
            with pytest.raises(NotFound, match="no `b1` is in this circle"):
                await other.home.connect("b1")
            other.home.circle = circle.home.circle  # even who learns of its id
            with pytest.raises(NotFound, match="no circle"):
                await other.home.connect("b1")

    asyncio.run(story())


def test_streams_and_boxes_end_with_the_program(trio: list[RealPeer]) -> None:
    ada, bob, cyd = trio

    async def story() -> None:
        loop = asyncio.get_running_loop()
        async with circle_of(ada) as circle:
            running = await circle.listening("b1", bob)
            stream = await circle.home.connect("b1")
            await loop.sock_sendall(stream, b"hello")
            assert await loop.sock_recv(stream, 100) == b"hello"
            running.cancel()
            assert await loop.sock_recv(stream, 100) == b""
            stream.close()
            await circle.listening("c1", cyd)
            still = await circle.home.connect("c1")
        assert await loop.sock_recv(still, 100) == b""
        still.close()

    asyncio.run(story())
    until(lambda: bob.is_idle() and cyd.is_idle(), "the lenders are free again")
