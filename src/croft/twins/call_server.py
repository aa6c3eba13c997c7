"""Serves calls of this peer's capabilities: one stream per caller, many calls on it at a time.

What a capability is, for whom, and whether a call may run, others decide (`Gate`); here calls are bounded, run and
answered. When the stream ends, so do its calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from croft.errors import ConnectionLost, CroftError, PeerMisbehaved, TooLarge, ValueLost
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.model.kept import Held
from croft.twins.call_memory import Intake, Key, RecentAnswers
from croft.twins.call_messages import (
    ARGUMENT_BYTES_MAX,
    CALLS_OPEN_MAX,
    FRAME_BYTES_MAX,
    REFS_MAX,
    VALUE_PART_BYTES_MAX,
    ArgumentPart,
    AskCall,
    CallFailed,
    CallRaised,
    CallWaits,
    InputItem,
    InputWanted,
    NamedArgument,
    StopCall,
    ToCaller,
    ToProvider,
    ValueKept,
    ValuePart,
    ValueRef,
    is_last,
)
from croft.twins.capability_host import CapabilityHost, Deliver, Running, failure_of
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream
from croft.wire.room import Room

if TYPE_CHECKING:
    from croft.ports import Stream

log = logging.getLogger(__name__)

WAIT_S_MAX: Final = 86_400.0
FETCHED_BYTES_MAX: Final = 512 << 20
"""Arguments from elsewhere that may lie here, waiting for their call's turn."""
STEP: Final = "calls"
KEY_BYTES_MAX: Final = 64
TOO_LARGE: Final = "too large"
REVOKED: Final = "revoked"
_WHY: Final = {
    TOO_LARGE: ("too_large", f"over {ARGUMENT_BYTES_MAX:,} bytes wait to be read", "Send less at a time."),
    REVOKED: ("refused", "the owner lets you call it no more, and ended the call", "Ask the owner."),
}
"""Of a call that is ended here: code, message and remedy."""


class Caller(Protocol):
    """Who calls; what the hello proved."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def twin(self) -> TwinId: ...

    @property
    def name(self) -> str: ...

    @property
    def communities(self) -> frozenset[CommunityId]: ...


class Admitted(Protocol):
    """A call that may run."""

    @property
    def host(self) -> CapabilityHost: ...

    @property
    def time_s_max(self) -> float: ...

    revoke: Callable[[], None]
    """Called once it may run no more."""

    def ended(self, outcome: str) -> None:
        """It is over: `ok`, or the code of its failure."""
        ...


class Gate(Protocol):
    """Decides which calls may run."""

    async def admit(self, caller: Caller, asked: AskCall, waits: Callable[[], Awaitable[None]]) -> Admitted:
        """Lets a call in; `waits` is told if somebody has to be asked first. Raises NotFound, Refused, Busy."""
        ...


class Values(Protocol):
    """Keeps results for the next call, and fetches what others keep."""

    async def keep(self, keeper: str, parts: Sequence[bytes]) -> Held:
        """Raises Busy, Failed."""
        ...

    async def release(self, tokens: Sequence[bytes]) -> None:
        """Raises Failed."""
        ...

    def read(self, value: Held) -> AsyncIterator[bytes]:
        """Raises NotFound, Unreachable, Failed."""
        ...


class CallServer:
    """Serves the calls of other peers, and of this peer's own programs."""

    def __init__(self, gate: Gate, values: Values) -> None:
        self._gate = gate
        self._values = values
        self._room = Room(FETCHED_BYTES_MAX)
        self._answers = RecentAnswers()

    async def serve_stream(self, caller: Caller, stream: Stream) -> None:
        """Serves one stream until it ends. Raises PeerMisbehaved."""
        fault: PeerMisbehaved | None = None
        async with MessageStream(stream, step=STEP, frame_bytes_max=FRAME_BYTES_MAX) as messages:
            async with asyncio.TaskGroup() as tasks:
                session = _Session(self._gate, self._values, self._room, self._answers, caller, messages, tasks)
                try:
                    while (payload := await messages.receive()) is not None:
                        session.take(decode_union(payload, ToProvider, step=STEP))
                except ConnectionLost:
                    pass
                except PeerMisbehaved as caught:
                    fault = caught
                finally:
                    session.end()
        if fault is not None:
            raise fault


