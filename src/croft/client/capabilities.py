"""Calls of capabilities for `croft.client.grid`: functions that run on somebody else's machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from croft.client.call_session import CallSession, ClientCall
from croft.client.capability import CONSENT_S, Known, choose, document, names
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.twins.call_messages import CallEnded

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


class Calls:
    """The calls of one grid. From any thread."""

    def __init__(self, work_socket: Path, api: LocalApi, run: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self._work_socket = work_socket
        self._api = api
        self._run = run
        self._session: CallSession | None = None
        self._lock = threading.Lock()

    def capability(self, name: str, of: str = "", time_s: float = 0.0, wait_s: float = CONSENT_S) -> Callable[..., Any]:
        """A function that calls it. `of`: a peer or a person by name. Raises NotFound, Usage."""
        provider = self._api.find_provider(of) if of else ""
        return self.function(Known(choose(self._api.capabilities(), name, provider), provider, time_s, wait_s))

    def function(self, known: Known) -> Callable[..., Any]:
        """A function that calls a capability; what it yields comes as an iterator."""

        def call(*positional: Any, **named: Any) -> Any:
            return self.call(known, positional, named)

        document(call, known)
        return call

    def call(self, known: Known, positional: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """One call. Raises BadArgument, Refused, CapabilityFailed, Unreachable."""
        bound, stream = known.bind(positional, named)
        data = known.encoded(bound)
        session = self._open()

        async def begin() -> ClientCall:
            return known.begin(session, data)

        async def whole() -> Any:
            call = known.begin(session, data)
            return known.value(await call.result(), call.provider)

        if stream is None and not known.signature.streams:
            return self._run(whole())
        call = self._run(begin())
        if stream is not None:
            threading.Thread(target=self._feed, args=(known, call, stream), name="croft.stream", daemon=True).start()
        return self._items(known, call) if known.signature.streams else self._ended(known, call)

    async def close(self) -> None:
        """Stops the calls that are open."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> CallSession:
        with self._lock:
            if self._session is None or self._session.is_ended:
                self._session = self._run(CallSession.open(self._work_socket))
            return self._session

    def _ended(self, known: Known, call: ClientCall) -> Any:
        return known.value(self._run(call.result()), call.provider)

    def _items(self, known: Known, call: ClientCall) -> Iterator[Any]:
        async def stop() -> None:
            call.stop()

        try:
            while not isinstance(answer := self._run(call.item()), CallEnded):
                yield known.value(answer, call.provider)
        finally:
            self._run(stop())

    def _feed(self, known: Known, call: ClientCall, stream: Iterable[Any]) -> None:
        async def finish() -> None:
            call.finish_input()

        async def fail(error: Exception) -> None:
            call.fail(error)

        try:
            for item in stream:
                if not self._run(call.send(known.encoded_item(item))):
                    return
        except Exception as error:
            # It is raised where the result is waited for.
            self._run(fail(error))
        else:
            self._run(finish())


class Twin:
    """Somebody's capabilities, as methods."""

    def __init__(self, calls: Calls, provider: str, offered: Callable[[], list[schema.Capability]], name: str) -> None:
        self._calls = calls
        self._provider = provider
        self._offered = offered
        self._name = name

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._calls.function(Known(choose(self._offered(), name, self._provider), self._provider))

    def __dir__(self) -> list[str]:
        return names([one for one in self._offered() if self._provider in (one.peer, one.twin)])

    def __repr__(self) -> str:
        return f"<twin {self._name}: {', '.join(self.__dir__()) or 'nothing'}>"
