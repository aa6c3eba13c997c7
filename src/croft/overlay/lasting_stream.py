"""A stream to a peer that outlives the connection under it: the shell of `resumption`.

When a path dies, the connection is closed as soon as that is noticed and a new one is made by whatever way works.
Whoever opened the stream puts a new one under it there, and both go on where they were. A stream whose bytes do not
move asks the other side for a sign of life, so that a dead path is noticed within seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from croft.errors import ConnectionLost, CroftError, PeerMisbehaved
from croft.model.ids import short
from croft.overlay.resumption import Resumption

if TYPE_CHECKING:
    from croft.overlay.link import Link
    from croft.ports import Stream

log = logging.getLogger(__name__)

RESUME_S_MAX: Final = 12.0
"""For so long a stream without a connection is kept, by either side."""
STALLED_S: Final = 1.0
"""Bytes that wait for so long without any coming back make this side ask whether the other is there."""
LOOK_EVERY_S: Final = 0.25
LINGER_S_MAX: Final = 30.0
UNSENT_BYTES_MAX: Final = 1 << 20
"""A writer that is ahead of the stream by more than this waits; less, and neither waits for the other."""
END_NOTICED_S: Final = 1.0
READ_BYTES_MAX: Final = 1 << 20
ABORTED: Final = "the stream was aborted here"

Reopen = Callable[[int], Awaitable[tuple["Link", "Stream"]]]
"""Makes a link, and a stream over it that says how many bytes of this one have been received. Raises CroftError."""


class LastingStream:
    """One end; fulfils `croft.ports.Stream`. `reopen` is given to the end that opened it."""

    def __init__(self, link: Link, stream: Stream, reopen: Reopen | None = None) -> None:
        self._link = link
        self._stream = stream
        self._reopen = reopen
        self._core = Resumption()
        self._changed = asyncio.Event()
        self._to_say = asyncio.Event()
        self._attached: asyncio.Queue[tuple[Link, Stream]] = asyncio.Queue()
        self._failure: str | None = None
        self._heard_at = asyncio.get_running_loop().time()
        self._dropped = asyncio.Event()

    @property
    def received(self) -> int:
        """How many bytes have come so far, the end included."""
        return self._core.received

    # --- croft.ports.Stream ------------------------------------------------------------------------------------------

    async def read(self, size_bytes_max: int) -> bytes:
        """See `croft.ports.Stream`."""
        while True:
            if self._core.has_data:
                part = self._core.take(size_bytes_max)
                self._speak_up()
                return part
            if self._core.is_at_end:
                self._tell_consumed()
                return b""
            if self._failure is not None:
                raise self._lost("read")
            self._changed.clear()
            await self._changed.wait()

    async def write(self, data: bytes | memoryview) -> None:
        """See `croft.ports.Stream`. All is kept at once, so that a cancelled write goes out whole."""
        while self._core.room_bytes <= 0 and self._failure is None:
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._lost("write")
        if not self._core.is_waiting:
            self._heard_at = asyncio.get_running_loop().time()
        self._core.write(bytes(data))
        self._to_say.set()
        while self._core.unsent_bytes > UNSENT_BYTES_MAX and self._failure is None:
            self._changed.clear()
            await self._changed.wait()

    async def finish(self) -> None:
        """See `croft.ports.Stream`."""
        if self._failure is not None:
            raise self._lost("finish")
        self._core.finish()
        self._to_say.set()

    def abort(self) -> None:
        """See `croft.ports.Stream`. What was finished and read to its end still goes out."""
        if not (self._core.is_finished and self._core.is_at_end):
            self._fail(ABORTED)
            self._stream.abort()
        self._dropped.set()
        self._tell_consumed()

    # --- carrying ----------------------------------------------------------------------------------------------------

    def attach(self, link: Link, stream: Stream, their_received: int) -> None:
        """The end that opened it has put a new stream under it, having received so much. Raises PeerMisbehaved."""
        self._core.attached_again(their_received)
        self._attached.put_nowait((link, stream))

    async def carry(self) -> None:
        """Moves its bytes until it is over, over as many connections as that takes."""
        try:
            while not await self._carried_to_the_end():
                log.info("a stream with %s waits for another way", self._link.greeted.name)
                async with asyncio.timeout(RESUME_S_MAX):
                    await self._move()
                log.info("a stream with %s goes on", self._link.greeted.name)
        except (CroftError, TimeoutError):
            self._fail("the connection ended, and no other came in time")
        except ConnectionLost as lost:
            self._fail(str(lost))
        except PeerMisbehaved as fault:
            log.warning("peer %s (%s): %s", self._link.greeted.name, short(self._link.peer), fault)
            self._fail(str(fault))
        finally:
            self._fail("the link has ended")
            self._stream.abort()

    async def _carried_to_the_end(self) -> bool:
        """Whether it is over, rather than in need of another connection. Raises ConnectionLost, PeerMisbehaved."""
        link = self._link
        parts = [
            asyncio.ensure_future(part) for part in (self._listen(), self._speak(), self._watch(link), self._linger())
        ]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            # The end of one part is the end of all; what the first one raises counts.
            for part in parts:
                if part.done():
                    part.result()
        except ConnectionLost as lost:
            if self._failure is not None or not await self._has_ended(link):
                raise
            log.debug("the connection under a stream ended: %s", lost)
            return self._core.is_over
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        return True

    async def _listen(self) -> None:
        while data := await self._stream.read(READ_BYTES_MAX):
            self._heard_at = asyncio.get_running_loop().time()
            self._core.feed(data)
            self._speak_up()
            self._changed.set()
        if not self._core.is_over:
            raise ConnectionLost("the other side ended the stream")

    async def _speak(self) -> None:
        while not self._core.is_over:
            self._to_say.clear()
            while frame := self._core.next_frame():
                await self._stream.write(frame)
                if self._core.unsent_bytes <= UNSENT_BYTES_MAX:
                    self._changed.set()
            if not self._core.is_over:
                await self._to_say.wait()
        await self._stream.finish()
        # The other side closes its half once it knows that all is over.
        await asyncio.sleep(LINGER_S_MAX)

    async def _watch(self, link: Link) -> None:
        """Closes a link on which nothing comes back, and tells what was taken where little is."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._tell_consumed()
            if self._core.is_waiting and loop.time() - self._heard_at > STALLED_S and not await link.is_alive():
                link.give_up()
                raise ConnectionLost("nothing comes back")

    async def _linger(self) -> None:
        await self._dropped.wait()
        await asyncio.sleep(LINGER_S_MAX)
        raise ConnectionLost("the other side does not take the end of the stream")

    async def _has_ended(self, link: Link) -> bool:
        """Whether it was the link that ended, in a way after which another can take its place; not just this stream."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_NOTICED_S):
                await link.ended.wait()
        return link.is_closed and link.may_be_replaced

    async def _move(self) -> None:
        if self._reopen is None:
            self._link, self._stream = await self._attached.get()
        else:
            self._link, self._stream = await self._reopen(self._core.received)
            self._core.opened_again()
        self._heard_at = asyncio.get_running_loop().time()
        self._to_say.set()

    def _tell_consumed(self) -> None:
        self._core.tell_consumed()
        self._speak_up()

    def _speak_up(self) -> None:
        if self._core.has_frame or self._core.is_over:
            self._to_say.set()

    def _fail(self, why: str) -> None:
        if self._failure is None:
            self._failure = why
        self._changed.set()

    def _lost(self, step: str) -> ConnectionLost:
        return ConnectionLost(f"{short(self._link.peer)}: {step}: {self._failure}")
