"""All streams of this peer that outlive their connections, opened here or by others; who may go on with which."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from croft.errors import ConnectionLost, CroftError, PeerMisbehaved, Refused, Unreachable
from croft.model.ids import PeerId
from croft.overlay.lasting_stream import LastingStream
from croft.overlay.messages import StreamHeader
from croft.overlay.resumption import STEP
from croft.wire.message_stream import send_alone

if TYPE_CHECKING:
    from croft.overlay.link import Greeted, Link
    from croft.ports import Stream

PER_PEER_MAX: Final = 128
NUMBER_BYTES: Final = 16
AGAIN_S: Final = 0.1
NEW: Final = -1

StreamHandler = Callable[["Greeted", "Stream"], Awaitable[None]]
Again = Callable[[], Awaitable["Link"]]
"""Makes a link to the peer anew, if there is none. Raises CroftError."""
Start = Callable[[Coroutine[Any, Any, None], str], None]


class LastingStreams:
    """`start` runs a coroutine for as long as this peer runs; `instance` tells this run of the peer from others;
    `complain` names what a peer did that it should not.
    """

    def __init__(self, instance: bytes, start: Start, complain: Callable[[Link, str], None]) -> None:
        self._instance = instance
        self._start = start
        self._complain = complain
        self._opened = 0
        self._accepted: dict[tuple[PeerId, bytes], LastingStream] = {}

    async def open(self, link: Link, purpose: str, again: Again) -> LastingStream:
        """A new stream to the handler of `purpose`. Raises ConnectionLost."""
        self._opened += 1
        number = (self._instance + self._opened.to_bytes(8, "big"))[-NUMBER_BYTES:]
        peer, instance = link.peer, link.greeted.instance

        async def reopen(received: int) -> tuple[Link, Stream]:
            while True:
                try:
                    link = await again()
                except Refused:
                    raise
                except CroftError:
                    await asyncio.sleep(AGAIN_S)
                    continue
                if link.greeted.instance != instance:
                    raise Unreachable("the other side started anew")
                if not link.is_closed:
                    try:
                        return link, await _open(link, StreamHeader(purpose, number, received))
                    except ConnectionLost:
                        pass
                await asyncio.sleep(AGAIN_S)

        stream = LastingStream(link, await _open(link, StreamHeader(purpose, number, NEW)), reopen)
        self._start(stream.carry(), f"stream.{peer[:10]}.{purpose}")
        return stream

    def accept(self, link: Link, header: StreamHeader, stream: Stream, handler: StreamHandler) -> None:
        """Serves a new stream of a member's, or puts `stream` under one that is kept. Raises PeerMisbehaved."""
        key = link.peer, header.lasting
        kept = self._accepted.get(key)
        if header.received != NEW:
            if kept is None:
                stream.abort()  # it came too late
                return
            kept.attach(link, stream, header.received)
            return
        is_full = sum(peer == link.peer for peer, _ in self._accepted) >= PER_PEER_MAX
        if kept is not None or is_full or len(header.lasting) != NUMBER_BYTES:
            stream.abort()
            raise PeerMisbehaved("a lasting stream that is open already, or one too many", step=STEP)
        lasting = self._accepted[key] = LastingStream(link, stream)
        self._start(self._serve(key, link, lasting, handler), f"stream.{link.peer[:10]}")

    def drop(self, peer: PeerId) -> None:
        """Ends what a peer is served: it is not to go on, although it may come back."""
        for (other, _), stream in list(self._accepted.items()):
            if other == peer:
                stream.abort()

    async def _serve(
        self, key: tuple[PeerId, bytes], link: Link, stream: LastingStream, handler: StreamHandler
    ) -> None:
        carrying = asyncio.create_task(stream.carry(), name="stream.carry")
        try:
            await handler(link.greeted, stream)
        except (ConnectionLost, TimeoutError):
            pass
        except PeerMisbehaved as fault:
            self._complain(link, str(fault))
        finally:
            stream.abort()
            try:
                await carrying
            finally:
                carrying.cancel()
                self._accepted.pop(key, None)


async def _open(link: Link, header: StreamHeader) -> Stream:
    stream = await link.connection.open_stream()
    await send_alone(stream, header)
    return stream
