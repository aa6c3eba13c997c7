"""Serves a bag of Python tasks to the program that fills it, on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from croft.compute.job_sessions import StoredInput
from croft.compute.jobs import OnOutcomes, TaskJob
from croft.compute.worker_messages import BufferPart, DropBuffer, LoadFunction
from croft.control.work_messages import (
    CancelTasks,
    DefineFunction,
    FromProgram,
    JobOpened,
    KeptBuffer,
    OpenTaskJob,
    PeerCaught,
    ReleaseValues,
    RunTaskAgain,
    StoredBuffer,
    SubmitTasks,
    TaskOutcomes,
    TaskResultPart,
    WantValues,
)
from croft.errors import ConnectionLost, CroftError, NotFound, PeerMisbehaved
from croft.model.ids import PeerId
from croft.model.kept import Held
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

T = TypeVar("T")

ANYWHERE = "file"
"""Where a stored file is to be: tasks find it among their arguments."""

OPEN_BYTES_MAX = 512 << 20
"""Arguments of unfinished tasks kept for one program; more is taken in as tasks finish."""


class TaskJobs(Protocol):
    """Makes bags of tasks, and keeps account of them."""

    def task_job(self, opening: OpenTaskJob, on_outcomes: OnOutcomes, stored: Sequence[StoredInput] = ()) -> TaskJob:
        """A new bag of tasks; peers that hold most of what is `stored` are asked first. Raises Failed."""
        ...

    def peer_name(self, peer: PeerId) -> str: ...

    async def ended(self, job: str, error: CroftError | None) -> None:
        """A job is over."""
        ...


class Stored(Protocol):
    """Finds stored files; see `croft.control.storage_work.StorageDesk`."""

    async def inputs(self, name: bytes, path: str, number: int = 0) -> list[StoredInput]:
        """A stored file, or all of a stored folder. Raises CroftError."""
        ...


async def serve_tasks(jobs: TaskJobs, storage: Stored, opening: OpenTaskJob, messages: MessageStream) -> None:
    """Serves one job until its program closes it. Raises CroftError, PeerMisbehaved."""
    open_bytes = 0
    has_room = asyncio.Event()
    has_room.set()
    sizes: dict[int, int] = {}

    def on_outcomes(peer: PeerId, outcomes: Sequence[tuple[int, int, bytes]]) -> None:
        nonlocal open_bytes
        open_bytes -= sum(sizes.pop(task, 0) for task, _, _ in outcomes)
        if open_bytes < OPEN_BYTES_MAX:
            has_room.set()
        with contextlib.suppress(ConnectionLost):
            for task, data in job.take_parts(peer, outcomes):
                messages.post(TaskResultPart(task, data))
            messages.post(TaskOutcomes(peer, jobs.peer_name(peer), list(outcomes)))

    def on_caught(peer: PeerId, reason: str, unchecked: Sequence[int]) -> None:
        with contextlib.suppress(ConnectionLost):
            messages.post(PeerCaught(jobs.peer_name(peer), reason, list(unchecked)))

    async def on_part(task: int, data: bytes) -> None:
        with contextlib.suppress(ConnectionLost):
            await messages.send(TaskResultPart(task, data))

    stored = [one for name in opening.near for one in await storage.inputs(name, ANYWHERE)]
    job = jobs.task_job(opening, on_outcomes, stored)
    job.on_caught, job.elsewhere.on_part = on_caught, on_part
    error: CroftError | None = None
    try:
        messages.post(JobOpened(job.id))
        async with alongside(job.run()):
            while (payload := await messages.receive()) is not None:
                message: FromProgram = decode_union(payload, FromProgram, step="local work")
                match message:
                    case DefineFunction(digest, pickled):
                        job.add_function(LoadFunction(digest, pickled, opening.python))
                    case BufferPart(digest, size, offset):
                        job.add_buffer_part(digest, size, offset, payload)
                    case DropBuffer(digest):
                        job.drop_buffer(digest)
                    case KeptBuffer(digest, size, peer, token):
                        job.add_kept_buffer(digest, Held(PeerId(peer), token, size))
                    case StoredBuffer(digest):
                        job.add_stored_buffer(digest, await _found(storage, message))
                    case WantValues(tasks):
                        job.elsewhere.want(tasks)
                    case ReleaseValues(tasks):
                        job.elsewhere.release(tasks)
                    case RunTaskAgain(task, digests, stays):
                        job.elsewhere.run_again(task, digests, stays=stays)
                    case SubmitTasks(function, first, arguments, buffers, stays):
                        numbers = range(first, first + len(arguments))
                        added = job.add(function, numbers, arguments, buffers, stays=stays)
                        sizes.update(zip(numbers, added, strict=True))
                        open_bytes += sum(added)
                        if open_bytes > OPEN_BYTES_MAX:
                            has_room.clear()
                            await has_room.wait()
                    case CancelTasks(tasks):
                        open_bytes -= sum(sizes.pop(task, 0) for task in tasks)
                        job.cancel(tasks)
                    case _:
                        raise PeerMisbehaved(f"{type(message).__name__} in a job of tasks", step="local work")
    except CroftError as caught:
        error = caught
        raise
    finally:
        await job.elsewhere.close()
        await jobs.ended(job.id, error)


async def _found(storage: Stored, wanted: StoredBuffer) -> StoredInput:
    """A stored file; of one that is not there any more, one that cannot be read: that is for whoever needs it."""
    try:
        found = await storage.inputs(wanted.name, ANYWHERE, wanted.number)
        if [one.size for one in found] == [wanted.size]:
            return found[0]
        why = NotFound("it is not the file that it was")
    except CroftError as error:
        why = NotFound(error.message)

    async def read() -> AsyncIterator[bytes | memoryview]:
        raise why
        yield b""

    return StoredInput(ANYWHERE, wanted.size, b"", frozenset(), read)


@contextlib.asynccontextmanager
async def alongside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """Runs `work` beside the block, and not a moment longer. If it fails, its error ends the block too."""
    this = asyncio.current_task()
    assert this is not None, "connections are served by tasks"
    is_block_over = is_interrupted = False

    def ended(task: asyncio.Task[T]) -> None:
        nonlocal is_interrupted
        if not is_block_over and not task.cancelled() and task.exception() is not None:
            is_interrupted = True
            this.cancel()

    task = asyncio.create_task(work, name="work.job")
    task.add_done_callback(ended)
    try:
        yield task
    except asyncio.CancelledError:
        if not is_interrupted or this.uncancel() > 0:
            raise
        task.result()
    finally:
        is_block_over = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
