"""The work socket's side of stored files: putting what is on this machine or is piped, and getting it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from croft.compute.job_sessions import StoredInput
from croft.control.work_messages import (
    GetDone,
    OpenGet,
    OpenPut,
    PieceOfFile,
    PieceRead,
    PutDone,
    StorageProgress,
)
from croft.errors import ConnectionLost, PeerMisbehaved, Usage
from croft.wire.codec import decode
from croft.wire.message_stream import MessageStream

PIECE_BYTES_MAX = 1 << 20
PROGRESS_EVERY_S = 0.2
STEP = "local work"

Progress = Callable[[int, int, int], None]


class StorageDesk(Protocol):
    """What is asked of the peer's storage."""

    async def put(self, opening: OpenPut, piped: AsyncIterator[bytes], progress: Progress) -> PutDone:
        """Puts files; all of them count then. Raises CroftError: none does."""
        ...

    async def get(self, opening: OpenGet, progress: Progress) -> GetDone:
        """Reads files into a place. Raises CroftError."""
        ...

    async def inputs(self, name: bytes, path: str, number: int = 0) -> list[StoredInput]:
        """A stored file, or all of a stored folder, to be at `path` where work runs. Raises CroftError.

        `number`: which version of a file; 0: the newest.
        """
        ...

    def read(self, opening: OpenGet) -> AsyncIterator[bytes | memoryview]:
        """Reads one file. Raises CroftError."""
        ...


async def serve_put(desk: StorageDesk, opening: OpenPut, messages: MessageStream) -> None:
    """Puts what the program names or pipes. If the program goes away before that is done, nothing counts."""

    async def piped() -> AsyncIterator[bytes]:
        while (payload := await messages.receive()) is not None:
            data = decode(payload, PieceOfFile, step=STEP).data
            if len(data) > PIECE_BYTES_MAX:
                raise PeerMisbehaved(f"a piece of {len(data)} bytes", step=STEP)
            if not data:
                return
            yield data
        raise ConnectionLost("the program ended before its input did")

    async def put() -> None:
        messages.post(await desk.put(opening, piped(), told(messages)))
        await messages.flush()

    if opening.piped:
        if opening.files:
            raise Usage("what is piped is put by itself")
        await put()
    else:
        await while_listening(put(), messages)


async def serve_get(desk: StorageDesk, opening: OpenGet, messages: MessageStream) -> None:
    """Reads what the program names, until that is done or the program goes away."""

    async def get() -> None:
        if opening.place:
            messages.post(await desk.get(opening, told(messages)))
        else:
            size = 0
            async for piece in desk.read(opening):
                for at in range(0, len(piece), PIECE_BYTES_MAX):
                    await messages.send(PieceRead(bytes(piece[at : at + PIECE_BYTES_MAX])))
                size += len(piece)
            messages.post(GetDone(1, size, []))
        await messages.flush()

    await while_listening(get(), messages)


def told(messages: MessageStream) -> Progress:
    """Tells the program how far it has come, now and then."""
    loop = asyncio.get_running_loop()
    told_at = loop.time()

    def tell(files: int, done_bytes: int, total_bytes: int) -> None:
        nonlocal told_at
        if loop.time() - told_at >= PROGRESS_EVERY_S:
            told_at = loop.time()
            messages.post(StorageProgress(files, done_bytes, total_bytes))

    return tell


async def while_listening(work: object, messages: MessageStream) -> None:
    """Runs `work` until it is done or the program hangs up."""
    assert asyncio.iscoroutine(work), "work is to be run"
    working = asyncio.create_task(work, name="storage.work")
    listening = asyncio.create_task(messages.receive(), name="storage.hung_up")
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        listening.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)
