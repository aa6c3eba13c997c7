"""The work socket: each connection is one job or one tunnel, served until the program closes it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from croft.compute.circles import Circles
from croft.compute.commands import CommandJob, CommandSpec, StoredInput
from croft.compute.jobs import OnOutcomes, TaskJob
from croft.compute.lenders import Wish
from croft.compute.worker_messages import BufferPart, DropBuffer, LoadFunction
from croft.control import backup_work, durable_work, storage_work, tunnels
from croft.control.calls import Calls, serve_calls
from croft.control.circles import CircleDesk
from croft.control.pipelines import PipelineDesk, serve_pipeline, serve_pipeline_results
from croft.control.socket_stream import SocketStream
from croft.control.work_messages import (
    CancelTasks,
    CommandEnded,
    CommandOutput,
    CommandStarted,
    DefineFunction,
    FromProgram,
    JobFailed,
    JobOpened,
    KeptBuffer,
    OpenBackupRestore,
    OpenBackupRun,
    OpenBackupVerify,
    OpenCalls,
    OpenCircle,
    OpenCommandJob,
    OpenForward,
    OpenGet,
    OpenPipe,
    OpenPipeline,
    OpenPipelineResults,
    OpenProxy,
    OpenPut,
    OpenResults,
    OpenTaskJob,
    OpenToMember,
    PeerCaught,
    ReleaseValues,
    RunTaskAgain,
    SubmitTasks,
    TakeStream,
    TaskOutcomes,
    TaskResultPart,
    WantValues,
)
from croft.errors import ConnectionLost, CroftError, PeerMisbehaved, Usage
from croft.model.ids import PeerId
from croft.model.kept import Held
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

log = logging.getLogger(__name__)

T = TypeVar("T")

OPEN_BYTES_MAX = 512 << 20
"""Arguments of unfinished tasks kept for one program; more is taken in as tasks finish."""


class JobFactory(durable_work.JobFactory, Protocol):
    """Makes jobs, and keeps account of them."""

    def task_job(self, opening: OpenTaskJob, on_outcomes: OnOutcomes) -> TaskJob: ...

    def command_job(self, opening: OpenCommandJob, stored: Sequence[StoredInput] = ()) -> tuple[str, CommandJob]: ...

    async def ended(self, job: str, error: CroftError | None) -> None:
        """A job is over."""
        ...


class WorkServer:
    """Serves the work socket."""

    def __init__(
        self,
        jobs: JobFactory,
        desk: tunnels.Desk,
        circles: Circles,
        storage: storage_work.StorageDesk,
        backups: backup_work.BackupDesk,
        calls: Calls,
        pipelines: PipelineDesk,
    ) -> None:
        self._pipelines = pipelines
        self._calls = calls
        self._circles = CircleDesk(circles)
        self._jobs = jobs
        self._desk = desk
        self._storage = storage
        self._backups = backups

    async def serve(self, path: Path) -> None:
        """Accepts programs until cancelled; then their jobs are cancelled too."""
        connections: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve_one(reader, writer), name="work.connection")
            connections.add(task)
            task.add_done_callback(connections.discard)
            task.add_done_callback(_raise_bug)

        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(accept, path, limit=4 << 20)
        path.chmod(0o600)
        try:
            await server.serve_forever()
        finally:
            for task in list(connections):
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = SocketStream(reader, writer)
        async with MessageStream(stream, step="local work") as messages:
            try:
                payload = await messages.receive()
                if payload is None:
                    return
                opening: FromProgram = decode_union(payload, FromProgram, step="local work")
                match opening:
                    case OpenTaskJob(is_durable=True):
                        await durable_work.serve_filling(self._jobs, opening, messages)
                    case OpenResults():
                        await durable_work.serve_results(self._jobs, opening, messages)
                    case OpenTaskJob():
                        await self._serve_tasks(opening, messages)
                    case OpenCommandJob():
                        await self._serve_command(opening, messages)
                    case OpenForward() | OpenProxy():
                        await tunnels.serve_port(self._desk, opening, messages)
                    case OpenPut():
                        await storage_work.serve_put(self._storage, opening, messages)
                    case OpenGet():
                        await storage_work.serve_get(self._storage, opening, messages)
                    case OpenPipeline():
                        await serve_pipeline(self._pipelines, opening, messages)
                    case OpenPipelineResults():
                        await serve_pipeline_results(self._pipelines, opening, messages)
                    case OpenBackupRun() | OpenBackupRestore() | OpenBackupVerify():
                        await backup_work.serve_backup(self._backups, opening, messages)
                    case OpenCalls():
                        await serve_calls(self._calls, messages)
                    case OpenPipe():
                        await tunnels.serve_pipe(self._desk, opening, messages, stream)
                    case OpenCircle():
                        await self._circles.serve_circle(messages)
                    case OpenToMember():
                        await self._circles.serve_opened(opening, messages, stream)
                    case TakeStream():
                        await self._circles.serve_taken(opening, messages, stream)
                    case _:
                        raise PeerMisbehaved(f"{type(opening).__name__} before a job was opened", step="local work")
            except ConnectionLost:
                pass
            except (CroftError, PeerMisbehaved) as fault:
                error = fault if isinstance(fault, CroftError) else Usage(str(fault))
                with contextlib.suppress(ConnectionLost):
                    messages.post(JobFailed(error.code, error.message, error.remedy))
                    await messages.flush()
            finally:
                writer.close()

    async def _serve_tasks(self, opening: OpenTaskJob, messages: MessageStream) -> None:
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
                messages.post(TaskOutcomes(peer, self._jobs.peer_name(peer), list(outcomes)))

        def on_caught(peer: PeerId, reason: str, unchecked: Sequence[int]) -> None:
            with contextlib.suppress(ConnectionLost):
                messages.post(PeerCaught(self._jobs.peer_name(peer), reason, list(unchecked)))

        async def on_part(task: int, data: bytes) -> None:
            with contextlib.suppress(ConnectionLost):
                await messages.send(TaskResultPart(task, data))

        job = self._jobs.task_job(opening, on_outcomes)
        job.on_caught, job.elsewhere.on_part = on_caught, on_part
        error: CroftError | None = None
        try:
            messages.post(JobOpened(job.id))
            async with _alongside(job.run()):
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
            await self._jobs.ended(job.id, error)

    async def _serve_command(self, opening: OpenCommandJob, messages: MessageStream) -> None:
        stored = [one for name, path in opening.stored for one in await self._storage.inputs(name, path)]
        job_id, job = self._jobs.command_job(opening, stored)

        async def on_output(descriptor: int, data: bytes) -> None:
            await messages.send(CommandOutput(descriptor, data))

        async def on_start(name: str) -> None:
            messages.post(CommandStarted(job.peer or "", name))

        messages.post(JobOpened(job_id))
        error: CroftError | None = None
        try:
            async with _alongside(job.run(on_output, on_start)) as running:
                hung_up = asyncio.create_task(messages.receive(), name="work.hung_up")
                await asyncio.wait({running, hung_up}, return_when=asyncio.FIRST_COMPLETED)
                hung_up.cancel()
                if not running.done():
                    return
                result = running.result()
            ended = CommandEnded(
                result.exit_code, result.signal, result.reason, result.peer, result.peer_name, list(result.missing)
            )
            messages.post(ended)
            await messages.flush()
        except CroftError as caught:
            error = caught
            raise
        finally:
            await self._jobs.ended(job_id, error)


@contextlib.asynccontextmanager
async def _alongside(work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
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


def _raise_bug(task: asyncio.Task[None]) -> None:
    """A connection handles every failure that it expects: whatever else ended it is a bug of ours."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a local connection ended by a bug", exc_info=error)


