"""Programs of a simulated machine's owner: coroutines in place of processes; see `croft.ports.OwnersPrograms`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from croft.errors import ConnectionLost, Failed
from croft.overlay.loopback import LoopbackStream, pipe

Behaviour = Callable[[Sequence[str], LoopbackStream], Awaitable[None]]


class SimulatedProgram:
    """See `croft.ports.Program`."""

    def __init__(self, stream: LoopbackStream, running: asyncio.Task[None]) -> None:
        self._stream = stream
        self._running = running

    async def read(self, size_bytes_max: int) -> bytes:
        return await self._stream.read(size_bytes_max)

    async def write(self, data: bytes | memoryview) -> None:
        await self._stream.write(data)

    async def ended(self) -> str:
        await asyncio.wait({self._running})
        return "ended by SIGKILL" if self._running.cancelled() else "exited with 0"

    def kill(self) -> None:
        self._running.cancel()
        self._stream.abort()


class SimulatedPrograms:
    """What the owner of one machine has installed: `behaviour` stands for all of it."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour
        self.started = 0

    async def start(self, arguments: Sequence[str], folder: str) -> SimulatedProgram:
        if self.behaviour is None:
            raise Failed(f"{arguments[0]} cannot be started: there is no such program")
        near, far = pipe()
        self.started += 1
        running = asyncio.create_task(self._run(self.behaviour, arguments, far), name=f"program.{self.started}")
        return SimulatedProgram(near, running)

    async def _run(self, behaviour: Behaviour, arguments: Sequence[str], stream: LoopbackStream) -> None:
        try:
            await behaviour(arguments, stream)
        except ConnectionLost:
            pass
        finally:
            stream.abort()
