"""A simulated sandbox: tasks run in this process and take virtual time. For trusted functions of tests only.

Its boxes speak the worker's side of `croft.compute.worker_messages` for functions; files are refused, and so are
commands, except members of a circle: these run until their box ends, and the test is what they do.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from typing import Any

import cloudpickle

from croft.compute.environment_messages import Built
from croft.compute.worker_messages import (
    NOT_FOUND_CODE,
    RESULT_BYTES_MAX,
    BufferPart,
    CancelChunk,
    CancelCommand,
    ChunkDone,
    ChunkResults,
    CommandExited,
    DropBuffer,
    FileBytes,
    FileEnd,
    FileFailed,
    FromWorker,
    FunctionFailed,
    GetFile,
    ListFiles,
    LoadFunction,
    Outcome,
    PutFile,
    Ready,
    RemoteException,
    RunChunk,
    RunCommand,
    Status,
    ToWorker,
)
from croft.errors import CodecError, ConnectionLost, Failed, TooLarge
from croft.model.isolation import Grade, Isolation
from croft.ports import BoxSpec, BoxUsage
from croft.sim.connections import Signal
from croft.sim.doorway import SimulatedDoorway
from croft.wire import frames
from croft.wire.codec import decode, encode
from croft.wire.values import encode_value

START_S = 0.08
TASK_S = 0.001
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
NOT_SIMULATED = "not simulated"
BUILDER = "builder"
"""A box whose program is this builds any environment, of nothing."""

Duration = Callable[..., float]
"""How long a task takes, from the function followed by the task's arguments."""


def declared_duration(function: Any, *args: Any, **kwargs: Any) -> float:
    """What the function says in its attribute `virtual_s`: a number, or a callable of the arguments."""
    virtual_s = getattr(function, "virtual_s", TASK_S)
    return float(virtual_s(*args, **kwargs)) if callable(virtual_s) else float(virtual_s)


class SimulatedSandbox:
    """A machine's sandbox, see `croft.ports.Sandbox`, with faults to order.

    Attributes:
        slowness: how many times longer than it should every task takes, from now on.
        failure: raised by every `open` while set.
        lie: what becomes of a task's value on its way out, from now on.
        boxes: what is open.
    """

    def __init__(self, *, grade: Grade = Grade.A, duration: Duration = declared_duration) -> None:
        self._grade = grade
        self.duration = duration
        self.slowness = 1.0
        self.failure: Failed | None = None
        self.lie: Callable[[Any], Any] = lambda value: value
        self.boxes: list[SimulatedBox] = []

    def isolation(self) -> Isolation:
        return Isolation(self._grade)

    async def open(self, spec: BoxSpec) -> SimulatedBox:
        await asyncio.sleep(START_S)
        if self.failure is not None:
            raise self.failure
        box = SimulatedBox(self, spec)
        self.boxes.append(box)
        return box

    def crash(self, death: str = "killed by signal 9") -> None:
        """Ends every open box, as the kernel would."""
        for box in list(self.boxes):
            box.die(death)


