"""Runs the work of others on this peer: lets sessions in, feeds their boxes, passes their answers back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, assert_never

from croft.compute import admission
from croft.compute.boxes import START_TIMEOUT_S, BoxPool, TaskBox
from croft.compute.messages import Declined, OpenCommand, Opened, OpenTasks
from croft.compute.worker_messages import (
    BUFFERS_MAX,
    BufferPart,
    CancelChunk,
    CancelCommand,
    ChunkDone,
    DropBuffer,
    FileBytes,
    FileEnd,
    FromWorker,
    GetFile,
    ListFiles,
    LoadFunction,
    PutFile,
    Ready,
    RunChunk,
    RunCommand,
    ToWorker,
)
from croft.errors import Busy, ConnectionLost, CroftError, Failed, PeerMisbehaved, Refused
from croft.model.ids import PeerId, TwinId
from croft.wire.codec import Message, decode, decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Box, BoxSpec, Sandbox, Stream

log = logging.getLogger(__name__)

OPENING_TIMEOUT_S = 10.0
LINGER_S = 5.0
COMMAND_MESSAGES = PutFile | GetFile | ListFiles | RunCommand | CancelCommand | FileBytes | FileEnd


class Consumer(Protocol):
    """Who asks; what the hello proved."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def twin(self) -> TwinId: ...

    @property
    def name(self) -> str: ...


class Policy(Protocol):
    """What the owner of this machine allows, and how boxes are made."""

    def check(self, twin: TwinId) -> None:
        """Raises Refused if foreign native code of this twin may not run here."""
        ...

    def python(self) -> str:
        """Major.minor of the interpreter in the boxes."""
        ...

    def task_box(self, twin: TwinId, memory_bytes: int) -> BoxSpec: ...

    def command_box(self, opening: OpenCommand) -> BoxSpec:
        """The box of one command, its work folder made. Raises Refused, Failed."""
        ...

    def discard(self, spec: BoxSpec) -> None:
        """Removes the work folder of a box that is closed, whatever the code inside made of it. Blocks."""
        ...


@dataclass(slots=True)
class _Session:
    """A consumer's stream of chunks."""

    messages: MessageStream
    box: TaskBox
    chunks: dict[int, RunChunk] = field(default_factory=dict)
    running: dict[int, int] = field(default_factory=dict)
    buffers: set[bytes] = field(default_factory=set)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


