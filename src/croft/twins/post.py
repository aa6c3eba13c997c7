"""Writes and reads the letters of this peer's owner, and keeps those of others for whoever is away.

The shell of `delivery`, `feeds`, `shelf` and `pen`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from blake3 import blake3

from croft.errors import CroftError, Failed, PeerMisbehaved, Refused, Usage
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.ports import Clock, Database, Entropy
from croft.twins.cards import Said
from croft.twins.delivery import Delivery, Tell, View
from croft.twins.feeds import Arrived, Effect, Feeds, Forked, Looked
from croft.twins.letter_messages import (
    CALL_GIVE,
    CALL_OFFER,
    FEEDS_PER_OFFER_MAX,
    GIVE_BYTES_MAX,
    LETTERS_PER_GIVE_MAX,
    Given,
    Offered,
    Taken,
    Wanted,
)
from croft.twins.letter_store import BEGUN, SETTLED, Changes, Kept, LetterStore, Message
from croft.twins.letters import (
    STEP,
    Author,
    Body,
    Box,
    Feed,
    Letter,
    check_body,
    digest_of,
    find_key,
    is_of_the_present,
    open_body,
    open_letter,
    reading_key,
)
from croft.twins.pen import Pen
from croft.twins.shelf import PARTS_PER_FEED_MAX, Shelf, within
from croft.wire.codec import decode, encode

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 2.0
FORGET_EVERY_S: Final = 3_600.0
CALL_S_MAX: Final = 10.0
COPIES: Final = 3
"""Peers who keep a letter while no device of its reader is up."""
READ_AGAIN_BYTES_MAX: Final = 64 << 20
SEALED: Final = "sealed"
TEXT: Final = "text"


@dataclass(frozen=True, slots=True)
class Person:
    """One device in a community, and whose it is."""

    peer: PeerId
    twin: TwinId


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as its hello has proved; `communities`: those that it shares with this peer."""

    peer: PeerId
    twin: TwinId
    communities: frozenset[CommunityId]


Answer = Callable[[Caller, bytes], Awaitable[bytes]]


class Network(Protocol):
    """What letters need of the overlay."""

    def communities(self) -> Sequence[CommunityId]:
        """Those of this peer."""
        ...

    def members(self, community: str) -> Sequence[Person]:
        """Devices of members other than this one."""
        ...

    def is_alive(self, peer: PeerId) -> bool: ...

    def linked(self, community: str) -> Sequence[PeerId]:
        """Members of a community to whom there is a link now."""
        ...

    def is_kept_out(self, peer: PeerId, twin: TwinId) -> bool:
        """Whether its owner revoked a device, or the owner of this peer blocked that person."""
        ...

    def name(self, peer: PeerId) -> str: ...

    def reading_keys(self, community: str) -> Mapping[PeerId, bytes]:
        """By which things are sealed for the devices of a community, this one among them."""
        ...

    def said(self, twin: TwinId) -> Said:
        """What a twin said last on its cards."""
        ...

    async def call(self, peer: PeerId, method: str, body: bytes, deadline_s: float) -> bytes: ...

    def on_call(self, method: str, answer: Answer) -> None: ...

    def on_link(self, handler: Callable[[PeerId], None]) -> None: ...


