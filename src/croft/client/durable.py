"""Jobs that outlive the program that submits them: handing one over, and reading what came of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msgspec.structs import replace

from croft.client.dependencies import AnyFuture, DependencyFailed, Unfinished
from croft.client.local_api import LocalApi, not_running
from croft.client.serialise import argument_bytes, function_bytes, outcome_value
from croft.client.task import Wants
from croft.client.task_options import Options
from croft.client.task_session import BATCH_BYTES_MAX, BATCH_TASKS_MAX
from croft.control.socket_stream import SocketStream
from croft.control.work_messages import (
    DefineFunction,
    FromDaemon,
    JobFailed,
    JobOpened,
    JobSealed,
    OpenResults,
    ResultsEnded,
    SealJob,
    SubmitTasks,
    TaskOutcomes,
    TaskResultPart,
)
from croft.errors import Cancelled, ConnectionLost, TimedOut, Unreachable, Usage, by_code
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.control import schema

R = TypeVar("R")
T = TypeVar("T")

Run = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine on the grid's own loop, from another thread, and waits for it."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of one task, as it travels: see `croft.compute.worker_messages.Status`."""

    task: int
    status: int
    payload: bytes
    peer_name: str

    def value(self) -> Any:
        """What the task returned. Raises what it raised, or why there is no value."""
        return outcome_value(self.status, self.payload, self.peer_name)


class Job(Generic[R]):
    """A job on this peer's disk. It goes on whatever becomes of this program; see `Grid.map` and `Grid.job`."""

    def __init__(self, api: LocalApi, work_socket: Path, run: Run, job: str) -> None:
        self.id = job
        self._api = api
        self._work_socket = work_socket
        self._run = run

    def __repr__(self) -> str:
        return f"<croft.Job {self.id}>"

    def status(self) -> schema.Job:
        """How it stands. Raises NotFound once it is forgotten."""
        return self._api.job(self.id)

    def results(self, *, return_exceptions: bool = False) -> Iterator[R]:
        """The results in the order of the items, as soon as they are there.

        Raises:
            Whatever a task raised, unless `return_exceptions`: then it stands in the place of the result.
            Cancelled: the job was cancelled before the next task was done.
        """
        task = -1
        for done in self.outcomes(is_in_order=True):
            task = done.task
            try:
                value = done.value()
            except Exception as error:
                if not return_exceptions:
                    raise
                value = error
            yield value
        if task + 1 < self.status().tasks:
            raise too_few(self.id, task + 1)

    def as_completed(self) -> Iterator[tuple[int, R]]:
        """Pairs of (index of the item, result) in the order in which they were recorded. Raises what a task raised."""
        for done in self.outcomes():
            yield done.task, done.value()

    def outcomes(self, *, is_in_order: bool = False) -> Generator[Done]:
        """What came of each task, until the job is over, without decoding it."""
        batches = read_outcomes(self._work_socket, self.id, is_in_order=is_in_order)
        try:
            while (batch := self._run(anext_or_none(batches))) is not None:
                yield from batch
        finally:
            self._run(batches.aclose())

    def wait(self, timeout: float | None = None) -> schema.Job:
        """Waits until it is over. Raises TimedOut after `timeout` seconds."""

        self._run(until_over(self._work_socket, self.id, timeout))
        return ended(self.status(), timeout)

    def cancel(self) -> None:
        """Ends it, here and on its peers; what is done can still be read."""
        self._api.cancel_job(self.id)

    def forget(self) -> None:
        """Ends it if it runs, and drops its results from the disk."""
        self._api.forget_job(self.id)


async def until_over(work_socket: Path, job: str, timeout: float | None) -> None:
    """Waits until a job is over, or so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            # Those that are there already are passed over; the stream ends with the job.
            async for _ in read_outcomes(work_socket, job, is_in_order=True, after=2**62):
                pass


def ended(job: schema.Job, timeout: float | None) -> schema.Job:
    """A job that was waited for. Raises TimedOut if it is not over."""
    if job.ended_at is None:
        raise TimedOut(f"job {job.job} is not over after {timeout:g} s", remedy="Wait longer, or look later.")
    return job


def too_few(job: str, results: int) -> Cancelled:
    """Why the results of a job end before its tasks do."""
    return Cancelled(f"job {job} was cancelled after {results} results")


async def anext_or_none(batches: AsyncIterator[T]) -> T | None:
    """The next one, or None at the end."""
    async for batch in batches:
        return batch
    return None


async def read_outcomes(
    work_socket: Path, job: str, *, is_in_order: bool = False, after: int = 0
) -> AsyncGenerator[list[Done], None]:
    """What came of a job's tasks, in batches, until it is over. Raises NotFound, Unreachable."""
    async with _connection(work_socket) as messages:
        messages.post(OpenResults(job, is_in_order, after))
        parts: dict[int, list[bytes]] = {}
        while True:
            match await _receive(messages):
                case TaskOutcomes(_, name, outcomes):
                    yield [
                        Done(task, status, b"".join([*parts.pop(task, ()), payload]), name)
                        for task, status, payload in outcomes
                    ]
                case TaskResultPart(task, data):
                    parts.setdefault(task, []).append(data)
                case ResultsEnded():
                    return
                case other:
                    raise AssertionError(f"{type(other).__name__} among results")


