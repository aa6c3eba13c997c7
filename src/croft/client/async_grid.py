"""The asyncio twin of `croft.client.grid`: the same calls, awaited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from croft.client.grid import MAP_AHEAD_TASKS
from croft.client.local_api import LocalApi
from croft.client.task_session import Options, TaskSession
from croft.control.home import Home
from croft.control.quantities import duration_s, size_bytes

if TYPE_CHECKING:
    from croft.control import schema

R = TypeVar("R")


class AsyncGrid:
    """The computers of this peer's communities, as one, for asyncio. Made by `connect_async`."""

    def __init__(self, home: Path | None = None) -> None:
        self._home = Home.find(home)
        self._api = LocalApi(self._home.control_socket)
        self._sessions: set[TaskSession] = set()
        self._shared: TaskSession | None = None
        self._opening = asyncio.Lock()

    async def submit(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> asyncio.Future[R]:
        """Starts `function(*args, **kwargs)` on some peer; returns a future to await. Raises as `Grid.submit`."""
        async with self._opening:
            if self._shared is None or self._shared.is_ended:
                self._shared = await self._open_session(Options(label="submit"))
        return asyncio.wrap_future(self._shared.submit(function, args, kwargs))

    async def map(
        self,
        function: Callable[..., R],
        *iterables: Iterable[Any],
        on: Sequence[str] = (),
        avoid: Sequence[str] = (),
        memory: str | int = 0,
        time: str | float = 0,
    ) -> AsyncIterator[R]:
        """Yields the results of `function` on each item, in order; arguments as for `Grid.map`."""
        only, never = await asyncio.gather(self._peer_ids(on), self._peer_ids(avoid))
        label = getattr(function, "__qualname__", type(function).__name__)
        session = await self._open_session(Options(label, only, never, size_bytes(memory), duration_s(time)))
        ahead: deque[asyncio.Future[R]] = deque()
        try:
            for call in zip(*iterables, strict=False):
                ahead.append(asyncio.wrap_future(session.submit(function, call, {})))
                if len(ahead) >= MAP_AHEAD_TASKS:
                    yield await ahead.popleft()
            while ahead:
                yield await ahead.popleft()
        finally:
            for future in ahead:
                future.cancel()
            self._sessions.discard(session)
            await session.close()

    async def status(self) -> schema.Status:
        """Who this peer is, who is here, what is wrong."""
        return await asyncio.to_thread(self._api.status)

    async def peers(self) -> list[schema.Peer]:
        """Every known member, this peer first."""
        return await asyncio.to_thread(self._api.peers)

    async def jobs(self) -> list[schema.Job]:
        """Jobs submitted here, newest first."""
        return await asyncio.to_thread(self._api.jobs)

    async def close(self) -> None:
        """Cancels what is not done, and disconnects. Idempotent."""
        sessions, self._sessions = self._sessions, set()
        for session in sessions:
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _open_session(self, options: Options) -> TaskSession:
        session = TaskSession(options)
        await session.open(self._home.work_socket)
        self._sessions.add(session)
        return session

    async def _peer_ids(self, names: Sequence[str]) -> tuple[str, ...]:
        listed = [names] if isinstance(names, str) else names
        return tuple([(await asyncio.to_thread(self._api.find_peer, name)).peer for name in listed])


async def connect_async(home: str | Path | None = None) -> AsyncGrid:
    """The asyncio twin of `connect`. Raises Unreachable if the peer is not running."""
    grid = AsyncGrid(Path(home) if home is not None else None)
    await grid.status()
    return grid
