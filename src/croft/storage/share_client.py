"""Asks one holder, over a few streams that are kept open: many requests under way, answers in order on each stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from croft.errors import ConnectionLost, CroftError, PeerMisbehaved, Unreachable, by_code
from croft.model.ids import PeerId
from croft.ports import Stream
from croft.storage.messages import ANSWER_BYTES_MAX, SHARES_PURPOSE, Answer, Declined, Request, ShareFollows
from croft.storage.share_stream import STEP, raw_parts
from croft.wire.codec import Message, decode_union
from croft.wire.message_stream import receive_alone, send_alone

A = TypeVar("A", bound=Message)

LANES_MAX: Final = 3
"""Streams to one holder: the window of a single one is small for far peers."""
LANE_BUSY_BYTES: Final = 512 << 10
"""A stream with so much under way gets a second one beside it."""
SILENCE_S_MAX: Final = 30.0
"""Whoever is asked and says nothing for so long is given up; a stream that nobody uses is closed then."""

OpenStream = Callable[[PeerId, str], Awaitable[Stream]]


@dataclass(slots=True)
class _Asked:
    """A request that waits for its answer. `into`: where the bytes of a share go; None: nowhere any more."""

    size: int
    into: memoryview | None
    at: float
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class _Lane:
    """One stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._turn = asyncio.Lock()
        self._waiting: deque[_Asked] = deque()
        self.under_way = 0
        self.is_over = False
        self._heard_at = asyncio.get_running_loop().time()
        self._tasks = [
            asyncio.create_task(self._read(), name="shares.read"),
            asyncio.create_task(self._watch(), name="shares.watch"),
        ]

    async def ask(self, request: Request, data: memoryview | None, into: memoryview | None, size: int) -> Answer:
        asked = _Asked(size, into, asyncio.get_running_loop().time())
        self.under_way += size
        try:
            async with self._turn:
                if self.is_over:
                    raise ConnectionLost(f"{STEP}: the stream has ended")
                self._waiting.append(asked)
                try:
                    await send_alone(self._stream, request)
                    if data is not None:
                        await self._stream.write(data)
                except BaseException as error:
                    # A request that went out in part would make nonsense of all that follow.
                    asked.answer.cancel()
                    self._end(str(error) or "given up")
                    raise
                asked.at = asyncio.get_running_loop().time()
            return await asked.answer
        finally:
            asked.into = None
            self.under_way -= size

    def close(self) -> None:
        self._end("closed here")

    async def _watch(self) -> None:
        """Ends the stream where an answer is overdue, or nobody has asked for long."""
        loop = asyncio.get_running_loop()
        while not self.is_over:
            since = max(self._heard_at, self._waiting[0].at if self._waiting else 0.0)
            if (left := since + SILENCE_S_MAX - loop.time()) <= 0:
                self._end(f"no answer within {SILENCE_S_MAX:g} s")
                return
            await asyncio.sleep(left)

    async def _read(self) -> None:
        try:
            while True:
                payload = await receive_alone(self._stream, step=STEP, frame_bytes_max=ANSWER_BYTES_MAX)
                self._heard_at = asyncio.get_running_loop().time()
                answer: Answer = decode_union(payload, Answer, step=STEP)
                if not self._waiting:
                    raise PeerMisbehaved("an answer that nobody asked for", step=STEP)
                asked = self._waiting[0]
                if isinstance(answer, ShareFollows):
                    if answer.size != asked.size or (asked.into is None and not asked.answer.cancelled()):
                        raise PeerMisbehaved("bytes that nobody asked for", step=STEP)
                    await self._receive(asked, answer.size)
                self._waiting.popleft()
                if not asked.answer.done():
                    asked.answer.set_result(answer)
        except (ConnectionLost, PeerMisbehaved) as error:
            self._end(str(error))

    async def _receive(self, asked: _Asked, size: int) -> None:
        """Piece by piece: whoever asked may go away meanwhile, and use its buffer for something else."""
        at = 0
        async for part in raw_parts(self._stream, size):
            if asked.into is not None:
                asked.into[at : at + len(part)] = part
            at += len(part)
            self._heard_at = asyncio.get_running_loop().time()

    def _end(self, reason: str) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._stream.abort()
        for asked in self._waiting:
            if not asked.answer.done():
                asked.answer.set_exception(ConnectionLost(reason))
        self._waiting.clear()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()


class ShareClient:
    """One holder, as whoever owns data sees it."""

    def __init__(self, peer: PeerId, name: Callable[[PeerId], str], open_stream: OpenStream) -> None:
        self.peer = peer
        self._name = name
        self._open_stream = open_stream
        self._lanes: list[_Lane] = []
        self._opening = asyncio.Lock()

    async def ask(self, request: Request, kind: type[A], *, data: memoryview | None = None) -> A:
        """The holder's answer. Raises what the holder says, Unreachable."""
        return _answered(await self._ask(request, data, None, len(data) if data is not None else 0), kind)

    async def read(self, request: Request, into: memoryview) -> ShareFollows:
        """The holder's answer to `ReadShare`; as many bytes as were expected are in `into` then. Raises as `ask`."""
        return _answered(await self._ask(request, None, into, len(into)), ShareFollows)

    def close(self) -> None:
        """Ends what is under way. Idempotent."""
        for lane in self._lanes:
            lane.close()
        self._lanes = []

    async def _ask(self, request: Request, data: memoryview | None, into: memoryview | None, size: int) -> Answer:
        try:
            lane = await self._lane()
            return await lane.ask(request, data, into, size)
        except ConnectionLost as lost:
            raise Unreachable(f"{self._name(self.peer)} was lost: {lost}") from None

    async def _lane(self) -> _Lane:
        async with self._opening:
            self._lanes = [lane for lane in self._lanes if not lane.is_over]
            best = min(self._lanes, key=lambda lane: lane.under_way, default=None)
            if best is not None and (best.under_way < LANE_BUSY_BYTES or len(self._lanes) >= LANES_MAX):
                return best
            lane = _Lane(await self._open_stream(self.peer, SHARES_PURPOSE))
            self._lanes.append(lane)
            return lane


def _answered(answer: Answer, kind: type[A]) -> A:
    if isinstance(answer, Declined):
        raise by_code(answer.code, answer.message, answer.remedy)
    if not isinstance(answer, kind):
        raise CroftError(f"an answer that does not fit: {type(answer).__name__}")
    return answer


class Holders:
    """A client for each holder, made when it is asked for."""

    def __init__(self, name: Callable[[PeerId], str], open_stream: OpenStream) -> None:
        self._name = name
        self._open_stream = open_stream
        self._clients: dict[PeerId, ShareClient] = {}

    def __getitem__(self, peer: PeerId) -> ShareClient:
        if peer not in self._clients:
            self._clients[peer] = ShareClient(peer, self._name, self._open_stream)
        return self._clients[peer]

    def name(self, peer: PeerId) -> str:
        """What to call a holder."""
        return self._name(peer)

    def close(self) -> None:
        """Ends what is under way. Idempotent."""
        for client in self._clients.values():
            client.close()
        self._clients = {}