class SimulatedBox:
    """One worker; see `croft.ports.Box`."""

    def __init__(self, sandbox: SimulatedSandbox, spec: BoxSpec) -> None:
        self._sandbox = sandbox
        self._frames = frames.FrameReader(step="simulated worker")
        self._outbox = bytearray()
        self._changed = Signal()
        self._functions: dict[bytes, Any] = {}
        self._buffers: dict[bytes, bytearray] = {}
        self._runners: dict[int, asyncio.Task[None]] = {}
        self._free = asyncio.Semaphore(max(1, int(spec.cpus)))
        self._usage = BoxUsage()
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self.cpus = spec.cpus
        self._is_over = False
        self.doorway = SimulatedDoorway() if spec.has_doorway else None
        self._say(Built(0, 0) if spec.argv[0] == BUILDER else Ready(PYTHON))

    async def read(self, size_bytes_max: int) -> bytes:
        while not self._outbox and not self._is_over:
            await self._changed.wait()
        part = bytes(self._outbox[:size_bytes_max])
        del self._outbox[:size_bytes_max]
        return part

    async def write(self, data: bytes | memoryview) -> None:
        if self._is_over:
            raise ConnectionLost(f"simulated box: write: {self._usage.death or 'closed'}")
        for payload in self._frames.feed(bytes(data)):
            kind: Any = ToWorker
            message: ToWorker = decode(payload, kind, step="simulated worker")
            self._handle(message)

    def usage(self) -> BoxUsage:
        return self._usage

    async def hold(self, is_held: bool) -> None:
        """Tasks that come to their end while it is held are not over before it goes on."""
        if is_held:
            self._goes_on.clear()
        else:
            self._goes_on.set()

    async def limit(self, cpus: float) -> None:
        self.cpus = cpus

    async def close(self) -> BoxUsage:
        self._end()
        return self._usage

    def die(self, death: str) -> None:
        """Ends the box from outside; what it had said can still be read."""
        if not self._is_over:
            self._usage = BoxUsage(self._usage.cpu_s, self._usage.memory_peak_bytes, death)
            self._end()

    def _end(self) -> None:
        self._is_over = True
        if self.doorway is not None:
            self.doorway.end()
        for runner in list(self._runners.values()):
            runner.cancel()
        if self in self._sandbox.boxes:
            self._sandbox.boxes.remove(self)
        self._changed.fire()

    def _say(self, message: FromWorker | Built) -> None:
        if not self._is_over:
            self._outbox += frames.frame(encode(message))
            self._changed.fire()

    def _handle(self, message: ToWorker) -> None:
        match message:
            case LoadFunction():
                self._load(message)
            case RunChunk():
                runner = asyncio.create_task(self._run(message), name=f"chunk {message.chunk}")
                self._runners[message.chunk] = runner
            case CancelChunk():
                running = self._runners.pop(message.chunk, None)
                if running is not None:
                    running.cancel()
                    self._say(ChunkDone(message.chunk, 0.0))
            case PutFile() | GetFile() | ListFiles():
                self._say(FileFailed(message.path, NOT_SIMULATED))
            case RunCommand() if self.doorway is None:
                self._say(CommandExited(NOT_FOUND_CODE, reason=NOT_SIMULATED))
            case BufferPart():
                self._buffers.setdefault(message.digest, bytearray()).extend(message.data)
            case DropBuffer():
                self._buffers.pop(message.digest, None)
            case RunCommand() | CancelCommand() | FileBytes() | FileEnd():
                pass

    def _load(self, message: LoadFunction) -> None:
        if message.python != PYTHON:
            self._say(FunctionFailed(message.digest, f"it was made by Python {message.python}, not {PYTHON}"))
            return
        try:
            self._functions[message.digest] = cloudpickle.loads(message.pickled)
        except Exception as error:
            self._say(FunctionFailed(message.digest, repr(error)))

    async def _run(self, message: RunChunk) -> None:
        async with self._free:
            loop = asyncio.get_running_loop()
            started = loop.time()
            function = self._functions.get(message.function)
            if function is None:
                self._say(FunctionFailed(message.function, "it was never loaded"))
            else:
                for number, pickled in enumerate(message.arguments):
                    digests = message.buffers[number] if message.buffers else []
                    call = cloudpickle.loads(pickled, buffers=[bytes(self._buffers[digest]) for digest in digests])
                    outcome = await self._task(number, function, call, message.task_s_max)
                    await self._goes_on.wait()
                    self._say(ChunkResults(message.chunk, [outcome]))
            elapsed_s = loop.time() - started
            self._usage = BoxUsage(self._usage.cpu_s + elapsed_s, self._usage.memory_peak_bytes, self._usage.death)
            self._runners.pop(message.chunk, None)
            self._say(ChunkDone(message.chunk, elapsed_s))

    async def _task(self, number: int, function: Any, call: Any, task_s_max: float) -> Outcome:
        args, kwargs = call
        duration_s = self._sandbox.duration(function, *args, **kwargs) * self._sandbox.slowness
        if task_s_max and duration_s > task_s_max:
            await asyncio.sleep(task_s_max)
            return (number, Status.TIMED_OUT, f"it ran longer than {task_s_max:g} s".encode())
        await asyncio.sleep(duration_s)
        try:
            value = self._sandbox.lie(function(*args, **kwargs))
        except SystemExit as error:
            return (number, Status.DIED, f"exited with {error.code}".encode())
        except Exception as error:
            return (number, Status.RAISED, encode(_remote(error)))
        try:
            return (number, Status.OK, encode_value(value, size_bytes_max=RESULT_BYTES_MAX))
        except TooLarge as error:
            return (number, Status.TOO_LARGE, error.message.encode())
        except CodecError as error:
            return (number, Status.UNCARRIED, error.message.encode())


def _remote(error: Exception) -> RemoteException:
    try:
        arguments = encode_value(tuple(error.args))
    except (CodecError, TooLarge):
        arguments = b""
    text = "".join(traceback.format_exception(error))
    return RemoteException(type(error).__module__, type(error).__qualname__, str(error), text, arguments)