def command_spec(opening: OpenCommandJob, stored: Sequence[StoredInput] = ()) -> CommandSpec:
    """What to run, from what the program asked for."""
    return CommandSpec(
        argv=tuple(opening.argv),
        environment=opening.environment,
        inputs=tuple((Path(source), name) for source, name in opening.inputs),
        outputs=tuple((name, Path(destination)) for name, destination in opening.outputs),
        cpus=opening.cpus,
        memory_bytes=opening.memory_bytes,
        disk_bytes=opening.disk_bytes,
        time_s_max=opening.time_s_max,
        stdin=opening.stdin,
        wait_s=opening.wait_s,
        needs=tuple(opening.needs),
        priority=opening.priority,
        circle=opening.circle,
        member=opening.member,
        stored=tuple(stored),
        packages=opening.packages,
        is_wasm=opening.is_wasm,
        fuel=opening.fuel,
    )


def _near(stored: Sequence[StoredInput]) -> frozenset[PeerId]:
    """The peers that hold the most bytes of these, all of a file or none."""
    held = Counter[PeerId]()
    for one in stored:
        held.update(dict.fromkeys(one.at, max(1, one.size)))
    most = max(held.values(), default=0)
    return frozenset(peer for peer, size in held.items() if size == most)


def wish(opening: OpenTaskJob | OpenCommandJob, stored: Sequence[StoredInput] = ()) -> Wish:
    """Which peers may serve, from what the program asked for; first those that hold most of what is `stored`."""
    only, never = frozenset(map(PeerId, opening.only)), frozenset(map(PeerId, opening.never))
    labels = frozenset(opening.labels) if isinstance(opening, OpenTaskJob) else frozenset()
    cpus = opening.cpus if isinstance(opening, OpenTaskJob) else 1
    priority = opening.priority if isinstance(opening, OpenTaskJob) else 0
    return Wish(opening.python, only, never, tuple(opening.needs), labels, cpus, priority, _near(stored))
