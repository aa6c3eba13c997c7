"""Keeps at most one live link to each member, whoever dialled, and carries calls, notices and streams over it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

from croft.errors import ConnectionLost, CroftError, PeerMisbehaved, Refused, Unreachable
from croft.model.ids import CommunityId, PeerId, short
from croft.overlay.lasting_streams import Again, LastingStreams
from croft.overlay.link import (
    CALL_ALIVE,
    CLOSE_NORMAL,
    CLOSE_REJECTED,
    CLOSE_REPLACED,
    DOUBLE_DIAL,
    REPLACED,
    CallHandler,
    Greeted,
    Link,
    NoticeHandler,
)
from croft.overlay.loopback import pipe
from croft.overlay.messages import (
    CONTROL_FRAME_BYTES_MAX,
    HELLO_BYTES_MAX,
    PROTOCOL,
    Greeting,
    Hello,
    Rejected,
    StreamHeader,
)
from croft.wire.codec import decode, decode_union
from croft.wire.message_stream import MessageStream, receive_alone, send_alone

if TYPE_CHECKING:
    from croft.ports import Connection, RelayAccess, Stream, Transport

log = logging.getLogger(__name__)

DIAL_TIMEOUT_S = 3.0
GREETING_TIMEOUT_S = 5.0
GREETINGS_MAX = 64
"""Connections that may be waiting for their hello at a time; more are closed unheard."""
HEADER_STEP = "stream header"
HEADER_BYTES_MAX = 64 << 10
STREAM_HEADER_TIMEOUT_S = 10.0
STREAMS_PER_LINK_MAX = 128
COMPLAINT_EVERY_S = 10.0
COMPLAINTS_MAX = 8
"""Different complaints about one peer that are told within that time: its faults must not fill our disk."""

DOUBLE_DIAL_S_MAX = 10.0

StreamHandler = Callable[[Greeted, "Stream"], Awaitable[None]]


class Passport(Protocol):
    """Writes our hello, and checks the hello of others."""

    def hello(self, communities: frozenset[CommunityId]) -> Hello:
        """What to say to a member of these communities; no other is named."""
        ...

    def communities_with(self, peer: PeerId) -> frozenset[CommunityId]:
        """The communities in which `peer` is known."""
        ...

    def own(self) -> Greeted:
        """What our own hello proves."""
        ...

    def check(self, peer: PeerId, hello: Hello) -> Greeted:
        """What the hello proves. Raises Refused with the reason."""
        ...


@dataclass(frozen=True, slots=True)
class _Ways:
    """Where a dial knocks."""

    addresses: tuple[str, ...]
    relays: tuple[RelayAccess, ...]

    def is_part_of(self, other: _Ways) -> bool:
        return set(self.addresses) <= set(other.addresses) and set(self.relays) <= set(other.relays)


class Links:
    """All live links. `serve` runs them; register handlers before.

    `accept_other` takes connections of other protocols than that of members; `shape` holds streams to limits, given the
    peer, the purpose, and whether this side opened it; `consumer` says as whom the other side of a link is served;
    `on_refused` hears why a peer that was dialled refuses this one.
    """

    def __init__(self, transport: Transport, passport: Passport) -> None:
        self._transport = transport
        self._passport = passport
        self.accept_other: Callable[[Connection], Awaitable[None]] | None = None
        self.shape: Callable[[Stream, PeerId, str, bool], Stream] = lambda stream, *_: stream
        self.consumer: Callable[[Greeted], Greeted] = lambda greeted: greeted
        self.on_refused: Callable[[PeerId, Rejected], None] = lambda peer, rejected: None
        self._links: dict[PeerId, Link] = {}
        self._lost: dict[PeerId, int] = {}
        self._dialling: dict[PeerId, tuple[asyncio.Task[Link | CroftError], _Ways]] = {}
        self._calls: dict[str, CallHandler] = {CALL_ALIVE: _alive}
        self._notices: dict[str, NoticeHandler] = {}
        self._streams: dict[str, StreamHandler] = {}
        self._lasting_purposes: set[str] = set()
        self._lasting = LastingStreams(passport.own().instance, self._start, self._complain)
        self._on_up: list[Callable[[Link], None]] = []
        self._on_down: list[Callable[[Link, str], None]] = []
        self._complaints: dict[PeerId, dict[str, float]] = {}
        self._greetings = 0
        self._tasks: asyncio.TaskGroup | None = None

    # --- what others use ---------------------------------------------------------------------------------------------

    def on_call(self, method: str, handler: CallHandler) -> None:
        """Answers calls of `method` by `handler`."""
        assert method not in self._calls, f"two handlers for {method}"
        self._calls[method] = handler

    def on_notice(self, topic: str, handler: NoticeHandler) -> None:
        """Hands notices of `topic` to `handler`, which must not wait."""
        assert topic not in self._notices, f"two handlers for {topic}"
        self._notices[topic] = handler

    def on_stream(self, purpose: str, handler: StreamHandler, *, lasts: bool = False) -> None:
        """Hands streams of `purpose` to `handler`; the stream is aborted when it returns.

        One that `lasts` outlives the connection under it, at the price of a copy of what is under way.
        """
        assert purpose not in self._streams, f"two handlers for {purpose}"
        self._streams[purpose] = handler
        if lasts:
            self._lasting_purposes.add(purpose)

    def on_up(self, handler: Callable[[Link], None]) -> None:
        """Tells `handler` of each new link."""
        self._on_up.append(handler)

    def on_down(self, handler: Callable[[Link, str], None]) -> None:
        """Tells `handler` of each link that ended without being replaced, and why."""
        self._on_down.append(handler)

    def get(self, peer: PeerId) -> Link | None:
        """The live link to `peer`, if there is one."""
        return self._links.get(peer)

    def all(self) -> list[Link]:
        """Every live link."""
        return list(self._links.values())

    def cut(self, peer: PeerId, reason: str) -> None:
        """Ends the link to a peer, if there is one, and all that the peer is served: nothing waits for another link."""
        if link := self._links.get(peer):
            log.info("link to %s (%s) is cut: %s", link.greeted.name, short(peer), reason)
            link.close(CLOSE_REJECTED, reason)
        self._lasting.drop(peer)

    async def ensure(self, peer: PeerId, addresses: Iterable[str], relays: Sequence[RelayAccess] = ()) -> Link:
        """The live link to `peer`, dialled if there is none. Raises Unreachable, Refused."""
        ways = _Ways(tuple(addresses), tuple(relays))
        if link := self._links.get(peer):
            return link
        dialling, tried = self._dialling.get(peer, (None, ways))
        if dialling is not None and not ways.is_part_of(tried):
            # What is known now was not known when that dial began: it may be knocking at the wrong doors.
            dialling.cancel()
            dialling = None
        dialling = dialling or self._begin_dial(peer, ways)
        await asyncio.wait({dialling})
        while dialling.cancelled():
            # Somebody knew better; what becomes of their dial is our answer too.
            dialling, _ = self._dialling.get(peer, (None, ways))
            dialling = dialling or self._begin_dial(peer, ways)
            await asyncio.wait({dialling})
        result = dialling.result()
        if isinstance(result, CroftError):
            raise result
        return result

    def _begin_dial(self, peer: PeerId, ways: _Ways) -> asyncio.Task[Link | CroftError]:
        dialling = self._serving().create_task(self._dial_quietly(peer, ways), name=f"dial.{short(peer)}")
        self._dialling[peer] = dialling, ways

        def forget(task: asyncio.Task[Link | CroftError]) -> None:
            if self._dialling.get(peer, (None, ways))[0] is task:
                del self._dialling[peer]

        dialling.add_done_callback(forget)
        return dialling

    async def open_stream(self, peer: PeerId, purpose: str, again: Again | None = None) -> Stream:
        """A new stream to `peer`'s handler of `purpose`. Raises Unreachable if there is no live link.

        `again` makes the link anew for streams of a purpose that lasts.
        """
        if peer == self._transport.peer_id:
            return self._open_own_stream(purpose)
        link = self._links.get(peer)
        if link is None:
            raise Unreachable(f"no link to peer {short(peer)}", remedy="See who is here: `croft peers`.")
        link.used()
        try:
            if again is not None and purpose in self._lasting_purposes:
                return self.shape(await self._lasting.open(link, purpose, again), peer, purpose, True)
            stream = await link.connection.open_stream()
            await send_alone(stream, StreamHeader(purpose))
        except ConnectionLost as lost:
            raise Unreachable(f"the link to {link.greeted.name} ended: {lost}") from None
        return self.shape(stream, peer, purpose, True)

    def _open_own_stream(self, purpose: str) -> Stream:
        """A stream to this very peer: its own handlers serve it like anybody's."""
        tasks = self._serving()
        near, far = pipe()
        tasks.create_task(self._serve_own(purpose, far), name=f"stream.own.{purpose}")
        return near

    def _serving(self) -> asyncio.TaskGroup:
        """Where tasks of links belong. Raises Unreachable before `serve` has begun and once it ends."""
        if self._tasks is None:
            raise Unreachable("this peer is not running, or shutting down", remedy="Start it with `croft up`.")
        return self._tasks

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        try:
            self._serving().create_task(work, name=name)
        except Unreachable:
            work.close()

    async def _serve_own(self, purpose: str, stream: Stream) -> None:
        handler = self._streams.get(purpose)
        try:
            if handler is not None:
                await handler(self._passport.own(), stream)
        except ConnectionLost:
            pass
        finally:
            stream.abort()

    # --- running -----------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Accepts connections and runs every link, until the transport closes or this is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                try:
                    await self._accept_all(tasks)
                finally:
                    # Links that go down now make others want to dial: they are told that it is too late.
                    self._tasks = None
        finally:
            for link in self.all():
                await link.end(CLOSE_NORMAL, "the peer is going down")
            self._links.clear()

    async def _accept_all(self, tasks: asyncio.TaskGroup) -> None:
        while (connection := await self._transport.accept()) is not None:
            if self._greetings >= GREETINGS_MAX:
                connection.close(CLOSE_REJECTED, "too many connections are waiting to be greeted")
                continue
            tasks.create_task(self._accept(connection), name=f"accept.{short(connection.remote)}")

    async def _accept(self, connection: Connection) -> None:
        if connection.protocol != PROTOCOL:
            if self.accept_other is not None:
                await self.accept_other(connection)
            return
        self._greetings += 1
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                link = await self._greet_back(connection)
        except (TimeoutError, ConnectionLost):
            connection.close(CLOSE_REJECTED, "no hello")
            return
        except PeerMisbehaved as fault:
            log.warning("stranger %s: %s", short(connection.remote), fault)
            connection.close(CLOSE_REJECTED, "that was no hello")
            return
        except Refused:
            return
        finally:
            self._greetings -= 1
        if self._register(link):
            await self._run(link)
        else:
            await link.end(CLOSE_REPLACED, DOUBLE_DIAL)

    async def _greet_back(self, connection: Connection) -> Link:
        stream = await connection.accept_stream()
        control = MessageStream(stream, step="control stream", frame_bytes_max=CONTROL_FRAME_BYTES_MAX)
        try:
            greeting = await _receive_greeting(control)
            if not isinstance(greeting, Hello):
                raise ConnectionLost("the dialler rejected us unheard")
            greeted = self._passport.check(connection.remote, greeting)
            control.post(self._hello(connection.remote, greeted.communities))
            await control.flush()
            return Link(connection, control, greeted, self._calls, self._notices)
        except Refused as refusal:
            log.info("refused %s: %s", short(connection.remote), refusal.message)
            try:
                control.post(Rejected(refusal.code, refusal.message, refusal.remedy))
                await control.flush()
                await stream.finish()
                # The dialler closes once it has read the reason.
                await connection.wait_closed()
            finally:
                await control.close()
            raise
        except BaseException:
            await control.close()
            raise

    async def _dial_quietly(self, peer: PeerId, ways: _Ways) -> Link | CroftError:
        # An exception must not leave the task: it belongs to whoever asked, not to the task group.
        try:
            return await self._dial(peer, ways)
        except CroftError as error:
            return error

    async def _dial(self, peer: PeerId, ways: _Ways) -> Link:
        connection = await self._transport.dial(peer, ways.addresses, PROTOCOL, DIAL_TIMEOUT_S, ways.relays)
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                link = await self._greet(connection)
        except (TimeoutError, ConnectionLost, PeerMisbehaved) as fault:
            connection.close(CLOSE_REJECTED, "no hello")
            if other := self._links.get(peer):
                return other
            raise Unreachable(f"peer {short(peer)} answers, but says no hello: {fault or 'silence'}") from None
        except BaseException:
            connection.close(CLOSE_REJECTED, "rejected")
            raise
        if not self._register(link):
            existing = self._links[peer]
            await link.end(CLOSE_REPLACED, DOUBLE_DIAL)
            return existing
        self._serving().create_task(self._run(link), name=f"link.{short(peer)}")
        return link

    async def _greet(self, connection: Connection) -> Link:
        stream = await connection.open_stream()
        control = MessageStream(stream, step="control stream", frame_bytes_max=CONTROL_FRAME_BYTES_MAX)
        try:
            control.post(self._hello(connection.remote, self._passport.communities_with(connection.remote)))
            greeting = await _receive_greeting(control)
            if isinstance(greeting, Rejected):
                refusal = Refused(
                    f"peer {short(connection.remote)} refused the link: {greeting.message}",
                    remedy=greeting.remedy,
                )
                refusal.code = greeting.code
                self.on_refused(connection.remote, greeting)
                raise refusal
            greeted = self._passport.check(connection.remote, greeting)
            return Link(connection, control, greeted, self._calls, self._notices)
        except BaseException:
            await control.close()
            raise

    def _hello(self, peer: PeerId, communities: frozenset[CommunityId]) -> Hello:
        return replace(self._passport.hello(communities), lost=self._lost.get(peer, 0))

    def _register(self, link: Link) -> bool:
        """Whether `link` becomes the one link to its peer; both sides decide alike."""
        existing = self._links.get(link.peer)
        if existing is not None and not existing.is_closed:
            is_restart = existing.greeted.instance != link.greeted.instance
            is_double_dial = existing.connection.is_dialler != link.connection.is_dialler
            # Whoever dials long after the other did has lost its end of the connection, and ours is worth nothing.
            is_double_dial = is_double_dial and existing.age_s < DOUBLE_DIAL_S_MAX
            # So is it if the other side says that it has lost a link since.
            is_double_dial = is_double_dial and link.greeted.lost <= existing.greeted.lost
            if is_double_dial and not is_restart and self._dialler(existing) < self._dialler(link):
                return False
        self._links[link.peer] = link
        if existing is not None:
            existing.close(CLOSE_REPLACED, REPLACED)
        return True

    def _dialler(self, link: Link) -> PeerId:
        return self._transport.peer_id if link.connection.is_dialler else link.peer

    async def _run(self, link: Link) -> None:
        if self._links.get(link.peer) is not link:
            # Replaced before it began: nobody is to be told of it.
            await link.end(CLOSE_REPLACED, REPLACED)
            return
        for handler in self._on_up:
            handler(link)
        async with asyncio.TaskGroup() as tasks:
            accepting = tasks.create_task(self._accept_streams(link, tasks), name=f"streams.{short(link.peer)}")
            reason = await link.run()
            accepting.cancel()
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._lost[link.peer] = self._lost.get(link.peer, 0) + 1
            self._complaints.pop(link.peer, None)
            for down in self._on_down:
                down(link, reason)

    async def _accept_streams(self, link: Link, tasks: asyncio.TaskGroup) -> None:
        open_streams: set[asyncio.Task[None]] = set()
        while True:
            try:
                stream = await link.connection.accept_stream()
            except ConnectionLost:
                break
            if len(open_streams) >= STREAMS_PER_LINK_MAX:
                stream.abort()
                self._complain(link, f"more than {STREAMS_PER_LINK_MAX} streams open at once; further ones are dropped")
                continue
            task = tasks.create_task(self._serve_stream(link, stream), name=f"stream.{short(link.peer)}")
            open_streams.add(task)
            task.add_done_callback(open_streams.discard)

    async def _serve_stream(self, link: Link, stream: Stream) -> None:
        link.streams_served += 1
        is_kept = False
        try:
            header, handler = await self._purpose(link, stream)
            if handler is not None and header.lasting and header.purpose in self._lasting_purposes:
                is_kept = True
                self._lasting.accept(link, header, stream, self._shaped(handler, header.purpose))
            elif handler is not None:
                await self._shaped(handler, header.purpose)(link.greeted, stream)
            link.used()
        except (ConnectionLost, TimeoutError):
            pass
        except PeerMisbehaved as fault:
            self._complain(link, str(fault))
        finally:
            link.streams_served -= 1
            if not is_kept:
                stream.abort()

    def _shaped(self, handler: StreamHandler, purpose: str) -> StreamHandler:
        return lambda greeted, stream: handler(self.consumer(greeted), self.shape(stream, greeted.peer, purpose, False))

    async def _purpose(self, link: Link, stream: Stream) -> tuple[StreamHeader, StreamHandler | None]:
        """What the stream says it is for, and who serves that. Raises ConnectionLost, PeerMisbehaved."""
        try:
            async with asyncio.timeout(STREAM_HEADER_TIMEOUT_S):
                payload = await receive_alone(stream, step=HEADER_STEP, frame_bytes_max=HEADER_BYTES_MAX)
        except TimeoutError:
            raise PeerMisbehaved(f"none for {STREAM_HEADER_TIMEOUT_S:g} s", step=HEADER_STEP) from None
        header = decode(payload, StreamHeader, step=HEADER_STEP)
        handler = self._streams.get(header.purpose)
        if handler is None:
            self._complain(link, "a stream for a purpose that is not served here; it is dropped")
        return header, handler

    def _complain(self, link: Link, what: str) -> None:
        """Names in the log what a member did that no peer of ours does, but not each time it does it again."""
        now = asyncio.get_running_loop().time()
        complaints = self._complaints.setdefault(link.peer, {})
        complaints = {told: at for told, at in complaints.items() if now - at < COMPLAINT_EVERY_S}
        self._complaints[link.peer] = complaints
        if what not in complaints and len(complaints) < COMPLAINTS_MAX:
            complaints[what] = now
            log.warning("peer %s (%s): %s", link.greeted.name, short(link.peer), what)


async def _alive(_: Link, body: bytes) -> bytes:
    return b""


async def _receive_greeting(control: MessageStream) -> Greeting:
    payload = await control.receive()
    if payload is None:
        raise ConnectionLost("no hello")
    if len(payload) > HELLO_BYTES_MAX:
        raise PeerMisbehaved(f"hello of {len(payload)} bytes", step="hello")
    greeting: Greeting = decode_union(payload, Greeting, step="hello")
    return greeting
