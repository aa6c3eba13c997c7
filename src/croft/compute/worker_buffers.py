"""Keeps the buffers of large arguments inside a box, once for all tasks that use them.

A buffer lies in anonymous memory of the worker's own. A runner is forked with it: the pages are shared until the task
writes to them, and what it writes nobody else sees.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

from croft.compute.worker_messages import BufferPart
from croft.errors import PeerMisbehaved

NO_ROOM = "the box has no room for an argument of {size:,} bytes: ask for more memory"


@dataclass(slots=True)
class _Buffer:
    pages: mmap.mmap | None
    size: int
    filled: int = 0


class Buffers:
    """Buffers by digest."""

    def __init__(self) -> None:
        self._buffers: dict[bytes, _Buffer] = {}

    def put(self, part: BufferPart) -> None:
        """Takes the next part of a buffer. Raises PeerMisbehaved if it does not continue it."""
        buffer = self._buffers.get(part.digest)
        if buffer is None:
            buffer = self._buffers[part.digest] = _Buffer(_pages(part.size), part.size)
        end = buffer.filled + len(part.data)
        if part.size != buffer.size or part.offset != buffer.filled or end > buffer.size:
            raise PeerMisbehaved("a part of a buffer that does not continue it", step="worker")
        if buffer.pages is not None:
            buffer.pages[buffer.filled : end] = part.data
        buffer.filled = end

    def drop(self, digest: bytes) -> None:
        """Forgets a buffer; runners that have it keep it."""
        buffer = self._buffers.pop(digest, None)
        if buffer is not None and buffer.pages is not None:
            buffer.pages.close()

    def find(self, digests: list[bytes]) -> list[mmap.mmap] | str:
        """The memory of these buffers, or why there is none. Raises PeerMisbehaved if one is not here in full."""
        found: list[mmap.mmap] = []
        for digest in digests:
            buffer = self._buffers.get(digest)
            if buffer is None or buffer.filled < buffer.size:
                raise PeerMisbehaved("a task whose arguments are not here", step="worker")
            if buffer.pages is None:
                return NO_ROOM.format(size=buffer.size)
            found.append(buffer.pages)
        return found


def _pages(size: int) -> mmap.mmap | None:
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError):
        return None
