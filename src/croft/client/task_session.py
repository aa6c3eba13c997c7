"""One job of tasks on the work socket: submits in batches, resolves futures as outcomes come."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from croft.client.dependencies import DependencyFailed, Unfinished, await_known
from croft.client.lineages import LINEAGE_BYTES_MAX, Lineages
from croft.client.local_api import not_running
from croft.client.printed import Logged, WithLog, show
from croft.client.serialise import argument_bytes, function_bytes, outcome_value
from croft.client.stored_argument import StoredArgument
from croft.client.task_future import Lineage, TaskFuture
from croft.client.task_options import Options
from croft.compute.worker_messages import PART_BYTES, BufferPart, DropBuffer, Status
from croft.control.socket_stream import SocketStream
from croft.control.work_messages import (
    CancelTasks,
    DefineFunction,
    FromDaemon,
    JobFailed,
    JobOpened,
    PeerCaught,
    StoredBuffer,
    SubmitTasks,
    TaskOutcomes,
    TaskResultPart,
    WantValues,
)
from croft.errors import Cancelled, ConnectionLost, CroftError, Unreachable, Usage, by_code
from croft.wire.codec import Message, decode_union, encode
from croft.wire.message_stream import ByteStream, MessageStream

BATCH_BYTES_MAX = 1 << 20
BATCH_TASKS_MAX = 2_000
WANT_AFTER_S = 0.002
"""After how long the daemon is told that a task's value is waited for, if it is not here by then."""
_ELSEWHERE = frozenset({Status.KEPT, Status.LOST, Status.UNREADABLE})
"""Outcomes that are no future's."""


@dataclass(slots=True)
class _Batch:
    function: bytes
    first: int
    stays: bool
    arguments: list[bytes] = field(default_factory=list)
    buffers: list[list[bytes]] = field(default_factory=list)
    """Empty, or of each task so far."""
    size: int = 0


