"""The asyncio twin of `croft.client.grid`: the same calls, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

from croft.client.async_capabilities import AsyncCalls, AsyncTwin
from croft.client.async_jobs import AsyncJob
from croft.client.async_map import AsyncMapResult
from croft.client.async_tasks import AsyncTaskFuture
from croft.client.backups import AsyncBackups, Backups
from croft.client.capabilities import AsyncLeftCall, LeftCall, leaving
from croft.client.capability import CONSENT_S
from croft.client.durable import check_detached, submit_durable
from croft.client.environments_asked import environment_of
from croft.client.local_api import LocalApi
from croft.client.map_feed import Zipped, name_of
from croft.client.messages import AsyncMessages, Messages
from croft.client.pipelines import AsyncPipeline, AsyncPipelineRun, Pipeline, PipelineRun
from croft.client.stored_files import AsyncStoredFiles, StoredFiles
from croft.client.task import How, Wants, names_of, plain, wants_of
from croft.client.task_options import Options
from croft.client.task_session import TaskSession
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
        return AsyncTaskFuture(session.submit(plain(function), args, kwargs, stays=True))

    @overload
    def map(
        self,
        function: Callable[..., R],
        *iterables: Iterable[Any],
        name: str = "",
        detach: Literal[False] = False,
        **how: Unpack[How],
    ) -> AsyncMapResult[R]: ...

    @overload
    def map(
        self,
        function: Callable[..., R],
        *iterables: Iterable[Any],
        name: str = "",
        detach: Literal[True],
        delegates: int | Sequence[str] | None = None,
        **how: Unpack[How],
    ) -> Awaitable[AsyncJob[R]]: ...

    def map(
        self,
        function: Callable[..., R],
        *iterables: Iterable[Any],
        name: str = "",
        detach: bool = False,
        delegates: int | Sequence[str] | None = None,
        **how: Unpack[How],
    ) -> AsyncMapResult[R] | Awaitable[AsyncJob[R]]:
        """The results of `function` on each item, in order, by `async for`; arguments as for `Grid.map`.

        With `detach`, to be awaited: the job, which outlives this program.
        """
        calls = Zipped(iterables)
        # No overload takes a `detach` of which only the value tells which result there is.
        return self.starmap(function, calls, name=name, detach=detach, delegates=delegates, **how)  # type: ignore[call-overload,no-any-return]

    @overload
    def starmap(
        self,
        function: Callable[..., R],
        calls: Iterable[Iterable[Any]],
        *,
        name: str = "",
        detach: Literal[False] = False,
        **how: Unpack[How],
    ) -> AsyncMapResult[R]: ...

    @overload
    def starmap(
        self,
        function: Callable[..., R],
        calls: Iterable[Iterable[Any]],
        *,
        name: str = "",
        detach: Literal[True],
        delegates: int | Sequence[str] | None = None,
        **how: Unpack[How],
    ) -> Awaitable[AsyncJob[R]]: ...

    def starmap(
        self,
        function: Callable[..., R],
        calls: Iterable[Iterable[Any]],
        *,
        name: str = "",
        detach: bool = False,
        delegates: int | Sequence[str] | None = None,
        **how: Unpack[How],
    ) -> AsyncMapResult[R] | Awaitable[AsyncJob[R]]:
        """Like `map`, for arguments that come in tuples already; see `Grid.starmap`."""
        wants = Wants.of(function, how)
        each = (tuple(call) for call in calls)
        label = name or name_of(function)
        if detach:
            return self._detach(label, wants, plain(function), each, delegates)

        async def opened() -> TaskSession:
            return await self._open_session(await self._options(label, wants))

        return AsyncMapResult(opened, self._release, plain(function), each)

    async def job(self, name: str) -> AsyncJob[Any]:
        """A detached job by its id, the beginning of its id, or its name. Raises NotFound."""
        status = await asyncio.to_thread(self._api.job, name)
        return AsyncJob(self._api, self._home.work_socket, status.job)

    async def _detach(
        self,
        label: str,
        wants: Wants,
        function: Callable[..., R],
        calls: Iterator[tuple[Any, ...]],
        delegates: int | Sequence[str] | None,
    ) -> AsyncJob[R]:
        check_detached(wants)
        options = await self._options(label, wants)
        chosen = (
            delegates if delegates is None or isinstance(delegates, int) else await self._peer_ids(names_of(delegates))
        )
        loop = asyncio.get_running_loop()

        def run(work: Coroutine[Any, Any, Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        # The input may block, and so may pickling a million items: neither is to hold up the loop.
        job = await asyncio.to_thread(submit_durable, self._home.work_socket, run, options, function, calls, chosen)
        return AsyncJob(self._api, self._home.work_socket, job)

    async def _release(self, session: TaskSession) -> None:
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
