"""Decides which shares to make again, and which first. Sans-IO.

Repair is lazy (Dalle et al. 2009): peers at home come and go, and a share whose holder is away for a while is not lost.
But the less a stripe bears yet, the shorter it waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from croft.model.ids import PeerId

GRACE_S: Final = 24 * 3_600.0
"""A holder that is away for longer does not come back; nights and weekdays are shorter."""
SHORT_GRACE_S: Final = 12 * 3_600.0
"""The same, for a stripe that has lost half of what it bears."""


@dataclass(frozen=True, slots=True)
class StripeState:
    """Where the shares of a stripe are.

    `at`: peers that are up and hold it, by share; `away_s`: for how long its holder has been away, where it is.
    """

    number: int
    k: int
    n: int
    at: Mapping[int, Sequence[PeerId]]
    away_s: Mapping[int, float]

    @property
    def margin(self) -> int:
        """How many more of its shares may be lost; below zero: it cannot be read now."""
        return len(self.at) - self.k


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Make these shares of a stripe again."""

    number: int
    shares: tuple[int, ...]


def grace_s(state: StripeState) -> float:
    """For how long holders of this stripe are waited for: not at all once three quarters of what it bears are lost."""
    losses = state.n - state.k
    if 4 * state.margin <= losses:
        return 0.0
    return SHORT_GRACE_S if 2 * state.margin <= losses else GRACE_S


def plan(states: Sequence[StripeState]) -> list[Rebuild]:
    """What to rebuild, the most endangered first."""
    wanted: list[tuple[int, int, tuple[int, ...]]] = []
    for state in states:
        if len(state.at) == state.n or state.margin < 0:
            continue
        missing, grace = (index for index in range(state.n) if index not in state.at), grace_s(state)
        shares = tuple(index for index in missing if state.away_s.get(index, grace) >= grace)
        if shares:
            wanted.append((state.margin, state.number, shares))
    return [Rebuild(number, shares) for _, number, shares in sorted(wanted)]
