"""Measures how much goes through between two peers, by sending as much as goes for a moment, each way.

Whoever takes the bytes counts them, and leaves out the start, while congestion control still looks for the rate. A peer
takes part in one measurement at a time, and each is bounded in time and bytes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from croft.errors import Busy, ConnectionLost, Failed, PeerMisbehaved, Unreachable
from croft.overlay.path_messages import Measured, MeasureWanted
from croft.wire.codec import decode
from croft.wire.message_stream import receive_alone, send_alone

if TYPE_CHECKING:
    from croft.overlay.link import Greeted
    from croft.ports import Stream

SECONDS: Final = 2.0
SECONDS_MAX: Final = 5.0
START_SHARE: Final = 0.4
"""The first part of the time, which is not counted."""
CHUNK: Final = bytes(64 << 10)
READ_BYTES_MAX: Final = 1 << 20
BYTES_MAX: Final = 2 << 30
FRAME_BYTES_MAX: Final = 1_024
PATIENCE_S: Final = 20.0
STEP: Final = "measurement"


class Measurements:
    """Both sides of measurements."""

    def __init__(self) -> None:
        self._is_busy = False

    async def serve(self, greeted: Greeted, stream: Stream) -> None:
        """Takes part in a measurement that a member wants; a second one at the same time is cut off."""
        if self._is_busy:
            return
        self._is_busy = True
        try:
            async with asyncio.timeout(SECONDS_MAX + PATIENCE_S):
                payload = await receive_alone(stream, step=STEP, frame_bytes_max=FRAME_BYTES_MAX)
                wanted = decode(payload, MeasureWanted, step=STEP)
                if not 0 < wanted.seconds <= SECONDS_MAX:
                    raise PeerMisbehaved(f"{wanted.seconds} seconds", step=STEP)
                if wanted.is_upload:
                    await send_alone(stream, await _take(stream, wanted.seconds))
                    await stream.finish()
                    await _drain(stream)
                else:
                    await _give(stream, wanted.seconds)
                    await _drain(stream)
        except TimeoutError:
            pass
        finally:
            self._is_busy = False

    async def upload(self, stream: Stream) -> float:
        """Bytes per second to the other side. Raises Busy, Unreachable, Failed."""
        return await self._measure(stream, is_upload=True)

    async def download(self, stream: Stream) -> float:
        """Bytes per second from the other side. Raises Busy, Unreachable, Failed."""
        return await self._measure(stream, is_upload=False)

    async def _measure(self, stream: Stream, *, is_upload: bool) -> float:
        if self._is_busy:
            raise Busy("a measurement is under way already", remedy="Try again in some seconds.")
        self._is_busy = True
        try:
            async with asyncio.timeout(SECONDS_MAX + PATIENCE_S):
                await send_alone(stream, MeasureWanted(SECONDS, is_upload))
                if is_upload:
                    await _give(stream, SECONDS)
                    payload = await receive_alone(stream, step=STEP, frame_bytes_max=FRAME_BYTES_MAX)
                    measured = decode(payload, Measured, step=STEP)
                else:
                    await stream.finish()
                    measured = await _take(stream, SECONDS)
        except TimeoutError:
            raise Unreachable("the other side did not finish the measurement", remedy="Try again.") from None
        except ConnectionLost as lost:
            raise Unreachable(
                f"the other side ended the measurement: {lost}", remedy="It may be busy: try again."
            ) from None
        except PeerMisbehaved as fault:
            raise Failed(f"the other side does not keep to the protocol: {fault}") from None
        finally:
            self._is_busy = False
            stream.abort()
        if not 0 < measured.seconds <= SECONDS_MAX + PATIENCE_S or not 0 <= measured.size_bytes <= BYTES_MAX:
            raise Failed("too little went through to tell")
        return measured.size_bytes / measured.seconds


async def _give(stream: Stream, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    sent = 0
    while loop.time() < ends_at and sent < BYTES_MAX:
        await stream.write(CHUNK)
        sent += len(CHUNK)
    await stream.finish()


async def _take(stream: Stream, seconds: float) -> Measured:
    loop = asyncio.get_running_loop()
    counted_from = loop.time() + seconds * START_SHARE
    first_at = last_at = 0.0
    size = total = 0
    while (part := await stream.read(READ_BYTES_MAX)) and total < BYTES_MAX:
        now = loop.time()
        total += len(part)
        if now >= counted_from:
            if first_at:
                size += len(part)
                last_at = now
            else:
                first_at = now
    return Measured(size, max(0.0, last_at - first_at))


async def _drain(stream: Stream) -> None:
    while await stream.read(READ_BYTES_MAX):
        pass
