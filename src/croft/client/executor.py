"""A complete `concurrent.futures.Executor` whose workers are the peers."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from croft.client.task_future import TaskFuture
from croft.client.task_session import TaskSession

if TYPE_CHECKING:
    from croft.client.grid import Grid

R = TypeVar("R")


class GridExecutor(concurrent.futures.Executor):
    """One job; calls are tasks. See `Grid.executor`."""

    def __init__(self, grid: Grid, session: TaskSession) -> None:
        self._grid = grid
        self._session = session
        self._open: set[TaskFuture] = set()
        self._lock = threading.Lock()
        self._is_shut_down = False

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[R]:
        """See `concurrent.futures.Executor.submit`. Raises Unserialisable or TooLarge at once."""
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            future = self._session.submit(fn, args, kwargs)
            self._open.add(future)
        future.add_done_callback(self._done)
        return future

    def map(
        self, fn: Callable[..., R], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[R]:
        """See `concurrent.futures.Executor.map`. `chunksize` items make one task; 1 is fine, tasks are batched."""
        if chunksize < 1:
            raise ValueError("chunksize must be at least 1")
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        if chunksize == 1:
            futures = [self.submit(fn, *call) for call in calls]
            return _results(futures, deadline)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        lists = _results([self.submit(_call_each, fn, chunk) for chunk in chunks], deadline)
        return itertools.chain.from_iterable(lists)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor.shutdown`."""
        with self._lock:
            self._is_shut_down = True
            unfinished = list(self._open)
        if cancel_futures:
            for future in unfinished:
                future.cancel()
        if wait:
            concurrent.futures.wait(unfinished)
        if wait or not unfinished:
            self._grid.release(self._session)

    def _done(self, future: concurrent.futures.Future[Any]) -> None:
        with self._lock:
            self._open.discard(future)


def _call_each(function: Callable[..., R], calls: list[tuple[Any, ...]]) -> list[R]:
    return [function(*call) for call in calls]


def _results(futures: list[concurrent.futures.Future[R]], deadline: float | None) -> Iterator[R]:
    futures.reverse()
    try:
        while futures:
            future = futures.pop()
            try:
                result = future.result(None if deadline is None else deadline - time.monotonic())
            finally:
                future.cancel()
            yield result
    finally:
        for future in futures:
            future.cancel()
