"""Decides which of a job's holders carries it on: its submitter while it is up, else the first delegate that is.

Each claim has an epoch; of two claims the later epoch counts, and of one epoch that of the better rank. The submitter
is first in rank, then the delegates in the order in which it named them, so all holders that hear of each other agree.
Two may carry a job while they do not: tasks then run twice, and still count once, because every journal keeps the
first outcome of a task and the submitter's journal has the last word. Sans-IO: events go in, effects come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from croft.errors import PeerMisbehaved
from croft.model.ids import PeerId

TAKEOVER_S = 5.0
"""How long a carrier is dead to a delegate before it is replaced; the overlay takes some seconds to tell that it is."""
STAGGER_S = 5.0
"""Longer for each holder of better rank that lives: it is its turn first."""
EPOCH_MAX = 1 << 40


@dataclass(frozen=True, slots=True)
class Looked:
    """Which holders live, as the overlay sees it. `now`: seconds of any clock that only goes forward."""

    now: float
    alive: frozenset[PeerId]


@dataclass(frozen=True, slots=True)
class ClaimHeard:
    """Another holder says who carries the job."""

    epoch: int
    carrier: PeerId


Event = Looked | ClaimHeard


@dataclass(frozen=True, slots=True)
class Carry:
    """Carry the job on here, and let the others know."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Follow:
    """Somebody else carries it: what runs of it here ends."""

    epoch: int
    carrier: PeerId


Effect = Carry | Follow


class Custody:
    """One holder's view of who carries a job. `holders`: the submitter, then the delegates by rank."""

    def __init__(self, own: PeerId, holders: Sequence[PeerId], epoch: int, carrier: PeerId) -> None:
        self._own = own
        self._ranks = {peer: rank for rank, peer in enumerate(holders)}
        assert own in self._ranks, "a holder"
        self.epoch = epoch
        self.carrier = carrier
        self._heard_at: float | None = None

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`. Raises PeerMisbehaved for a claim that no holder makes."""
        match event:
            case Looked(now, alive):
                return self._look(now, alive)
            case ClaimHeard(epoch, carrier):
                if carrier not in self._ranks or not 0 < epoch < EPOCH_MAX:
                    raise PeerMisbehaved("a claim that no holder of the job makes", step="journal")
                return self._hear(epoch, carrier)
            case _:
                assert_never(event)

    def _look(self, now: float, alive: frozenset[PeerId]) -> Sequence[Effect]:
        if self.carrier == self._own or self.carrier in alive or self._heard_at is None:
            self._heard_at = now
            return []
        rank = self._ranks[self._own]
        before = sum(1 for peer, other in self._ranks.items() if other < rank and peer in alive)
        if now - self._heard_at < TAKEOVER_S + STAGGER_S * before:
            return []
        return self._claim(self.epoch + 1)

    def _hear(self, epoch: int, carrier: PeerId) -> Sequence[Effect]:
        if (epoch, -self._ranks[carrier]) <= (self.epoch, -self._ranks[self.carrier]):
            return []
        if self._ranks[self._own] == 0:
            # A delegate took over while the submitter was away; the submitter is back.
            return self._claim(epoch + 1)
        self.epoch, self.carrier = epoch, carrier
        self._heard_at = None
        return [Follow(epoch, carrier)] if carrier != self._own else [Carry(epoch)]

    def _claim(self, epoch: int) -> Sequence[Effect]:
        self.epoch, self.carrier = epoch, self._own
        return [Carry(epoch)]
