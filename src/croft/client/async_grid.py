"""The asyncio twin of `croft.client.grid`: the same calls, awaited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from croft.client.async_capabilities import AsyncCalls, AsyncTwin
from croft.client.backups import AsyncBackups, Backups
from croft.client.capabilities import AsyncLeftCall, LeftCall, leaving
from croft.client.capability import CONSENT_S
from croft.client.environments_asked import environment_of
from croft.client.grid import MAP_AHEAD_TASKS
from croft.client.local_api import LocalApi
from croft.client.messages import AsyncMessages, Messages
from croft.client.pipelines import AsyncPipeline, AsyncPipelineRun, Pipeline, PipelineRun
from croft.client.stored_files import AsyncStoredFiles, StoredFiles
from croft.client.task import How, Wants, names_of, plain, wants_of
from croft.client.task_session import Options, TaskSession
from croft.control.home import Home

if TYPE_CHECKING:
    from croft.control import schema

R = TypeVar("R")


class AsyncGrid:
    """The computers of this peer's communities, as one, for asyncio. Made by `connect_async`."""

    def __init__(self, home: Path | None = None, environment: Sequence[str] = ()) -> None:
        self._home = Home.find(home)
        self._environment = tuple(environment)
        self._api = LocalApi(self._home.control_socket)
        self.storage = AsyncStoredFiles(StoredFiles(self._home, self._api))
        self.backup = AsyncBackups(Backups(self._home, self._api))
        self.messages = AsyncMessages(Messages(self._api))
        self._calls = AsyncCalls(self._home.work_socket, self._api)
        self._sessions: set[TaskSession] = set()
        self._shared: dict[Wants, TaskSession] = {}
        self._opening = asyncio.Lock()

    async def submit(self, function: Callable[..., R], /, *args: Any, **kwargs: Any) -> asyncio.Future[R]:
        """Starts `function(*args, **kwargs)` on some peer; returns a future to await. Raises as `Grid.submit`."""
        wants = wants_of(function)
        async with self._opening:
            session = self._shared.get(wants)
            if session is None or session.is_ended:
                session = self._shared[wants] = await self._open_session(await self._options("submit", wants))
        return asyncio.wrap_future(session.submit(plain(function), args, kwargs))

    async def map(
        self, function: Callable[..., R], *iterables: Iterable[Any], name: str = "", **how: Unpack[How]
    ) -> AsyncIterator[R]:
        """Yields the results of `function` on each item, in order; arguments as for `Grid.map`."""
        calls = zip(*iterables, strict=False)
        async for result in self.starmap(function, calls, name=name, **how):
            yield result

    async def starmap(
        self, function: Callable[..., R], calls: Iterable[Iterable[Any]], *, name: str = "", **how: Unpack[How]
    ) -> AsyncIterator[R]:
        """Like `map`, for arguments that come in tuples already; see `Grid.starmap`."""
        wants = Wants.of(function, how)
        label = getattr(function, "__qualname__", type(function).__name__)
        session = await self._open_session(await self._options(name or label, wants))
        ahead: deque[asyncio.Future[R]] = deque()
        inner = plain(function)
        try:
            for call in calls:
                ahead.append(asyncio.wrap_future(session.submit(inner, tuple(call), {})))
                if len(ahead) >= MAP_AHEAD_TASKS:
                    yield await ahead.popleft()
            while ahead:
                yield await ahead.popleft()
        finally:
            for future in ahead:
                future.cancel()
            self._sessions.discard(session)
            await session.close()

    async def capability(
        self, name: str, *, of: str = "", timeout_s: float = 0.0, consent_s: float = CONSENT_S
    ) -> Callable[..., Any]:
        """A function that runs at whoever offers a capability; see `Grid.capability`. Its calls are to be awaited, or,
        where results stream, iterated over by `async for`."""
        return await self._calls.capability(name, of, timeout_s, consent_s)

    async def leave(self, name: str, *, of: str = "") -> Callable[..., Awaitable[AsyncLeftCall]]:
        """A function that leaves a call for somebody who may be away; see `Grid.leave`. Its calls are to be awaited."""
        leave = await asyncio.to_thread(leaving, self._api, name, of)

        async def left(*positional: Any, **named: Any) -> AsyncLeftCall:
            return AsyncLeftCall(await asyncio.to_thread(leave, *positional, **named))

        return left

    async def left_call(self, id_: str) -> AsyncLeftCall:
        """A call that was left before; see `Grid.left_call`."""
        status = await asyncio.to_thread(self._api.left_call, id_)
        return AsyncLeftCall(LeftCall(self._api, status.call))

    def pipeline(self) -> AsyncPipeline:
        """Stages for items; see `Grid.pipeline`."""
        return AsyncPipeline(Pipeline(self._home.work_socket, self._api))

    async def pipeline_run(self, name: str) -> AsyncPipelineRun:
        """A pipeline of this peer's owner; see `Grid.pipeline_run`."""
        status = await asyncio.to_thread(self._api.pipeline, name)
        return AsyncPipelineRun(PipelineRun(self._home.work_socket, self._api, status.pipeline))

    async def twin(self, name: str) -> AsyncTwin:
        """A person's capabilities, or a peer's, as methods: `await (await grid.twin("maria")).transcribe(path)`."""
        return await self._calls.twin(name)

    async def capabilities(self) -> list[schema.Capability]:
        """What others let the owner call, and what this peer offers."""
        return await asyncio.to_thread(self._api.capabilities)

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
        await self._calls.close()

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

    async def _options(self, label: str, wants: Wants) -> Options:
        on, avoid = await asyncio.gather(self._peer_ids(wants.on), self._peer_ids(wants.avoid))
        sources = wants.environment or self._environment
        environment = await asyncio.to_thread(environment_of, self._home, sources) if sources else None
        return Options.of(label, on, avoid, wants, environment)

    async def _peer_ids(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple([(await asyncio.to_thread(self._api.find_peer, name)).peer for name in names])


async def connect_async(home: str | Path | None = None, *, environment: str | Sequence[str] = ()) -> AsyncGrid:
    """The asyncio twin of `connect`. Raises Unreachable if the peer is not running."""
    grid = AsyncGrid(Path(home) if home is not None else None, names_of(environment))
    await grid.status()
    return grid
