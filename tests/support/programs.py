"""A program of a simulated machine: its tasks go the way of any program's, but for the socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from croft.client.task_options import Options
from croft.client.task_session import TaskSession
from croft.compute.job_sessions import StoredInput
from croft.control.task_work import serve_tasks
from croft.control.work_messages import FromProgram
from croft.errors import ConnectionLost, NotFound
from croft.overlay.loopback import pipe
from croft.sim.world import World
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream


class _NoFiles:
    async def inputs(self, name: bytes, path: str, number: int = 0) -> list[StoredInput]:
        raise NotFound(f"{name!r} is not simulated")


@contextlib.asynccontextmanager
async def program(world: World, name: str, *, on: tuple[str, ...] = ()) -> AsyncIterator[TaskSession]:
    """A job of a program on a machine that stays up; `on`: which machines may do its tasks."""
    here, there = pipe()
    session = TaskSession(Options(label="simulated", on=tuple(world[other].peer for other in on)))

    async def serve() -> None:
        async with MessageStream(there, step="local work") as messages:
            payload = await messages.receive()
            assert payload is not None, "a program opens its job"
            opening = decode_union(payload, FromProgram, step="local work")
            with contextlib.suppress(ConnectionLost):
                await serve_tasks(world[name].parts.jobs, _NoFiles(), opening, messages)

    serving = asyncio.create_task(serve(), name=f"{name} serves a program")
    session.begin(here)
    try:
        yield session
    finally:
        await session.close()
        here.abort()
        await serving
