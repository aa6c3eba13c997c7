"""Decides whom to ask for which share of one stripe, until any k of them are here and whole. Sans-IO.

Data shares come first, from peers that are alive and near; a peer that is slow gets a rival after a while (a hedged
read, Dean & Barroso 2013). A share that is bad, or not there, is asked for where else it may be; when hints run out,
everybody is asked once who holds what.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from croft.model.ids import PeerId

# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrived:
    """A share is here, and is what its id says."""

    index: int


@dataclass(frozen=True, slots=True)
class NotArrived:
    """A peer did not give a share, and why."""

    index: int
    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Slow:
    """It takes longer than it should."""


@dataclass(frozen=True, slots=True)
class Located:
    """Who says that it holds which share, after `Locate`."""

    holders: Mapping[int, Sequence[PeerId]]


Event = Arrived | NotArrived | Slow | Located

# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask this peer for this share; `Arrived` or `NotArrived` follows."""

    index: int
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Locate:
    """Ask everybody who holds shares of this stripe; `Located` follows."""


@dataclass(frozen=True, slots=True)
class Complete:
    """These shares are here, k of them."""

    have: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """Too few shares are to be had. `have` of k are here."""

    have: int
    reasons: tuple[str, ...]


Effect = Fetch | Locate | Complete | Lost


class Download:
    """One stripe on its way here. `hints`: for each share, peers that may hold it, best first; `cost` of asking each:
    near and alive ones cost least."""

    def __init__(self, k: int, hints: Sequence[Sequence[PeerId]], cost: Mapping[PeerId, float]) -> None:
        self._k = k
        self._cost = cost
        self._left: dict[int, list[PeerId]] = {index: list(peers) for index, peers in enumerate(hints)}
        self._tried: set[tuple[int, PeerId]] = set()
        self._pending: dict[int, PeerId] = {}
        self._have: set[int] = set()
        self._reasons: list[str] = []
        self._hedges = 0
        self._is_locating = False
        self._has_located = False
        self.is_over = False

    def start(self) -> Sequence[Effect]:
        """The first effects."""
        return self._fill()

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        if self.is_over:
            return []
        match event:
            case Arrived(index):
                self._pending.pop(index, None)
                self._have.add(index)
                return self._fill()
            case NotArrived(index, peer, reason):
                if self._pending.get(index) == peer:
                    del self._pending[index]
                self._reasons.append(reason)
                return self._fill()
            case Slow():
                self._hedges += bool(self._pending)
                return self._fill()
            case Located(holders):
                self._is_locating, self._has_located = False, True
                for index, peers in holders.items():
                    known = self._left.setdefault(index, [])
                    known += [peer for peer in peers if (index, peer) not in self._tried and peer not in known]
                return self._fill()
            case _:
                assert_never(event)

    def _fill(self) -> list[Effect]:
        if len(self._have) >= self._k:
            self.is_over = True
            return [Complete(tuple(sorted(self._have))[: self._k])]
        effects: list[Effect] = []
        wanted = self._k + self._hedges - len(self._have) - len(self._pending)
        for _ in range(max(0, wanted)):
            best = self._best()
            if best is None:
                break
            index, peer = best
            self._left[index].remove(peer)
            self._tried.add(best)
            self._pending[index] = peer
            effects.append(Fetch(index, peer))
        if len(self._have) + len(self._pending) < self._k and not self._is_locating:
            if not self._has_located:
                self._is_locating = True
                effects.append(Locate())
            elif not self._pending:
                self.is_over = True
                effects.append(Lost(len(self._have), tuple(dict.fromkeys(self._reasons))))
        return effects

    def _best(self) -> tuple[int, PeerId] | None:
        """The next share to ask for, and whom: alive before dead, data before parity, near before far."""
        best: tuple[float, int, PeerId] | None = None
        for index, peers in self._left.items():
            if index in self._have or index in self._pending:
                continue
            for peer in peers:
                parity = 0.5 if index >= self._k else 0.0
                candidate = (self._cost.get(peer, 1.0) + parity, index, peer)
                if best is None or candidate < best:
                    best = candidate
        return None if best is None else (best[1], best[2])
