"""Up to a hundred thousand members of whom only names and places exist, and searches among them."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from croft.model.ids import PeerId, TwinId
from croft.overlay.lookup import BUCKET_MAX, Contact, Lookup, nearest, place_of
from croft.overlay.lookup_messages import NEAREST_MAX

PLACE_BITS = 256
EMPTY_DISTANCES = 40
"""So many bits below the logarithm of the population nobody lives any more."""


class Population:
    """Everybody's contact, and the part of them that each knows. `sybils` are put right around one place."""

    def __init__(self, count: int, seed: int) -> None:
        self.seed = seed
        self.contacts = [_contact(number) for number in range(count)]
        self.sybils: frozenset[PeerId] = frozenset()
        self._sort()

    def _sort(self) -> None:
        self._by_place = sorted(self.contacts, key=lambda contact: contact.place)
        self._places = [contact.place for contact in self._by_place]

    def besiege(self, target: int, count: int) -> None:
        """One member lets in so many identities whose places it has chosen to be the nearest to a key."""
        crowd = [
            Contact(
                PeerId(f"{number:x}".rjust(64, "f")),
                target ^ (number + 1),
                TwinId(f"sybil{number}"),
                sponsors=(TwinId("attacker"),),
            )
            for number in range(count)
        ]
        self.sybils = frozenset(contact.peer for contact in crowd)
        self.contacts += crowd
        self._sort()

    def table(self, of: Contact) -> list[Contact]:
        """Whom a peer knows: up to a bucketful at every distance; the same at each call."""
        random = Random(f"{self.seed}/table/{of.peer}")
        known: list[Contact] = []
        for distance in range(PLACE_BITS, PLACE_BITS - len(self.contacts).bit_length() - EMPTY_DISTANCES, -1):
            low = (of.place ^ (1 << (distance - 1))) >> (distance - 1) << (distance - 1)
            first = bisect.bisect_left(self._places, low)
            after = bisect.bisect_left(self._places, low + (1 << (distance - 1)))
            if after - first > BUCKET_MAX:
                known += [self._by_place[at] for at in random.sample(range(first, after), BUCKET_MAX)]
            else:
                known += self._by_place[first:after]
        return known


@dataclass
class Searches:
    """How a number of searches went."""

    tried: int = 0
    succeeded: int = 0
    hops_mean: float = 0.0
    hops_max: int = 0
    asked_mean: float = 0.0

    @property
    def share(self) -> float:
        """How many of them found what they sought."""
        return self.succeeded / self.tried if self.tried else 0.0


def search_many(population: Population, keys: Iterable[bytes], seed: int, *, dead_share: float = 0.0) -> Searches:
    """Provides each key while all live, then lets a share die at once, then seeks it from somewhere else.

    Whoever dies is not replaced in anybody's table: the worst moment. Sybils answer with sybils, and keep nothing.
    """
    random = Random(f"{seed}/searches/{dead_share}")
    honest = [contact for contact in population.contacts if contact.peer not in population.sybils]
    dead = frozenset(c.peer for c in random.sample(honest, int(len(honest) * dead_share)))
    alive = [contact for contact in honest if contact.peer not in dead]
    result = Searches()
    hops = asked = 0
    for key in keys:
        target = place_of(key)
        provider, seeker = random.sample(alive, 2)
        stored = _walk(population, provider, target, frozenset(), holders=frozenset())
        holders = frozenset(c.peer for c in stored.found()) - population.sybils
        sought = _walk(population, seeker, target, dead, holders=holders)
        found = any(contact.peer in holders for contact in sought.found())
        result.tried += 1
        result.succeeded += found
        hops += sought.hops
        asked += sought.messages
        result.hops_max = max(result.hops_max, sought.hops)
    if result.tried:
        result.hops_mean, result.asked_mean = hops / result.tried, asked / result.tried
    return result


def _walk(
    population: Population, start: Contact, target: int, dead: frozenset[PeerId], *, holders: frozenset[PeerId]
) -> Lookup:
    """One search, to its end or until somebody who holds the key has answered."""
    lookup = Lookup.begin(target, [start, *population.table(start)], is_iterative=True)
    while batch := lookup.to_ask(0.0):
        for contact in batch:
            if contact.peer in dead:
                lookup.failed(contact.peer)
                continue
            known = [contact, *population.table(contact)]
            if contact.peer in population.sybils:
                known = [c for c in population.contacts if c.peer in population.sybils]
            lookup.answered(contact.peer, nearest(target, known, NEAREST_MAX))
            if contact.peer in holders:
                return lookup
    return lookup


def _contact(number: int) -> Contact:
    name = f"{number:064x}"
    return Contact(PeerId(name), place_of(name.encode()), TwinId(f"t{number}"))
