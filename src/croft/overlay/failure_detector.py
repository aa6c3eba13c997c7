"""Decides which peers are alive: a peer that nobody reaches and that does not object is dead.

SWIM (Das et al. 2002) with suspicion and refutation, over the links that are there anyway: a link whose other end falls
silent is the failed probe, other members are asked whether they reach it, and only then it is suspected, by gossip.
Every peer's signed words carry rising sequences, which serve as its incarnations: a word newer than the one it is
suspected at clears it, and nobody but itself can make one. Sans-IO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, assert_never

from croft.model.ids import PeerId

T = TypeVar("T")

HELPERS = 3
"""How many others are asked whether they reach a peer."""
PROBE_S = 1.5
SUSPICION_S = 3.0
"""How long a suspected peer has to object; its objection needs to get around twice."""
SUSPICIONS_PER_TICK_MAX = 256
"""From one peer, per second or so; what is over is not heard."""
TOLD_MAX = 256
CLOCK_AHEAD_MS_MAX = 600_000


class Chance(Protocol):
    """Where choices come from; seeded."""

    def sample(self, population: Sequence[T], k: int) -> list[T]:
        """`k` different ones."""
        ...


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """A signed word of a peer, with its sequence, reached us by whatever way."""

    peer: PeerId
    sequence: int


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link is live."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A link ended. `is_orderly`: both sides no longer needed it."""

    peer: PeerId
    is_orderly: bool
    now: float


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A peer was dialled and did not answer."""

    peer: PeerId
    now: float


@dataclass(frozen=True, slots=True)
class Reached:
    """A helper, or we ourselves, got an answer from a peer that is being probed."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Suspected:
    """A linked peer says that another one, whose last word has that sequence, seems dead."""

    sender: PeerId
    peer: PeerId
    sequence: int
    now: float


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A peer is no member any more."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Tick:
    """Some time passed."""

    now: float


Event = Heard | LinkUp | LinkDown | Unreachable | Reached | Suspected | Forgotten | Tick


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Probe:
    """Dial `peer`, and ask these others whether they reach it; answer with `Reached`."""

    peer: PeerId
    helpers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell `to` that `peer` is suspected at that sequence."""

    to: PeerId
    peer: PeerId
    sequence: int


@dataclass(frozen=True, slots=True)
class Refute:
    """We are suspected: say something newer than that sequence."""

    sequence: int


@dataclass(frozen=True, slots=True)
class Died:
    """A peer did not object in time."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Revived:
    """A peer that was dead is alive."""

    peer: PeerId


Effect = Probe | Tell | Refute | Died | Revived


@dataclass(slots=True)
class _Doubt:
    """`dies_at` None: dead already."""

    sequence: int
    dies_at: float | None


class FailureDetector:
    """What this peer believes of the life of every other."""

    def __init__(self, own: PeerId, chance: Chance) -> None:
        self._own = own
        self._chance = chance
        self._linked: dict[PeerId, None] = {}
        self._sequences: dict[PeerId, int] = {}
        self._probes: dict[PeerId, float] = {}
        self._doubts: dict[PeerId, _Doubt] = {}
        self._heard_from: dict[PeerId, int] = {}

    def is_dead(self, peer: PeerId) -> bool:
        """Whether a peer is held for dead."""
        doubt = self._doubts.get(peer)
        return doubt is not None and doubt.dies_at is None

    @property
    def due_at(self) -> float | None:
        """When the next probe or suspicion ends; a Tick is to come then. None: there is none."""
        ends = [doubt.dies_at for doubt in self._doubts.values() if doubt.dies_at is not None]
        return min([*self._probes.values(), *ends], default=None)

    def dead(self) -> list[PeerId]:
        """All that are held for dead."""
        return [peer for peer, doubt in self._doubts.items() if doubt.dies_at is None]

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Heard(peer, sequence):
                return self._heard(peer, sequence)
            case LinkUp(peer):
                return self._link_up(peer)
            case LinkDown(peer, is_orderly, now):
                self._linked.pop(peer, None)
                return [] if is_orderly else self._probe(peer, now)
            case Unreachable(peer, now):
                return self._probe(peer, now)
            case Reached(peer):
                self._probes.pop(peer, None)
                return []
            case Suspected():
                return self._suspected(event)
            case Forgotten(peer):
                for table in (self._sequences, self._probes, self._doubts):
                    table.pop(peer, None)
                return []
            case Tick(now):
                return self._tick(now)
            case _:
                assert_never(event)

    def _heard(self, peer: PeerId, sequence: int) -> Sequence[Effect]:
        if peer == self._own or sequence <= self._sequences.get(peer, -1):
            return []
        self._sequences[peer] = sequence
        doubt = self._doubts.get(peer)
        if doubt is None or sequence <= doubt.sequence:
            return []
        return self._clear(peer)

    def _clear(self, peer: PeerId) -> list[Effect]:
        doubt = self._doubts.pop(peer, None)
        return [Revived(peer)] if doubt is not None and doubt.dies_at is None else []

    def _link_up(self, peer: PeerId) -> Sequence[Effect]:
        self._linked[peer] = None
        self._probes.pop(peer, None)
        # Others may know better, and whoever is wrongly doubted learns of it and objects.
        doubts = list(self._doubts.items())[-TOLD_MAX:]
        told: list[Effect] = [Tell(peer, other, doubt.sequence) for other, doubt in doubts]
        return [*self._clear(peer), *told]

    def _probe(self, peer: PeerId, now: float) -> Sequence[Effect]:
        if peer in self._linked or peer in self._probes or peer in self._doubts or peer not in self._sequences:
            return []
        self._probes[peer] = now + PROBE_S
        helpers = [other for other in self._linked if other != peer]
        return [Probe(peer, tuple(self._chance.sample(helpers, min(HELPERS, len(helpers)))))]

    def _suspected(self, event: Suspected) -> Sequence[Effect]:
        peer, sequence = event.peer, event.sequence
        if sequence > event.now * 1000 + CLOCK_AHEAD_MS_MAX:
            return []
        count = self._heard_from[event.sender] = self._heard_from.get(event.sender, 0) + 1
        if count > SUSPICIONS_PER_TICK_MAX:
            return []
        if peer == self._own:
            return [Refute(sequence)]
        if peer not in self._sequences or sequence < self._sequences[peer]:
            return []
        if peer in self._linked:
            # It lives: let it speak for itself, and pass the rumour on to nobody else.
            return [] if peer == event.sender else [Tell(peer, peer, sequence)]
        return self._doubt(peer, sequence, event.sender, event.now)

    def _doubt(self, peer: PeerId, sequence: int, sender: PeerId | None, now: float) -> list[Effect]:
        known = self._doubts.get(peer)
        if known is not None and known.sequence >= sequence:
            return []
        self._probes.pop(peer, None)
        self._doubts[peer] = _Doubt(sequence, now + SUSPICION_S)
        return [Tell(other, peer, sequence) for other in self._linked if other != sender]

    def _tick(self, now: float) -> Sequence[Effect]:
        self._heard_from.clear()
        effects: list[Effect] = []
        for peer in [peer for peer, ends_at in self._probes.items() if ends_at <= now]:
            del self._probes[peer]
            effects += self._doubt(peer, self._sequences[peer], None, now)
        for peer, doubt in self._doubts.items():
            if doubt.dies_at is not None and doubt.dies_at <= now:
                doubt.dies_at = None
                effects.append(Died(peer))
        return effects
