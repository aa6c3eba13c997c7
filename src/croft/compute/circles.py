"""Carries streams between the members of circles, for those that are here: the shell of `circle`.

A member is a program of this machine, or one in a box that this peer lends. Its streams go straight to the peer of the
other member, by a link stream each; where the two peers cannot reach one another, by the consumer. They end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, assert_never

from croft.compute.circle import CIRCLE_LENGTH_MAX, HOME, MEMBER_LENGTH_MAX, MEMBERS_MAX, Circle
from croft.compute.circle_messages import (
    CIRCLE_PURPOSE,
    OPENING_BYTES_MAX,
    CircleRoster,
    Connect,
    Connected,
    FromMember,
    Incoming,
    Listen,
    MemberStreamAnswer,
    MemberStreamOpened,
    NotConnected,
    OpenMemberStream,
)
from croft.compute.messages import Declined
from croft.errors import ConnectionLost, CroftError, NotFound, PeerMisbehaved, Refused, TimedOut, Unreachable, by_code
from croft.model.ids import PeerId, short
from croft.wire.codec import decode, decode_union, encode
from croft.wire.message_stream import receive_alone, send_alone
from croft.wire.splice import splice

if TYPE_CHECKING:
    from croft.compute.lending_terms import Consumer
    from croft.ports import Doorway, Stream

log = logging.getLogger(__name__)

STEP = "stream of a circle"
OPENING_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 15.0
LINGER_S = 5.0


class Links(Protocol):
    """What circles need of the overlay."""

    def name_of(self, peer: PeerId) -> str: ...

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """Raises Unreachable, Refused."""
        ...


Door = Callable[[str], Awaitable["Stream"]]
"""Lets a stream in to a member that is here, from the member it names. Raises Refused, ConnectionLost."""
Tell = Callable[[CircleRoster], None]


@dataclass(slots=True, eq=False)
class Membership:
    """A member that is here, and the tasks that carry its streams."""

    circle: Circle
    key: tuple[PeerId, str]
    name: str
    door: Door
    carrying: set[asyncio.Task[Any]] = field(default_factory=set)
    has_ended: bool = False


class Circles:
    """Every circle that has a member here. `links` is set before anything is opened."""

    links: Links

    def __init__(self, own: PeerId) -> None:
        self._own = own
        self._circles: dict[tuple[PeerId, str], Circle] = {}
        self._members: dict[tuple[PeerId, str, str], Membership] = {}
        self._told: dict[str, list[Tell]] = {}
        """Of circles of this machine's programs: whom to tell where members are."""

    # --- what the consumer does --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def founded(self, circle: str, door: Door) -> Iterator[Membership]:
        """A new circle of a program of this machine, which is its member HOME, while the block lasts."""
        self._told[circle] = []
        try:
            with self._entered(self._own, circle, HOME, door) as membership:
                membership.circle.places[HOME] = self._own
                yield membership
        finally:
            del self._told[circle]

    def home(self, circle: str) -> Membership:
        """The program whose circle this is. Raises NotFound."""
        membership = self._members.get((self._own, circle, HOME))
        if membership is None:
            raise NotFound(f"no circle `{circle[:CIRCLE_LENGTH_MAX]}` is open here", remedy="Its program has ended.")
        return membership

    @contextlib.contextmanager
    def placed(self, circle: str, member: str, peer: PeerId, tell: Tell) -> Iterator[None]:
        """A member of a circle of this machine is on that peer while the block lasts; `tell` tells that peer of all.

        Raises NotFound, Refused.
        """
        places = self.home(circle).circle
        places.place(member, peer)
        told = self._told[circle]
        told.append(tell)
        self._tell(places, told)
        try:
            yield
        finally:
            told.remove(tell)
            places.places.pop(member, None)
            self._tell(places, told)

    def _tell(self, circle: Circle, told: list[Tell]) -> None:
        roster = CircleRoster(dict(circle.places))
        for tell in told:
            with contextlib.suppress(ConnectionLost):
                tell(roster)

    # --- what the lender does ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def hosted(self, owner: PeerId, circle: str, member: str, doorway: Doorway) -> AsyncIterator[Membership]:
        """A box is a member of a consumer's circle while the block lasts. Raises Refused."""
        door = _BoxDoor(doorway)
        with self._entered(owner, circle, member, door.let_in) as membership:
            serving = asyncio.create_task(self._serve_box(membership, door, doorway), name=f"circle.{member}")
            try:
                yield membership
            finally:
                serving.cancel()
                (ended,) = await asyncio.gather(serving, return_exceptions=True)
                if isinstance(ended, Exception):
                    log.error("the doorway of `%s` ended by a bug", member, exc_info=ended)

    def take_roster(self, membership: Membership, roster: CircleRoster) -> None:
        """The consumer says where its members are. Raises PeerMisbehaved."""
        circle = membership.circle
        if len(roster.places) > MEMBERS_MAX or not all(map(is_member_name, roster.places)):
            raise PeerMisbehaved("an impossible roster", step=STEP)
        if circle.owner != self._own:  # one's own circle is right as it is
            circle.take_roster(roster.places)

    async def serve_stream(self, consumer: Consumer, stream: Stream) -> None:
        """Serves one `circle/1` stream of another peer to its end."""
        async with asyncio.timeout(OPENING_TIMEOUT_S):
            payload = await receive_alone(stream, step=STEP, frame_bytes_max=OPENING_BYTES_MAX)
        opening = decode(payload, OpenMemberStream, step=STEP)
        key = (PeerId(opening.owner), opening.circle)
        async with contextlib.AsyncExitStack() as stack:
            try:
                circle = self._circles.get(key)
                if circle is None:
                    raise Refused("nobody of that circle is here")
                circle.check(consumer.peer, opening.sender)
                way = self._way(circle, key, opening.sender, opening.target, is_for_other=True)
                near, member = await stack.enter_async_context(way)
            except CroftError as error:
                if isinstance(error, Refused):
                    log.info("refused %s (%s): %s", consumer.name, short(consumer.peer), error.message)
                await _decline(stream, error)
                return
            try:
                async with _carried(near, stream, member):
                    await send_alone(stream, MemberStreamOpened())
                    await splice(near, stream)
            except asyncio.CancelledError:
                if member is None or not member.has_ended:
                    raise
                # Not this peer ends, but the member alone.

    # --- what members do ---------------------------------------------------------------------------------------------

    async def join(self, membership: Membership, target: str, near: Callable[[], Awaitable[Stream]]) -> None:
        """Opens a stream from a member that is here to another one, then joins it to what `near` gives, to the end.

        Raises NotFound, Refused, Unreachable, Busy; ConnectionLost once they are joined.
        """
        circle = membership.circle
        circle.opened(membership.name)
        try:
            async with self._way(circle, membership.key, membership.name, target) as (far, member):
                async with _carried(await near(), far, membership, member) as own:
                    await splice(own, far)
        finally:
            circle.closed(membership.name)

    # --- inside ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _entered(self, owner: PeerId, circle: str, member: str, door: Door) -> Iterator[Membership]:
        key = (owner, circle)
        known = self._circles.get(key) or Circle(owner, self._own)
        known.enter(member)
        self._circles[key] = known
        membership = self._members[*key, member] = Membership(known, key, member, door)
        try:
            yield membership
        finally:
            del self._members[*key, member]
            known.leave(member)
            if known.is_empty:
                del self._circles[key]
            membership.has_ended = True
            for task in membership.carrying:
                task.cancel()

    @contextlib.asynccontextmanager
    async def _way(
        self, circle: Circle, key: tuple[PeerId, str], sender: str, target: str, *, is_for_other: bool = False
    ) -> AsyncIterator[tuple[Stream, Membership | None]]:
        """A stream to a member while the block lasts, and the member if it is here. Raises CroftError."""
        peer = circle.way(target)
        if peer == self._own:
            member = self._members[*key, target]
            circle.opened(target)
            try:
                with _dropped(await _let_in(member, sender)) as stream:
                    yield stream, member
            finally:
                circle.closed(target)
        elif is_for_other and circle.owner != self._own:
            raise NotFound(f"no `{target}` of that circle is here", remedy="It has ended, or is not there yet.")
        else:
            with _dropped(await self._ask_for(circle, peer, OpenMemberStream(*key, sender, target))) as stream:
                yield stream, None

    async def _ask_for(self, circle: Circle, peer: PeerId, opening: OpenMemberStream) -> Stream:
        try:
            return await self._ask(peer, opening)
        except CroftError as error:
            # The two lenders may be strangers to one another, or one of them not up to date.
            if circle.owner in (self._own, peer):
                raise
            log.info("a stream to `%s` goes by its consumer: %s", opening.target, error.message)
            return await self._ask(circle.owner, opening)

    async def _ask(self, peer: PeerId, opening: OpenMemberStream) -> Stream:
        name = self.links.name_of(peer)
        stream = await self.links.open_stream(peer, CIRCLE_PURPOSE)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await send_alone(stream, opening)
                payload = await receive_alone(stream, step=STEP, frame_bytes_max=OPENING_BYTES_MAX)
            answer: MemberStreamAnswer = decode_union(payload, MemberStreamAnswer, step=STEP)
            match answer:
                case MemberStreamOpened():
                    return stream
                case Declined(code, message, remedy):
                    raise by_code(code, f"{name}: {message}", remedy)
                case _:
                    assert_never(answer)
        except TimeoutError:
            stream.abort()
            raise TimedOut(f"{name} did not answer for `{opening.target}`", remedy="Try again.") from None
        except (ConnectionLost, PeerMisbehaved) as lost:
            stream.abort()
            raise Unreachable(f"the link to {name} ended while `{opening.target}` was asked for: {lost}") from None
        except BaseException:
            stream.abort()
            raise

    async def _serve_box(self, membership: Membership, door: _BoxDoor, doorway: Doorway) -> None:
        """Does what the program in a box asks by its doorway, until it ends."""
        async with asyncio.TaskGroup() as tasks:
            while packet := await doorway.receive():
                try:
                    message: FromMember = decode_union(packet, FromMember, step="doorway")
                except PeerMisbehaved as fault:
                    log.info("what a box of %s says makes no sense: %s", short(membership.circle.owner), fault)
                    return
                match message:
                    case Listen():
                        door.is_listening = True
                    case Connect(number, target):
                        work = self._connect(membership, doorway, number, target)
                        tasks.create_task(work, name=f"circle.{membership.name}.stream")
                    case _:
                        assert_never(message)

    async def _connect(self, membership: Membership, doorway: Doorway, number: int, target: str) -> None:
        try:
            await self.join(membership, target, lambda: doorway.hand_over(encode(Connected(number))))
        except CroftError as error:
            with contextlib.suppress(ConnectionLost):
                await doorway.send(encode(NotConnected(number, error.code, error.message[:500], error.remedy[:500])))
        except ConnectionLost:
            pass


