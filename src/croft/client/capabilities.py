"""Calls of capabilities for `croft.client.grid`: functions that run on somebody else's machine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from croft.client.call_session import CallSession, ClientCall
from croft.client.capability import CONSENT_S, Known, choose, document, names, with_files
from croft.client.local_api import LocalApi
from croft.control import schema
from croft.errors import TimedOut, Usage, by_code
from croft.twins.call_messages import CallEnded
from croft.wire.values import decode_value

WAIT_S = 20.0

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

    def left(self, name: str, of: str = "") -> Callable[..., LeftCall]:
        """A function that leaves a call for whoever offers it. Raises NotFound, Usage."""
        return leaving(self._api, name, of)

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


def leaving(api: LocalApi, name: str, of: str = "") -> Callable[..., LeftCall]:
    """A function that leaves a call for whoever offers it. Raises NotFound, Usage for what streams."""
    provider = api.find_provider(of) if of else ""
    known = Known(choose(api.capabilities(), name, provider), provider)
    if known.signature.streams or known.signature.stream_in:
        raise Usage(f"`{name}` streams, and cannot be left", remedy="Call it when its owner is up.")

    def leave(*positional: Any, **named: Any) -> LeftCall:
        bound, _ = known.bind(positional, named)
        offered = known.offered
        wanted = schema.LeftCallWanted(
            name=offered.name,
            peer=offered.peer,
            arguments=known.encoded(bound),
            digest=offered.digest,
            is_idempotent=offered.is_idempotent,
        )
        return LeftCall(api, api.leave_call(wanted).call)

    document(leave, known)
    return leave


class LeftCall:
    """A call that was left for somebody; `id` finds it again."""

    def __init__(self, api: LocalApi, id_: str) -> None:
        self._api = api
        self.id = id_

    def status(self) -> schema.LeftCall:
        """Whether it was answered."""
        return self._api.left_call(self.id)

    def result(self, timeout_s: float | None = None) -> Any:
        """What it gave, once that is known. Raises TimedOut; CapabilityFailed, Refused as its provider said."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = WAIT_S if deadline is None else min(WAIT_S, deadline - time.monotonic())
            status = self._api.left_call(self.id, max(0.0, left_s))
            if status.state == "done":
                return with_files(decode_value(bytearray(self._api.left_value(self.id).value)))
            if status.state == "failed":
                raise by_code(status.code, f"`{status.name}` of {status.by}: {status.message}", status.remedy)
            if left_s <= 0:
                raise TimedOut(f"{status.by} has not answered yet", remedy=f"See later: `croft calls {self.id[:8]}`.")


class AsyncLeftCall:
    """The asyncio twin of `LeftCall`."""

    def __init__(self, left: LeftCall) -> None:
        self._left = left
        self.id = left.id

    async def status(self) -> schema.LeftCall:
        """See `LeftCall.status`."""
        return await asyncio.to_thread(self._left.status)

    async def result(self, timeout_s: float | None = None) -> Any:
        """See `LeftCall.result`."""
        return await asyncio.to_thread(self._left.result, timeout_s)


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
