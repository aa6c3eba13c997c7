"""A pair of joined streams inside this process, so that a peer can use its own offers like anybody's."""

from __future__ import annotations

import asyncio

from croft.errors import ConnectionLost

BUFFER_BYTES_MAX = 1 << 20


class _Pipe:
    """Bytes one way."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.changed = asyncio.Condition()
        self.is_finished = False
        self.is_aborted = False

    async def wake(self) -> None:
        async with self.changed:
            self.changed.notify_all()


class LoopbackStream:
    """One end; fulfils `croft.ports.Stream`."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._wakers: set[asyncio.Task[None]] = set()

    async def read(self, size_bytes_max: int) -> bytes:
        """See `croft.ports.Stream`."""
        pipe = self._incoming
        async with pipe.changed:
            await pipe.changed.wait_for(lambda: pipe.buffer or pipe.is_finished or pipe.is_aborted)
            if pipe.is_aborted:
                raise ConnectionLost("the other end was dropped")
            data = bytes(memoryview(pipe.buffer)[:size_bytes_max])
            del pipe.buffer[: len(data)]
            pipe.changed.notify_all()
            return data

    async def write(self, data: bytes | memoryview) -> None:
        """See `croft.ports.Stream`. The buffer takes all at once, so that a cancelled write goes out whole."""
        pipe = self._outgoing
        if pipe.is_aborted or pipe.is_finished:
            raise ConnectionLost("the other end was dropped")
        pipe.buffer += data
        async with pipe.changed:
            pipe.changed.notify_all()
            await pipe.changed.wait_for(lambda: len(pipe.buffer) < BUFFER_BYTES_MAX or pipe.is_aborted)
            if pipe.is_aborted:
                raise ConnectionLost("the other end was dropped")

    async def finish(self) -> None:
        """See `croft.ports.Stream`."""
        self._outgoing.is_finished = True
        await self._outgoing.wake()

    def abort(self) -> None:
        """See `croft.ports.Stream`."""
        if self._outgoing.is_finished and self._incoming.is_finished and not self._incoming.buffer:
            return
        for pipe in (self._incoming, self._outgoing):
            if not pipe.is_aborted:
                pipe.is_aborted = True
                waker = asyncio.get_running_loop().create_task(pipe.wake(), name="loopback.wake")
                self._wakers.add(waker)
                waker.add_done_callback(self._wakers.discard)


def pipe() -> tuple[LoopbackStream, LoopbackStream]:
    """Two ends of one stream."""
    there, back = _Pipe(), _Pipe()
    return LoopbackStream(back, there), LoopbackStream(there, back)
