"""Holds streams to the owner's limits: the shell of `pacing`. Without limits a stream passes as it is."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, assert_never

from croft.errors import ConnectionLost
from croft.model.hours import parse_hours, show_hours
from croft.model.ids import PeerId
from croft.overlay.pacing import (
    Direction,
    Effect,
    Flow,
    Limit,
    Pacer,
    Pass,
    TimePassed,
    Wake,
    Wanted,
    Withdrawn,
    numbers_of,
)

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import Database, Stream

MINUTE_S = 60.0
PURPOSES = {"tasks/1": "tasks", "command/1": "tasks", "circle/1": "tasks", "tunnel/1": "tunnel"}
"""What people call the purposes of streams; all else is `other`."""
OTHER = "other"


class Shaping:
    """The owner's limits, and the streams under them. `minute` gives the minutes after local midnight."""

    def __init__(self, database: Database, minute: Callable[[], int]) -> None:
        self._database = database
        self._minute = minute
        self._core = Pacer()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.is_limited = False

    # --- what the owner does -----------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes in what the last run left on disk."""

        def read(db: sqlite3.Connection) -> list[tuple[int, float, str | None, str | None, str | None, str | None]]:
            return db.execute("SELECT number, rate, peer, purpose, direction, hours FROM traffic_limit").fetchall()

        for number, rate, peer, purpose, direction, hours in await self._database.run(read):
            limit = Limit(
                number,
                rate,
                PeerId(peer) if peer else None,
                purpose,
                Direction(direction) if direction else None,
                parse_hours(hours) if hours else None,
            )
            self._core.add(limit, self._now())
        self._changed()

    def limits(self) -> list[Limit]:
        """All of them, in the order in which they were set."""
        return self._core.limits()

    async def add(self, limit: Limit) -> Limit:
        """Sets one more limit, for streams that run as well; its number is chosen here. Raises Usage, Busy."""
        numbered = Limit(
            numbers_of(self._core.limits()), limit.rate, limit.peer, limit.purpose, limit.direction, limit.hours
        )
        self._core.add(numbered, self._now())
        self._changed()
        row = (
            numbered.number,
            numbered.rate,
            numbered.peer,
            numbered.purpose,
            numbered.direction.value if numbered.direction else None,
            show_hours(numbered.hours) if numbered.hours else None,
        )
        sql = "INSERT INTO traffic_limit VALUES (?, ?, ?, ?, ?, ?)"
        await self._database.run(lambda db: db.execute(sql, row).rowcount)
        return numbered

    async def remove(self, number: int) -> Limit:
        """Removes a limit. Raises NotFound."""
        limit = self._core.remove(number)
        self._changed()
        sql = "DELETE FROM traffic_limit WHERE number = ?"
        await self._database.run(lambda db: db.execute(sql, (number,)).rowcount)
        return limit

    async def serve(self) -> None:
        """Watches the hours of the day, until cancelled."""
        while True:
            self._changed()
            await asyncio.sleep(MINUTE_S)

    # --- what streams do ---------------------------------------------------------------------------------------------

    def shape(self, stream: Stream, peer: PeerId, purpose: str, is_own: bool) -> Stream:
        """The stream, held to limits that are set now or later."""
        return ShapedStream(stream, self, peer, PURPOSES.get(purpose, OTHER), is_own)

    def piece_bytes(self, flow: Flow) -> int:
        """In what pieces a flow is to pass now; 0 if nothing limits it."""
        return self._core.piece_bytes(flow) if self.is_limited else 0

    async def take(self, flow: Flow, size_bytes: int) -> None:
        """Returns once a piece may pass."""
        request = next(self._numbers)
        waiting = self._waiting[request] = asyncio.get_running_loop().create_future()
        try:
            self._perform(self._core.handle(Wanted(request, flow, size_bytes, self._now())))
            await waiting
        except asyncio.CancelledError:
            if self._waiting.pop(request, None):
                self._perform(self._core.handle(Withdrawn(request, self._now())))
            raise

    # --- inside ------------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _changed(self) -> None:
        self.is_limited = bool(self._core.limits())
        self._perform(self._core.handle(TimePassed(self._now(), self._minute())))

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Pass(request):
                    waiting = self._waiting.pop(request)
                    if not waiting.done():
                        waiting.set_result(None)
                case Wake(at):
                    if self._timer is not None:
                        self._timer.cancel()
                    self._timer = asyncio.get_running_loop().call_at(at, self._woken)
                case _:
                    assert_never(effect)

    def _woken(self) -> None:
        self._timer = None
        self._perform(self._core.handle(TimePassed(self._now(), self._minute())))


class ShapedStream:
    """See `croft.ports.Stream`. What is read waits after it came: not reading on is what slows the other side."""

    def __init__(self, stream: Stream, shaping: Shaping, peer: PeerId, purpose: str, is_own: bool) -> None:
        self._stream = stream
        self._shaping = shaping
        self._up = Flow(peer, purpose, Direction.UP, is_own)
        self._down = Flow(peer, purpose, Direction.DOWN, is_own)
        self._came = b""
        self._rest: asyncio.Task[None] | None = None

    async def read(self, size_bytes_max: int) -> bytes:
        """See `croft.ports.Stream`."""
        shaping = self._shaping
        if not shaping.is_limited and not self._came:
            return await self._stream.read(size_bytes_max)
        piece_bytes = shaping.piece_bytes(self._down)
        if not self._came:
            self._came = await self._stream.read(min(size_bytes_max, piece_bytes) if piece_bytes else size_bytes_max)
        if piece_bytes and self._came:
            # A cancelled wait leaves the bytes here, for the next read.
            await shaping.take(self._down, len(self._came))
        data, self._came = self._came[:size_bytes_max], self._came[size_bytes_max:]
        return data

    async def write(self, data: bytes | memoryview) -> None:
        """See `croft.ports.Stream`."""
        if self._rest is None and not self._shaping.is_limited:
            await self._stream.write(data)
            return
        await self._settled()
        if not self._shaping.piece_bytes(self._up):
            await self._stream.write(data)
            return
        writing = asyncio.create_task(self._write_pieces(bytes(data)), name="shaping.write")
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            self._rest = writing  # it goes out whole, as by any stream
            writing.add_done_callback(_retrieved)
            raise

    async def _write_pieces(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            piece_bytes = self._shaping.piece_bytes(self._up) or len(view)
            piece, view = view[:piece_bytes], view[piece_bytes:]
            if self._shaping.piece_bytes(self._up):
                await self._shaping.take(self._up, len(piece))
            await self._stream.write(bytes(piece))

    async def _settled(self) -> None:
        if self._rest is not None:
            await asyncio.wait({self._rest})
            rest, self._rest = self._rest, None
            rest.result()

    async def finish(self) -> None:
        """See `croft.ports.Stream`."""
        await self._settled()
        await self._stream.finish()

    def abort(self) -> None:
        """See `croft.ports.Stream`."""
        if self._rest is not None:
            self._rest.cancel()
        self._stream.abort()


def _retrieved(task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError, ConnectionLost):
        task.result()
