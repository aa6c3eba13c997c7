"""Makes calls of other peers' capabilities for the programs of this machine: the shell of `call`.

One long-lived stream per provider carries all calls to it, whoever makes them. What a caller has sent is kept until the
call surely cannot be made again elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from msgspec.structs import replace

from croft.errors import ConnectionLost, CroftError, NotFound, PeerMisbehaved
from croft.model.ids import PeerId
from croft.twins.call import (
    AttemptFailed,
    Begun,
    CallAttempts,
    Candidate,
    Effect,
    Failure,
    GiveUp,
    ResultSeen,
)
from croft.twins.call_messages import (
    ARGUMENT_BYTES_MAX,
    CALLS_PURPOSE,
    FRAME_BYTES_MAX,
    ArgumentPart,
    AskCall,
    CallAt,
    CallFailed,
    InputItem,
    InputWanted,
    StopCall,
    ToCaller,
    ToProvider,
    ValuePart,
    is_last,
)
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

if TYPE_CHECKING:
    from croft.ports import Stream

log = logging.getLogger(__name__)

IDLE_S_MAX: Final = 60.0
STEP: Final = "calls"

Deliver = Callable[[ToCaller], None]


class Directory(Protocol):
    """Knows who offers what."""

    def candidates(self, name: str, signature: bytes, of: str) -> tuple[Sequence[Candidate], bool]:
        """Those who may run a call, in the order in which they are asked, and whether it may be made twice.

        Raises NotFound.
        """
        ...


class Peers(Protocol):
    """The way to other peers."""

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """A stream to a member. Raises Unreachable, Refused."""
        ...


class CallClient:
    """Makes calls. `serve` runs its streams."""

    def __init__(self, directory: Directory, peers: Peers) -> None:
        self._directory = directory
        self._peers = peers
        self._streams: dict[PeerId, ProviderStream] = {}
        self._opening: dict[PeerId, asyncio.Task[ProviderStream | CroftError]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def serve(self) -> None:
        """Until cancelled; then every open call ends."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                while True:
                    await asyncio.sleep(IDLE_S_MAX / 4)
                    for stream in list(self._streams.values()):
                        stream.close_if_idle()
            finally:
                self._tasks = None

    def call(self, asked: AskCall, deliver: Deliver) -> OpenCall:
        """Makes a call; all that is heard of it goes to `deliver`. Raises NotFound."""
        candidates, is_idempotent = self._directory.candidates(asked.name, asked.signature, asked.of)
        call = OpenCall(self, asked, CallAttempts(candidates, is_idempotent=is_idempotent), deliver)
        call.begin()
        return call

    def stream(self, peer: PeerId) -> ProviderStream | None:
        """The live stream to a provider."""
        stream = self._streams.get(peer)
        return stream if stream is not None and not stream.is_closed else None

    def spawn(self, call: OpenCall, candidate: Candidate) -> asyncio.Task[None]:
        """Opens a stream to a provider for a call."""
        if self._tasks is None:
            raise NotFound("this peer is shutting down")
        return self._tasks.create_task(self._open_for(call, candidate), name=f"call.{call.name}.open")

    async def _open_for(self, call: OpenCall, candidate: Candidate) -> None:
        opening = self._opening.get(candidate.peer)
        if opening is None and self._tasks is not None:
            opening = self._tasks.create_task(self._open(candidate.peer), name="calls.open")
            self._opening[candidate.peer] = opening
            opening.add_done_callback(lambda _: self._opening.pop(candidate.peer, None))
        assert opening is not None, "this runs among the tasks"
        await asyncio.wait({opening})
        result = opening.result()
        if isinstance(result, CroftError):
            call.failed(Failure(result.code, result.message, result.remedy))
        else:
            call.send_all(result, candidate)

    async def _open(self, peer: PeerId) -> ProviderStream | CroftError:
        if stream := self.stream(peer):
            return stream
        try:
            raw = await self._peers.open_stream(peer, CALLS_PURPOSE)
        except CroftError as error:
            return error
        assert self._tasks is not None, "this runs among the tasks"
        opened = self._streams[peer] = ProviderStream(raw)
        self._tasks.create_task(opened.run(), name="calls.stream")
        return opened


