"""Runs the work of others on this peer, each under a lease: lets sessions in, feeds boxes, passes answers back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING, assert_never

from croft.compute import admission
from croft.compute.boxes import BoxPool, usage_of
from croft.compute.circle import CIRCLE_LENGTH_MAX
from croft.compute.circle_messages import CircleRoster
from croft.compute.circles import Circles, Membership, is_member_name
from croft.compute.environments import Environments
from croft.compute.fetching import Fetches
from croft.compute.keeping import Keeping, Withheld
from croft.compute.lender_sessions import LentCommand, LentSession, check_buffers
from croft.compute.lender_streams import (
    await_ready,
    check_words,
    decline,
    finish,
    first_message,
    pump_up,
    said_meanwhile,
    seconds,
    stopped,
)
from croft.compute.lending_terms import Consumer, Held, Leases, Offers, Policy
from croft.compute.messages import (
    Declined,
    DropResults,
    FetchBuffer,
    FetchStored,
    ForKeeping,
    OpenCommand,
    Opened,
    OpenTasks,
    PutStored,
    SendResults,
)
from croft.compute.worker_messages import (
    FILE_PART_BYTES,
    WASM_MEMORY_VARIABLE,
    BufferPart,
    CancelChunk,
    CancelCommand,
    ChunkDone,
    ChunkResults,
    DropBuffer,
    FileBytes,
    FileEnd,
    FileFailed,
    GetFile,
    ListFiles,
    LoadFunction,
    PutFile,
    RunChunk,
    RunCommand,
    Status,
    ToWorker,
)
from croft.errors import Busy, ConnectionLost, CroftError, PeerMisbehaved, Refused, TimedOut
from croft.model.amounts import CPU
from croft.model.ids import PeerId, TwinId
from croft.model.lease import Lease, Request, Stage, Usage
from croft.wire.codec import Message, decode, decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.compute.live_boxes import LiveBoxes
    from croft.ports import Box, BoxSpec, BoxUsage, Stream

log = logging.getLogger(__name__)

CPUS_MAX = 4096
WASM_ENGINE_BYTES = 96 << 20
"""What the engine takes of a box's memory, beside that of the program."""
LEASE_ENDED = TimedOut("its lease has ended", remedy="Ask for a longer one, with `--time`.")
FromConsumer = ToWorker | ForKeeping
COMMAND_MESSAGES = (
    PutFile | PutStored | GetFile | ListFiles | RunCommand | CancelCommand | FileBytes | FileEnd | CircleRoster
)


