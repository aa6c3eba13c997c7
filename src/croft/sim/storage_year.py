"""Stored data among peers at home for a year: storage's own decisions (placement, repair), on virtual time.

Whoever looks after a stripe (its owner, else one of three delegates, whoever of them is up) goes a round every half an
hour. What holders prove is left out: nobody lies here. Traffic is that of shares: k fetched, and those made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from croft.model.ids import PeerId
from croft.sim.home_peers import DAY_H, HomePeer, HomePeers
from croft.storage.placement import Layout, first_of_domains, ranked
from croft.storage.repair import Rebuild, StripeState, plan
from croft.storage.upkeep import DELEGATES
from croft.storage.wards import ROUND_EVERY_S

HOUR_S: Final = 3_600.0
STEP_H: Final = ROUND_EVERY_S / HOUR_S
OWNERS_SHARE: Final = 1 / 8
SEED_BYTES: Final = 16


@dataclass(slots=True)
class Stored:
    """One stripe: who has which share, as bits of a number and in order of time."""

    number: int
    owner: HomePeer
    seed: bytes
    masks: list[int]
    holders: list[list[HomePeer]]
    delegates: list[HomePeer] = field(default_factory=list)
    is_lost: bool = False


@dataclass(slots=True)
class Day:
    """What was found on one day, over all stripes. Shares are counted in stripes: one of n of them is 1/n."""

    looks: int = 0
    unreadable: int = 0
    unreadable_to_owner: int = 0
    owner_looks: int = 0
    margin_min: int = 0
    rebuilt: int = 0
    fetched: int = 0
    kept: float = 0.0
    lost: int = 0


class Year:
    """So many stripes among so many peers. `repairs`: whether anybody looks after them."""

    def __init__(
        self,
        peers: int,
        stripes: int,
        layout: Layout,
        uptime: tuple[float, float],
        seed: int,
        *,
        repairs: bool = True,
        leave: bool = True,
        nights: bool = True,
    ) -> None:
        self.layout = layout
        self._repairs = repairs
        self._random = Random(f"{seed}/year/{peers}/{layout}/{uptime}")
        self.home = HomePeers(peers, uptime, self._random, leave=leave, nights=nights)
        self.days: list[Day] = []
        owners = self._random.sample(self.home.all, max(1, round(peers * OWNERS_SHARE)))
        for owner in owners:
            owner.leaves_at = float("inf")
        self.stored = [self._put(number, owners[number % len(owners)]) for number in range(stripes)]

    def run(self, days: int) -> list[Day]:
        """Lets so many days pass."""
        for _ in range(days):
            self.days.append(day := Day(margin_min=self.layout.losses))
            for _ in range(round(DAY_H / STEP_H)):
                self.home.advance(self.home.now + STEP_H)
                self._look(day)
            self._count(day)
        return self.days

    def _put(self, number: int, owner: HomePeer) -> Stored:
        seed = self._random.randbytes(SEED_BYTES)
        places = {peer.place.peer: peer for peer in self.home.living() if peer is not owner and peer.is_up}
        chosen = first_of_domains(ranked(seed, [peer.place for peer in places.values()]), self.layout.n)
        holders = [places[place.peer] for place in chosen]
        return Stored(number, owner, seed, [1 << one.number for one in holders], [[one] for one in holders])

    def _look(self, day: Day) -> None:
        up = sum(1 << peer.number for peer in self.home.all if peer.is_up)
        for one in self.stored:
            if one.is_lost:
                continue
            present = [index for index, mask in enumerate(one.masks) if mask & up]
            is_unreadable = len(present) < self.layout.k
            day.looks += 1
            day.unreadable += is_unreadable
            day.margin_min = min(day.margin_min, len(present) - self.layout.k)
            if one.owner.is_up:
                day.owner_looks += 1
                day.unreadable_to_owner += is_unreadable
            if self._repairs and len(present) < self.layout.n and not is_unreadable:
                self._tend(one, present, day)

    def _tend(self, one: Stored, present: Sequence[int], day: Day) -> None:
        if not (one.owner.is_up or any(peer.is_up for peer in one.delegates)):
            return
        at = {index: [peer.place.peer for peer in one.holders[index] if peer.is_up] for index in present}
        away = {
            index: (self.home.now - max(peer.since for peer in one.holders[index])) * HOUR_S
            for index in range(self.layout.n)
            if index not in at
        }
        for wanted in plan([StripeState(one.number, self.layout.k, self.layout.n, at, away)]):
            self._rebuild(one, wanted, at, day)

    def _rebuild(self, one: Stored, wanted: Rebuild, at: dict[int, list[PeerId]], day: Day) -> None:
        holding = {peer for peers in at.values() for peer in peers}
        fit = {
            peer.place.peer: peer
            for peer in self.home.living()
            if peer.is_up and peer is not one.owner and peer.place.peer not in holding
        }
        targets = ranked(one.seed, [peer.place for peer in fit.values()])
        for index, place in zip(wanted.shares, targets, strict=False):
            peer = fit[place.peer]
            one.masks[index] |= 1 << peer.number
            one.holders[index].append(peer)
            day.rebuilt += 1
        day.fetched += self.layout.k

    def _count(self, day: Day) -> None:
        for one in self.stored:
            left = [[peer for peer in holders if not peer.is_gone] for holders in one.holders]
            one.is_lost = sum(map(bool, left)) < self.layout.k
            day.kept += sum(map(len, left)) / self.layout.n
            if one.owner.is_up or not one.delegates:
                up = [peer for peer in self.home.living() if peer.is_up and peer is not one.owner]
                chosen = ranked(one.owner.place.peer.encode(), [peer.place for peer in up])[:DELEGATES]
                one.delegates = [peer for peer in up if peer.place in chosen]
        day.lost = sum(one.is_lost for one in self.stored)
