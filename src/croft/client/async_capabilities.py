"""Calls of capabilities for `croft.client.async_grid`: the asyncio twin of `croft.client.capabilities`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from croft.client.call_session import CallSession, ClientCall
from croft.client.capability import CONSENT_S, Known, choose, document, names
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.twins.call_messages import CallEnded


class AsyncCalls:
    """The calls of one grid, on the loop that uses it."""

    def __init__(self, work_socket: Path, api: LocalApi) -> None:
        self._work_socket = work_socket
        self._api = api
        self._session: CallSession | None = None
        self._opening = asyncio.Lock()

    async def capability(
        self, name: str, of: str = "", time_s: float = 0.0, wait_s: float = CONSENT_S
    ) -> Callable[..., Any]:
        """A function that calls it; see `croft.client.capabilities.Calls.capability`."""
        provider = await asyncio.to_thread(self._api.find_provider, of) if of else ""
        offered = await asyncio.to_thread(self._api.capabilities)
        return self.function(Known(choose(offered, name, provider), provider, time_s, wait_s))

    async def twin(self, name: str) -> AsyncTwin:
        """A person's capabilities, or a peer's. Raises NotFound, Usage."""
        provider = await asyncio.to_thread(self._api.find_provider, name)
        return AsyncTwin(self, provider, await asyncio.to_thread(self._api.capabilities))

    def function(self, known: Known) -> Callable[..., Any]:
        """A function that calls a capability: to be awaited, or, where results stream, to be iterated over."""

        async def call(*positional: Any, **named: Any) -> Any:
            return await self._whole(known, positional, named)

        def stream(*positional: Any, **named: Any) -> AsyncIterator[Any]:
            return self._items(known, positional, named)

        function = stream if known.signature.streams else call
        document(function, known)
        return function

    async def close(self) -> None:
        """Stops the calls that are open."""
        if self._session is not None:
            await self._session.close()

    async def _whole(self, known: Known, positional: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        call, feeding = await self._begin(known, positional, named)
        try:
            return known.value(await call.result(), call.provider)
        finally:
            await _end(call, feeding)

    async def _items(self, known: Known, positional: tuple[Any, ...], named: Mapping[str, Any]) -> AsyncIterator[Any]:
        call, feeding = await self._begin(known, positional, named)
        try:
            while not isinstance(answer := await call.item(), CallEnded):
                yield known.value(answer, call.provider)
        finally:
            await _end(call, feeding)

    async def _begin(
        self, known: Known, positional: tuple[Any, ...], named: Mapping[str, Any]
    ) -> tuple[ClientCall, asyncio.Task[None] | None]:
        bound, stream = known.bind(positional, named)
        arguments = known.encoded(bound)
        async with self._opening:
            if self._session is None or self._session.is_ended:
                self._session = await CallSession.open(self._work_socket)
        call = known.begin(self._session, arguments)
        return call, None if stream is None else asyncio.create_task(_feed(known, call, stream), name="croft.stream")


class AsyncTwin:
    """Somebody's capabilities, as they were when this was made, as methods to be awaited or iterated over."""

    def __init__(self, calls: AsyncCalls, provider: str, offered: Sequence[schema.Capability]) -> None:
        self._calls = calls
        self._provider = provider
        self._offered = [one for one in offered if provider in (one.peer, one.twin)]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._calls.function(Known(choose(self._offered, name), self._provider))

    def __dir__(self) -> list[str]:
        return names(self._offered)


async def _feed(known: Known, call: ClientCall, stream: Iterable[Any] | AsyncIterator[Any]) -> None:
    try:
        async for item in _each(stream):
            if not await call.send(known.encoded_item(item)):
                return
    except Exception as error:
        call.fail(error)  # it is raised where the result is waited for
    else:
        call.finish_input()


async def _each(stream: Iterable[Any] | AsyncIterator[Any]) -> AsyncIterator[Any]:
    if isinstance(stream, Iterable):
        for item in stream:
            yield item
    else:
        async for item in stream:
            yield item


async def _end(call: ClientCall, feeding: asyncio.Task[None] | None) -> None:
    call.stop()
    if feeding is not None:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