class Lender:
    """The lending side of compute. Nothing runs here but under a lease; `lend` says under which offers."""

    def __init__(
        self,
        live: LiveBoxes,
        policy: Policy,
        offers: Offers,
        leases: Leases,
        circles: Circles,
        held: Held,
        environments: Environments,
    ) -> None:
        self._live = live
        self._policy = policy
        self._offers = offers
        self._leases = leases
        self._circles = circles
        self._held = held
        self._environments = environments
        self.keeping = Keeping(held)
        self._admission = admission.Admission(0)
        self._lent: Mapping[str, int] = {}
        self._pool = BoxPool(live)
        self._numbers = itertools.count(1)
        self._sessions: dict[int, LentSession] = {}
        self._commands: dict[int, LentCommand] = {}
        self._command_keys: set[str] = set()
        self._closing: asyncio.Queue[Lease] = asyncio.Queue()
        self.tasks_done: dict[PeerId, int] = {}

    def lend(self, slots: int, offers: Mapping[str, int]) -> None:
        """Lends so many slots from now on, in all and under each offer.

        Sessions of tasks under offers that no longer stand end, and their tasks go elsewhere. A command that runs goes
        on: nobody else could take it over midway.
        """
        if (slots, offers) == (self._admission.slots, self._lent):
            return
        self._lent = dict(offers)
        self._perform(self._admission.handle(admission.SlotsChanged(slots, offers)))
        for session in self._sessions.values():
            if offers.get(session.offer, 0) == 0:
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
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pool.serve(), name="boxes")
            tasks.create_task(self.keeping.serve(), name="kept results")
            while True:
                lease = await self._closing.get()
                tasks.create_task(self._close(lease), name=f"lease.{lease.number}.close")

    # --- leases ------------------------------------------------------------------------------------------------------

    def _check(self, consumer: Consumer, *, is_wasm: bool = False) -> tuple[str, ...]:
        """The offers under which a consumer's work may run. Raises Refused, Busy."""
        offers = self._offers.standing_for(consumer)
        self._policy.check(consumer.twin, is_wasm=is_wasm)
        if self._admission.is_full:
            raise Busy("too many sessions are open on this peer", remedy="Try again later.")
        return offers

    def reclaim(self, lease: Lease) -> None:
        """The lease is over: its users are told, and whoever is the last one closes its box."""
        everybody: list[LentSession | LentCommand] = [*self._sessions.values(), *self._commands.values()]
        users = [one for one in everybody if one.lease.number == lease.number]
        for user in users:
            user.is_over.set()
        if not users:
            self._closing.put_nowait(lease)

    def _leave(self, lease: Lease, stage: Stage) -> None:
        self._leases.leave(lease, stage)
        is_used = any(session.lease.number == lease.number for session in self._sessions.values())
        if self._leases.stage(lease) is Stage.ENDING and not is_used:
            self._closing.put_nowait(lease)

    async def _close(self, lease: Lease) -> None:
        self._leases.used(lease, await self._pool.close(lease.number))
        self._leases.ended(lease)

    # --- Python tasks ------------------------------------------------------------------------------------------------

    async def serve_tasks(self, consumer: Consumer, stream: Stream) -> None:
        """Serves one `tasks/1` stream until its consumer closes it."""
        async with MessageStream(stream, step="tasks") as messages:
            number = next(self._numbers)
            try:
                opening = decode(await first_message(messages), OpenTasks, step="opening of tasks")
                session = await self._let_in(consumer, number, opening, messages)
            except CroftError as error:
                await decline(messages, stream, error)
                return
            self._sessions[number] = session
            self.keeping.begin(session.job)
            lease, box, stage = session.lease, session.box, Stage.ENDING
            opened = admission.SessionOpened(number, session.offer, lease.amounts[CPU], consumer.twin, opening.priority)
            self._perform(self._admission.handle(opened))
            listening = asyncio.create_task(self._listen(consumer, number, session), name="tasks.listen")
            ended = asyncio.create_task(box.ended.wait(), name="tasks.box_ended")
            over = asyncio.create_task(session.is_over.wait(), name="tasks.over")
            try:
                await asyncio.wait({listening, ended, over}, return_when=asyncio.FIRST_COMPLETED)
                if listening.done():
                    stage = Stage.SILENT if isinstance(listening.exception(), ConnectionLost) else Stage.WARM
                    listening.result()
                    return
                # The consumer is told by the end of the session, and may ask again, here or elsewhere.
                await stopped(listening)
                if opening.job and (death := box.box.usage().death):
                    messages.post(Declined("task_died", f"the box ended: {death}", ""))
                await finish(messages, stream)
            finally:
                await stopped(listening)
                await stopped(ended)
                await stopped(over)
                await session.fetches.close()
                del self._sessions[number]
                await session.withheld.close()
                self.keeping.end(session.job, is_over=stage is Stage.WARM)
                for box_chunk in session.running.values():
                    box.forget(box_chunk)
                box.drop(number, session.buffers)
                used = Usage(
                    received_bytes=messages.received_bytes, sent_bytes=messages.sent_bytes, tasks=session.tasks
                )
                self._leases.used(lease, used)
                self._leave(lease, Stage.ENDING if box.is_dead else stage)
                self._perform(self._admission.handle(admission.SessionClosed(number)))

    async def _listen(self, consumer: Consumer, number: int, session: LentSession) -> None:
        functions = list(self._pool.functions(consumer.twin))
        session.messages.post(
            Opened(
                session.slots,
                functions,
                session.box.buffer_bytes_max,
                environment=session.environment,
                keeps_results=True,
            )
        )
        while (payload := await session.messages.receive()) is not None:
            message: FromConsumer = decode_union(payload, FromConsumer, step="tasks")
            if isinstance(message, BufferPart):
                session.buffers.add(message.digest)
                session.fetches.found(message.digest)
                if not await session.box.put(number, message, payload):
                    log.info("no room in the box of %s for what its tasks need: the session ends", consumer.name)
                    session.is_over.set()
                    return
            else:
                self._take(consumer, number, session, message)

    async def _let_in(
        self, consumer: Consumer, number: int, opening: OpenTasks, messages: MessageStream
    ) -> LentSession:
        offers = self._check(consumer)
        check_words(opening.job, opening.needs)
        if opening.python != self._policy.python():
            raise Refused(
                f"this peer runs Python {self._policy.python()}, the job is made by Python {opening.python}",
                remedy="Functions travel only between equal minor versions; use peers with the same Python.",
            )
        self._environments.check(opening.environment)
        environment = b"" if opening.environment is None else opening.environment.digest
        wants = self._policy.task_wants(opening, self._leases.most(offers), self._leases.room(offers))
        # What takes turns shares the twin's one warm box; what is reserved is the job's own.
        is_shared = wants[CPU] == 0 and not opening.needs
        owner = consumer.twin if is_shared else f"{consumer.peer}/{opening.job or number}"
        key = f"{owner}/tasks/{opening.memory_bytes}" + (f"/{environment.hex()}" if environment else "")
        request = Request(key, consumer.peer, consumer.twin, "tasks", opening.job, offers, wants)
        lease = await self._leases.take(request)
        try:
            offer = lease.offer_of(CPU) or self._offer_with_slots(offers)
            slots = lease.amounts[CPU] or min(self._admission.slots, self._lent.get(offer, 0))
            devices = self._offers.places(lease)
            async with (
                said_meanwhile(messages, opening.environment is not None),
                self._environments.ready(opening.environment, consumer, opening.sources, self._meter(lease)) as place,
            ):
                box = await self._pool.acquire(
                    lease.number,
                    consumer.twin,
                    lambda: self._policy.task_box(consumer.twin, lease.amounts, max(1, slots), devices, place),
                )
            self._check(consumer)  # again: others were let in while the box started
        except BaseException as error:
            self._leave(lease, Stage.WARM if isinstance(error, Busy) else Stage.ENDING)
            raise
        per_task = max(1, min(opening.cpus_per_task, CPUS_MAX))
        kept_for = f"{consumer.peer}/{opening.job or number}"
        withheld, fetches = Withheld(self.keeping, kept_for, consumer.twin), Fetches(self.keeping, number, box)
        return LentSession(messages, lease, box, withheld, fetches, kept_for, offer, slots, per_task, environment)

    def _meter(self, lease: Lease) -> Callable[[BoxUsage], None]:
        """Counts what a box uses that serves a lease beside the lease's own."""
        return lambda used: self._leases.used(lease, usage_of(used))

    def _offer_with_slots(self, offers: Sequence[str]) -> str:
        offer = max(offers, key=lambda offer: self._lent.get(offer, 0))
        if self._lent.get(offer, 0) == 0:
            raise Refused("this peer lends you no processors now", remedy="Ask its owner, or use others.")
        return offer

    def _take(self, consumer: Consumer, number: int, session: LentSession, message: FromConsumer) -> None:
        match message:
            case LoadFunction():
                self._pool.keep_function(consumer.twin, message)
            case DropBuffer(digest):
                session.buffers.discard(digest)
                session.fetches.drop(digest)
            case FetchBuffer(digest) | FetchStored(digest):
                session.buffers.add(digest)
                session.fetches.begin(message)
            case SendResults(chunk):
                session.withheld.send(chunk)
            case DropResults(tokens):
                self.keeping.drop(session.job, tokens)
            case RunChunk(chunk, function, arguments):
                if chunk in session.chunks or not arguments:
                    raise PeerMisbehaved(f"chunk {chunk} is empty or sent twice", step="tasks")
                if function not in self._pool.functions(consumer.twin):
                    raise PeerMisbehaved("a chunk of a function that was not sent", step="tasks")
                check_buffers(message, session)
                session.chunks[chunk] = message
                session.tasks += len(arguments)
                self.tasks_done[consumer.peer] = self.tasks_done.get(consumer.peer, 0) + len(arguments)
                if message.keeps:
                    session.withheld.begin(chunk)
                session.fetches.hold(message, partial(self._queue_chunk, number, session))
            case CancelChunk(chunk):
                if chunk in session.running:
                    session.box.cancel(session.running[chunk])
                elif session.chunks.pop(chunk, None):
                    session.fetches.forget(chunk)
                    self._perform(self._admission.handle(admission.UnitEnded(number, chunk)))
                    session.messages.post(ChunkDone(chunk, 0.0))
            case _:
                raise PeerMisbehaved(f"{type(message).__name__} on a stream of tasks", step="tasks")

    def _queue_chunk(self, number: int, session: LentSession, chunk: RunChunk, lost: Sequence[bytes]) -> None:
        """A chunk may wait for its slot; or what it needs is lost."""
        if not lost:
            self._perform(self._admission.handle(admission.UnitArrived(number, chunk.chunk, session.slots_per_task)))
            return
        session.buffers.difference_update(lost)
        del session.chunks[chunk.chunk]
        outcomes = [(index, int(Status.LOST), b"".join(lost)) for index in range(len(chunk.arguments))]
        with contextlib.suppress(ConnectionLost):
            session.messages.post(ChunkResults(chunk.chunk, outcomes))
            session.messages.post(ChunkDone(chunk.chunk, 0.0))

    def _perform(self, effects: Sequence[admission.Effect]) -> None:
        for effect in effects:
            match effect:
                case admission.Start(number, unit) if number in self._sessions:
                    self._start_chunk(number, unit)
                case admission.Start(number, _):
                    self._commands[number].started.set()
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
        passed = await session.withheld.passed(message)
        if passed is not None:
            with contextlib.suppress(ConnectionLost):
                await session.messages.send(passed)
        if isinstance(message, ChunkDone) and number in self._sessions:
            session.chunks.pop(message.chunk, None)
            session.running.pop(message.chunk, None)
            self._perform(self._admission.handle(admission.UnitEnded(number, message.chunk)))

    # --- commands ----------------------------------------------------------------------------------------------------

    async def serve_command(self, consumer: Consumer, stream: Stream) -> None:
        """Serves one `command/1` stream: a lease, a box with a folder, and the consumer's messages to it."""
        async with MessageStream(stream, step="command") as messages:
            try:
                opening = decode(await first_message(messages), OpenCommand, step="opening of a command")
                request = self._command_request(consumer, opening)
            except CroftError as error:
                await decline(messages, stream, error)
                return
            # A consumer that goes away while it waits in line ends its stream: watch for both.
            self._command_keys.add(request.key)
            hung_up = asyncio.create_task(messages.receive(), name="command.hung_up")
            taking = asyncio.create_task(self._leases.take(request, seconds(opening.wait_s)), name="command.lease")
            try:
                await asyncio.wait({hung_up, taking}, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    await hung_up
                    return
                await self._serve_leased(consumer, opening, taking.result(), messages, stream, hung_up)
            except CroftError as error:
                await decline(messages, stream, error)
            finally:
                await stopped(taking)
                hung_up.cancel()
                self._command_keys.discard(request.key)

    def _command_request(self, consumer: Consumer, opening: OpenCommand) -> Request:
        offers = self._check(consumer, is_wasm=opening.is_wasm)
        check_words(opening.job, opening.needs)
        if opening.is_wasm and (opening.circle or opening.environment is not None or opening.needs):
            raise PeerMisbehaved("a WebAssembly program that asks for what it cannot use", step="opening")
        if opening.circle and not (len(opening.circle) <= CIRCLE_LENGTH_MAX and is_member_name(opening.member)):
            raise PeerMisbehaved("an impossible member of a circle", step="opening")
        self._environments.check(opening.environment)
        key = f"{consumer.peer}/{opening.job or next(self._numbers)}/command"
        if key in self._command_keys:
            raise Refused("this very command runs here already", remedy="Wait for it, or cancel it.")
        wants = self._policy.command_wants(opening, self._leases.most(offers), self._leases.room(offers))
        lasts_s = seconds(opening.lasts_s) or inf
        return Request(
            key, consumer.peer, consumer.twin, "command", opening.job, offers, wants, lasts_s, opening.priority
        )

    async def _serve_leased(
        self,
        consumer: Consumer,
        opening: OpenCommand,
        lease: Lease,
        messages: MessageStream,
        stream: Stream,
        hung_up: asyncio.Task[bytes | None],
    ) -> None:
        number = next(self._numbers)
        command = self._commands[number] = LentCommand(lease)
        slots = lease.amounts[CPU]
        is_open = False
        try:
            if self._admission.is_full:
                raise Busy("too many sessions are open on this peer", remedy="Try again later.")
            self._perform(self._admission.handle(admission.SessionOpened(number, lease.offer_of(CPU), slots)))
            is_open = True
            self._perform(self._admission.handle(admission.UnitArrived(number, 0, slots)))
            waiting = asyncio.create_task(command.started.wait(), name="command.slot")
            over = asyncio.create_task(command.is_over.wait(), name="command.over")
            await asyncio.wait({hung_up, waiting, over}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            over.cancel()
            if not command.started.is_set():
                if command.is_over.is_set():
                    raise LEASE_ENDED
                await hung_up
                return
            await self._run_command(consumer, opening, command, messages, stream, hung_up)
        finally:
            del self._commands[number]
            used = Usage(received_bytes=messages.received_bytes, sent_bytes=messages.sent_bytes, tasks=1)
            self._leases.used(lease, used)
            self._leases.leave(lease, Stage.ENDING)
            self._leases.ended(lease)
            if is_open:
                self._perform(self._admission.handle(admission.SessionClosed(number)))

    async def _run_command(
        self,
        consumer: Consumer,
        opening: OpenCommand,
        command: LentCommand,
        messages: MessageStream,
        stream: Stream,
        first: asyncio.Task[bytes | None],
    ) -> None:
        spec: BoxSpec | None = None
        try:
            devices = self._offers.places(command.lease)
            lease, owner = command.lease, consumer.peer
            async with (
                said_meanwhile(messages, opening.environment is not None),
                self._environments.ready(opening.environment, consumer, (), self._meter(lease)) as place,
            ):
                spec = self._policy.command_box(lease.amounts, opening.cpus, devices, place)
                if opening.circle:
                    spec = replace(spec, argv=(*spec.argv, "{doorway}"), has_doorway=True)
                if opening.is_wasm:
                    memory = max(spec.memory_bytes // 4, spec.memory_bytes - WASM_ENGINE_BYTES)
                    limit = {WASM_MEMORY_VARIABLE: str(memory)}
                    spec = replace(spec, is_wasm=True, environment={**spec.environment, **limit})
                box = await self._live.open(spec)
            try:
                async with contextlib.AsyncExitStack() as stack:
                    membership: Membership | None = None
                    if box.doorway is not None:
                        hosted = self._circles.hosted(owner, opening.circle, opening.member, box.doorway)
                        membership = await stack.enter_async_context(hosted)
                    await self._attend(opening, command, membership, box, messages, stream, first)
            finally:
                ended = await box.close()
                self._live.closed(box)
                self._leases.used(lease, usage_of(ended))
        finally:
            if spec is not None and spec.work_dir is not None:
                await asyncio.to_thread(self._policy.discard, spec)

    async def _attend(
        self,
        opening: OpenCommand,
        command: LentCommand,
        membership: Membership | None,
        box: Box,
        messages: MessageStream,
        stream: Stream,
        first: asyncio.Task[bytes | None],
    ) -> None:
        async with MessageStream(box, step="box") as worker:
            await await_ready(worker)
            environment = b"" if opening.environment is None else opening.environment.digest
            messages.post(
                Opened(
                    1,
                    [],
                    has_streams=membership is not None,
                    reads_stored=True,
                    environment=environment,
                    is_wasm=opening.is_wasm,
                )
            )
            down = asyncio.create_task(
                self._pump_down(command, membership, first, messages, worker), name="command.to_box"
            )
            up = asyncio.create_task(pump_up(worker, messages, box), name="command.from_box")
            over = asyncio.create_task(command.is_over.wait(), name="command.over")
            try:
                await asyncio.wait({down, up, over}, return_when=asyncio.FIRST_COMPLETED)
                if not down.done():
                    if over.done():
                        messages.post(Declined(LEASE_ENDED.code, LEASE_ENDED.message, LEASE_ENDED.remedy))
                    await finish(messages, stream)
            finally:
                for task in (down, up, over):
                    task.cancel()
                results = await asyncio.gather(down, up, over, return_exceptions=True)
            for result in results:
                if isinstance(result, PeerMisbehaved | CroftError):
                    raise result

    async def _pump_down(
        self,
        command: LentCommand,
        membership: Membership | None,
        first: asyncio.Task[bytes | None],
        messages: MessageStream,
        worker: MessageStream,
    ) -> None:
        """Passes the consumer's messages to the box until the consumer closes its side."""
        payload = await first
        while payload is not None:
            message: COMMAND_MESSAGES = decode_union(payload, COMMAND_MESSAGES, step="command")
            match message:
                case CircleRoster():
                    if membership is not None:
                        self._circles.take_roster(membership, message)
                case PutStored():
                    await self._put_stored(command.lease.request.twin, message, messages, worker)
                case _:
                    await worker.send(message)
            payload = await messages.receive()

    async def _put_stored(
        self, owner: TwinId, message: PutStored, messages: MessageStream, worker: MessageStream
    ) -> None:
        """Makes a file in the box of what this machine holds for the consumer."""
        try:
            await self._held.check(owner, message.content)
        except CroftError as error:
            messages.post(FileFailed(message.path, error.message))
            return
        worker.post(PutFile(message.path, message.is_executable))
        async for piece in self._held.read(owner, message.content):
            for at in range(0, len(piece), FILE_PART_BYTES):
                await worker.send(FileBytes(bytes(piece[at : at + FILE_PART_BYTES])))
        await worker.send(FileEnd())