class TaskSession:
    """A job. `submit` may be called from any thread; all else happens on the loop given to `open`."""

    def __init__(self, options: Options) -> None:
        self.job = ""
        self.done_by: dict[str, int] = {}
        self.liars: dict[str, list[int]] = {}
        self._options = options
        self._loop: asyncio.AbstractEventLoop | None = None
        self._messages: MessageStream | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._next = 0
        self._next_waiting = 0
        self._sizes: dict[int, int] = {}
        self.open_bytes = 0
        """What the arguments of unfinished tasks take; whoever submits much looks at it."""
        self._results = 0
        self._results_bytes = 0
        self._futures: dict[int, TaskFuture] = {}
        self._digests: dict[int, tuple[object, bytes]] = {}
        self._with_logs: dict[int, Logged] = {}
        self._sent_functions: set[bytes] = set()
        self._pending: list[_Batch | bytes] = []
        """Batches, and between them what is encoded already: parts of buffers before who uses them, and their end."""
        self._buffer_users: dict[bytes, int] = {}
        self._task_buffers: dict[int, list[bytes]] = {}
        self._parts: dict[int, bytearray] = {}
        self._definitions: list[DefineFunction] = []
        self._is_flush_due = False
        self._wants: list[TaskFuture] = []
        self._are_wants_due = False
        self._cancelled: list[int] = []
        self.lineages = Lineages(self)
        self._lock = threading.Lock()
        self._failure: CroftError | None = None

    async def open(self, work_socket: Path) -> None:
        """Connects and opens the job. Raises Unreachable if the daemon does not run."""
        try:
            reader, writer = await asyncio.open_unix_connection(work_socket, limit=4 << 20)
        except (FileNotFoundError, ConnectionRefusedError):
            raise not_running() from None
        self._writer = writer
        self.begin(SocketStream(reader, writer))

    def begin(self, stream: ByteStream) -> None:
        """Opens the job on a stream to the daemon; from now on, things happen on the loop that runs."""
        self._loop = asyncio.get_running_loop()
        self.lineages.open(self._loop)
        self._messages = MessageStream(stream, step="local work")
        self._messages.post(self._options.opening())
        self._reading = asyncio.create_task(self._read(), name="session.read")

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """On which it was opened."""
        return self._loop

    def submit(
        self, function: object, arguments: tuple[Any, ...], named: dict[str, Any], *, stays: bool = False
    ) -> TaskFuture:
        """A future of the call; futures among its arguments stand for their values, for which the call then waits.

        With `stays`, a large value stays at its peer until it is wanted. Raises Unserialisable, TooLarge, or why the
        job has ended.
        """
        if self._failure is not None:
            raise self._failure
        digest = self._digest(self._logged(function) if self._options.logs else function)
        stays = stays and self._options.may_stay
        try:
            pickled, buffers = argument_bytes(arguments, named, refer=self._can_refer)
            return self._begin(TaskFuture(self), digest, pickled, buffers, stays)
        except (Unfinished, DependencyFailed):
            with self._lock:
                self._next_waiting -= 1
                number = self._next_waiting
                future = self._futures[number] = TaskFuture(self, number)
            self._try(number, future, digest, arguments, named, stays)
            return future

    def _can_refer(self, future: TaskFuture) -> bool:
        return not self._options.verify and self.lineages.can_refer(future)

    def _try(
        self,
        number: int,
        future: TaskFuture,
        function: bytes,
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        stays: bool,
    ) -> None:
        """Begins a call that depends on others if all of them are done; else waits for one that is not."""
        if number not in self._futures:
            return
        error: BaseException | None = None
        try:
            pickled, buffers = argument_bytes(arguments, named, refer=self._can_refer)
        except Unfinished as unfinished:
            loop = self._loop
            assert loop is not None, "sessions are opened before they are used"

            def done(_: object) -> None:
                # On the loop, and not from here: a chain of any length must not end in a recursion of that depth.
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._try, number, future, function, arguments, named, stays)

            await_known(unfinished.future, done)
            return
        except DependencyFailed as failed:
            error = failed.cause
        except CroftError as caught:
            error = caught
        # Whoever takes the future out decides what becomes of it: it may have been cancelled meanwhile.
        if self._futures.pop(number, None) is None:
            return
        if error is not None:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        else:
            self._begin(future, function, pickled, buffers, stays)

    def _begin(
        self,
        future: TaskFuture,
        digest: bytes,
        pickled: bytes,
        buffers: Sequence[memoryview | TaskFuture | StoredArgument],
        stays: bool,
    ) -> TaskFuture:
        views = [one for one in buffers if isinstance(one, memoryview)]
        of_views = [blake3(view, max_threads=blake3.AUTO).digest() for view in views]
        left = iter(of_views)
        named = [next(left) if isinstance(one, memoryview) else _digest_or_lineage(one) for one in buffers]
        files = [one for one in buffers if isinstance(one, StoredArgument)]
        if files and self._options.verify:
            raise Usage("results of tasks that read stored files cannot be verified", remedy="Pass the bytes.")
        own = [one for one in named if isinstance(one, bytes)]
        with self._lock:
            number = future.number = self._next
            self._next += 1
            self._futures[number] = future
            size = self._sizes[number] = len(pickled) + sum(view.nbytes for view in views)
            self.open_bytes += size
            stays = stays and not future.is_wanted and self.lineages.bytes < LINEAGE_BYTES_MAX
            future.may_stay = stays
            digests = own
            if len(own) < len(named):
                digests, before = self.lineages.begin(number, named)
                self._pending += map(encode, before)
            if digests:
                self._bring(of_views, views)
                self._name_files(files)
                self._use(number, digests)
            batch = self._pending[-1] if self._pending else None
            if (
                not isinstance(batch, _Batch)
                or (batch.function, batch.stays) != (digest, stays)
                or batch.size > BATCH_BYTES_MAX
                or len(batch.arguments) >= BATCH_TASKS_MAX
            ):
                batch = _Batch(digest, number, stays)
                self._pending.append(batch)
            if digests or batch.buffers:
                batch.buffers += [[] for _ in range(len(batch.arguments) - len(batch.buffers))]
                batch.buffers.append(digests)
            batch.arguments.append(pickled)
            batch.size += len(pickled)
        self._flush_soon()
        return future

    def _name_files(self, files: Iterable[StoredArgument]) -> None:
        """Says which stored files are meant; under the lock."""
        for file in files:
            if not self._buffer_users.get(file.digest):
                named = StoredBuffer(file.digest, file.name_bytes, file.size, file.number)
                self._pending.append(encode(named))

    def want(self, future: TaskFuture) -> None:
        """Somebody waits for a future's value: if it stays elsewhere, it is to come. From any thread."""
        if not future.is_wanted:
            self.want_all([future])

    def want_all(self, futures: Iterable[TaskFuture]) -> None:
        """The same for several."""
        with self._lock:
            for future in futures:
                if not future.is_wanted:
                    future.is_wanted = True
                    if future.may_stay and (future.brought is not None or not future.done()):
                        self._wants.append(future)
            if not self._wants or self._are_wants_due:
                return
            self._are_wants_due = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send_wants)

    def _send_wants(self) -> None:
        with self._lock:
            wants, self._wants = self._wants, []
            self._are_wants_due = False
        wanted = [future.number for future in wants if not self._bring_value(future) and not future.done()]
        if wanted:
            self.post(WantValues(wanted))

    def _flush_soon(self) -> None:
        with self._lock:
            is_first = not self._is_flush_due
            self._is_flush_due = True
        if is_first and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._flush)

    def post(self, message: Message) -> None:
        """Sends a message to the daemon, after all that waits to be sent."""
        with self._lock:
            self._pending.append(encode(message))
        self._flush_soon()

    def send_buffer(self, number: int, data: bytes) -> bytes:
        """Brings a buffer to the daemon, for a task that is going to use it; its digest."""
        digest = blake3(data, max_threads=blake3.AUTO).digest()
        with self._lock:
            self._bring([digest], [memoryview(data)])
            self._use(number, [*self._task_buffers.get(number, ()), digest])
        self._flush_soon()
        return digest

    def buffers_of(self, number: int) -> list[bytes]:
        """The digests of what a task refers to."""
        return self._task_buffers.get(number, [])

    def use_buffers(self, number: int, digests: Sequence[bytes]) -> None:
        """What a task refers to from now on; what no task does need not be kept by the daemon."""
        if not digests and number not in self._task_buffers:
            return
        with self._lock:
            self._use(number, digests)
        self._flush_soon()

    def _use(self, number: int, digests: Sequence[bytes]) -> None:
        before = self._task_buffers.pop(number, ())
        if digests:
            self._task_buffers[number] = list(digests)
        for digest in digests:
            self._buffer_users[digest] = self._buffer_users.get(digest, 0) + 1
        for digest in before:
            self._buffer_users[digest] -= 1
            if not self._buffer_users[digest]:
                del self._buffer_users[digest]
                self._pending.append(encode(DropBuffer(digest)))

    def fail(self, number: int, error: BaseException) -> None:
        """An open task has failed."""
        self._close_tasks([number])
        future = self._futures.pop(number, None)
        if future is not None and future.set_running_or_notify_cancel():
            future.set_exception(error)

    def _bring(self, digests: Sequence[bytes], views: Sequence[memoryview]) -> None:
        """Queues the buffers that the daemon does not have; under the lock. What is queued is a copy: a snapshot."""
        for digest, view in dict(zip(digests, views, strict=True)).items():
            if not self._buffer_users.get(digest):
                for offset in range(0, view.nbytes, PART_BYTES):
                    part = view[offset : offset + PART_BYTES]
                    self._pending.append(encode(BufferPart(digest, view.nbytes, offset, part)))  # type: ignore[arg-type]  # msgspec takes any buffer

    def _close_tasks(self, numbers: Iterable[int]) -> None:
        """These are over: what they took, and what no other uses of their buffers, need not be kept."""
        with self._lock:
            for number in numbers:
                self.open_bytes -= self._sizes.pop(number, 0)
        for number in numbers if self._task_buffers else ():
            self.use_buffers(number, ())
            self.lineages.over(number)

    def forget(self, number: int) -> bool:
        """A task's future was cancelled: nobody waits for it. Whether it was still open. From any thread."""
        was_open = self._futures.pop(number, None) is not None
        if number < 0:
            return was_open
        self._close_tasks([number])
        with self._lock:
            self._cancelled.append(number)
            is_first = len(self._cancelled) == 1
        if is_first and self._loop is not None:
            self._loop.call_soon_threadsafe(self._send_cancelled)
        return was_open

    async def close(self) -> None:
        """Ends the job; tasks that are not done fail with Cancelled."""
        self._fail(Cancelled("the job was closed before this task was done"))
        if self._messages is not None:
            await self._messages.close()
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    @property
    def is_ended(self) -> bool:
        """Whether the job takes no more tasks."""
        return self._failure is not None

    @property
    def result_bytes(self) -> float:
        """What a result takes, on average so far."""
        return self._results_bytes / self._results if self._results else 0.0

    @property
    def open_tasks(self) -> int:
        """Tasks without an outcome."""
        return len(self._futures)

    def _digest(self, function: object) -> bytes:
        known = self._digests.get(id(function))
        if known is not None and known[0] is function:
            return known[1]
        digest, pickled = function_bytes(function)
        with self._lock:
            # The function is kept too, so that its id is not given to another one.
            self._digests[id(function)] = (function, digest)
            if digest not in self._sent_functions:
                self._sent_functions.add(digest)
                self._definitions.append(DefineFunction(digest, pickled))
        return digest

    def _flush(self) -> None:
        with self._lock:
            batches, self._pending = self._pending, []
            definitions, self._definitions = self._definitions, []
            self._is_flush_due = False
            begins = not self._are_wants_due and any(isinstance(one, _Batch) and one.stays for one in batches)
            self._are_wants_due |= begins
        if begins and self._loop is not None:
            # Most results are small and here in a moment: then nobody need be told that they are waited for.
            self._loop.call_later(WANT_AFTER_S, self._send_wants)
        if self._failure is not None or self._messages is None:
            return
        try:
            for definition in definitions:
                self._messages.post(definition)
            for batch in batches:
                if isinstance(batch, bytes):
                    self._messages.post_encoded(batch)
                else:
                    tasks = SubmitTasks(batch.function, batch.first, batch.arguments, batch.buffers, batch.stays)
                    self._messages.post(tasks)
        except ConnectionLost:
            self._fail(_daemon_ended())

    def _bring_value(self, future: TaskFuture) -> bool:
        """Has the value of a future brought that is done, and whose value is elsewhere. Whether it is such a one."""
        if future.brought is None:
            return False
        if self._failure is not None:
            future.brought.set_exception(self._failure)
        elif future.lineage is not None:
            self.lineages.bring_to(future.lineage, future.brought)
        return True

    def _send_cancelled(self) -> None:
        self._flush()
        with self._lock:
            numbers, self._cancelled = self._cancelled, []
        if self._failure is None and self._messages is not None:
            try:
                self._messages.post(CancelTasks(numbers))
            except ConnectionLost:
                self._fail(_daemon_ended())

    async def _read(self) -> None:
        assert self._messages is not None, "reading starts when the connection is open"
        try:
            while (payload := await self._messages.receive()) is not None:
                message: FromDaemon = decode_union(payload, FromDaemon, step="local work")
                match message:
                    case JobOpened(job):
                        self.job = job
                    case TaskOutcomes(peer, name, outcomes):
                        self._resolve(peer, name, outcomes)
                    case PeerCaught(name, _, unchecked):
                        self.liars[name] = unchecked
                        self.done_by.pop(name, None)
                    case TaskResultPart(task, data):
                        self._parts.setdefault(task, bytearray()).extend(data)
                    case JobFailed(code, text, remedy):
                        self._fail(by_code(code, text, remedy))
                        return
                    case _:
                        raise AssertionError(f"{type(message).__name__} in a job of tasks")
            self._fail(_daemon_ended())
        except ConnectionLost:
            self._fail(_daemon_ended())

    def _resolve(self, peer: str, name: str, outcomes: Sequence[tuple[int, int, bytes]]) -> None:
        over: list[int] = []
        done = 0
        for number, status, last in outcomes:
            if status in _ELSEWHERE:
                done += status == Status.KEPT
                self._look_elsewhere(peer, number, status, last)
                continue
            payload: bytes | bytearray = last
            if number in self._parts:
                payload = self._parts.pop(number)
                payload += last
            self._results += 1
            self._results_bytes += len(payload)
            is_plain = self.lineages.is_empty
            future = self._futures.pop(number, None)
            if future is not None and not future.set_running_or_notify_cancel():
                future = None
            if future is not None or (not is_plain and self.lineages.is_awaited(number)):
                self._deliver(name, number, status, payload, future, is_plain)
            if is_plain or not self.lineages.is_kept(number):
                done += 1
                over.append(number)
        self.done_by[name] = self.done_by.get(name, 0) + done
        self._close_tasks(over)

    def _deliver(
        self,
        name: str,
        number: int,
        status: int,
        payload: bytes | bytearray,
        future: TaskFuture | None,
        is_plain: bool,
    ) -> None:
        try:
            value = outcome_value(status, payload, name)
        except BaseException as error:
            self.lineages.failed(number, error)
            if future is not None:
                future.set_exception(error)
            return
        if isinstance(value, WithLog):
            assert future is not None, "results with logs stay nowhere else"
            future.log = value.log
            show(value.log, name, number)
            value = value.value
        if not is_plain:
            self.lineages.brought(number, value)
        if future is not None:
            future.set_result(value)

    def _look_elsewhere(self, peer: str, number: int, status: int, payload: bytes) -> None:
        """A task is done, and its value stays elsewhere; or something that stayed elsewhere is lost."""
        future = self._futures.get(number)
        match status:
            case Status.KEPT:
                with self._lock:
                    size = self._sizes.pop(number, 0)
                    self.open_bytes -= size
                self.lineages.kept(peer, number, payload, size, future)
                if future is not None:
                    self._keep_back(future)
            case Status.LOST if payload:
                self.lineages.lost_arguments(number, payload)
            case Status.LOST:
                self._parts.pop(number, None)
                self.lineages.lost(number)
            case _:
                self.lineages.send_pickled(number)

    def _keep_back(self, future: TaskFuture) -> None:
        """A future is done though its value is elsewhere, unless somebody waits for that."""
        future.tell_known()
        with self._lock:
            if future.is_wanted:
                return
            future.brought = concurrent.futures.Future()
        self._futures.pop(future.number, None)
        if future.set_running_or_notify_cancel():
            future.set_result(None)

    def _logged(self, function: Any) -> Logged:
        """The same function each time, so that it travels once."""
        if (kept := self._with_logs.get(id(function))) is None:
            kept = self._with_logs[id(function)] = Logged(function)
        return kept

    def _fail(self, error: CroftError) -> None:
        self._failure = self._failure or error
        while self._futures:
            _, future = self._futures.popitem()
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self.lineages.fail_all(error)


def _digest_or_lineage(buffer: TaskFuture | StoredArgument) -> bytes | Lineage:
    if isinstance(buffer, StoredArgument):
        return buffer.digest
    assert buffer.lineage is not None, "only what is kept somewhere is referred to"
    return buffer.lineage


def _daemon_ended() -> Unreachable:
    return Unreachable("the daemon ended before the job was done", remedy="Start it with `croft up`, and run it again.")
