"""Runs the calls of one capability in warm processes of their own, started when needed, each with one call at a time.

A process that dies fails the one call that it served; the next call starts another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from croft.errors import Busy, ConnectionLost, CroftError, Failed, PeerMisbehaved, by_code
from croft.twins.call_messages import (
    AskCall,
    CallFailed,
    StopCall,
    ToCaller,
    ToProvider,
    WorkerReady,
    is_last,
)
from croft.wire import frames
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import OwnersPrograms, Program

log = logging.getLogger(__name__)

START_S_MAX: Final = 120.0
"""For the file to be imported: models take long to load."""
STOP_S_MAX: Final = 2.0
"""How long a function may go on after nobody waits for it any more; then its process is killed."""
IDLE_S_MAX: Final = 900.0
WAITING_MAX: Final = 2_048
WAITING_EACH_MAX: Final = 1_024
"""Calls of one caller."""
BROKEN_S: Final = 5.0
"""So long after the function could not be loaded, nobody tries again."""
STEP: Final = "capability worker"

Deliver = Callable[[ToCaller], Awaitable[None]]


class Running:
    """One call inside a process: what the caller sends later goes to `post`."""

    def __init__(self, opening: AskCall) -> None:
        self._waiting: list[ToProvider] = [opening]
        self._process: _Process | None = None

    @property
    def has_begun(self) -> bool:
        """Whether a process has it."""
        return self._process is not None

    def post(self, message: ToProvider) -> None:
        """Passes on more of the call, at once or when its turn comes."""
        if self._process is None:
            self._waiting.append(message)
        else:
            self._process.post(message)

    def begin(self, process: _Process) -> None:
        """Its turn has come."""
        self._process = process
        for message in self._waiting:
            process.post(message)
        self._waiting.clear()


class CapabilityHost:
    """The processes of one capability, at most `slots`; `arguments` start one in `folder`."""

    def __init__(self, name: str, programs: OwnersPrograms, arguments: Sequence[str], folder: str, slots: int) -> None:
        self.name = name
        self._programs = programs
        self._arguments = tuple(arguments)
        self._folder = folder
        self._slots = slots
        self._idle: list[_Process] = []
        self._processes: set[_Process] = set()
        self._turns: dict[str, deque[asyncio.Future[None]]] = {}
        """Of each caller who waits; callers are served in turn."""
        self._broken: tuple[CroftError, float] | None = None
        self._busy = 0
        self._cleaning: set[asyncio.Task[None]] = set()
        self.is_closed = False

    @property
    def load(self) -> float:
        """Share of the slots in use."""
        return self._busy / self._slots

    async def run(self, running: Running, who: str, call: int, time_s_max: float, deliver: Deliver) -> None:
        """Serves one call of `who`; its answer goes to `deliver`. Raises Busy, Failed if it surely has not begun.

        When this is cancelled, the function is stopped.
        """
        await self._take_turn(who)
        is_given_back = False
        try:
            process = await self._take_process()
            try:
                async with asyncio.timeout(time_s_max):
                    running.begin(process)
                    await process.serve(call, deliver)
            except TimeoutError:
                process.kill()
                why = f"`{self.name}` took longer than {time_s_max:g} s"
                await deliver(CallFailed(call, "timed_out", why, "Ask for less at a time.", has_begun=True))
            finally:
                if process.is_busy and not process.is_dead:
                    is_given_back = True
                    self._later(process, call)
                else:
                    self._give_back(process)
        finally:
            if not is_given_back:
                self._end_turn()

    def close(self) -> None:
        """Ends every process. Idempotent."""
        self.is_closed = True
        for process in list(self._processes):
            process.kill()
        self._processes.clear()
        self._idle.clear()

    def retire(self) -> None:
        """Begins no more calls; what is under way goes on to its end."""
        self.is_closed = True
        for process in self._idle:
            self._drop(process)
        self._idle.clear()

    def tend(self, now: float) -> None:
        """Ends processes that nobody has needed for long."""
        for process in [one for one in self._idle if now - one.used_at > IDLE_S_MAX]:
            self._idle.remove(process)
            self._drop(process)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _take_turn(self, who: str) -> None:
        if self._busy < self._slots:
            self._busy += 1
            return
        line = self._turns.setdefault(who, deque())
        if len(line) >= WAITING_EACH_MAX or sum(map(len, self._turns.values())) >= WAITING_MAX:
            raise Busy(f"{len(line)} calls of yours wait for `{self.name}` already", remedy="Try again later.")
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end_turn()
            raise

    def _end_turn(self) -> None:
        """The slot is free: whoever has waited longest since their last turn has it."""
        while self._turns:
            who = next(iter(self._turns))
            line = self._turns.pop(who)
            turn = line.popleft() if line else None
            if line:
                self._turns[who] = line
            if turn is not None and not turn.done():
                turn.set_result(None)
                return
        self._busy -= 1

    async def _take_process(self) -> _Process:
        if self.is_closed:
            raise Failed(f"`{self.name}` is offered no more")
        while self._idle:
            process = self._idle.pop()
            if not process.is_dead:
                return process
            self._drop(process)
        now = asyncio.get_running_loop().time()
        if self._broken is not None and now < self._broken[1]:
            raise self._broken[0]  # nobody has this machine start process after process in vain
        try:
            process = await self._start()
        except CroftError as error:
            log.warning("the capability `%s` cannot be loaded: %s", self.name, error.message)
            self._broken = error, asyncio.get_running_loop().time() + BROKEN_S
            raise
        self._broken = None
        return process

    async def _start(self) -> _Process:
        process = _Process(await self._programs.start(self._arguments, self._folder), self.name)
        self._processes.add(process)
        try:
            await process.ready()
        except BaseException:
            self._drop(process)
            raise
        return process

    def _give_back(self, process: _Process) -> None:
        if process.is_dead or self.is_closed:
            self._drop(process)
        else:
            process.used_at = asyncio.get_running_loop().time()
            self._idle.append(process)

    def _drop(self, process: _Process) -> None:
        self._processes.discard(process)
        process.kill()

    def _later(self, process: _Process, call: int) -> None:
        """Stops a call that nobody waits for; only then is its slot free."""

        async def stop() -> None:
            try:
                await process.stop(call)
                self._give_back(process)
            finally:
                self._end_turn()

        task = asyncio.create_task(stop(), name=f"capability.{self.name}.stop")
        self._cleaning.add(task)
        task.add_done_callback(self._cleaning.discard)


class _Process:
    """One warm process."""

    def __init__(self, program: Program, name: str) -> None:
        self._program = program
        self._name = name
        self._messages = MessageStream(program, step=STEP, frame_bytes_max=frames.FRAME_BYTES_MAX)
        self._watching = asyncio.create_task(self._watch(), name=f"capability.{name}.watch")
        self._closing: asyncio.Task[None] | None = None
        self._how = ""
        self.is_dead = False
        self.is_busy = False
        self.used_at = asyncio.get_running_loop().time()

    async def ready(self) -> None:
        """Waits until the function is loaded. Raises Failed with what went wrong."""
        try:
            async with asyncio.timeout(START_S_MAX):
                message = await self._receive()
        except TimeoutError:
            raise Failed(f"`{self._name}` was not loaded within {START_S_MAX:g} s") from None
        if isinstance(message, CallFailed):
            raise by_code(message.code, message.message, message.remedy)
        if not isinstance(message, WorkerReady):
            raise Failed(f"the process of `{self._name}` does not start: {await self._end()}")

    def post(self, message: ToProvider) -> None:
        with contextlib.suppress(ConnectionLost):
            self._messages.post(message)

    async def serve(self, call: int, deliver: Deliver) -> None:
        """Passes on what the function answers, until the call is over."""
        self.is_busy = True
        while self.is_busy:
            message = await self._receive()
            if message is None:
                self.is_busy = False
                why = f"the process of `{self._name}` died: {await self._end()}"
                await deliver(CallFailed(call, "call_lost", why, has_begun=True))
            elif message.call == call:
                self.is_busy = not is_last(message)
                await deliver(message)

    async def stop(self, call: int) -> None:
        """Has the function end what it does, or ends the process."""
        self.post(StopCall(call))
        try:
            async with asyncio.timeout(STOP_S_MAX):
                while self.is_busy:
                    message = await self._receive()
                    self.is_busy = message is not None and not (message.call == call and is_last(message))
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        """Idempotent."""
        self.is_dead = True
        self._program.kill()
        if self._closing is None:
            self._closing = asyncio.create_task(self._messages.close(), name=f"capability.{self._name}.close")

    async def _watch(self) -> None:
        self._how = await self._program.ended()
        self.is_dead = True

    async def _receive(self) -> ToCaller | None:
        try:
            payload = await self._messages.receive()
            if payload is None:
                return None
            message: ToCaller = decode_union(payload, ToCaller, step=STEP)
            return message
        except ConnectionLost:
            return None
        except PeerMisbehaved as fault:
            log.warning("the process of `%s`: %s", self._name, fault)
            return None

    async def _end(self) -> str:
        """How it ended. It has hung up already; if it does not end by itself, it is ended."""
        await asyncio.wait({self._watching}, timeout=STOP_S_MAX)
        self.kill()
        await self._watching
        return self._how


def failure_of(call: int, error: CroftError, *, has_begun: bool) -> CallFailed:
    """An error as a message."""
    return CallFailed(call, error.code, error.message, error.remedy, has_begun)
