"""Streams into boxes of every grade, by descriptors that are handed over; and none come out."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from croft.adapters.python_runtime import runtime_environment, runtime_paths
from croft.errors import ConnectionLost
from croft.ports import PACKET_BYTES_MAX, BoxSpec
from support.boxes import KINDS, sandbox_of

PROGRAM = """
import os, socket, sys
door = socket.socket(fileno=int(sys.argv[2]))
for _ in range(50):
    socket.send_fds(door, [b"take this"], [0, 0, 0])
door.send(b"x" * 10_000)
packet, descriptors, _, _ = socket.recv_fds(door, 100, 1)
stream = socket.socket(fileno=descriptors[0])
heard = b""
while part := stream.recv(1 << 16):
    heard += part
stream.sendall(packet + str(len(heard)).encode())
stream.shutdown(socket.SHUT_WR)
door.recv(1)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_gets_streams_and_hands_nothing_out(kind: str) -> None:
    async def story() -> None:
        spec = BoxSpec(
            name="door",
            argv=(sys.executable, "-sEP", "-c", PROGRAM, "{fd}", "{doorway}"),
            read_only=runtime_paths(),
            environment=runtime_environment(),
            memory_bytes=64 << 20,
            has_doorway=True,
        )
        box = await sandbox_of(kind).open(spec)
        door = box.doorway
        assert door is not None
        before = len(os.listdir("/proc/self/fd"))
        assert [await door.receive() for _ in range(50)] == [b"take this"] * 50
        assert len(await door.receive()) == PACKET_BYTES_MAX
        assert len(os.listdir("/proc/self/fd")) == before

        stream = await door.hand_over(b"read this: ")
        await stream.write(bytes(3 << 20))
        await stream.finish()
        assert await stream.read(100) == f"read this: {3 << 20}".encode()
        assert await stream.read(100) == b""
        stream.abort()

        waiting = asyncio.create_task(door.receive())
        await asyncio.sleep(0)
        await box.close()
        assert await waiting == b""
        with pytest.raises(ConnectionLost):
            await door.hand_over(b"too late")

    asyncio.run(story())


def test_a_box_without_need_has_no_doorway() -> None:
    async def story() -> None:
        spec = BoxSpec(
            name="shut",
            argv=(sys.executable, "-sEP", "-c", "import time; time.sleep(60)", "{fd}"),
            read_only=runtime_paths(),
            environment=runtime_environment(),
            memory_bytes=64 << 20,
        )
        box = await sandbox_of("namespaces and cgroup").open(spec)
        assert box.doorway is None
        await box.close()

    asyncio.run(story())
