"""Decides where each share of one stripe goes, and when the stripe counts as stored. Sans-IO.

All n shares leave at once. One that a peer does not take goes to the next peer of the ranking whose owner holds none.
The stripe counts once k shares and a margin are on disk at their holders; the others follow, or are given up when no
peer is left, and repair makes up for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from croft.model.ids import PeerId
from croft.storage.placement import Layout, Place

# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stored:
    """A share is on disk at its holder."""

    index: int


@dataclass(frozen=True, slots=True)
class NotStored:
    """A peer did not take a share, and why."""

    index: int
    reason: str


Event = Stored | NotStored

# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send this share to this peer; `Stored` or `NotStored` follows."""

    index: int
    place: Place


@dataclass(frozen=True, slots=True)
class Committed:
    """Enough shares are on disk: what waits for the stripe may go on."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing is under way any more. `missing`: shares that nobody took."""

    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """Too few peers took a share."""

    reasons: tuple[str, ...]


Effect = Send | Committed | Finished | Failed


def margin(layout: Layout) -> int:
    """How many shares beyond k are on disk before a stripe counts: half of the losses that it is to bear."""
    return -(-layout.losses // 2)


class Upload:
    """One stripe on its way. `ranking` begins with the n peers of choice."""

    def __init__(self, layout: Layout, ranking: Sequence[Place]) -> None:
        assert len(ranking) >= layout.n, "a layout needs a peer for each share"
        self._layout = layout
        self._first = list(ranking[: layout.n])
        self._spare = deque(ranking[layout.n :])
        self._busy_domains: set[str] = set()
        self._at: dict[int, Place] = {}
        self._pending: set[int] = set()
        self._stored: set[int] = set()
        self._reasons: list[str] = []
        self.is_committed = False
        self.is_over = False

    @property
    def holders(self) -> list[PeerId]:
        """Where each share is, or was last to go."""
        return [self._at[index].peer for index in range(self._layout.n)]

    @property
    def stored(self) -> int:
        """How many shares are on disk."""
        return len(self._stored)

    def start(self) -> Sequence[Effect]:
        """The first effects."""
        effects: list[Effect] = []
        for index, place in enumerate(self._first):
            effects.append(self._send(index, place))
        return effects

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Stored(index):
                assert index in self._pending, "only what was sent is stored"
                self._pending.discard(index)
                self._stored.add(index)
                return self._settled()
            case NotStored(index, reason):
                assert index in self._pending, "only what was sent is refused"
                self._pending.discard(index)
                self._reasons.append(f"{self._at[index].name}: {reason}")
                self._busy_domains.discard(self._at[index].domain)
                if (place := self._next()) is not None:
                    return [self._send(index, place)]
                return self._settled()
            case _:
                assert_never(event)

    def _send(self, index: int, place: Place) -> Send:
        self._at[index] = place
        self._pending.add(index)
        self._busy_domains.add(place.domain)
        return Send(index, place)

    def _next(self) -> Place | None:
        for place in list(self._spare):
            if place.domain not in self._busy_domains:
                self._spare.remove(place)
                return place
        return None

    def _settled(self) -> list[Effect]:
        effects: list[Effect] = []
        needed = self._layout.k + margin(self._layout)
        if not self.is_committed and len(self._stored) >= needed:
            self.is_committed = True
            effects.append(Committed())
        if not self._pending and not self.is_over:
            self.is_over = True
            if self.is_committed:
                effects.append(Finished(tuple(i for i in range(self._layout.n) if i not in self._stored)))
            else:
                effects.append(Failed(tuple(dict.fromkeys(self._reasons))))
        return effects
