"""Runs the owner's own programs; see `croft.ports.OwnersPrograms`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence

from croft.adapters.local_stream import LocalStream
from croft.errors import Failed

LINES_KEPT = 8
LINE_CHARS_MAX = 300


class OwnersProgram:
    """One running program. What it prints is kept for a moment, and shown if it dies."""

    def __init__(self, process: asyncio.subprocess.Process, stream: LocalStream) -> None:
        self._process = process
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._reading = asyncio.create_task(self._read_lines(), name=f"program.{process.pid}.output")

    async def read(self, size_bytes_max: int) -> bytes:
        return await self._stream.read(size_bytes_max)

    async def write(self, data: bytes | memoryview) -> None:
        await self._stream.write(data)

    async def ended(self) -> str:
        code = await self._process.wait()
        await self._reading
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return "\n".join([how, *self._lines])

    def kill(self) -> None:
        self._stream.abort()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _read_lines(self) -> None:
        assert self._process.stdout is not None, "its output was asked for"
        while data := await self._process.stdout.read(1 << 16):
            self._lines.extend(line[:LINE_CHARS_MAX] for line in data.decode(errors="replace").splitlines())


class OwnersPrograms:
    """Starts them."""

    async def start(self, arguments: Sequence[str], folder: str) -> OwnersProgram:
        near, far = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                str(far.fileno()),
                cwd=folder,
                pass_fds=[far.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            near.close()
            raise Failed(
                f"{arguments[0]} cannot be started: {error.strerror}",
                remedy="Offer it again with the Python that has what it needs.",
            ) from None
        finally:
            far.close()
        return OwnersProgram(process, LocalStream(near))
