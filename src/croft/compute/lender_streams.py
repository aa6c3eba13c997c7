"""How a lender's streams begin and end: openings that come in time, answers that arrive whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from croft.compute.boxes import START_TIMEOUT_S
from croft.compute.messages import Declined, Preparing
from croft.compute.worker_messages import FromWorker, Ready
from croft.errors import ConnectionLost, CroftError, Failed, PeerMisbehaved
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Box, Stream

OPENING_TIMEOUT_S = 10.0
LINGER_S = 5.0
PREPARING_S = 5.0
WAIT_S_MAX = 86_400.0
JOB_LENGTH_MAX = 64
NEEDS_MAX = 8
NEED_LENGTH_MAX = 32


async def first_message(messages: MessageStream) -> bytes:
    """What opens a stream. Raises ConnectionLost."""
    try:
        async with asyncio.timeout(OPENING_TIMEOUT_S):
            payload = await messages.receive()
    except TimeoutError:
        raise ConnectionLost("no opening came") from None
    if payload is None:
        raise ConnectionLost("closed before the opening")
    return payload


@contextlib.asynccontextmanager
async def said_meanwhile(messages: MessageStream, is_to_be_said: bool) -> AsyncIterator[None]:
    """Tells a consumer who waits that its environment is being prepared, until the block ends."""

    async def say() -> None:
        with contextlib.suppress(ConnectionLost):
            while True:
                await asyncio.sleep(PREPARING_S)
                await messages.send(Preparing())

    saying = asyncio.create_task(say(), name="environment.preparing") if is_to_be_said else None
    try:
        yield
    finally:
        if saying is not None:
            await stopped(saying)


async def stopped(task: asyncio.Task[object]) -> None:
    """Cancels a task and waits for its end, whatever that is."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def decline(messages: MessageStream, stream: Stream, error: CroftError) -> None:
    """Says why not, and ends the stream."""
    messages.post(Declined(error.code, error.message, error.remedy))
    await finish(messages, stream)


async def finish(messages: MessageStream, stream: Stream) -> None:
    """Ends our side of the stream so that the other reads all of it."""
    await messages.flush()
    await stream.finish()
    # Dropping the stream at once would drop the answer too: wait until the consumer has closed its side.
    with contextlib.suppress(TimeoutError, ConnectionLost):
        async with asyncio.timeout(LINGER_S):
            while await messages.receive() is not None:
                pass


async def await_ready(worker: MessageStream) -> None:
    """Returns once the worker of a new box is up. Raises Failed."""
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            payload = await worker.receive()
        ready: FromWorker | None = None if payload is None else decode_union(payload, FromWorker, step="box")
    except (TimeoutError, ConnectionLost, PeerMisbehaved) as fault:
        raise Failed(f"the box did not start: {fault or 'no answer'}", remedy="See the peer's log.") from None
    if not isinstance(ready, Ready):
        raise Failed("the box did not start: its worker ended", remedy="See the peer's log.")


def check_words(job: str, needs: Sequence[str]) -> None:
    """Raises PeerMisbehaved for a job or devices of no name."""
    words = [job, *needs]
    if len(needs) > NEEDS_MAX or len(set(needs)) < len(needs) or not all(word.isprintable() for word in words):
        raise PeerMisbehaved("an impossible job or need", step="opening")
    if len(job) > JOB_LENGTH_MAX or not all(0 < len(need) <= NEED_LENGTH_MAX for need in needs):
        raise PeerMisbehaved("a job or need that is too long", step="opening")


def seconds(wanted: float) -> float:
    """A time that somebody asks for, within reason."""
    return min(wanted, WAIT_S_MAX) if wanted > 0 else 0.0


async def pump_up(worker: MessageStream, messages: MessageStream, box: Box) -> None:
    """Passes the box's messages to the consumer until either ends."""
    while (payload := await worker.receive()) is not None:
        message: FromWorker = decode_union(payload, FromWorker, step="box")
        await messages.send(message)
    death = box.usage().death
    if death:
        remedy = "Ask for more, with `--mem` or `--disk`, or let the command use less."
        messages.post(Declined("task_died", f"the box ended: {death}", remedy))
