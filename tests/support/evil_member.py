"""A member of a community that keeps to no rule: it has a real key, certificate and grant, and sends what it likes."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from croft.adapters.iroh_transport import IrohTransport
from croft.adapters.sqlite_database import SqliteDatabase
from croft.errors import ConnectionLost
from croft.model.ids import CommunityId, PeerId
from croft.node.identity import load_identity
from croft.overlay.links import HEADER_BYTES_MAX
from croft.overlay.messages import (
    CONTROL_FRAME_BYTES_MAX,
    PROTOCOL,
    VERSION,
    Greeting,
    Hello,
    Notice,
    Rejected,
    StreamHeader,
)
from croft.overlay.passport import Membership, Own
from croft.overlay.resumption import Resumption
from croft.ports import Connection, Stream
from croft.wire.codec import Message, decode, decode_union, encode
from croft.wire.frames import frame
from croft.wire.message_stream import ByteStream, MessageStream, receive_alone
from support.peers import RealPeer

DIAL_S_MAX = 5.0
GREETINGS_MAX = 4


@dataclass
class Greeted:
    """A connection on which the victim took our hello."""

    connection: Connection
    control: MessageStream
    stream: Stream
    victim: Hello

    async def send(self, message: Message) -> None:
        """Posts a message on the control stream, and waits until it is on its way."""
        self.control.post(message)
        await self.control.flush()

    async def notice(self, topic: str, body: Message) -> None:
        """Sends a notice."""
        await self.send(Notice(topic, encode(body)))

    async def raw(self, data: bytes) -> None:
        """Writes bytes on the control stream, past all framing."""
        await self.control.flush()
        await self.stream.write(data)

    async def open(self, purpose: str) -> Stream:
        """A stream of that purpose."""
        stream = await self.connection.open_stream()
        await stream.write(frame(encode(StreamHeader(purpose))))
        return stream

    async def lend(self) -> ByteStream:
        """The next stream on which somebody asks for work, past its header."""
        stream = await self.connection.accept_stream()
        header = await receive_alone(stream, step="evil", frame_bytes_max=HEADER_BYTES_MAX)
        return LentStream(stream) if decode(header, StreamHeader, step="evil").lasting else stream

    async def is_dropped(self) -> bool:
        """Whether the victim closes the connection within a bounded time, read as far as it sends."""

        async def read_on() -> None:
            with contextlib.suppress(ConnectionLost):
                while await self.stream.read(1 << 16):
                    continue

        reading = asyncio.create_task(read_on())
        try:
            async with asyncio.timeout(15):
                await self.connection.wait_closed()
        except TimeoutError:
            return False
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return True


class LentStream:
    """A lender's end of a stream that is to outlive its connections; this one does not."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._core = Resumption()

    async def read(self, size_bytes_max: int) -> bytes:
        """Some of the consumer's bytes; `b""` at their end."""
        while not self._core.has_data and not self._core.is_at_end:
            data = await self._stream.read(size_bytes_max)
            if not data:
                return b""
            self._core.feed(data)
        part = self._core.take(size_bytes_max) if self._core.has_data else b""
        await self._say()
        return part

    async def write(self, data: bytes | memoryview) -> None:
        """Answers the consumer."""
        self._core.write(bytes(data))
        await self._say()

    async def _say(self) -> None:
        while frame := self._core.next_frame():
            await self._stream.write(frame)


class EvilMember:
    """What is left of a peer whose daemon was stopped: its key, and all that it was given when it joined."""

    def __init__(self, own: Own, membership: Membership, transport: IrohTransport) -> None:
        self.own = own
        self.membership = membership
        self.transport = transport

    @property
    def community(self) -> CommunityId:
        """Where it is a member."""
        return self.membership.community

    def hello(self) -> Hello:
        """An honest hello."""
        shown = [(self.membership.community, list(self.membership.chain))]
        return Hello(VERSION, self.own.certificate, shown, secrets.token_bytes(16))

    async def connect(self, peer: PeerId, addresses: list[str]) -> Connection:
        """A connection on which nothing was said yet."""
        return await self.transport.dial(peer, addresses, PROTOCOL, DIAL_S_MAX)

    async def greet(self, peer: PeerId, addresses: list[str], hello: Hello | None = None) -> Greeted:
        """A greeted connection. Raises AssertionError with the reason if the hello is rejected.

        A victim that has just lost us dials too, and its connection takes the place of ours: then once more.
        """
        for _ in range(GREETINGS_MAX - 1):
            with contextlib.suppress(ConnectionLost):
                return await self._greet(peer, addresses, hello)
        return await self._greet(peer, addresses, hello)

    async def _greet(self, peer: PeerId, addresses: list[str], hello: Hello | None) -> Greeted:
        connection = await self.connect(peer, addresses)
        stream = await connection.open_stream()
        control = MessageStream(stream, step="evil", frame_bytes_max=CONTROL_FRAME_BYTES_MAX)
        control.post(hello or self.hello())
        payload = await control.receive()
        assert payload is not None, "closed without an answer"
        answer: Greeting = decode_union(payload, Greeting, step="evil")
        assert not isinstance(answer, Rejected), answer.message
        return Greeted(connection, control, stream, answer)


@contextlib.asynccontextmanager
async def evil_member(home: RealPeer) -> AsyncIterator[EvilMember]:
    """Takes over the home of a member whose daemon does not run."""
    async with contextlib.AsyncExitStack() as stack:
        database = await SqliteDatabase.open(home.files.database)
        stack.push_async_callback(database.close)
        identity, _ = load_identity(home.files)
        rows = await database.run(
            lambda db: db.execute("SELECT community, name, grant_chain FROM membership").fetchall()
        )
        [(community, name, chain)] = rows
        membership = Membership(CommunityId(community), name, msgspec.msgpack.decode(chain, type=tuple[bytes, ...]))
        transport = await IrohTransport.open(identity.device.raw, [PROTOCOL], "127.0.0.1:0")
        stack.push_async_callback(transport.close)
        yield EvilMember(identity.own(home.name), membership, transport)