class Lender:
    """The lending side of compute."""

    def __init__(self, sandbox: Sandbox, policy: Policy, slots: int) -> None:
        self._sandbox = sandbox
        self._policy = policy
        self._admission = admission.Admission(slots)
        self._pool = BoxPool(sandbox, policy.task_box)
        self._numbers = itertools.count(1)
        self._sessions: dict[int, _Session] = {}
        self._commands: dict[int, asyncio.Event] = {}
        self.tasks_done: dict[PeerId, int] = {}
        self._reason = "no processors are lent"
        """Why nothing is lent, while nothing is."""

    def lend(self, slots: int, reason: str = "") -> None:
        """Lends so many slots from now on; if none, ends the sessions of tasks, which then go elsewhere.

        A command that runs goes on: nobody else could take it over midway.
        """
        self._reason = reason
        if slots == self._admission.slots:
            return
        self._perform(self._admission.handle(admission.SlotsChanged(slots)))
        if slots == 0:
            for session in self._sessions.values():
                session.is_over.set()

    @property
    def slots(self) -> int:
        """Slots lent."""
        return self._admission.slots

    @property
    def slots_busy(self) -> int:
        """Slots in use."""
        return self._admission.slots_busy

    async def serve(self) -> None:
        """Runs the boxes; ends by cancellation."""
        await self._pool.serve()

    # --- Python tasks ------------------------------------------------------------------------------------------------

    async def serve_tasks(self, consumer: Consumer, stream: Stream) -> None:
        """Serves one `tasks/1` stream until its consumer closes it."""
        async with MessageStream(stream, step="tasks") as messages:
            try:
                opening = decode(await _first(messages), OpenTasks, step="opening of tasks")
                box = await self._let_in(consumer, opening)
            except CroftError as error:
                await _decline(messages, stream, error)
                return
            number = next(self._numbers)
            session = self._sessions[number] = _Session(messages, box)
            self._perform(self._admission.handle(admission.SessionOpened(number)))
            listening = asyncio.create_task(self._listen(consumer, number, session), name="tasks.listen")
            ended = asyncio.create_task(box.ended.wait(), name="tasks.box_ended")
            over = asyncio.create_task(session.is_over.wait(), name="tasks.over")
            try:
                await asyncio.wait({listening, ended, over}, return_when=asyncio.FIRST_COMPLETED)
                if listening.done():
                    listening.result()
                    return
                # The consumer is told by the end of the session, and may ask again, here or elsewhere.
                await _stopped(listening)
                await _finish(messages, stream)
            finally:
                await _stopped(listening)
                await _stopped(ended)
                await _stopped(over)
                del self._sessions[number]
                for box_chunk in session.running.values():
                    box.forget(box_chunk)
                box.drop(number, session.buffers)
                self._pool.release(box)
                self._perform(self._admission.handle(admission.SessionClosed(number)))

    async def _listen(self, consumer: Consumer, number: int, session: _Session) -> None:
        functions = list(self._pool.functions(consumer.twin))
        session.messages.post(Opened(self._admission.slots, functions, session.box.buffer_bytes_max))
        while (payload := await session.messages.receive()) is not None:
            message: ToWorker = decode_union(payload, ToWorker, step="tasks")
            if isinstance(message, BufferPart):
                session.buffers.add(message.digest)
                if not await session.box.put(number, message, payload):
                    log.info("no room in the box of %s for what its tasks need: the session ends", consumer.name)
                    session.is_over.set()
                    return
            else:
                self._take(consumer, number, session, message)

    async def _let_in(self, consumer: Consumer, opening: OpenTasks) -> TaskBox:
        self._check(consumer)
        if opening.python != self._policy.python():
            raise Refused(
                f"this peer runs Python {self._policy.python()}, the job is made by Python {opening.python}",
                remedy="Functions travel only between equal minor versions; use peers with the same Python.",
            )
        box = await self._pool.acquire(consumer.twin, opening.memory_bytes)
        try:
            self._check(consumer)  # again: others were let in while the box started
        except CroftError:
            self._pool.release(box)
            raise
        return box

    def _check(self, consumer: Consumer) -> None:
        if self._admission.slots == 0:
            raise Refused(f"this peer lends nothing now: {self._reason}", remedy="Ask its owner, or use others.")
        self._policy.check(consumer.twin)
        if self._admission.is_full:
            raise Busy("too many sessions are open on this peer", remedy="Try again later.")

    def _take(self, consumer: Consumer, number: int, session: _Session, message: ToWorker) -> None:
        match message:
            case LoadFunction():
                self._pool.keep_function(consumer.twin, message)
            case DropBuffer(digest):
                session.buffers.discard(digest)
                session.box.drop(number, [digest])
            case RunChunk(chunk, function, arguments):
                if chunk in session.chunks or not arguments:
                    raise PeerMisbehaved(f"chunk {chunk} is empty or sent twice", step="tasks")
                if function not in self._pool.functions(consumer.twin):
                    raise PeerMisbehaved("a chunk of a function that was not sent", step="tasks")
                _check_buffers(message, session)
                session.chunks[chunk] = message
                self.tasks_done[consumer.peer] = self.tasks_done.get(consumer.peer, 0) + len(arguments)
                self._perform(self._admission.handle(admission.UnitArrived(number, chunk)))
            case CancelChunk(chunk):
                if chunk in session.running:
                    session.box.cancel(session.running[chunk])
                elif session.chunks.pop(chunk, None):
                    self._perform(self._admission.handle(admission.UnitEnded(number, chunk)))
                    session.messages.post(ChunkDone(chunk, 0.0))
            case _:
                raise PeerMisbehaved(f"{type(message).__name__} on a stream of tasks", step="tasks")

    def _perform(self, effects: Sequence[admission.Effect]) -> None:
        for effect in effects:
            match effect:
                case admission.Start(number, unit) if number in self._sessions:
                    self._start_chunk(number, unit)
                case admission.Start(number, _):
                    self._commands[number].set()
                case _:
                    assert_never(effect)

    def _start_chunk(self, number: int, chunk_number: int) -> None:
        session = self._sessions[number]
        chunk = session.chunks[chunk_number]
        if session.box.is_dead:
            return  # the session ends now
        if not session.box.has_whole(digest for digests in chunk.buffers for digest in digests):
            session.is_over.set()  # the session that was to bring them has ended midway
            return
        function = self._pool.functions(session.box.twin)[chunk.function]
        session.running[chunk_number] = session.box.run(chunk, function, lambda message: self._deliver(number, message))

    async def _deliver(self, number: int, message: Message) -> None:
        """Passes a box's answer to its consumer."""
        session = self._sessions.get(number)
        if session is None:
            return
        with contextlib.suppress(ConnectionLost):
            await session.messages.send(message)
        if isinstance(message, ChunkDone) and number in self._sessions:
            session.chunks.pop(message.chunk, None)
            session.running.pop(message.chunk, None)
            self._perform(self._admission.handle(admission.UnitEnded(number, message.chunk)))

    # --- commands ----------------------------------------------------------------------------------------------------

    async def serve_command(self, consumer: Consumer, stream: Stream) -> None:
        """Serves one `command/1` stream: a slot, a box with a folder, and the consumer's messages to it."""
        async with MessageStream(stream, step="command") as messages:
            try:
                opening = decode(await _first(messages), OpenCommand, step="opening of a command")
                self._check(consumer)
            except CroftError as error:
                await _decline(messages, stream, error)
                return
            number = next(self._numbers)
            started = self._commands[number] = asyncio.Event()
            self._perform(self._admission.handle(admission.SessionOpened(number)))
            self._perform(self._admission.handle(admission.UnitArrived(number, 0, max(1, round(opening.cpus)))))
            # A consumer that goes away while it waits for a slot ends its stream: watch for both.
            hung_up = asyncio.create_task(messages.receive(), name="command.hung_up")
            try:
                waiting = asyncio.create_task(started.wait(), name="command.slot")
                await asyncio.wait({hung_up, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if not started.is_set():
                    await hung_up
                    return
                await self._run_command(opening, messages, stream, hung_up)
            finally:
                hung_up.cancel()
                del self._commands[number]
                self._perform(self._admission.handle(admission.SessionClosed(number)))

    async def _run_command(
        self,
        opening: OpenCommand,
        messages: MessageStream,
        stream: Stream,
        first: asyncio.Task[bytes | None],
    ) -> None:
        spec: BoxSpec | None = None
        try:
            spec = self._policy.command_box(opening)
            async with _open_box(self._sandbox, spec) as box, MessageStream(box, step="box") as worker:
                await _await_ready(worker)
                messages.post(Opened(1, []))
                down = asyncio.create_task(_pump_down(first, messages, worker), name="command.to_box")
                up = asyncio.create_task(_pump_up(worker, messages, box), name="command.from_box")
                try:
                    await asyncio.wait({down, up}, return_when=asyncio.FIRST_COMPLETED)
                    if not down.done():
                        await _finish(messages, stream)
                finally:
                    down.cancel()
                    up.cancel()
                    results = await asyncio.gather(down, up, return_exceptions=True)
                for result in results:
                    if isinstance(result, PeerMisbehaved):
                        raise result
        except CroftError as error:
            await _decline(messages, stream, error)
        finally:
            if spec is not None:
                await asyncio.to_thread(self._policy.discard, spec)


def _check_buffers(chunk: RunChunk, session: _Session) -> None:
    if chunk.buffers and len(chunk.buffers) != len(chunk.arguments):
        raise PeerMisbehaved(f"chunk {chunk.chunk} does not say what each of its tasks refers to", step="tasks")
    for digests in chunk.buffers:
        if len(digests) > BUFFERS_MAX or not session.buffers.issuperset(digests):
            raise PeerMisbehaved(f"chunk {chunk.chunk} refers to what was not sent", step="tasks")


async def _first(messages: MessageStream) -> bytes:
    try:
        async with asyncio.timeout(OPENING_TIMEOUT_S):
            payload = await messages.receive()
    except TimeoutError:
        raise ConnectionLost("no opening came") from None
    if payload is None:
        raise ConnectionLost("closed before the opening")
    return payload


async def _stopped(task: asyncio.Task[object]) -> None:
    """Cancels a task and waits for its end, whatever that is."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _decline(messages: MessageStream, stream: Stream, error: CroftError) -> None:
    messages.post(Declined(error.code, error.message, error.remedy))
    await _finish(messages, stream)


async def _finish(messages: MessageStream, stream: Stream) -> None:
    """Ends our side of the stream so that the other reads all of it."""
    await messages.flush()
    await stream.finish()
    # Dropping the stream at once would drop the answer too: wait until the consumer has closed its side.
    with contextlib.suppress(TimeoutError, ConnectionLost):
        async with asyncio.timeout(LINGER_S):
            while await messages.receive() is not None:
                pass


@contextlib.asynccontextmanager
async def _open_box(sandbox: Sandbox, spec: BoxSpec) -> AsyncIterator[Box]:
    box = await sandbox.open(spec)
    try:
        yield box
    finally:
        await box.close()


async def _await_ready(worker: MessageStream) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            payload = await worker.receive()
        ready: FromWorker | None = None if payload is None else decode_union(payload, FromWorker, step="box")
    except (TimeoutError, ConnectionLost, PeerMisbehaved) as fault:
        raise Failed(f"the box did not start: {fault or 'no answer'}", remedy="See the peer's log.") from None
    if not isinstance(ready, Ready):
        raise Failed("the box did not start: its worker ended", remedy="See the peer's log.")


async def _pump_down(first: asyncio.Task[bytes | None], messages: MessageStream, worker: MessageStream) -> None:
    """Passes the consumer's messages to the box until the consumer closes its side."""
    payload = await first
    while payload is not None:
        message: COMMAND_MESSAGES = decode_union(payload, COMMAND_MESSAGES, step="command")
        await worker.send(message)
        payload = await messages.receive()


async def _pump_up(worker: MessageStream, messages: MessageStream, box: Box) -> None:
    """Passes the box's messages to the consumer until either ends."""
    while (payload := await worker.receive()) is not None:
        message: FromWorker = decode_union(payload, FromWorker, step="box")
        await messages.send(message)
    death = box.usage().death
    if death:
        remedy = "Ask for more, with `--mem` or `--disk`, or let the command use less."
        messages.post(Declined("task_died", f"the box ended: {death}", remedy))