class _Session:
    """The open calls of one stream."""

    def __init__(
        self,
        gate: Gate,
        values: Values,
        room: Room,
        answers: RecentAnswers,
        caller: Caller,
        messages: MessageStream,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._gate = gate
        self._values = values
        self._room = room
        self._answers = answers
        self._caller = caller
        self._messages = messages
        self._tasks = tasks
        self._calls: dict[int, tuple[asyncio.Task[None], Running]] = {}
        self._intakes: dict[int, Intake] = {}

    def take(self, message: ToProvider) -> None:
        """One message of the caller's. Raises PeerMisbehaved."""
        match message:
            case AskCall():
                self._begin(message)
                return
            case ArgumentPart() | InputItem():
                if len(message.data) > VALUE_PART_BYTES_MAX:
                    raise PeerMisbehaved(f"a part of {len(message.data)} bytes", step=STEP)
                self._count(message)
            case NamedArgument():
                raise PeerMisbehaved("an argument that this peer was to fetch", step=STEP)
        task, running = self._calls.get(message.call, (None, None))
        if task is None or running is None:
            return  # of a call that is over
        if isinstance(message, StopCall):
            task.cancel()
        else:
            running.post(message)

    def end(self) -> None:
        """Nobody waits for any of them."""
        for task, _ in self._calls.values():
            task.cancel()

    def _begin(self, asked: AskCall) -> None:
        if asked.call in self._calls or len(asked.arguments) > VALUE_PART_BYTES_MAX:
            raise PeerMisbehaved("a call under a number that is in use, or of oversized arguments", step=STEP)
        if len(asked.key) > KEY_BYTES_MAX or len(asked.signature) > KEY_BYTES_MAX:
            raise PeerMisbehaved("a call under an oversized key", step=STEP)
        if len(asked.refs) > REFS_MAX or len({ref.parameter for ref in asked.refs}) < len(asked.refs):
            raise PeerMisbehaved("a call of too many arguments that are kept elsewhere", step=STEP)
        if len(self._calls) >= CALLS_OPEN_MAX:
            why = f"{CALLS_OPEN_MAX} calls of yours are open here"
            self._messages.post(CallFailed(asked.call, "busy", why, "Wait for some of them."))
            return
        running = Running(asked)
        task = self._tasks.create_task(self._serve(asked, running), name=f"call.{asked.name[:20]}.{asked.call}")
        self._calls[asked.call] = task, running
        self._intakes[asked.call] = Intake(len(asked.arguments))

    def _count(self, part: ArgumentPart | InputItem) -> None:
        """Bounds what one caller may have lying here unread."""
        intake = self._intakes.get(part.call)
        if intake is None:
            return
        intake.add(part)
        waiting = sum(one.size for call, one in self._intakes.items() if not self._calls[call][1].has_begun)
        if intake.is_too_much or waiting > ARGUMENT_BYTES_MAX:
            self._end(part.call, TOO_LARGE)

    async def _serve(self, asked: AskCall, running: Running) -> None:
        outcome = "ended"

        async def deliver(message: ToCaller) -> None:
            nonlocal outcome
            match message:
                case CallFailed():
                    outcome = message.code
                case CallRaised():
                    outcome = "raised"
                case InputWanted(call, items):
                    self._intakes[call].taken(items)
                case _:
                    outcome = "ok"
            await self._messages.send(message)

        async def waits() -> None:
            await self._messages.send(CallWaits(asked.call))

        try:
            admitted = await self._gate.admit(self._caller, asked, waits)
            admitted.revoke = lambda: self._end(asked.call, REVOKED)
            try:
                if not await self._answer_again(asked, deliver):
                    await self._run(asked, running, admitted, deliver)
            except CroftError as error:
                outcome = error.code
                raise
            finally:
                admitted.ended(outcome)
        except CroftError as error:
            self._refuse(failure_of(asked.call, error, has_begun=False))
        except ConnectionLost:
            pass
        except PeerMisbehaved as fault:
            # Not of this caller: of whoever keeps what the call was to be given.
            self._refuse(CallFailed(asked.call, "failed", str(fault)))
        except asyncio.CancelledError as stopped:
            if stopped.args not in ((TOO_LARGE,), (REVOKED,)):
                raise
            self._refuse(CallFailed(asked.call, *_WHY[stopped.args[0]], has_begun=True))
        finally:
            self._calls.pop(asked.call, None)
            self._intakes.pop(asked.call, None)

    def _end(self, call: int, why: str) -> None:
        if call in self._calls:
            self._calls[call][0].cancel(why)

    async def _run(self, asked: AskCall, running: Running, admitted: Admitted, deliver: Deliver) -> None:
        time_s = min(asked.time_s_max or admitted.time_s_max, admitted.time_s_max)
        parts: list[bytes] = []
        async with self._inputs(asked, running):
            taken = deliver
            if asked.is_kept:
                taken = _collecting(parts, deliver)
            elif asked.key:
                taken = _copying(parts, deliver)
            await admitted.host.run(running, self._caller.peer, asked.call, time_s, taken)
        if parts and asked.is_kept:
            # Only now: while a value is written to the disk, the next call runs.
            await self._keep(asked.call, parts, deliver)
        elif parts:
            self._answers.put(self._key(asked), parts, asyncio.get_running_loop().time())

    async def _answer_again(self, asked: AskCall, deliver: Deliver) -> bool:
        """Gives the answer that was given before, if this call was made before; whether it was."""
        if not asked.key or asked.is_kept:
            return False
        parts = self._answers.get(self._key(asked), asyncio.get_running_loop().time())
        for at, part in enumerate(parts or ()):
            await deliver(ValuePart(asked.call, part, at == len(parts or ()) - 1))
        return parts is not None

    def _key(self, asked: AskCall) -> Key:
        return self._caller.twin, asked.name, asked.signature + asked.key

    @contextlib.asynccontextmanager
    async def _inputs(self, asked: AskCall, running: Running) -> AsyncIterator[None]:
        """Fetches what is kept elsewhere, while the call waits for its turn. Raises TooLarge, ValueLost."""
        total = sum(ref.size for ref in asked.refs)
        if not 0 <= total <= ARGUMENT_BYTES_MAX or any(ref.size < 0 for ref in asked.refs):
            raise _oversized()
        await self._room.take(total)
        try:
            for ref in asked.refs:
                await self._fetch(asked.call, ref, running)
            yield
        finally:
            self._room.give(total)

    async def _fetch(self, call: int, ref: ValueRef, running: Running) -> None:
        left = ref.size
        try:
            async for whole in self._values.read(Held(PeerId(ref.peer), ref.token, ref.size)):
                for at in range(0, len(whole), VALUE_PART_BYTES_MAX):
                    part = whole[at : at + VALUE_PART_BYTES_MAX]
                    left -= len(part)
                    running.post(NamedArgument(call, ref.parameter, part, left <= 0))
        except CroftError as error:
            raise ValueLost(f"`{ref.parameter}` is not to be had: {error.message}") from None
        if left:
            raise ValueLost(f"`{ref.parameter}` is not what was announced")

    async def _keep(self, call: int, parts: Sequence[bytes], deliver: Deliver) -> None:
        """Keeps a result here, and tells the caller where."""
        try:
            held = await self._values.keep(self._caller.twin, parts)
        except CroftError as error:
            await deliver(failure_of(call, error, has_begun=True))
            return
        try:
            await deliver(ValueKept(call, held.token, held.size))
        except BaseException:
            # Nobody hears where it is: nobody can want it.
            await asyncio.shield(self._values.release([held.token]))
            raise

    def _refuse(self, failure: CallFailed) -> None:
        try:
            self._messages.post(failure)
        except ConnectionLost:
            pass


def _collecting(parts: list[bytes], deliver: Deliver) -> Deliver:
    """Takes the parts of a result aside; what else is said goes on."""

    async def take(message: ToCaller) -> None:
        if isinstance(message, ValuePart):
            parts.append(message.data)
        else:
            await deliver(message)

    return take


def _copying(parts: list[bytes], deliver: Deliver) -> Deliver:
    """Keeps the parts of a result, if it is a whole one and no stream; all goes on."""
    is_plain = True

    async def pass_on(message: ToCaller) -> None:
        nonlocal is_plain
        if isinstance(message, ValuePart) and not message.is_item and is_plain:
            parts.append(message.data)
        elif is_last(message) or isinstance(message, ValuePart):
            is_plain = False
            parts.clear()
        await deliver(message)

    return pass_on


def _oversized() -> TooLarge:
    return TooLarge(f"over {ARGUMENT_BYTES_MAX:,} bytes of arguments", remedy="Send less at a time.")