class Post:
    """The letters of one peer. `load` before `serve`."""

    def __init__(
        self,
        author: Author,
        network: Network,
        database: Database,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._own, self._twin = PeerId(author.device.public), TwinId(author.twin.hex())
        self._device_id = author.id
        self._secret = reading_key(author.device)
        self._network = network
        self._clock = clock
        self._store = LetterStore(database)
        self._pen = Pen(author, entropy.token)
        self._feeds = Feeds()
        self._shelf = Shelf()
        self._delivery = Delivery()
        self._changing = asyncio.Lock()
        self._poke = asyncio.Event()
        self._forgot_at = 0.0
        self.arrived = asyncio.Condition()
        """Notified when there are new messages."""
        self.on_kind: dict[str, Callable[[Message], None]] = {}
        """Told of what others wrote, by its kind, once it is on disk; `settle` what was dealt with."""
        network.on_call(CALL_OFFER, self._offered)
        network.on_call(CALL_GIVE, self._given)
        network.on_link(self._met)

    # --- the owner's side --------------------------------------------------------------------------------------------

    async def send(self, box: Box, body: Body) -> Message:
        """Writes a letter: it is on this disk once this returns. Raises Usage, Refused, Busy, Failed."""
        if not check_body(body):
            raise Usage("a message of over 16 KiB", remedy="Put it as a file, and send a link: `croft link`.")
        readers = self._readers(box)
        feed = self._pen.feed(box)
        async with self._changing:
            now = self._clock.now()
            sequence, previous = self._feeds.next_of(feed), self._feeds.last_of(feed)
            try:
                written = self._pen.write(box, body, readers, sequence=sequence, previous=previous, now=now)
                changes = Changes()
                for one in written:
                    size = len(one.record)
                    self._shelf.check_room(feed, self._twin, size, is_read_here=True)
                    changes.letters.append(Kept(feed, one.letter.sequence, self._twin, now, one.record))
                last = written[-1]
                changes.progress[feed] = last.letter.sequence + 1, last.digest
                message = _message(last.letter, last.digest, body, now, 0, is_read=True)
                changes.messages.append(message)
                await self._store.write(changes)
            except BaseException:
                self._pen.forget(box)
                raise
            self._feeds.resume(feed, *changes.progress[feed])
            self._take_in(changes.letters)
        return message

    async def messages(self, after: int = 0, box: Box | None = None, count_max: int = 1_000) -> list[Message]:
        """What was written and arrived, oldest first."""
        return await self._store.messages(after, box, count_max)

    async def find(self, id_start: str) -> list[Message]:
        """Messages whose id begins so; two at most."""
        return await self._store.message(id_start)

    async def mark_read(self, messages: Iterable[Message]) -> None:
        """The owner has seen these."""
        numbers = [message.number for message in messages if not message.is_read]
        if numbers:
            await self._store.mark_read(numbers)

    async def unsettled(self, kind: str) -> list[Message]:
        """What others wrote of a kind, and was not settled yet, oldest first."""
        return await self._store.unsettled(kind, self._twin)

    async def begin(self, message: Message) -> None:
        """What a message asks for is begun now."""
        await self._store.mark(message.id, BEGUN)

    async def settle(self, message: Message) -> None:
        """What a message asks for is done."""
        await self._store.mark(message.id, SETTLED)

    def rooms(self) -> list[Box]:
        """The rooms in which there are letters, of the communities of this peer."""
        return [Box(c, "", room) for c in self._network.communities() for room in self._shelf.rooms(c)]

    def keepers(self, box: Box) -> list[PeerId]:
        """Who else has all letters of a box, as far as this run of the peer has told them."""
        return [one.peer for one in self._network.members(box.community) if self._delivery.has_newest(one.peer, box)]

    def kept_for_others(self) -> int:
        """How many letters are kept here that are not read here."""
        return self._shelf.kept_for_others

    def _readers(self, box: Box) -> dict[bytes, bytes]:
        """Reading keys of all devices that may read what is written into a box, the owner's own among them."""
        keys = self._network.reading_keys(box.community)
        twins = {person.peer: person.twin for person in self._network.members(box.community)}
        meant = {
            peer: key
            for peer, key in keys.items()
            if peer == self._own or (peer in twins and (not box.to or twins[peer] in (box.to, self._twin)))
        }
        if box.to and box.to != self._twin and not any(twins.get(peer) == box.to for peer in meant):
            raise Refused(
                "no device of that person has said yet how to write to it",
                remedy="It says so once it is up with this version of Croft: try again then.",
            )
        return {bytes.fromhex(peer): key for peer, key in meant.items()}

    # --- running -----------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""
        await self._store.forget_old(self._clock.now())
        for feed, next_sequence, last in await self._store.progress():
            self._feeds.resume(feed, next_sequence, last)
        readable = await self._look_at_disk()
        for box in self._shelf.boxes():
            self._delivery.grown(box)
        for feed in readable:
            if self._shelf.last(feed) >= self._feeds.next_of(feed):
                await self._read_again(feed)

    async def _look_at_disk(self) -> Sequence[Feed]:
        """Knows again just what is kept; returns the feeds that are read here."""
        shelf, readable = Shelf(), dict[Feed, None]()
        for feed, author, sequence, size in await self._store.numbers():
            is_read_here = self._reads(feed, TwinId(author))
            shelf.put(feed, author, sequence, size, is_read_here=is_read_here)
            if is_read_here:
                readable[feed] = None
        self._shelf = shelf
        return list(readable)

    async def serve(self) -> None:
        """Passes letters on, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                now = self._clock.now()
                await self._look(now)
                for tell in self._delivery.look(self._views(), now):
                    tasks.create_task(self._tell(tell), name="letters.tell")
                try:
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._poke.wait()
                except TimeoutError:
                    pass
                self._poke.clear()

    async def _look(self, now: float) -> None:
        async with self._changing:
            effects = self._feeds.handle(Looked(now))
            try:
                if effects:
                    await self._settle(effects, {}, Changes())
                if now - self._forgot_at >= FORGET_EVERY_S:
                    self._forgot_at = now
                    await self._store.forget_old(now)
                    await self._look_at_disk()
            except CroftError as error:
                log.warning("letters are not tended to: %s", error.message)

    def _met(self, peer: PeerId) -> None:
        self._delivery.met(peer)
        self._poke.set()

    # --- telling others ----------------------------------------------------------------------------------------------

    def _views(self) -> dict[Box, View]:
        alive: dict[str, list[Person]] = {}
        known = frozenset(self._network.communities())
        views: dict[Box, View] = {}
        for box in self._delivery.boxes():
            if box.community not in known:
                continue
            if box.community not in alive:
                members = self._network.members(box.community)
                alive[box.community] = [one for one in members if self._network.is_alive(one.peer)]
            views[box] = self._view(box, alive[box.community])
        return views

    def _view(self, box: Box, alive: Sequence[Person]) -> View:
        if not box.to:
            return View(tuple(self._network.linked(box.community)))
        readers = tuple(one.peer for one in alive if one.twin == box.to)
        if not self._shelf.last(self._pen.feed(box)):
            return View(readers)
        others = tuple(one.peer for one in alive if one.twin == self._twin and box.to != self._twin)
        if any(self._delivery.has_newest(peer, box) for peer in readers):
            return View(readers, others)
        delegates = self._network.said(TwinId(box.to)).delegates
        taken = (box.to, self._twin)
        keepers = sorted(
            (one.peer for one in alive if one.twin not in taken or one.peer in delegates),
            key=lambda peer: (peer not in delegates, blake3(f"{box.to}{peer}".encode()).digest()),
        )
        return View(readers, others, tuple(keepers), COPIES)

    async def _tell(self, tell: Tell) -> None:
        own = self._pen.feed(tell.box)
        up_to = self._shelf.last(own)
        try:
            await self._offer(tell.peer, tell.box)
        except (CroftError, PeerMisbehaved, TimeoutError) as problem:
            log.info("%s does not take letters: %s", self._network.name(tell.peer), problem)
            self._delivery.failed(tell, self._clock.now())
            return
        self._delivery.answered(tell)
        if up_to and self._is_reader(tell.peer, tell.box):
            try:
                await self._store.mark_delivered(own, up_to, self._clock.now())
            except Failed as failed:
                log.warning("a delivery is not noted: %s", failed.message)
        # One keeper that was told may mean that another need not be, and the other way round.
        self._poke.set()

    def _is_reader(self, peer: PeerId, box: Box) -> bool:
        return any(one.peer == peer and one.twin == box.to for one in self._network.members(box.community))

    async def _offer(self, peer: PeerId, box: Box) -> None:
        """Gives a peer what it has not. Raises CroftError: not all was taken."""
        feeds = [
            (feed.device, first, last) for feed in self._shelf.feeds(box) for first, last in self._shelf.parts(feed)
        ]
        for at in range(0, len(feeds), FEEDS_PER_OFFER_MAX):
            offered = feeds[at : at + FEEDS_PER_OFFER_MAX]
            answer = await self._network.call(peer, CALL_OFFER, encode(Offered(*box, offered)), CALL_S_MAX)
            wanted = decode(answer, Wanted, step=STEP).feeds
            parts: dict[str, list[tuple[int, int]]] = {}
            for device, first, last in offered:
                parts.setdefault(device, []).append((first, last))
            if len(wanted) > FEEDS_PER_OFFER_MAX * PARTS_PER_FEED_MAX:
                raise PeerMisbehaved("a wish for too many letters", step=STEP)
            for device, first, last in wanted:
                if not within((first, last), parts.get(device, [])):
                    raise PeerMisbehaved("a wish for letters that were not offered", step=STEP)
                await self._give(peer, Feed(box, device), first, last)

    async def _give(self, peer: PeerId, feed: Feed, first: int, last: int) -> None:
        while first <= last:
            end = min(last, first + LETTERS_PER_GIVE_MAX - 1)
            records = await self._store.records(feed, first, end, GIVE_BYTES_MAX)
            if not records:
                return  # they grew too old meanwhile
            answer = await self._network.call(peer, CALL_GIVE, encode(Given(records)), CALL_S_MAX)
            taken = decode(answer, Taken, step=STEP)
            if taken.refusal:
                raise Refused(taken.refusal[:200])
            first += len(records)

    # --- what others tell --------------------------------------------------------------------------------------------

    async def _offered(self, caller: Caller, body: bytes) -> bytes:
        offered = decode(body, Offered, step=STEP)
        box = Box(offered.community, offered.to, offered.room)
        if len(offered.feeds) > FEEDS_PER_OFFER_MAX:
            raise PeerMisbehaved("an offer of too many letters", step=STEP)
        if box.community not in caller.communities:
            raise Refused("letters of a community that you are not in")
        twins = self._twins(box)
        wanted: list[tuple[str, int, int]] = []
        for device, first, last in offered.feeds:
            feed, author = Feed(box, device), twins.get(device)
            if author is None or not 0 < first <= last or not self._is_wanted(feed, author, caller):
                continue
            begin = self._feeds.next_of(feed) if self._reads(feed, author) else 1
            wanted += [(device, *part) for part in self._shelf.lacks(feed, (first, last), begin)]
        return encode(Wanted(wanted[:FEEDS_PER_OFFER_MAX]))

    async def _given(self, caller: Caller, body: bytes) -> bytes:
        given = decode(body, Given, step=STEP)
        if not 0 < len(given.letters) <= LETTERS_PER_GIVE_MAX:
            raise PeerMisbehaved("too many letters at once", step=STEP)
        now = self._clock.now()
        letters = [open_letter(record) for record in given.letters]
        if any(letter.feed.box != letters[0].feed.box for letter in letters):
            raise PeerMisbehaved("letters of several boxes at once", step=STEP)
        twins = self._twins(letters[0].feed.box)
        opened: list[tuple[Letter, bytes]] = []
        refusal = ""
        async with self._changing:
            for letter, record in zip(letters, given.letters, strict=True):
                try:
                    if self._may_come(caller, letter, record, twins):
                        opened.append((letter, record))
                except Refused as refused:
                    refusal = refused.message
                    break
            await self._keep(opened, now)
        return encode(Taken(len(opened), refusal))

    def _is_wanted(self, feed: Feed, author: TwinId, caller: Caller) -> bool:
        """Whether letters of a feed are kept here, if that caller brings them; those of blocked people never are."""
        if feed.device == self._own or self._network.is_kept_out(PeerId(feed.device), author):
            return False
        if self._reads(feed, author):
            return True
        # What is kept for a member comes from its author or its reader, who alone have an interest in it.
        is_for_member = any(one.twin == feed.box.to for one in self._network.members(feed.box.community))
        return is_for_member and caller.twin in (author, feed.box.to)

    def _may_come(self, caller: Caller, letter: Letter, record: bytes, twins: Mapping[str, TwinId]) -> bool:
        """Whether a letter is to be kept that was wanted. Raises Refused where its bearer is to hear why not."""
        feed, author = letter.feed, TwinId(letter.owner.hex())
        if feed.box.community not in caller.communities or twins.get(feed.device) != author:
            raise Refused("its author is not known here as a member")
        if not self._is_wanted(feed, author, caller) or not is_of_the_present(letter, self._clock.now()):
            raise Refused("letters of this author, or of that time, are not kept here")
        if self._shelf.has(feed, letter.sequence):
            return False
        self._shelf.check_room(feed, author, len(record), is_read_here=self._reads(feed, author))
        return True

    async def _keep(self, opened: Sequence[tuple[Letter, bytes]], now: float) -> None:
        changes, effects = Changes(), list[Effect]()
        fresh: dict[tuple[Feed, int], tuple[Letter, bytes]] = {}
        for letter, record in opened:
            feed = letter.feed
            if (feed, letter.sequence) in fresh:
                continue
            if self._reads(feed, TwinId(letter.owner.hex())):
                arrived = Arrived(feed, letter.sequence, digest_of(record), letter.previous, now)
                found = self._feeds.handle(arrived)
                effects += found
                if Forked(feed, letter.sequence) in found:
                    continue
            fresh[feed, letter.sequence] = letter, record
            kept = Kept(feed, letter.sequence, letter.owner.hex(), letter.written_at, record)
            changes.letters.append(kept)
        if not changes.letters and not effects:
            return
        await self._settle(effects, fresh, changes)
        self._take_in(changes.letters)

    def _take_in(self, letters: Sequence[Kept]) -> None:
        """They are on disk: from now on they are offered to others."""
        for kept in letters:
            is_read_here = self._reads(kept.feed, TwinId(kept.author))
            self._shelf.put(kept.feed, kept.author, kept.sequence, len(kept.record), is_read_here=is_read_here)
            self._delivery.grown(kept.feed.box)
        self._poke.set()

    # --- reading -----------------------------------------------------------------------------------------------------

    def _reads(self, feed: Feed, author: TwinId) -> bool:
        """Whether a feed is for the owner of this peer: also what another device of the owner wrote to others."""
        return self._twin in (feed.box.to, author) or not feed.box.to

    def _twins(self, box: Box) -> dict[str, TwinId]:
        """Whose device each author of letters in a box may be."""
        known: dict[str, TwinId] = {one.peer: one.twin for one in self._network.members(box.community)}
        return {**known, self._own: self._twin}

    async def _read_again(self, feed: Feed) -> None:
        """Letters that waited for others when the last run ended."""
        now = self._clock.now()
        first, last = self._feeds.next_of(feed), self._shelf.last(feed)
        for record in await self._store.records(feed, first, last, READ_AGAIN_BYTES_MAX):
            letter = open_letter(record)
            arrived = Arrived(feed, letter.sequence, digest_of(record), letter.previous, now)
            effects = self._feeds.handle(arrived)
            if effects:
                await self._settle(effects, {(feed, letter.sequence): (letter, record)}, Changes())

    async def _settle(
        self, effects: Sequence[Effect], fresh: Mapping[tuple[Feed, int], tuple[Letter, bytes]], changes: Changes
    ) -> None:
        """Writes what is read now, with the letters that came, in one transaction. Raises Failed; nothing is lost."""
        now = self._clock.now()
        messages: list[Message] = []
        keys: dict[tuple[Feed, int], bytes] = {}
        touched = dict.fromkeys(effect.feed for effect in effects)
        try:
            for effect in effects:
                if isinstance(effect, Forked):
                    log.warning("%s wrote two letters of one number", self._network.name(PeerId(effect.feed.device)))
                    continue
                letter, record = fresh.get((effect.feed, effect.sequence)) or await self._reopen(
                    effect.feed, effect.sequence
                )
                body = await self._open(letter, keys, changes, now)
                changes.progress[effect.feed] = effect.sequence + 1, digest_of(record)
                if body is not None:
                    message = _message(letter, digest_of(record), body, now, effect.missing)
                    message = replace(message, is_read=message.author == self._twin)
                    changes.messages.append(message)
                    messages.append(message)
            await self._store.write(changes)
        except BaseException:
            await self._forget_progress(touched)
            raise
        for message in messages:
            if message.author != self._twin and (handler := self.on_kind.get(message.kind)):
                handler(message)
        if messages:
            async with self.arrived:
                self.arrived.notify_all()

    async def _forget_progress(self, feeds: Iterable[Feed]) -> None:
        """What could not be written was not read: it is offered, and read, again."""
        kept = {feed: (next_sequence, last) for feed, next_sequence, last in await self._store.progress()}
        for feed in feeds:
            self._feeds.resume(feed, *kept.get(feed, (1, b"")))

    async def _reopen(self, feed: Feed, sequence: int) -> tuple[Letter, bytes]:
        record = (await self._store.records(feed, sequence, sequence, GIVE_BYTES_MAX))[0]
        return open_letter(record), record

    async def _open(
        self, letter: Letter, keys: dict[tuple[Feed, int], bytes], changes: Changes, now: float
    ) -> Body | None:
        """What a letter says; None for one that only brings keys."""
        feed = letter.feed
        try:
            if (brought := find_key(letter, self._device_id, self._secret)) is not None:
                keys[feed, letter.key] = brought
                changes.keys.append((feed, letter.key, brought, now))
            if not letter.sealed:
                return None
            key = keys.get((feed, letter.key)) or await self._store.key(feed, letter.key)
            return Body(SEALED, "") if key is None else open_body(letter, key)
        except PeerMisbehaved as fault:
            log.warning("a letter of %s: %s", self._network.name(PeerId(feed.device)), fault)
            return Body(SEALED, "")


def _message(letter: Letter, digest: bytes, body: Body, now: float, missing: int, *, is_read: bool = False) -> Message:
    author = letter.owner.hex()
    values = (digest.hex()[:16], letter.feed, letter.sequence, author, letter.written_at, now)
    return Message(*values, body.kind, body.text, body.answers, missing, is_read)
