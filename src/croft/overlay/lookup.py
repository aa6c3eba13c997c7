"""Decides where records about a key belong, and finds the peers nearest to a key by asking those that are nearer.

Every peer and every key has a place, a 256-bit hash; near is by exclusive or. A key belongs with its KEEPERS nearest
members. Who knows all members computes them (a rendezvous: all who know the same members agree without a message); who
knows a part of them asks α of the nearest it knows at a time for nearer ones (Kademlia, Maymounkov and Mazières 2002).
So both kinds of peers, also in one community, look in the same places. Sans-IO.

Against somebody who makes many identities: of the keepers, no twin is more than one, and no member that let others in
speaks for more than a quarter, as long as others are there to choose (compare S/Kademlia, Baumgart and Mies 2007).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from blake3 import blake3

from croft.model.ids import PeerId, TwinId

KEEPERS = 8
ALPHA = 3
BUCKET_MAX = 16
ASKED_MAX = 40
"""A lookup asks no more peers than this."""
SPONSORED_MAX = KEEPERS // 4
SLOW_S = 0.5
"""Whoever has not answered by then no longer holds up the next question."""


@dataclass(frozen=True, slots=True)
class Contact:
    """A member as a lookup sees it. `sponsors`: who let it in, and who let those in, but for the founder."""

    peer: PeerId
    place: int
    twin: TwinId
    sponsors: tuple[TwinId, ...] = ()

    @staticmethod
    def of(peer: PeerId, twin: TwinId, path: Sequence[TwinId] = ()) -> Contact:
        """The contact of a member; `path` as in its grant, from the founder to its twin."""
        return Contact(peer, place_of(peer.encode()), twin, tuple(path[1:-1]))


def place_of(name: bytes) -> int:
    """The place of a peer's id or of a key."""
    return int.from_bytes(blake3(name, derive_key_context="croft lookup place v1").digest(), "big")


def nearest(target: int, contacts: Iterable[Contact], count: int = KEEPERS) -> list[Contact]:
    """The `count` nearest, mixed by twin and by sponsor as far as there is a choice; nearest first."""
    ordered = sorted(contacts, key=lambda contact: contact.place ^ target)
    chosen: list[Contact] = []
    passed_over: list[Contact] = []
    twins: set[TwinId] = set()
    sponsored: dict[TwinId, int] = {}
    for contact in ordered:
        if len(chosen) == count:
            break
        if contact.twin in twins or any(sponsored.get(s, 0) >= SPONSORED_MAX for s in contact.sponsors):
            passed_over.append(contact)
            continue
        chosen.append(contact)
        twins.add(contact.twin)
        for sponsor in contact.sponsors:
            sponsored[sponsor] = sponsored.get(sponsor, 0) + 1
    chosen += passed_over[: count - len(chosen)]
    return sorted(chosen, key=lambda contact: contact.place ^ target)


class Buckets:
    """The part of a large community that a peer knows: per distance, a bounded number, the longest known first.

    The far buckets are a random sample of everybody, the near ones are all there are.
    """

    def __init__(self, own: int, bucket_max: int = BUCKET_MAX) -> None:
        self._own = own
        self._bucket_max = bucket_max
        self._buckets: dict[int, dict[PeerId, Contact]] = {}

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def has_room(self, contact: Contact) -> bool:
        """Whether it is known, or would be taken."""
        bucket = self._buckets.get((contact.place ^ self._own).bit_length(), {})
        return contact.peer in bucket or (contact.place != self._own and len(bucket) < self._bucket_max)

    def add(self, contact: Contact) -> bool:
        """Takes it if there is room."""
        if not self.has_room(contact):
            return False
        self._buckets.setdefault((contact.place ^ self._own).bit_length(), {})[contact.peer] = contact
        return True

    def remove(self, contact: Contact) -> None:
        """It is dead, or no member any more."""
        distance = (contact.place ^ self._own).bit_length()
        bucket = self._buckets.get(distance, {})
        bucket.pop(contact.peer, None)
        if not bucket:
            self._buckets.pop(distance, None)

    def contacts(self) -> list[Contact]:
        """All that are known."""
        return [contact for bucket in self._buckets.values() for contact in bucket.values()]

    def distances(self) -> list[int]:
        """The distances of which somebody is known."""
        return sorted(self._buckets)

    def near(self, target: int, count: int) -> list[Contact]:
        """The nearest ones to a place, unmixed."""
        return sorted(self.contacts(), key=lambda contact: contact.place ^ target)[:count]


@dataclass(slots=True)
class _Asked:
    contact: Contact
    at: float
    depth: int


@dataclass(slots=True)
class Lookup:
    """One search. Ask whom `to_ask` names, and report; it is over when `to_ask` is empty and nobody is awaited.

    `hops` of an answer: by how many answers, one after the other, whoever gave it was found.
    """

    target: int
    is_iterative: bool
    _known: dict[PeerId, Contact] = field(default_factory=dict)
    _depths: dict[PeerId, int] = field(default_factory=dict)
    _awaited: dict[PeerId, _Asked] = field(default_factory=dict)
    _answered: dict[PeerId, Contact] = field(default_factory=dict)
    _failed: set[PeerId] = field(default_factory=set)
    _asked: int = 0
    hops: int = 0

    @staticmethod
    def begin(target: int, contacts: Iterable[Contact], *, is_iterative: bool) -> Lookup:
        """A search that starts from these; `is_iterative` if they may not be all there are."""
        lookup = Lookup(target, is_iterative)
        for contact in contacts:
            lookup._known[contact.peer] = contact
            lookup._depths[contact.peer] = 1
        return lookup

    @property
    def is_over(self) -> bool:
        """Whether nobody is left to be asked or awaited."""
        return not self._awaited and not self._candidates()

    @property
    def messages(self) -> int:
        """How many were asked."""
        return self._asked

    def to_ask(self, now: float) -> list[Contact]:
        """Whom to ask now."""
        patient = sum(1 for asked in self._awaited.values() if now - asked.at < SLOW_S)
        chosen = self._candidates()[: max(0, ALPHA - patient)]
        for contact in chosen:
            self._asked += 1
            self._awaited[contact.peer] = _Asked(contact, now, self._depths[contact.peer])
        return chosen

    def answered(self, peer: PeerId, contacts: Iterable[Contact] = ()) -> None:
        """Somebody answered, and named others."""
        asked = self._awaited.pop(peer, None)
        if asked is None:
            return
        self._answered[peer] = asked.contact
        self.hops = max(self.hops, asked.depth)
        if self.is_iterative:
            for contact in contacts:
                if contact.peer not in self._known:
                    self._known[contact.peer] = contact
                    self._depths[contact.peer] = asked.depth + 1

    def failed(self, peer: PeerId) -> None:
        """Somebody did not answer."""
        self._awaited.pop(peer, None)
        self._failed.add(peer)

    def found(self) -> list[Contact]:
        """The keepers, of those that answered."""
        return nearest(self.target, self._answered.values())

    def _candidates(self) -> list[Contact]:
        """Those of the nearest that live, as far as is known, and were not asked yet."""
        if self._asked >= ASKED_MAX:
            return []
        alive = [contact for contact in self._known.values() if contact.peer not in self._failed]
        wanted = nearest(self.target, alive)
        return [c for c in wanted if c.peer not in self._answered and c.peer not in self._awaited]
