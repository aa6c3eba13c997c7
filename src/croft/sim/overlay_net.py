"""Thousands of virtual peers that consist of the overlay's cores alone, on a network of delays, losses and cuts.

What the cores say is encoded as on the wire, so that bytes are real ones; links, handshakes and heartbeats, which
belong to the transport, are modelled by what was measured of them. Everything comes from one seed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, assert_never

from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay import failure_detector as detector
from croft.overlay import neighbours as company
from croft.overlay import records
from croft.overlay.control_stream import HEARTBEAT_EVERY_S, LOOK_EVERY_S, SILENCE_S_MAX
from croft.overlay.lookup import Contact
from croft.overlay.messages import NeighbourWord, Suspicion
from croft.overlay.neighbours import Word
from croft.overlay.record_messages import Push
from croft.sim.population import Population
from croft.wire.codec import encode

HERE = CommunityId("c" * 64)
WORD, PRESENCE = "word", "presence"
WORD_BYTES, PRESENCE_BYTES = 300, 180
PACKET_BYTES = 65
"""IP, UDP, QUIC and the frame of a notice around a message."""
HEARTBEAT_BYTES = 2 * (PACKET_BYTES + 12)
HANDSHAKE_BYTES = 6_000
RETRANSMISSION_S = 0.3
DIAL_TIMEOUT_S = 5.0
LOOK_S = 1.0
CLOSE_AFTER_S = 30.0


class VirtualPeer:
    """The cores of one peer."""

    __slots__ = ("contact", "detector", "due", "is_up", "links", "neighbours", "number", "sent_bytes", "store", "view")

    def __init__(self, number: int, contact: Contact, random: Random) -> None:
        self.number = number
        self.contact = contact
        self.neighbours = company.Neighbours(contact.peer, random, TwinId)
        self.detector = detector.FailureDetector(contact.peer, random)
        self.store = records.RecordStore(contact.peer)
        self.store.allow(WORD, records.Limits(1_000, 10))
        self.store.allow(PRESENCE, records.Limits(100_000, 1))
        self.store.enter(HERE)
        self.links: dict[int, None] = {}
        self.view: list[PeerId] = []
        self.is_up = True
        self.due = True
        self.sent_bytes = 0


class OverlayNet:
    """All peers. Up to `view_max` members everybody knows everybody; above, a part as `lookup.Buckets` hold it."""

    def __init__(self, count: int, seed: int, *, view_max: int, round_trip_s: float = 0.1, loss: float = 0.0) -> None:
        self.random = Random(f"{seed}/net/{count}")
        self.now = 0.0
        self.loss = loss
        self.round_trip_s = round_trip_s
        population = Population(count, seed)
        self.contacts = population.contacts
        self.peers = [VirtualPeer(n, c, Random(f"{seed}/{n}")) for n, c in enumerate(self.contacts)]
        self.number_of = {contact.peer: number for number, contact in enumerate(self.contacts)}
        self._side: list[int] | None = None
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._catalogue: dict[bytes, records.Entry] = {}
        self.held: dict[bytes, int] = {}
        self.held_at: dict[bytes, float] = {}
        for peer in self.peers:
            everybody = count <= view_max
            known = self.contacts if everybody else population.table(peer.contact)
            peer.view = [contact.peer for contact in known if contact is not peer.contact]
            for other in peer.view:
                peer.detector.handle(detector.Heard(other, 0))
            self.at(self.random.uniform(0, 2.0), self._look, peer)

    # --- time --------------------------------------------------------------------------------------------------------

    def at(self, delay_s: float, what: Callable[..., None], *arguments: Any) -> None:
        """Does something later."""
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._order, what, arguments))

    def run(self, seconds: float, until: Callable[[], bool] | None = None, every_s: float = 0.1) -> bool:
        """Lets time pass; whether `until` came true."""
        ends_at, look_at = self.now + seconds, self.now
        while self._queue and self._queue[0][0] <= ends_at:
            if until is not None and self._queue[0][0] >= look_at:
                self.now, look_at = max(self.now, look_at), look_at + every_s
                if until():
                    return True
            self.now, _, what, arguments = heapq.heappop(self._queue)
            what(*arguments)
        self.now = ends_at
        return until is not None and until()

    # --- orders ------------------------------------------------------------------------------------------------------

    def crash(self, number: int) -> None:
        """A peer ends without a word."""
        peer = self.peers[number]
        peer.is_up = False
        for other in list(peer.links):
            del peer.links[other]
            self.at(SILENCE_S_MAX + self.random.uniform(0, LOOK_EVERY_S), self._silent, self.peers[other], number)

    def split(self, sides: Sequence[int] | None) -> None:
        """Only peers of one side reach each other; None heals."""
        self._side = None if sides is None else list(sides)
        for peer in self.peers:
            for other in [n for n in peer.links if not self.reaches(peer.number, n)]:
                self.at(SILENCE_S_MAX + self.random.uniform(0, LOOK_EVERY_S), self._silent, peer, other)

    def lose_link(self, one: int, other: int) -> None:
        """A link falls silent although both ends live."""
        for here, there in ((one, other), (other, one)):
            self._link_down(self.peers[here], there, is_orderly=False)

    def publish(self, number: int, key: str, kind: str = WORD, sequence: int = 1) -> bytes:
        """A peer says something to all; what to ask `held` and `held_at` for."""
        peer = self.peers[number]
        origin = peer.contact.peer
        size = PRESENCE_BYTES if kind == PRESENCE else WORD_BYTES
        record = f"{kind}/{key}/{sequence}/".encode().ljust(size, b".")
        entry = records.Entry.of(kind, HERE, records.Claim(key, origin, sequence, 1e12, None), record)
        self._catalogue[record] = entry
        self._store(peer, peer.store.handle(records.Published(entry, self.now)))
        return record

    def reaches(self, one: int, other: int) -> bool:
        """Whether packets get from one peer to the other."""
        return self.peers[other].is_up and (self._side is None or self._side[one] == self._side[other])

    def heartbeat_bytes_per_s(self) -> float:
        """What links cost each peer, on average, when nothing else is said."""
        up = [peer for peer in self.peers if peer.is_up]
        return sum(len(peer.links) for peer in up) / len(up) * HEARTBEAT_BYTES / HEARTBEAT_EVERY_S / 2

    # --- links -------------------------------------------------------------------------------------------------------

    def _delay_s(self) -> float:
        delay_s = self.round_trip_s / 2 * self.random.uniform(0.8, 1.2)
        while self.loss and self.random.random() < self.loss:
            delay_s += RETRANSMISSION_S + self.round_trip_s
        return delay_s

    def _dial(self, peer: VirtualPeer, target: PeerId) -> None:
        other = self.number_of[target]
        peer.sent_bytes += HANDSHAKE_BYTES // 2
        if self.reaches(peer.number, other):
            self.at(3 * self._delay_s(), self._dialled, peer, other)
        else:
            self.at(DIAL_TIMEOUT_S, self._dial_failed, peer, target)

    def _dialled(self, peer: VirtualPeer, number: int) -> None:
        if not peer.is_up or not self.reaches(peer.number, number):
            self._dial_failed(peer, self.contacts[number].peer)
            return
        other = self.peers[number]
        other.sent_bytes += HANDSHAKE_BYTES // 2
        for here, there in ((peer, other), (other, peer)):
            is_new = there.number not in here.links
            here.links[there.number] = None
            name = there.contact.peer
            self._company(here, here.neighbours.handle(company.LinkUp(name, self.now)))
            if is_new:
                self._store(here, here.store.handle(records.LinkUp(name, frozenset([HERE]))))
                self._judge(here, here.detector.handle(detector.LinkUp(name)))

    def _dial_failed(self, peer: VirtualPeer, target: PeerId) -> None:
        self._company(peer, peer.neighbours.handle(company.DialFailed(target, self.now)))
        self._judge(peer, peer.detector.handle(detector.Unreachable(target, self.now)))
        peer.due = True

    def _silent(self, peer: VirtualPeer, number: int) -> None:
        is_mute = not self.peers[number].is_up or not self.reaches(number, peer.number)
        if peer.is_up and number in peer.links and is_mute:
            self._link_down(peer, number, is_orderly=False)

    def _close(self, one: int, other: int) -> None:
        names = self.contacts[one].peer, self.contacts[other].peer
        is_needed = self.peers[one].neighbours.is_neighbour(names[1]) or self.peers[other].neighbours.is_neighbour(
            names[0]
        )
        if not is_needed:
            for here, there in ((one, other), (other, one)):
                self._link_down(self.peers[here], there, is_orderly=True)

    def _link_down(self, peer: VirtualPeer, number: int, *, is_orderly: bool) -> None:
        if peer.links.pop(number, 0) == 0:
            return
        name = self.contacts[number].peer
        peer.store.handle(records.LinkDown(name))
        self._company(peer, peer.neighbours.handle(company.LinkDown(name, self.now)))
        self._judge(peer, peer.detector.handle(detector.LinkDown(name, is_orderly, self.now)))
        peer.due = True

    def _look(self, peer: VirtualPeer) -> None:
        if peer.is_up:
            self._judge(peer, peer.detector.handle(detector.Tick(self.now)))
            self._store(peer, peer.store.handle(records.Tick(self.now)))
            dead = peer.detector.dead()
            if peer.due or dead:
                peer.due = False
                tick = company.Tick({HERE: peer.view}, frozenset(dead), self.now)
                effects = peer.neighbours.handle(tick)
                peer.due = bool(effects) or len(peer.neighbours.neighbours()) < company.NEIGHBOURS_WANTED
                self._company(peer, effects)
        self.at(LOOK_S, self._look, peer)

    # --- what the cores ask ------------------------------------------------------------------------------------------

    def _send(self, peer: VirtualPeer, to: PeerId, message: Any, arrive: Callable[..., None], *arguments: Any) -> None:
        number = self.number_of[to]
        if number in peer.links:
            peer.sent_bytes += PACKET_BYTES + len(encode(message))
            self.at(self._delay_s(), self._arrived, peer.number, number, arrive, arguments)

    def _arrived(self, sender: int, number: int, arrive: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        peer = self.peers[number]
        if peer.is_up and sender in peer.links and self.reaches(sender, number):
            arrive(peer, self.contacts[sender].peer, *arguments)

    def _company(self, peer: VirtualPeer, effects: Sequence[company.Effect]) -> None:
        for effect in effects:
            match effect:
                case company.Dial(target):
                    self._dial(peer, target)
                case company.Say(to, word):
                    self._send(peer, to, NeighbourWord(word), self._told, word)
                    if word is Word.LEAVE:
                        self.at(CLOSE_AFTER_S, self._close, peer.number, self.number_of[to])
                case _:
                    assert_never(effect)

    def _told(self, peer: VirtualPeer, sender: PeerId, word: Word) -> None:
        self._company(peer, peer.neighbours.handle(company.Said(sender, word)))
        peer.due = True

    def _judge(self, peer: VirtualPeer, effects: Sequence[detector.Effect]) -> None:
        for effect in effects:
            match effect:
                case detector.Probe(target, helpers):
                    number = self.number_of[target]
                    # We dial it ourselves; each helper is asked, looks, and answers.
                    ways = [(peer.number, 2), *((self.number_of[helper], 4) for helper in helpers)]
                    open_ways = [hops for w, hops in ways if self.peers[w].is_up and self.reaches(w, number)]
                    if open_ways:
                        fastest_s = min(sum(self._delay_s() for _ in range(hops)) for hops in open_ways)
                        self.at(fastest_s, self._reached, peer, target)
                case detector.Tell(to, target, sequence):
                    self._send(peer, to, Suspicion(target, sequence), self._suspicion, target, sequence)
                case detector.Refute(sequence):
                    self.publish(peer.number, peer.contact.peer, PRESENCE, sequence + 1)
                case detector.Died() | detector.Revived():
                    peer.due = True
                case _:
                    assert_never(effect)

    def _reached(self, peer: VirtualPeer, target: PeerId) -> None:
        peer.detector.handle(detector.Reached(target))

    def _suspicion(self, peer: VirtualPeer, sender: PeerId, target: PeerId, sequence: int) -> None:
        self._judge(peer, peer.detector.handle(detector.Suspected(sender, target, sequence, self.now)))

    def _store(self, peer: VirtualPeer, effects: Sequence[records.Effect]) -> None:
        for effect in effects:
            match effect:
                case records.Send(to, Push(_, pushed) as message):
                    self._send(peer, to, message, self._pushed, [record for _, record in pushed])
                case records.Send(to, message):
                    self._send(peer, to, message, self._heard, message)
                case records.Learned(entry):
                    self.held[entry.record] = self.held.get(entry.record, 0) + 1
                    self.held_at[entry.record] = self.now
                    if entry.kind == PRESENCE:
                        said = detector.Heard(PeerId(entry.claim.key), entry.claim.sequence)
                        self._judge(peer, peer.detector.handle(said))
                case records.Gone() | records.Overtaken():
                    pass
                case _:
                    assert_never(effect)

    def _heard(self, peer: VirtualPeer, sender: PeerId, message: Any) -> None:
        self._store(peer, peer.store.handle(records.MessageReceived(sender, message, self.now)))

    def _pushed(self, peer: VirtualPeer, sender: PeerId, pushed: Sequence[bytes]) -> None:
        entries = [self._catalogue[record] for record in pushed]
        self._store(peer, peer.store.handle(records.Received(sender, entries, self.now)))
