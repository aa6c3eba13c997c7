"""Machines at home as they come and go: sessions, nights, and departures for good, in hours of virtual time.

Times on and off are lognormal with heavy tails, as measured of real networks (Stutzbach & Rejaie 2006; Steiner et al.
2007); some machines are off by night, most of them in one night. Who leaves for good is replaced by somebody new.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from random import Random
from typing import Final

from croft.model.ids import PeerId
from croft.storage.placement import Place

DAY_H: Final = 24.0
OFF_H_MEAN: Final = 3.0
SPREAD: Final = 1.0
"""Of the logarithm of a session's length."""
NIGHTLY_SHARE: Final = 0.3
ZONES_H: Final = (0.0, 0.0, 0.0, 1.0, 8.0)
LIFE_H_MEAN: Final = 1.5 * 365 * DAY_H


@dataclass(slots=True)
class HomePeer:
    """One machine. `uptime`: the share of the time that it is on while it is with us at all."""

    number: int
    place: Place
    uptime: float
    night_h: float | None
    leaves_at: float
    is_up: bool = True
    is_gone: bool = False
    since: float = 0.0


class HomePeers:
    """So many machines, always; `advance` lets time pass."""

    def __init__(self, count: int, uptime: tuple[float, float], random: Random, *, leave: bool, nights: bool) -> None:
        self._random = random
        self._uptime = uptime
        self._leave = leave
        self._nights = nights
        self._due: list[tuple[float, int]] = []
        self.now = 0.0
        self.all: list[HomePeer] = []
        self.departures = 0
        for _ in range(count):
            self._arrive(is_first=True)

    def living(self) -> list[HomePeer]:
        """Those that have not left for good."""
        return [peer for peer in self.all if not peer.is_gone]

    def advance(self, until: float) -> None:
        """Lets everybody come and go until then."""
        while self._due and self._due[0][0] <= until:
            at, number = heapq.heappop(self._due)
            self.now, peer = at, self.all[number]
            if at >= peer.leaves_at:
                peer.is_up, peer.is_gone, peer.since = False, True, at
                self.departures += 1
                self._arrive()
                continue
            peer.is_up, peer.since = not peer.is_up, at
            self._schedule(peer)
        self.now = until

    def _arrive(self, *, is_first: bool = False) -> None:
        chance, number = self._random, len(self.all)
        life_h = chance.expovariate(1 / LIFE_H_MEAN) if self._leave else math.inf
        night_h = chance.choice(ZONES_H) if self._nights and chance.random() < NIGHTLY_SHARE else None
        name = f"{number:064x}"
        place = Place(PeerId(name), f"home{number}", name, 1.0)
        peer = HomePeer(number, place, chance.uniform(*self._uptime), night_h, self.now + life_h, since=self.now)
        if is_first:
            peer.is_up = chance.random() < peer.uptime
        self.all.append(peer)
        self._schedule(peer)

    def _schedule(self, peer: HomePeer) -> None:
        if peer.night_h is not None:
            lasts_h = self._until_the_switch(peer, peer.night_h)
        else:
            mean = OFF_H_MEAN * (peer.uptime / (1 - peer.uptime) if peer.is_up else 1.0)
            lasts_h = self._random.lognormvariate(math.log(mean) - SPREAD**2 / 2, SPREAD)
        heapq.heappush(self._due, (min(self.now + lasts_h, max(peer.leaves_at, self.now)), peer.number))

    def _until_the_switch(self, peer: HomePeer, night_h: float) -> float:
        """Off from some time in the evening on, for as long as fits its uptime; never quite the same."""
        off_h = DAY_H * (1 - peer.uptime)
        wanted = night_h if peer.is_up else night_h + off_h
        left_h = (wanted - self.now) % DAY_H
        return max(0.1, left_h + self._random.gauss(0, 0.5))
