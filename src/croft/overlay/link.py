"""One link: an authenticated connection to a member, with its control stream served.

The shell of `control_stream`: it feeds the core, and performs what the core asks.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from croft.errors import ConnectionLost, CroftError, PeerMisbehaved, TimedOut, Unreachable, by_code
from croft.model.ids import CommunityId, PeerId, TwinId, short
from croft.overlay import control_stream as core
from croft.overlay.messages import Answer, Call, Failure, Notice, OnControlStream
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Connection

log = logging.getLogger(__name__)

CallHandler = Callable[["Link", bytes], Awaitable[bytes]]
NoticeHandler = Callable[["Link", bytes], None]

UNREAD_BYTES_MAX = 8 << 20
"""What may wait to be sent; a peer that has more sent to it than it reads is dropped."""
DEADLINE_S_MAX = 3_600.0

CALL_ALIVE = "link.alive"
ALIVE_S_MAX = 2.0
NO_ANSWER = "nothing comes back"
REPLACED = "replaced by a newer connection"
DOUBLE_DIAL = "both dialled; the other connection stays"
PATH_ENDED = (
    NO_ANSWER,
    DOUBLE_DIAL,
    REPLACED,
    "timed out",
    "reset by peer",
    "nothing heard",
    "relay does not answer",
    "replaced by a new connection",
)
"""Words of reasons after which another connection may take the place of one that ended."""

CLOSE_NORMAL = 0
CLOSE_MISBEHAVED = 1
CLOSE_SILENT = 2
CLOSE_REPLACED = 3
CLOSE_REJECTED = 4


@dataclass(frozen=True, slots=True)
class Greeted:
    """What the hello proved about the other side.

    `communities`: those that both are in. `clock_ahead_s`: of its clock before ours, None if it did not say. `lost`:
    how many links to us it has lost.
    """

    peer: PeerId
    twin: TwinId
    name: str
    communities: frozenset[CommunityId]
    instance: bytes
    clock_ahead_s: float | None = None
    lost: int = 0


class Link:
    """A live, greeted connection to one member."""

    def __init__(
        self,
        connection: Connection,
        control: MessageStream,
        greeted: Greeted,
        calls: dict[str, CallHandler],
        notices: dict[str, NoticeHandler],
    ) -> None:
        self.connection = connection
        self.greeted = greeted
        self.round_trip_s: float | None = None
        self._control = control
        self._calls = calls
        self._notices = notices
        self._tasks: asyncio.TaskGroup | None = None
        self._loop = asyncio.get_running_loop()
        self._core = core.ControlStream(self._loop.time())
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._used_at = self._began_at = self._loop.time()
        self.streams_served = 0
        self.is_closed = False
        self.ended = asyncio.Event()
        self.end_reason = ""
        self.is_resting = False
        """Whether this side has said that it does not need the link at present."""

    @property
    def peer(self) -> PeerId:
        """Who is on the other side."""
        return self.greeted.peer

    @property
    def age_s(self) -> float:
        """How long it has been there."""
        return self._loop.time() - self._began_at

    @property
    def silence_s(self) -> float:
        """How long nothing was heard from the other side."""
        return self._loop.time() - self._core.heard_at

    @property
    def unused_s(self) -> float:
        """How long no call was made and no stream opened, by either side."""
        return self._loop.time() - self._used_at

    @property
    def is_in_use(self) -> bool:
        """Whether a call is open, or a stream that the other side opened."""
        return bool(self._waiting or self._serving or self.streams_served)

    def used(self) -> None:
        """Somebody uses the link now."""
        self._used_at = self._loop.time()
        self.is_resting = False

    async def run(self) -> str:
        """Serves the link until it ends; returns why it ended."""
        reason = "closed"
        try:
            async with self._control, asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._listen(), name=f"link.{short(self.peer)}.listen")
                tasks.create_task(self._beat(), name=f"link.{short(self.peer)}.beat")
        except* ConnectionLost as lost:
            reason = str(lost.exceptions[0])
        except* PeerMisbehaved as fault:
            reason = f"broke the protocol: {fault.exceptions[0]}"
            log.warning("peer %s (%s) %s", self.greeted.name, short(self.peer), reason)
            self.close(CLOSE_MISBEHAVED, reason)
        finally:
            self.close(CLOSE_NORMAL, reason)
        return reason

    async def call(self, method: str, body: bytes, *, deadline_s: float) -> bytes:
        """The other side's answer. Raises the error it answered with, Unreachable, or TimedOut."""
        if self.is_closed:
            raise self._unreachable(method)
        self.used()
        number = self._core.next_call
        waiting: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[number] = waiting
        try:
            self._perform(self._core.handle(core.CallWanted(method, body, deadline_s)))
            async with asyncio.timeout(deadline_s):
                return await waiting
        except TimeoutError:
            raise TimedOut(
                f"peer {self.greeted.name} gave no answer to `{method}` within {deadline_s:g} s",
                remedy="It may be overloaded or asleep; try again.",
            ) from None
        except ConnectionLost:
            raise self._unreachable(method) from None
        finally:
            self._waiting.pop(number, None)
            if not self.is_closed:
                self._perform(self._core.handle(core.CallAbandoned(number)))

    def notify(self, topic: str, body: bytes) -> None:
        """Sends a notice, if the link still lives."""
        if not self.is_closed:
            self._post(Notice(topic, body))

    def close(self, code: int, reason: str) -> None:
        """Ends the link at once; every waiting call fails."""
        if self.is_closed:
            return
        self.is_closed = True
        self.end_reason = reason
        self.ended.set()
        self.connection.close(code, reason[:500])
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionLost(reason))
        for serving in self._serving.values():
            serving.cancel()

    async def is_alive(self) -> bool:
        """Whether the other side answers; asks it, and waits for a moment."""
        try:
            await self.call(CALL_ALIVE, b"", deadline_s=ALIVE_S_MAX)
        except TimedOut:
            return self.silence_s < ALIVE_S_MAX
        except Unreachable:
            return False
        except CroftError:
            return True  # it answers, if only that it does not know the question
        return True

    def give_up(self) -> None:
        """Nothing comes back: perhaps another connection finds another way."""
        self.close(CLOSE_SILENT, NO_ANSWER)

    @property
    def may_be_replaced(self) -> bool:
        """Whether it ended for a reason that lies in the path, and not in one of the two sides."""
        return any(why in self.end_reason for why in PATH_ENDED)

    async def end(self, code: int, reason: str) -> None:
        """Closes the link, and frees what `run` frees, for a link that never ran."""
        self.close(code, reason)
        await self._control.close()

    def _unreachable(self, method: str) -> Unreachable:
        return Unreachable(
            f"the link to {self.greeted.name} ended during `{method}`",
            remedy="See who is here: `croft peers`.",
        )

    async def _listen(self) -> None:
        while True:
            payload = await self._control.receive()
            if payload is None:
                raise ConnectionLost("the other side closed its control stream")
            message: OnControlStream = decode_union(payload, OnControlStream, step=core.STEP)
            self._perform(self._core.handle(core.Received(message, self._loop.time())))

    async def _beat(self) -> None:
        while True:
            self._perform(self._core.handle(core.HeartbeatDue(self._loop.time())))
            await asyncio.sleep(core.LOOK_EVERY_S)

    def _perform(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Send(message):
                    self._post(message)
                case core.Serve(call):
                    assert self._tasks is not None, "calls arrive only while the link runs"
                    self.used()
                    self._serving[call.call] = self._tasks.create_task(
                        self._serve(call), name=f"link.{short(self.peer)}.{call.method}"
                    )
                case core.StopServing(number):
                    if task := self._serving.get(number):
                        task.cancel()
                case core.Conclude(reply):
                    self._conclude(reply)
                case core.Deliver(notice):
                    if handler := self._notices.get(notice.topic):
                        handler(self, notice.body)
                case core.RoundTripMeasured(seconds):
                    self.round_trip_s = seconds
                case core.Silent(seconds):
                    self.close(CLOSE_SILENT, f"nothing heard for {seconds:.0f} s")
                    raise ConnectionLost(f"nothing heard for {seconds:.0f} s")
                case _:
                    assert_never(effect)

    def _post(self, message: OnControlStream) -> None:
        if self._control.unsent_bytes > UNREAD_BYTES_MAX:
            self.close(CLOSE_MISBEHAVED, "it does not read what it is sent")
            return
        try:
            self._control.post(message)
        except ConnectionLost as lost:
            self.close(CLOSE_NORMAL, str(lost))

    def _conclude(self, reply: Answer | Failure) -> None:
        waiting = self._waiting.get(reply.call)
        if waiting is None or waiting.done():
            return
        match reply:
            case Answer(_, body):
                waiting.set_result(body)
            case Failure(_, code, message, remedy):
                waiting.set_exception(by_code(code, message, remedy))

    async def _serve(self, call: Call) -> None:
        reply: Answer | Failure
        try:
            handler = self._calls.get(call.method)
            if handler is None:
                reply = Failure(call.call, "unknown_method", f"no method `{call.method}` here", "Upgrade that peer.")
            else:
                async with asyncio.timeout(_bounded(call.deadline_s)):
                    reply = Answer(call.call, await handler(self, call.body))
        except CroftError as error:
            reply = Failure(call.call, error.code, error.message, error.remedy)
        except PeerMisbehaved as fault:
            reply = Failure(call.call, "misbehaved", str(fault))
            log.warning("peer %s (%s): %s", self.greeted.name, short(self.peer), fault)
        except TimeoutError:
            reply = Failure(call.call, "timed_out", f"`{call.method}` took over {call.deadline_s:g} s")
        finally:
            self._serving.pop(call.call, None)
        if not self.is_closed:
            self._perform(self._core.handle(core.Served(call.call, reply)))


def _bounded(deadline_s: float) -> float:
    """A deadline that the other side named, fit for a timer: one of NaN would put all timers out of order."""
    return min(max(deadline_s, 0.0), DEADLINE_S_MAX) if math.isfinite(deadline_s) else DEADLINE_S_MAX
