"""Joins two streams until both sides are done: no work per byte."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

PIECE_BYTES_MAX = 512 << 10


class Joinable(Protocol):
    """What is joined: `croft.ports.Stream` fits."""

    async def read(self, size_bytes_max: int) -> bytes: ...

    async def write(self, data: bytes | memoryview) -> None: ...

    async def finish(self) -> None: ...

    def abort(self) -> None: ...


async def splice(one: Joinable, other: Joinable) -> None:
    """Passes bytes both ways, and each side's end as a half-close, until both have ended.

    Each direction waits for its slower side. If either stream is lost, both are aborted, and ConnectionLost is raised.
    """
    await _both(_pass_on(one, other), _pass_on(other, one), one, other)


async def _pass_on(source: Joinable, sink: Joinable) -> None:
    while piece := await source.read(PIECE_BYTES_MAX):
        await sink.write(piece)
    await sink.finish()


async def _both(there: Coroutine[Any, Any, None], back: Coroutine[Any, Any, None], *streams: Joinable) -> None:
    tasks = [asyncio.create_task(there, name="splice.there"), asyncio.create_task(back, name="splice.back")]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    except BaseException:
        # The tasks first: no stream is dropped under a read that is under way.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in streams:
            stream.abort()
        raise
