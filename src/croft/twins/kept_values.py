"""Keeps values that calls have made for whoever is to use them next, and fetches those that others keep.

A value is the bytes of the safe codec, on the disk. Whoever knows its token, which is random, may have it: the token is
told to whoever called, and by them to whoever runs the next call. It goes when it is released, or is unused for long.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from blake3 import blake3

from croft.errors import Busy, ConnectionLost, CroftError, NotFound, PeerMisbehaved, Unreachable
from croft.model.ids import PeerId
from croft.model.kept import Held
from croft.ports import OWN_VALUES, Chunk
from croft.wire.codec import Message, decode, decode_union
from croft.wire.message_stream import receive_alone, send_alone

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import ChunkStore, Clock, Database, Entropy, Stream

log = logging.getLogger(__name__)

VALUES_PURPOSE: Final = "values"
TOKEN_BYTES: Final = 32
CHUNK_BYTES: Final = 4 << 20
LIFETIME_S: Final = 86_400.0
TEND_EVERY_S: Final = 600.0
KEPT_BYTES_MAX: Final = 4 << 30
FOR_ONE_SHARE_MAX: Final = 0.5
"""Of the room, for what calls of one twin have made; the owner's own may take all."""
RELEASED_MAX: Final = 1_024
FRAME_BYTES_MAX: Final = 64 << 10
ANSWER_S_MAX: Final = 20.0
READ_BYTES_MAX: Final = 1 << 20
STEP: Final = "values"


class WantValue(Message, frozen=True, tag=1):
    """Asks for the bytes of a value."""

    token: bytes


class ReleaseValues(Message, frozen=True, tag=2):
    """Nobody needs these any more."""

    tokens: list[bytes]


AskedOfKeeper = WantValue | ReleaseValues


class ValueFollows(Message, frozen=True, tag=3):
    """So many bytes follow; -1: it is not here."""

    size: int


class Peers(Protocol):
    """The way to other peers."""

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """A stream to a member. Raises Unreachable, Refused."""
        ...

    def name_of(self, peer: PeerId) -> str: ...


