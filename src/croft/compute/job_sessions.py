"""What a job remembers of each lender that works for it: which functions and buffers it has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from croft.compute.environment import Environment
from croft.compute.messages import Declined, FetchBuffer, Opened, OpenTasks, Preparing, Reply
from croft.compute.worker_messages import DropBuffer
from croft.errors import ConnectionLost, Refused, by_code
from croft.model.kept import Held
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Stream

OPENING_TIMEOUT_S = 30.0
LEAVE_S_MAX = 0.5
LEAVE_READ_BYTES = 1 << 20


@dataclass(slots=True)
class Buffer:
    """A buffer of arguments as the messages that bring it to a lender."""

    size: int
    filled: int = 0
    parts: list[bytes] = field(default_factory=list)
    is_used: bool = False
    kept: Held | None = None
    """Who keeps it, of a value that a task has made; then there may be no parts of it here."""

    def first_use(self) -> int:
        """Its size at the first call, 0 later."""
        size, self.is_used = 0 if self.is_used else self.size, True
        return size


class Session:
    """A lender's open stream. `end` breaks it off."""

    __slots__ = (
        *("buffer_bytes_max", "buffers", "chunk_buffers", "end", "fetching", "functions"),
        *("keeping", "keeps_results", "messages", "slots"),
    )

    def __init__(self, messages: MessageStream, opened: Opened, slots: int, end: Callable[[], None]) -> None:
        self.messages = messages
        self.end = end
        self.slots = slots
        self.functions = set(opened.functions)
        self.buffer_bytes_max = opened.buffer_bytes_max
        self.buffers: dict[bytes, int] = {}
        """What the lender has, and how large it is."""
        self.chunk_buffers: dict[int, set[bytes]] = {}
        self.keeps_results = opened.keeps_results
        self.keeping: set[int] = set()
        """Chunks whose results may stay there."""
        self.fetching: set[int] = set()
        """Chunks that need what the lender fetches by itself."""

    def bring(self, chunk: int, needs: Sequence[list[bytes]], buffers: Mapping[bytes, Buffer]) -> str:
        """Sends what the lender lacks for a chunk; for want of room, drops first what nothing there uses.

        Returns why not, if the lender could never hold it.
        """
        wanted = {digest for digests in needs for digest in digests}
        size = sum(buffers[digest].size for digest in wanted)
        if size > self.buffer_bytes_max:
            return f"its arguments take {size:,} bytes, its box has room for {self.buffer_bytes_max:,}"
        self.chunk_buffers[chunk] = wanted
        missing = [digest for digest in wanted if digest not in self.buffers]
        used = set().union(*self.chunk_buffers.values())
        room = self.buffer_bytes_max - sum(self.buffers.values()) - sum(buffers[digest].size for digest in missing)
        for digest in [digest for digest in self.buffers if digest not in used]:
            if room >= 0:
                break
            room += self.buffers[digest]
            self.drop([digest])
        for digest in missing:
            buffer = buffers[digest]
            self.buffers[digest] = buffer.size
            for payload in buffer.parts:
                self.messages.post_encoded(payload)
            if not buffer.parts and buffer.kept is not None:
                self.messages.post(FetchBuffer(digest, buffer.size, buffer.kept.peer, buffer.kept.token))
        if any(not buffers[digest].parts for digest in wanted):
            self.fetching.add(chunk)
        return ""

    def forget_chunk(self, chunk: int) -> None:
        """A chunk is over."""
        self.chunk_buffers.pop(chunk, None)
        self.keeping.discard(chunk)
        self.fetching.discard(chunk)

    def drop(self, digests: Iterable[bytes]) -> None:
        """Says that the lender need not keep these."""
        for digest in digests:
            if self.buffers.pop(digest, None) is not None:
                with contextlib.suppress(ConnectionLost):
                    self.messages.post(DropBuffer(digest))


async def await_opened(messages: MessageStream, asked: OpenTasks) -> Opened:
    """Asks a lender for slots. Raises what it declines with, ConnectionLost."""
    messages.post(asked)
    while True:
        try:
            async with asyncio.timeout(OPENING_TIMEOUT_S):
                payload = await messages.receive()
        except TimeoutError:
            raise ConnectionLost("no answer to the opening") from None
        if payload is None:
            raise ConnectionLost("closed during the opening")
        reply: Reply = decode_union(payload, Reply, step="opening of tasks")
        match reply:
            case Opened():
                check_prepared(asked.environment, reply)
                return reply
            case Declined(code, message, remedy):
                raise by_code(code, message, remedy)
            case Preparing():
                pass
            case _:
                assert_never(reply)


async def take_leave(stream: Stream) -> None:
    """Ends a session in order: the lender need not keep its lease for a peer that was lost."""
    with contextlib.suppress(ConnectionLost, TimeoutError):
        async with asyncio.timeout(LEAVE_S_MAX):
            await stream.finish()
            while await stream.read(LEAVE_READ_BYTES):
                pass


def check_prepared(environment: Environment | None, opened: Opened) -> None:
    """Raises Refused if a lender would run work without the environment that it needs."""
    if environment is not None and opened.environment != environment.digest:
        raise Refused("its Croft knows nothing of environments", remedy="Its owner should take a newer one.")
