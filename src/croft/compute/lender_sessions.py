"""What a lender remembers of each consumer's stream that is open."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from croft.compute.boxes import TaskBox
from croft.compute.fetching import Fetches
from croft.compute.keeping import Withheld
from croft.compute.worker_messages import BUFFERS_MAX, RunChunk
from croft.errors import PeerMisbehaved
from croft.model.lease import Lease
from croft.wire.message_stream import MessageStream


@dataclass(slots=True)
class LentSession:
    """A consumer's stream of chunks."""

    messages: MessageStream
    lease: Lease
    box: TaskBox
    withheld: Withheld
    fetches: Fetches
    job: str
    """Under which its results are kept."""
    offer: str
    """From which its slots come."""
    slots: int
    slots_per_task: int = 1
    environment: bytes = b""
    chunks: dict[int, RunChunk] = field(default_factory=dict)
    running: dict[int, int] = field(default_factory=dict)
    buffers: set[bytes] = field(default_factory=set)
    tasks: int = 0
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class LentCommand:
    """A command that waits for its slots, or runs."""

    lease: Lease
    started: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


def check_buffers(chunk: RunChunk, session: LentSession) -> None:
    """Raises PeerMisbehaved for a chunk that refers to what is not here, and not on its way."""
    if chunk.buffers and len(chunk.buffers) != len(chunk.arguments):
        raise PeerMisbehaved(f"chunk {chunk.chunk} does not say what each of its tasks refers to", step="tasks")
    for digests in chunk.buffers:
        if len(digests) > BUFFERS_MAX or not (session.buffers | session.fetches.lost).issuperset(digests):
            raise PeerMisbehaved(f"chunk {chunk.chunk} refers to what was not sent", step="tasks")
