"""The results of a map for a program that uses asyncio: the twin of `croft.client.map_result`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, Generic, TypeVar

from croft.client.async_tasks import AsyncTaskFuture, await_done
from croft.client.map_feed import REDUCE_FAN_IN, MapFeed
from croft.client.task_future import TaskFuture
from croft.client.task_session import TaskSession

R = TypeVar("R")


class AsyncMapResult(Generic[R]):
    """The results of a map, in the order of its input. Iterate once; leaving early cancels the rest.

    It begins when it is first asked for anything.
    """

    def __init__(
        self,
        open_: Callable[[], Awaitable[TaskSession]],
        close: Callable[[TaskSession], Awaitable[None]],
        function: Callable[..., R],
        calls: Iterator[tuple[Any, ...]],
    ) -> None:
        self._open = open_
        self._close = close
        self._function = function
        self._calls = calls
        self._feed: MapFeed | None = None
        self._results = self._iterate()

    def __aiter__(self) -> AsyncMapResult[R]:
        return self

    async def __anext__(self) -> R:
        return await anext(self._results)

    @property
    def done_by(self) -> dict[str, int]:
        """How many tasks each peer did so far, by name."""
        return {} if self._feed is None else dict(self._feed.session.done_by)

    @property
    def liars(self) -> dict[str, list[int]]:
        """Peers that were found to lie; see `MapResult.liars`."""
        return {} if self._feed is None else dict(self._feed.session.liars)

    async def cancel(self) -> None:
        """Cancels what is not done, here and on the peers."""
        if self._feed is not None:
            self._feed.cancel()
            await self._close(self._feed.session)

    async def aclose(self) -> None:
        """The same, for `contextlib.aclosing`."""
        await self._results.aclose()
        await self.cancel()

    async def as_completed(self) -> AsyncGenerator[tuple[int, R], None]:
        """Pairs of (index in the input, result) in the order in which they are done, instead of iterating."""
        feed = await self._begin()
        feed.want_each()
        index = 0
        waiting: dict[asyncio.Future[Any], int] = {}
        try:
            while True:
                while feed.ahead:
                    waiting[AsyncTaskFuture(feed.ahead.popleft())] = index
                    index += 1
                if not waiting:
                    return
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
                feed.took(len(done))
                feed.feed(len(waiting))
        finally:
            for future in waiting:
                future.cancel()
            await self.cancel()

    async def reduce(self, merge: Callable[[R, R], R], *, fan_in: int = REDUCE_FAN_IN) -> R:
        """All results merged into one, by the peers, as they come; see `MapResult.reduce`."""
        feed = await self._begin()
        steps = feed.merging(merge, fan_in)
        try:
            while True:
                await await_done(next(steps))
        except StopIteration as end:
            all_: TaskFuture = end.value
            result: R = await AsyncTaskFuture(all_)
            return result
        finally:
            await self.cancel()

    async def _begin(self) -> MapFeed:
        if self._feed is None:
            self._feed = MapFeed(await self._open(), self._function, self._calls)
            self._feed.feed()
        return self._feed

    async def _iterate(self) -> AsyncGenerator[R, None]:
        feed = await self._begin()
        feed.want_each()
        try:
            while feed.ahead:
                result: R = await AsyncTaskFuture(feed.ahead.popleft())
                feed.took()
                feed.feed()
                yield result
        finally:
            await self.cancel()