class KeptValues:
    """The values of one peer, `bytes_max` in all. `owner`: the twin for whom there is no other limit."""

    def __init__(
        self,
        own: PeerId,
        owner: str,
        peers: Peers,
        chunks: ChunkStore,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        bytes_max: int = KEPT_BYTES_MAX,
    ) -> None:
        self._own = own
        self._owner = owner
        self._bytes_max = bytes_max
        self._peers = peers
        self._chunks = chunks
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._sizes: dict[bytes, tuple[str, int]] = {}
        self._used: dict[bytes, float] = {}
        self._bytes: dict[str, int] = {}

    @property
    def kept_bytes(self) -> int:
        """What all of them take."""
        return sum(self._bytes.values())

    # --- keeping -----------------------------------------------------------------------------------------------------

    async def keep(
        self, keeper: str, parts: AsyncIterator[bytes] | Sequence[bytes], *, is_lasting: bool = True
    ) -> Held:
        """Keeps a value for the twin `keeper`; on the disk when it returns. Raises Busy, Failed.

        One that is not `is_lasting` goes with this run of the peer.
        """
        token, size, waiting, index = self._entropy.token(TOKEN_BYTES), 0, bytearray(), 0
        putting: asyncio.Task[None] | None = None
        try:
            async for part in _each(parts):
                size += len(part)
                self._check_room(keeper, size)
                waiting += part
                while len(waiting) >= CHUNK_BYTES:
                    if putting is not None:
                        await putting
                    # What comes next is taken in while the disk is busy.
                    data = bytes(memoryview(waiting)[:CHUNK_BYTES])
                    putting = asyncio.create_task(self._put(token, index, data), name="values.put")
                    del waiting[:CHUNK_BYTES]
                    index += 1
            if putting is not None:
                await putting
            await self._put(token, index, waiting)
            row = token, keeper, size, self._clock.now()
            if is_lasting:
                insert = "INSERT INTO kept_value VALUES (?, ?, ?, ?)"
                await self._database.run(lambda db: db.execute(insert, row).rowcount)
        except BaseException:
            if putting is not None:
                await asyncio.gather(putting, return_exceptions=True)
            await asyncio.shield(self._chunks.delete(OWN_VALUES, _keys(token, size)))
            raise
        self._note(token, keeper, size, row[3])
        return Held(self._own, token, size)

    async def keep_own(self, parts: AsyncIterator[bytes | memoryview]) -> Held:
        """Keeps a value of the owner's own, as long as this peer runs. Raises Busy, Failed."""

        async def copied() -> AsyncIterator[bytes]:
            async for part in parts:
                yield bytes(part)

        return await self.keep(self._owner, copied(), is_lasting=False)

    async def release(self, tokens: Sequence[bytes]) -> None:
        """Drops values that are here; what is not is passed over. Raises Failed."""
        gone = [token for token in dict.fromkeys(tokens) if token in self._sizes]
        if not gone:
            return
        keys = [key for token in gone for key in _keys(token, self._sizes[token][1])]
        for token in gone:
            keeper, size = self._sizes.pop(token)
            self._used.pop(token, None)
            self._bytes[keeper] -= size
            if not self._bytes[keeper]:
                del self._bytes[keeper]
        rows = [(token,) for token in gone]
        await self._database.run(lambda db: db.executemany("DELETE FROM kept_value WHERE token = ?", rows).rowcount)
        await self._chunks.delete(OWN_VALUES, keys)

    async def load(self) -> None:
        """Takes in what the last run kept, and drops what it had not finished. Raises Failed."""

        def read(db: sqlite3.Connection) -> list[tuple[bytes, str, int, float]]:
            return db.execute("SELECT token, keeper, size, used_at FROM kept_value").fetchall()

        for token, keeper, size, used_at in await self._database.run(read):
            self._note(token, keeper, size, used_at)
        known = {key for token, (_, size) in self._sizes.items() for key in _keys(token, size)}
        after = b""
        while found := await self._chunks.keys(OWN_VALUES, after):
            after = found[-1][0]
            await self._chunks.delete(OWN_VALUES, [key for key, _ in found if key not in known])

    async def serve(self) -> None:
        """Drops what nobody has used for long, until cancelled."""
        while True:
            now = self._clock.now()
            try:
                await self.release([token for token, at in self._used.items() if now - at > LIFETIME_S])
            except CroftError as error:
                log.warning("old values are not dropped: %s", error.message)
            await asyncio.sleep(TEND_EVERY_S)

    def _note(self, token: bytes, keeper: str, size: int, used_at: float) -> None:
        self._sizes[token] = keeper, size
        self._used[token] = used_at
        self._bytes[keeper] = self._bytes.get(keeper, 0) + size

    def room(self, keeper: str) -> int:
        """How many bytes more may be kept for a twin."""
        share = 1.0 if keeper == self._owner else FOR_ONE_SHARE_MAX
        return min(int(self._bytes_max * share) - self._bytes.get(keeper, 0), self._bytes_max - self.kept_bytes)

    def _check_room(self, keeper: str, size: int) -> None:
        if size > self.room(keeper):
            raise Busy("there is no room for more values here", remedy="Wait until earlier ones are used.")

    async def _put(self, token: bytes, index: int, data: bytes | bytearray) -> None:
        await self._chunks.put([Chunk(OWN_VALUES, _key(token, index), bytes(data))])

    # --- reading -----------------------------------------------------------------------------------------------------

    async def read(self, value: Held) -> AsyncIterator[bytes]:
        """The bytes of a value, here or at the peer that keeps it. Raises NotFound, Unreachable, Failed."""
        if value.peer != self._own:
            async for part in self._fetch(value):
                yield part
            return
        if value.token not in self._sizes:
            raise NotFound("this value is not kept any more")
        self._used[value.token] = self._clock.now()
        for key in _keys(value.token, self._sizes[value.token][1]):
            yield await self._chunks.read(OWN_VALUES, key)

    async def _fetch(self, value: Held) -> AsyncIterator[bytes]:
        name = self._peers.name_of(value.peer)
        try:
            stream = await self._peers.open_stream(value.peer, VALUES_PURPOSE)
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    await send_alone(stream, WantValue(value.token))
                    payload = await receive_alone(stream, step=STEP, frame_bytes_max=FRAME_BYTES_MAX)
                size = decode(payload, ValueFollows, step=STEP).size
                if size != value.size:
                    raise NotFound(f"{name} does not keep this value any more")
                while size:
                    async with asyncio.timeout(ANSWER_S_MAX):
                        part = await stream.read(min(size, READ_BYTES_MAX))
                    if not part:
                        raise Unreachable(f"{name} was lost while it sent a value")
                    size -= len(part)
                    yield part
            finally:
                stream.abort()
        except (ConnectionLost, TimeoutError) as lost:
            raise Unreachable(f"{name} was lost while it sent a value: {lost}") from None

    async def release_at(self, peer: PeerId, tokens: Sequence[bytes]) -> None:
        """Lets whoever keeps values drop them. Raises Unreachable, Failed."""
        if peer == self._own:
            await self.release(tokens)
            return
        stream = await self._peers.open_stream(peer, VALUES_PURPOSE)
        try:
            for at in range(0, len(tokens), RELEASED_MAX):
                await send_alone(stream, ReleaseValues(list(tokens[at : at + RELEASED_MAX])))
                async with asyncio.timeout(ANSWER_S_MAX):
                    await receive_alone(stream, step=STEP, frame_bytes_max=FRAME_BYTES_MAX)
        except (ConnectionLost, TimeoutError) as lost:
            raise Unreachable(f"{self._peers.name_of(peer)} was lost while values were released: {lost}") from None
        finally:
            stream.abort()

    # --- for others --------------------------------------------------------------------------------------------------

    async def serve_stream(self, _: object, stream: Stream) -> None:
        """Answers one stream until it ends. Raises PeerMisbehaved."""
        while True:
            try:
                payload = await receive_alone(stream, step=STEP, frame_bytes_max=FRAME_BYTES_MAX)
            except ConnectionLost:
                return
            asked: AskedOfKeeper = decode_union(payload, AskedOfKeeper, step=STEP)
            match asked:
                case WantValue(token):
                    await self._send(stream, token)
                case ReleaseValues(tokens):
                    if len(tokens) > RELEASED_MAX:
                        raise PeerMisbehaved("too many values at once", step=STEP)
                    await self.release(tokens)
                    await send_alone(stream, ValueFollows(0))

    async def _send(self, stream: Stream, token: bytes) -> None:
        known = self._sizes.get(token)
        if known is None:
            await send_alone(stream, ValueFollows(-1))
            return
        await send_alone(stream, ValueFollows(known[1]))
        async for part in self.read(Held(self._own, token, known[1])):
            await stream.write(part)


async def _each(parts: AsyncIterator[bytes] | Sequence[bytes]) -> AsyncIterator[bytes]:
    if isinstance(parts, AsyncIterator):
        async for part in parts:
            yield part
        return
    for part in parts:
        yield part


def _keys(token: bytes, size: int) -> list[bytes]:
    return [_key(token, index) for index in range(size // CHUNK_BYTES + 1)]


def _key(token: bytes, index: int) -> bytes:
    return blake3(token + index.to_bytes(8, "big")).digest()
