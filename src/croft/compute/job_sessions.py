"""What a job remembers of each lender that works for it: which functions and buffers it has."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, assert_never

from croft.compute.environment import Environment
from croft.compute.messages import Declined, FetchBuffer, FetchStored, Opened, OpenTasks, Preparing, Reply
from croft.compute.worker_messages import DropBuffer
from croft.errors import ConnectionLost, Refused, by_code
from croft.model.ids import PeerId
from croft.model.kept import Held
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Stream

OPENING_TIMEOUT_S = 30.0
LEAVE_S_MAX = 0.5
LEAVE_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredInput:
    """A stored file that work wants, at `path` in the folder of a command.

    `content` names it to the peers in `at`, which hold all of it; `read` gives its bytes for others.
    """

    path: str
    size: int
    content: bytes
    at: frozenset[PeerId]
    read: Callable[[], AsyncIterator[bytes | memoryview]]


@dataclass(slots=True)
class Buffer:
    """A buffer of arguments as the messages that bring it to a lender."""

    size: int
    filled: int = 0
    parts: list[bytes] = field(default_factory=list)
    is_used: bool = False
    kept: Held | None = None
    """Who keeps it, of a value that a task has made; then there may be no parts of it here."""
    stored: StoredInput | None = None
    """Of a stored file; `kept` then is a copy that this peer keeps for those who do not hold the file."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether lenders fetch it by themselves."""
        return self.kept is not None or self.stored is not None

    def fetching(self, digest: bytes) -> FetchBuffer | FetchStored:
        """How a lender is told to fetch it."""
        held = self.kept
        if self.stored is not None:
            where = ("", b"") if held is None else (held.peer, held.token)
            return FetchStored(digest, self.size, self.stored.content, *where)
        assert held is not None, "only what is elsewhere is fetched"
        return FetchBuffer(digest, self.size, held.peer, held.token)

    def first_use(self) -> int:
        """Its size at the first call, 0 later."""
        size, self.is_used = 0 if self.is_used else self.size, True
        return size


class Session:
    """A lender's open stream. `end` breaks it off."""

    __slots__ = (
        *("_brought", "buffer_bytes_max", "buffers", "chunk_buffers", "end", "fetching", "functions"),
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
        self.chunk_buffers: dict[int, dict[bytes, int]] = {}
        """What each chunk there needs, and as the how manieth that was brought."""
        self._brought: Counter[bytes] = Counter()
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
        missing = [digest for digest in wanted if digest not in self.buffers]
        self._brought.update(missing)
        self.chunk_buffers[chunk] = {digest: self._brought[digest] for digest in wanted}
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
            if not buffer.parts and buffer.is_elsewhere:
                self.messages.post(buffer.fetching(digest))
        if any(not buffers[digest].parts for digest in wanted):
            self.fetching.add(chunk)
        return ""

    def lost(self, chunk: int, digests: Iterable[bytes]) -> None:
        """The lender could not get these for a chunk; what was brought anew since is there all the same."""
        needed = self.chunk_buffers.get(chunk, {})
        for digest in digests:
            if digest in needed and needed[digest] == self._brought[digest]:
                self.buffers.pop(digest, None)

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
