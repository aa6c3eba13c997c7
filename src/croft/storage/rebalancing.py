"""Decides which shares to move so that all lie where they may, one per owner, and by how much room each peer offers.

As few as that takes: what lies well stays, whatever a new placement would have chosen. Sans-IO.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from croft.model.ids import PeerId
from croft.storage.placement import Place, Rule, allowed

TOLERANCE: Final = 0.1
"""A share moves for the sake of room if its new holder is then less full, by so much, than the old one was."""
PASSES_MAX: Final = 8


class Why(enum.StrEnum):
    """What a move is good for."""

    RULE = "rule"
    OWNER = "owner"
    ROOM = "room"


@dataclass(frozen=True, slots=True)
class Spread:
    """Where a stripe's shares are: pairs of share and peer, of peers that are up and proved what they have."""

    number: int
    share_bytes: int
    rule: Rule
    held: Sequence[tuple[int, PeerId]]


@dataclass(frozen=True, slots=True)
class Move:
    """A share is to be brought from one peer to another."""

    number: int
    index: int
    source: PeerId
    target: PeerId
    size: int
    why: Why


@dataclass(slots=True)
class Plan:
    """What to do. `stuck`: shares that ought to move, and nobody else may or can hold them.

    `before`, `after`: bytes at each peer, now and once all moves are done.
    """

    moves: list[Move] = field(default_factory=list)
    stuck: int = 0
    before: dict[PeerId, int] = field(default_factory=dict)
    after: dict[PeerId, int] = field(default_factory=dict)


def plan(spreads: Sequence[Spread], places: Sequence[Place]) -> Plan:
    """All moves that are worth it, the most needed first. `places`: who lends disk, dead peers too."""
    return _Planner(spreads, places).plan()


def bounded(moves: Sequence[Move], moves_max: int, bytes_max: int) -> list[Move]:
    """The first of these moves, within bounds; one at least, if there is any."""
    kept: list[Move] = []
    left = bytes_max
    for move in moves[:moves_max]:
        if kept and move.size > left:
            break
        kept.append(move)
        left -= move.size
    return kept


class _Planner:
    def __init__(self, spreads: Sequence[Spread], places: Sequence[Place]) -> None:
        self._spreads = spreads
        self._places = [place for place in places if place.is_alive]
        self._domains: Mapping[PeerId, str] = {place.peer: place.domain for place in places}
        self._weights = {place.peer: place.weight for place in self._places}
        self._fit: dict[Rule, dict[PeerId, Place]] = {}
        self._held = {spread.number: dict[int, PeerId]() for spread in spreads}
        self._loads: dict[PeerId, int] = {place.peer: 0 for place in self._places}
        self._moves: dict[tuple[int, int], Move] = {}
        self._plan = Plan()
        for spread in spreads:
            for index, peer in spread.held:
                self._held[spread.number][index] = peer
                self._loads[peer] = self._loads.get(peer, 0) + spread.share_bytes
        self._plan.before = dict(self._loads)

    def plan(self) -> Plan:
        for spread in self._spreads:
            self._obey(spread)
        for _ in range(PASSES_MAX):
            if not self._even_out():
                break
        self._plan.stuck = sum(len(self._amiss(spread)) for spread in self._spreads)
        order = list(Why)
        moves = [move for move in self._moves.values() if move.source != move.target]
        self._plan.moves = sorted(moves, key=lambda move: order.index(move.why))
        self._plan.after = dict(self._loads)
        return self._plan

    def _obey(self, spread: Spread) -> None:
        """Moves what lies where it may not, or with another share at one owner."""
        for index, why in self._amiss(spread):
            if (index, why) in self._amiss(spread):  # still, though another one has moved
                self._move_to_best(spread, index, why)

    def _amiss(self, spread: Spread) -> list[tuple[int, Why]]:
        """Shares that are not where they belong."""
        seen, found = set[str](), list[tuple[int, Why]]()
        fit = self._fitting(spread.rule)
        for index, peer in sorted(self._held[spread.number].items()):
            if peer not in fit:
                found.append((index, Why.RULE))
            elif self._domain(peer) in seen:
                found.append((index, Why.OWNER))
            seen.add(self._domain(peer))
        return found

    def _even_out(self) -> bool:
        """One pass over all shares, those of the fullest peers first; whether any was moved."""
        by_peer: dict[PeerId, list[tuple[Spread, int]]] = {}
        for spread in self._spreads:
            for index, peer in self._held[spread.number].items():
                by_peer.setdefault(peer, []).append((spread, index))
        has_moved = False
        for peer in sorted(by_peer, key=lambda one: (-self._fullness(one), one)):
            if peer not in self._weights:
                continue
            for spread, index in by_peer[peer]:
                has_moved |= self._move_to_best(spread, index, Why.ROOM)
        return has_moved

    def _move_to_best(self, spread: Spread, index: int, why: Why) -> bool:
        held, size = self._held[spread.number], spread.share_bytes
        source = held[index]
        # Moves of one stripe do not wait for one another, and each may fail: no share goes to where another one was.
        others = {self._domain(peer) for other, peer in (*held.items(), *spread.held) if other != index}
        best: tuple[float, PeerId] | None = None
        for peer, place in self._fitting(spread.rule).items():
            if peer == source or place.domain in others:
                continue
            candidate = ((self._loads[peer] + size) / place.weight, peer)
            best = candidate if best is None or candidate < best else best
        if best is None or (why is Why.ROOM and best[0] > (1 - TOLERANCE) * self._fullness(source)):
            return False
        target = best[1]
        held[index] = target
        self._loads[source] -= size
        self._loads[target] += size
        first = self._moves.get((spread.number, index))
        self._moves[spread.number, index] = Move(
            spread.number, index, first.source if first else source, target, size, first.why if first else why
        )
        return True

    def _fullness(self, peer: PeerId) -> float:
        return self._loads[peer] / self._weights[peer] if peer in self._weights else 0.0

    def _fitting(self, rule: Rule) -> Mapping[PeerId, Place]:
        if rule not in self._fit:
            self._fit[rule] = {place.peer: place for place in allowed(self._places, rule)}
        return self._fit[rule]

    def _domain(self, peer: PeerId) -> str:
        return self._domains.get(peer, peer)


def by_way(moves: Collection[Move]) -> dict[tuple[PeerId, PeerId, Why], tuple[int, int]]:
    """How many shares, and bytes, go from whom to whom, and why."""
    found: dict[tuple[PeerId, PeerId, Why], tuple[int, int]] = {}
    for move in moves:
        count, size = found.get((move.source, move.target, move.why), (0, 0))
        found[move.source, move.target, move.why] = count + 1, size + move.size
    return found
