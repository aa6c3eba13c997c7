"""The results of a map, for a program that waits for them: in order, as they are done, or merged by the peers."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, Self, TypeVar

from croft.client.map_feed import REDUCE_FAN_IN, MapFeed, name_of
from croft.client.task_future import TaskFuture
from croft.client.task_session import TaskSession

R = TypeVar("R")


class Sessions(Protocol):
    """Who has opened the session; see `croft.client.grid.Grid`."""

    def release(self, session: TaskSession) -> None:
        """Closes a session that is no longer needed."""
        ...


class MapResult(Generic[R]):
    """The results of a map, in the order of its input. Iterate once; leaving early cancels the rest."""

    def __init__(
        self,
        sessions: Sessions,
        session: TaskSession,
        function: Callable[..., R],
        calls: Iterator[tuple[Any, ...]],
        size: int | None,
    ) -> None:
        self._sessions = sessions
        self._size = size
        self._name = name_of(function)
        self._feed = MapFeed(session, function, calls)
        self._results = self._iterate()
        self._feed.feed()

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        return next(self._results)

    @property
    def done_by(self) -> dict[str, int]:
        """How many tasks each peer did so far, by name."""
        return dict(self._feed.session.done_by)

    @property
    def liars(self) -> dict[str, list[int]]:
        """Peers that were found to lie, with the items whose results from them had come before, unchecked."""
        return dict(self._feed.session.liars)

    def with_progress(self, total: int | None = None) -> Self:
        """Shows on the terminal how far it is while results are taken: tasks done, how many a second, time left, peers.

        `total`: how many there are, where the input does not tell. Off a terminal nothing is shown.
        """
        from croft.client.progress import shown

        total = self._size if total is None else total
        self._results = shown(self._results, lambda: self._feed.session.done_by, self._name, total)
        return self

    def cancel(self) -> None:
        """Cancels what is not done, here and on the peers."""
        self._feed.cancel()
        self._sessions.release(self._feed.session)

    def as_completed(self) -> Iterator[tuple[int, R]]:
        """Pairs of (index in the input, result) in the order in which they are done, instead of iterating."""
        feed = self._feed
        feed.want_each()
        index = 0
        waiting: dict[concurrent.futures.Future[R], int] = {}
        try:
            while True:
                while feed.ahead:
                    waiting[feed.ahead.popleft()] = index
                    index += 1
                if not waiting:
                    return
                done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
                feed.took(len(done))
                feed.feed(len(waiting))
        finally:
            for future in waiting:
                future.cancel()
            self.cancel()

    def reduce(self, merge: Callable[[R, R], R], *, fan_in: int = REDUCE_FAN_IN) -> R:
        """All results merged into one, by the peers, as they come; instead of iterating.

        Neighbours are merged, `fan_in` at a time, then what came of that, and so on: a tree. So `merge` must be
        associative and need not be commutative. Large results are merged where they lie; of small ones, what is here at
        a time grows with the logarithm of their number.

        Raises:
            Usage: there is nothing to merge, or `fan_in` is below 2. Whatever a task raises.
        """
        steps = self._feed.merging(merge, fan_in)
        try:
            while True:
                _await_done(next(steps))
        except StopIteration as end:
            all_: TaskFuture = end.value
            result: R = all_.result()
            return result
        finally:
            self.cancel()

    def _iterate(self) -> Iterator[R]:
        feed = self._feed
        feed.want_each()
        try:
            while feed.ahead:
                result = feed.ahead.popleft().result()
                feed.took()
                feed.feed()
                yield result
        finally:
            self.cancel()


def _await_done(future: TaskFuture) -> None:
    """Waits until a task is done; its value may be elsewhere. Raises what it has raised."""
    if (error := future.exception()) is not None:
        raise error