class ProviderStream:
    """The stream to one provider, and the calls on it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._messages = MessageStream(stream, step=STEP, frame_bytes_max=FRAME_BYTES_MAX)
        self._calls: dict[int, OpenCall] = {}
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._used_at = self._loop.time()
        self.is_closed = False

    def add(self, call: OpenCall) -> int:
        """A number for a call."""
        number = next(self._numbers)
        self._calls[number] = call
        return number

    def remove(self, number: int) -> None:
        """The call is over."""
        self._calls.pop(number, None)
        self._used_at = self._loop.time()

    def post(self, message: ToProvider) -> None:
        """Sends a message of a call; if the stream is lost, its calls hear of that by `run`."""
        with contextlib.suppress(ConnectionLost):
            self._messages.post(message)

    def close_if_idle(self) -> None:
        """Ends a stream that no call needs."""
        if not self._calls and self._loop.time() - self._used_at > IDLE_S_MAX:
            self.is_closed = True
            self._stream.abort()

    async def run(self) -> None:
        """Hands out what comes, until the stream ends."""
        why = "it hung up"
        try:
            async with self._messages:
                while (payload := await self._messages.receive()) is not None:
                    message: ToCaller = decode_union(payload, ToCaller, step=STEP)
                    if call := self._calls.get(message.call):
                        call.heard(message)
        except ConnectionLost as lost:
            why = str(lost)
        except PeerMisbehaved as fault:
            why = f"it broke the protocol: {fault}"
            log.warning("a provider of capabilities broke the protocol: %s", fault)
        finally:
            self.is_closed = True
            self._stream.abort()
            for call in list(self._calls.values()):
                call.lost(why)


class OpenCall:
    """One call of a program."""

    def __init__(self, client: CallClient, asked: AskCall, attempts: CallAttempts, deliver: Deliver) -> None:
        self._client = client
        self._asked = asked
        self._attempts = attempts
        self._deliver = deliver
        self._sent: list[ToProvider] | None = [replace(asked, of="")]
        """What a further attempt would have to send; None once there will be none."""
        self._sent_bytes = len(asked.arguments)
        self._stream: ProviderStream | None = None
        self._number = 0
        self._candidate: Candidate | None = None
        self._opening: asyncio.Task[None] | None = None
        self.is_over = False

    @property
    def name(self) -> str:
        """What is called."""
        return self._asked.name

    def begin(self) -> None:
        """Makes the first attempt."""
        self._perform(self._attempts.handle(Begun()))

    def post(self, message: ToProvider) -> None:
        """More from the program. Raises PeerMisbehaved if it is too much."""
        if self.is_over:
            return
        if self._sent is not None:
            self._sent.append(message)
            self._sent_bytes += len(message.data) if isinstance(message, ArgumentPart | InputItem) else 0
            if self._sent_bytes > ARGUMENT_BYTES_MAX:
                self.stop()
                why = f"over {ARGUMENT_BYTES_MAX:,} bytes of arguments"
                self._deliver(CallFailed(self._asked.call, "too_large", why, "Put files into the storage."))
                return
        if self._stream is not None:
            self._stream.post(replace(message, call=self._number))

    def stop(self) -> None:
        """The program does not wait any more."""
        if self._stream is not None and not self.is_over:
            self._stream.post(StopCall(self._number))
        self._end()

    # --- from the stream ---------------------------------------------------------------------------------------------

    def send_all(self, stream: ProviderStream, candidate: Candidate) -> None:
        """Sends the call to a provider."""
        if self.is_over or self._sent is None:
            return
        self._stream, self._candidate, self._opening = stream, candidate, None
        self._number = stream.add(self)
        self._deliver(CallAt(self._asked.call, candidate.peer, candidate.name))
        for message in self._sent:
            stream.post(replace(message, call=self._number))

    def heard(self, message: ToCaller) -> None:
        """Something about this call."""
        match message:
            case CallFailed(_, code, text, remedy, has_begun, field):
                self._leave_stream()
                self.failed(Failure(code, text, remedy, has_begun, field))
                return
            case ValuePart() | InputWanted():
                self._sent = None
                self._attempts.handle(ResultSeen())
        self._deliver(replace(message, call=self._asked.call))
        if is_last(message):
            self._end()

    def lost(self, why: str) -> None:
        """The stream ended while the call was under way."""
        self._leave_stream()
        name = self._candidate.name if self._candidate else "the provider"
        self.failed(Failure("call_lost", f"{name} was lost while it served `{self.name}`: {why}", has_begun=True))

    def failed(self, failure: Failure) -> None:
        """An attempt came to nothing."""
        if not self.is_over:
            self._perform(self._attempts.handle(AttemptFailed(failure)))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case GiveUp(failure):
                    self._end()
                    self._deliver(
                        CallFailed(
                            self._asked.call,
                            *(failure.code, failure.message, failure.remedy, failure.has_begun, failure.field),
                        )
                    )
                case _:
                    self._ask(effect.candidate)

    def _ask(self, candidate: Candidate) -> None:
        if stream := self._client.stream(candidate.peer):
            self.send_all(stream, candidate)
        else:
            self._candidate = candidate
            self._opening = self._client.spawn(self, candidate)

    def _leave_stream(self) -> None:
        if self._stream is not None:
            self._stream.remove(self._number)
            self._stream = None

    def _end(self) -> None:
        self.is_over = True
        self._sent = None
        self._leave_stream()
        if self._opening is not None:
            self._opening.cancel()
