"""The machine's own clock, entropy and threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import TypeVar

T = TypeVar("T")

SEED_BYTES = 32


class SystemClock:
    """Wall time of the machine; see `croft.ports.Clock`."""

    def now(self) -> float:
        return time.time()


class SystemEntropy:
    """The operating system's randomness; see `croft.ports.Entropy`."""

    def token(self, size_bytes: int) -> bytes:
        return secrets.token_bytes(size_bytes)

    def random(self) -> Random:
        return Random(os.urandom(SEED_BYTES))


class ThreadOffload:
    """CPU work in a few threads; see `croft.ports.Offload`.

    At most one piece of work per thread is under way; further callers wait in order, so nothing piles up in
    the pool. Cancelling a caller does not stop work that has begun: its thread is busy until that has ended.
    """

    def __init__(self, threads: int | None = None) -> None:
        count = threads or max(1, (os.cpu_count() or 1))
        self._pool = ThreadPoolExecutor(count, "croft.offload")
        self._free = asyncio.Semaphore(count)

    async def run(self, work: Callable[..., T], *args: object) -> T:
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        try:
            running = self._pool.submit(work, *args)
        except BaseException:
            self._free.release()
            raise

        def ended(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(self._free.release)

        running.add_done_callback(ended)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Lets the threads end once their work has."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def minute_of_week() -> int:
    """Minutes since Monday, midnight, by the machine's own time zone."""
    now = time.localtime()
    return (now.tm_wday * 24 + now.tm_hour) * 60 + now.tm_min
