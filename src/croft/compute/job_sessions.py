"""What a job remembers of each lender that works for it: which functions and buffers it has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from croft.compute.environment import Environment
from croft.compute.messages import Opened
from croft.compute.worker_messages import DropBuffer
from croft.errors import ConnectionLost, Refused
from croft.wire.message_stream import MessageStream


@dataclass(slots=True)
class Buffer:
    """A buffer of arguments as the messages that bring it to a lender."""

    size: int
    filled: int = 0
    parts: list[bytes] = field(default_factory=list)
    is_used: bool = False

    def first_use(self) -> int:
        """Its size at the first call, 0 later."""
        size, self.is_used = 0 if self.is_used else self.size, True
        return size


class Session:
    """A lender's open stream. `end` breaks it off."""

    __slots__ = ("buffer_bytes_max", "buffers", "chunk_buffers", "end", "functions", "messages", "slots")

    def __init__(self, messages: MessageStream, opened: Opened, slots: int, end: Callable[[], None]) -> None:
        self.messages = messages
        self.end = end
        self.slots = slots
        self.functions = set(opened.functions)
        self.buffer_bytes_max = opened.buffer_bytes_max
        self.buffers: dict[bytes, int] = {}
        """What the lender has, and how large it is."""
        self.chunk_buffers: dict[int, set[bytes]] = {}

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
            self.buffers[digest] = buffers[digest].size
            for payload in buffers[digest].parts:
                self.messages.post_encoded(payload)
        return ""

    def drop(self, digests: Iterable[bytes]) -> None:
        """Says that the lender need not keep these."""
        for digest in digests:
            if self.buffers.pop(digest, None) is not None:
                with contextlib.suppress(ConnectionLost):
                    self.messages.post(DropBuffer(digest))


def check_prepared(environment: Environment | None, opened: Opened) -> None:
    """Raises Refused if a lender would run work without the environment that it needs."""
    if environment is not None and opened.environment != environment.digest:
        raise Refused("its Croft knows nothing of environments", remedy="Its owner should take a newer one.")
