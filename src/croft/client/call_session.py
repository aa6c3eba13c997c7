"""This program's connection for calls of capabilities: one for all of them, each call with a number of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from croft.client.local_api import not_running
from croft.control.socket_stream import SocketStream
from croft.control.work_messages import JobFailed, OpenCalls
from croft.errors import ConnectionLost, CroftError, Unreachable, by_code
from croft.twins.call_messages import (
    ITEMS_AHEAD,
    VALUE_PART_BYTES_MAX,
    ArgumentPart,
    AskCall,
    CallAt,
    CallEnded,
    CallFailed,
    CallRaised,
    CallWaits,
    InputEnd,
    InputItem,
    InputWanted,
    MoreWanted,
    StopCall,
    ToCaller,
    ValuePart,
    is_last,
)
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

STEP: Final = "local calls"
READ_BYTES_MAX: Final = 4 << 20


class CallSession:
    """The connection. All methods on the loop on which it was opened."""

    def __init__(self, messages: MessageStream) -> None:
        self._messages = messages
        self._calls: dict[int, ClientCall] = {}
        self._numbers = itertools.count(1)
        self._ended: CroftError | None = None
        self._reading = asyncio.create_task(self._read(), name="calls.read")

    @classmethod
    async def open(cls, work_socket: Path) -> CallSession:
        """Connects to the daemon. Raises Unreachable if it is not running."""
        try:
            reader, writer = await asyncio.open_unix_connection(work_socket, limit=READ_BYTES_MAX)
        except (FileNotFoundError, ConnectionRefusedError):
            raise not_running() from None
        messages = MessageStream(SocketStream(reader, writer), step=STEP)
        messages.post(OpenCalls())
        return cls(messages)

    @property
    def is_ended(self) -> bool:
        """Whether the daemon has hung up."""
        return self._ended is not None

    def begin(self, asked: AskCall, arguments: bytes) -> ClientCall:
        """Makes a call; its number is chosen here. Raises what ended the connection."""
        if self._ended is not None:
            raise self._ended
        number = next(self._numbers)
        call = self._calls[number] = ClientCall(self, number)
        first = arguments[:VALUE_PART_BYTES_MAX]
        self.post(
            AskCall(
                number,
                asked.name,
                first,
                len(first) == len(arguments),
                *(asked.signature, asked.key, asked.wait_s, asked.time_s_max, asked.of),
            )
        )
        for at, part in _parts(arguments, VALUE_PART_BYTES_MAX):
            self.post(ArgumentPart(number, part, at + len(part) == len(arguments)))
        return call

    def post(self, message: object) -> None:
        """Sends one message."""
        with contextlib.suppress(ConnectionLost):
            self._messages.post(message)  # type: ignore[arg-type]  # all of these are messages

    def forget(self, number: int) -> None:
        """A call is over."""
        self._calls.pop(number, None)

    async def close(self) -> None:
        """Hangs up: open calls are stopped."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._messages.close()

    async def _read(self) -> None:
        ended: CroftError = Unreachable("the daemon ended, and the calls with it", remedy="Start it with `croft up`.")
        try:
            while (payload := await self._messages.receive()) is not None:
                message: ToCaller | JobFailed = decode_union(payload, ToCaller | JobFailed, step=STEP)
                if isinstance(message, JobFailed):
                    ended = by_code(message.code, message.message, message.remedy)
                    break
                if call := self._calls.get(message.call):
                    call.heard(message)
        except ConnectionLost:
            pass
        finally:
            self._ended = ended
            for call in list(self._calls.values()):
                call.heard(CallFailed(0, ended.code, ended.message, ended.remedy, has_begun=True))


class ClientCall:
    """One call. `provider` is who runs it, by name, once that is known."""

    def __init__(self, session: CallSession, number: int) -> None:
        self.provider = ""
        self.on_provider: Callable[[str], None] = lambda provider: None
        """Told, on the loop, who is asked to run it; again if that is somebody else in the end."""
        self.on_wait: Callable[[str], None] = lambda provider: None
        """Told, on the loop, when the provider's owner is asked for consent."""
        self._session = session
        self._number = number
        self._parts: list[bytes] = []
        self._items: deque[bytes] = deque()
        self._end: CallEnded | CallRaised | CallFailed | bytes | None = None
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._input_room = ITEMS_AHEAD

    def heard(self, message: ToCaller) -> None:
        """Something about this call."""
        match message:
            case CallAt(_, _, name):
                self.provider = name
                self.on_provider(name)
                return
            case CallWaits():
                self.on_wait(self.provider)
            case InputWanted(_, items):
                self._input_room += items
            case ValuePart(_, data, is_whole, is_item):
                self._parts.append(data)
                if is_whole:
                    value = b"".join(self._parts) if len(self._parts) > 1 else data
                    self._parts = []
                    if is_item:
                        self._items.append(value)
                    else:
                        self._end = value
            case CallEnded() | CallRaised() | CallFailed():
                self._end = message
        if is_last(message):
            self._session.forget(self._number)
        self._changed.set()

    async def result(self) -> bytes | CallRaised | CallFailed | CallEnded:
        """How it ended. Stops the call if this is cancelled."""
        try:
            while self._end is None:
                await self._change()
            if self._error is not None:
                raise self._error
            return self._end
        finally:
            self.stop()

    async def item(self) -> bytes | CallRaised | CallFailed | CallEnded:
        """The next item of the result, or how it ended."""
        while not self._items and self._end is None:
            await self._change()
        if self._items:
            self._session.post(MoreWanted(self._number, 1))
            return self._items.popleft()
        if self._error is not None:
            raise self._error
        assert self._end is not None, "it waited for that"
        return self._end

    async def send(self, item: bytes) -> bool:
        """Sends an item of the stream into the call, once there is room; whether the call still wants any."""
        while self._input_room <= 0 and self._end is None:
            await self._change()
        if self._end is not None:
            return False
        self._input_room -= 1
        first = item[:VALUE_PART_BYTES_MAX]
        self._session.post(InputItem(self._number, first, len(first) == len(item)))
        for at, part in _parts(item, VALUE_PART_BYTES_MAX):
            self._session.post(ArgumentPart(self._number, part, at + len(part) == len(item)))
        return True

    def finish_input(self) -> None:
        """No more items come."""
        self._session.post(InputEnd(self._number))

    def fail(self, error: Exception) -> None:
        """The stream into the call failed here: the call is stopped, and whoever waits for it is told."""
        if self._end is None:
            self._error = error
            self.stop()

    def stop(self) -> None:
        """Ends the call if it is not over. Idempotent."""
        if self._end is None:
            self._end = CallFailed(self._number, "cancelled", "the call was stopped here", has_begun=True)
            self._session.forget(self._number)
            self._session.post(StopCall(self._number))
            self._changed.set()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _parts(data: bytes, first: int) -> Iterator[tuple[int, bytes]]:
    for at in range(first, len(data), VALUE_PART_BYTES_MAX):
        yield at, data[at : at + VALUE_PART_BYTES_MAX]
