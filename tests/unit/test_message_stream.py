"""Messages over a stream of bytes: coalesced, bounded, and none lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from croft.errors import ConnectionLost, PeerMisbehaved
from croft.overlay.loopback import pipe
from croft.overlay.messages import Heartbeat, Notice
from croft.sim import virtual_time
from croft.wire import frames
from croft.wire.codec import decode, encode
from croft.wire.message_stream import UNSENT_BYTES_MAX, MessageStream

STEP = "test"


class Valve:
    """A stream that takes nothing while it is shut."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.open = asyncio.Event()
        self.failure: Exception | None = None

    async def read(self, size_bytes_max: int) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def write(self, data: bytes | memoryview) -> None:
        await self.open.wait()
        if self.failure:
            raise self.failure
        self.written.append(bytes(data))


def on_virtual_time(story: Callable[[], Awaitable[None]]) -> None:
    async def main(_: Random) -> None:
        await story()

    virtual_time.run(main)


def notice(size: int) -> Notice:
    return Notice("topic", bytes(size))


def test_what_is_sent_during_a_write_leaves_with_the_next_one() -> None:
    async def story() -> None:
        valve = Valve()
        async with MessageStream(valve, step=STEP) as stream:
            stream.post(Heartbeat(0))
            await asyncio.sleep(1)
            for number in range(1, 1000):
                stream.post(Heartbeat(number))
            valve.open.set()
            await stream.flush()
        reader = frames.FrameReader(step=STEP)
        found = [
            decode(payload, Heartbeat, step=STEP).sequence for part in valve.written for payload in reader.feed(part)
        ]
        assert found == list(range(1000))
        assert len(valve.written) == 2

    on_virtual_time(story)


def test_a_sender_waits_while_the_other_side_does_not_keep_up_and_then_goes_on() -> None:
    async def story() -> None:
        valve = Valve()
        async with MessageStream(valve, step=STEP) as stream:
            sent = 0

            async def send() -> None:
                nonlocal sent
                while sent < 100:
                    await stream.send(notice(1 << 20))
                    sent += 1

            sending = asyncio.create_task(send())
            await asyncio.sleep(1)
            assert sent * (1 << 20) <= 2 * UNSENT_BYTES_MAX
            valve.open.set()
            await sending
            await stream.flush()
            assert sum(map(len, valve.written)) > 100 << 20

    on_virtual_time(story)


@pytest.mark.parametrize("failure", [ConnectionLost("gone"), ValueError("a bug below")])
def test_whoever_waits_is_told_when_writing_fails(failure: Exception) -> None:
    async def story() -> None:
        valve = Valve()
        valve.failure = failure
        async with MessageStream(valve, step=STEP) as stream:
            stream.post(Heartbeat(1))
            flushing = asyncio.create_task(stream.flush())
            await asyncio.sleep(0)
            valve.open.set()
            with pytest.raises(ConnectionLost):
                await flushing
            with pytest.raises(ConnectionLost):
                stream.post(Heartbeat(2))

    on_virtual_time(story)


def test_closing_wakes_a_sender_that_waits() -> None:
    async def story() -> None:
        stream = MessageStream(Valve(), step=STEP)
        stream.post(Heartbeat(1))
        await asyncio.sleep(0)
        stream.post(notice(UNSENT_BYTES_MAX))
        sending = asyncio.create_task(stream.send(notice(1)))
        await asyncio.sleep(1)
        assert not sending.done()
        await stream.close()
        with pytest.raises(ConnectionLost, match="closed here"):
            await sending
        await stream.close()

    on_virtual_time(story)


def test_a_cancelled_receive_loses_nothing() -> None:
    async def story() -> None:
        near, far = pipe()
        async with MessageStream(near, step=STEP) as out, MessageStream(far, step=STEP) as into:
            found: list[bytes | None] = []
            for number in range(20):
                out.post(Heartbeat(number))
                receiving = asyncio.create_task(into.receive())
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                receiving.cancel()
                await asyncio.wait({receiving})
                if not receiving.cancelled():
                    found.append(receiving.result())
            while len(found) < 20:
                found.append(await into.receive())
            assert found == [encode(Heartbeat(number)) for number in range(20)]

    on_virtual_time(story)


def test_the_end_between_two_frames_is_an_end_and_inside_one_a_loss() -> None:
    async def story() -> None:
        near, far = pipe()
        stream = MessageStream(far, step=STEP)
        await near.write(frames.frame(encode(Heartbeat(1))))
        await near.finish()
        assert await stream.receive() == encode(Heartbeat(1))
        assert await stream.receive() is None

        near, far = pipe()
        stream = MessageStream(far, step=STEP)
        await near.write(frames.frame(b"whole") + frames.frame(b"cut")[:-1])
        await near.finish()
        assert await stream.receive() == b"whole"
        with pytest.raises(ConnectionLost, match="inside a frame"):
            await stream.receive()

    on_virtual_time(story)


def test_a_frame_over_the_limit_is_misbehaviour() -> None:
    async def story() -> None:
        near, far = pipe()
        stream = MessageStream(far, step=STEP, frame_bytes_max=100)
        await near.write((101).to_bytes(4, "big"))
        with pytest.raises(PeerMisbehaved, match="101"):
            await stream.receive()

    on_virtual_time(story)


def test_an_aborted_stream_ends_both_sides() -> None:
    async def story() -> None:
        near, far = pipe()
        async with MessageStream(near, step=STEP) as one, MessageStream(far, step=STEP) as other:
            receiving = [asyncio.create_task(stream.receive()) for stream in (one, other)]
            await asyncio.sleep(0.1)
            near.abort()
            for task in receiving:
                with pytest.raises(ConnectionLost):
                    await task

    on_virtual_time(story)
