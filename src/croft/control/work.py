"""The work socket: each connection is one job or one tunnel, served until the program closes it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from croft.compute.circles import Circles
from croft.compute.commands import CommandJob, CommandSpec
from croft.compute.job_sessions import StoredInput
from croft.compute.lenders import Wish
from croft.control import backup_work, durable_work, storage_work, tunnels
from croft.control.calls import Calls, serve_calls
from croft.control.circles import CircleDesk
from croft.control.pipelines import PipelineDesk, serve_pipeline, serve_pipeline_results
from croft.control.socket_stream import SocketStream
from croft.control.task_work import TaskJobs, alongside, serve_tasks
from croft.control.work_messages import (
    CommandEnded,
    CommandOutput,
    CommandStarted,
    FromProgram,
    JobFailed,
    JobOpened,
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
    TakeStream,
)
from croft.errors import ConnectionLost, CroftError, PeerMisbehaved, Usage
from croft.model.ids import PeerId
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

log = logging.getLogger(__name__)

T = TypeVar("T")


class JobFactory(durable_work.JobFactory, TaskJobs, Protocol):
    """Makes jobs, and keeps account of them."""

    def command_job(self, opening: OpenCommandJob, stored: Sequence[StoredInput] = ()) -> tuple[str, CommandJob]: ...


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
                        await serve_tasks(self._jobs, self._storage, opening, messages)
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
            async with alongside(job.run(on_output, on_start)) as running:
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