class _BoxDoor:
    """How streams of others come into a box."""

    def __init__(self, doorway: Doorway) -> None:
        self._doorway = doorway
        self.is_listening = False

    async def let_in(self, sender: str) -> Stream:
        if not self.is_listening:
            raise Refused("it does not listen", remedy="It may do so in a moment.")
        return await self._doorway.hand_over(encode(Incoming(sender)))


async def _let_in(member: Membership, sender: str) -> Stream:
    try:
        async with asyncio.timeout(OPENING_TIMEOUT_S):
            return await member.door(sender)
    except TimeoutError:
        raise TimedOut(f"`{member.name}` takes no stream", remedy="It may be overloaded; try again.") from None
    except ConnectionLost:
        raise NotFound(f"`{member.name}` has ended") from None


@contextlib.asynccontextmanager
async def _carried(near: Stream, far: Stream, *members: Membership | None) -> AsyncIterator[Stream]:
    """Joins what the block does to the lives of these members, and drops both streams after it."""
    this = asyncio.current_task()
    assert this is not None, "streams are carried by tasks"
    here = [member for member in members if member is not None]
    for member in here:
        member.carrying.add(this)
    try:
        yield near
    finally:
        near.abort()
        far.abort()
        for member in here:
            member.carrying.discard(this)


@contextlib.contextmanager
def _dropped(stream: Stream) -> Iterator[Stream]:
    try:
        yield stream
    finally:
        stream.abort()


def is_member_name(name: str) -> bool:
    """Whether a member may be called so."""
    return 0 < len(name) <= MEMBER_LENGTH_MAX and name.isprintable()


async def _decline(stream: Stream, error: CroftError) -> None:
    with contextlib.suppress(ConnectionLost, TimeoutError):
        await send_alone(stream, Declined(error.code, error.message[:500], error.remedy[:500]))
        await stream.finish()
        # Dropping the stream at once would drop the answer too: the other closes its side once it has read it.
        async with asyncio.timeout(LINGER_S):
            while await stream.read(OPENING_BYTES_MAX):
                pass