def check_detached(wants: Wants) -> None:
    """Raises Usage for what a detached job cannot have."""
    if wants.logs:
        raise Usage("the logs of a detached job come nowhere", remedy="Leave out `logs`, or `detach`.")
    if wants.near:
        raise Usage("a detached job goes where there is room", remedy="Name peers with `on`, or leave out `near`.")


def submit_durable(
    work_socket: Path,
    run: Run,
    options: Options,
    function: Callable[..., object],
    calls: Iterable[tuple[Any, ...]],
    delegates: int | tuple[str, ...] | None,
) -> str:
    """Hands a job over: its id, once all of it is on the daemon's disk.

    `calls` are read as they are sent, in this thread: a million of them need no more memory than a batch.

    Raises:
        Unserialisable, TooLarge: the function or an argument cannot be sent.
        Unreachable: the daemon is not running, or ends before all is on its disk; then there is no job.
        Refused: not as many delegates as are wanted hold the job; then there is no job.
    """
    digest, pickled = function_bytes(function)
    stack = contextlib.AsyncExitStack()
    opening = replace(
        options.opening(),
        is_durable=True,
        delegates=delegates if isinstance(delegates, tuple) else (),
        delegates_wanted=delegates if isinstance(delegates, int) else None,
    )

    async def open_job() -> tuple[MessageStream, str]:
        messages = await stack.enter_async_context(_connection(work_socket))
        messages.post(opening)
        opened = await _receive(messages)
        assert isinstance(opened, JobOpened), "the first answer"
        messages.post(DefineFunction(digest, pickled))
        return messages, opened.job

    async def seal(messages: MessageStream) -> None:
        await messages.send(SealJob())
        sealed = await _receive(messages)
        assert isinstance(sealed, JobSealed), "the answer to the seal"

    try:
        messages, job = run(open_job())
        first = 0
        for batch in _batches(calls):
            run(_send(messages, SubmitTasks(digest, first, batch)))
            first += len(batch)
        run(seal(messages))
        return str(job)
    finally:
        run(stack.aclose())


def _batches(calls: Iterable[tuple[Any, ...]]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for call in calls:
        batch.append(_with_values(call))
        size += len(batch[-1])
        if size > BATCH_BYTES_MAX or len(batch) >= BATCH_TASKS_MAX:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _with_values(call: tuple[Any, ...]) -> bytes:
    """A call's arguments, once all futures among them have values; these are here then. Raises why one has none."""
    while True:
        try:
            return argument_bytes(call, {}, is_apart=False)[0]
        except Unfinished as unfinished:
            concurrent.futures.wait([_waited(unfinished.future)])
        except DependencyFailed as failed:
            raise failed.cause from None


def _waited(future: AnyFuture) -> concurrent.futures.Future[None]:
    done: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.add_done_callback(lambda _: done.set_result(None))
    return done


@contextlib.asynccontextmanager
async def _connection(work_socket: Path) -> AsyncIterator[MessageStream]:
    try:
        reader, writer = await asyncio.open_unix_connection(work_socket, limit=4 << 20)
    except (FileNotFoundError, ConnectionRefusedError):
        raise not_running() from None
    try:
        async with MessageStream(SocketStream(reader, writer), step="local work") as messages:
            yield messages
    finally:
        writer.close()


async def _send(messages: MessageStream, message: SubmitTasks) -> None:
    try:
        await messages.send(message)
    except ConnectionLost:
        # Why it ended may be said before the end.
        await _receive(messages)
        raise _daemon_ended() from None


async def _receive(messages: MessageStream) -> FromDaemon:
    try:
        payload = await messages.receive()
    except ConnectionLost:
        payload = None
    if payload is None:
        raise _daemon_ended()
    message: FromDaemon = decode_union(payload, FromDaemon, step="local work")
    if isinstance(message, JobFailed):
        raise by_code(message.code, message.message, message.remedy)
    return message


def _daemon_ended() -> Unreachable:
    return Unreachable("the daemon ended meanwhile", remedy="Start it with `croft up`; jobs on its disk go on then.")
