"""Decides which shares to make again, and which first. Sans-IO.

Repair is lazy (Dalle et al. 2009): peers at home come and go, and a share whose holder is away for a while is not lost.
But once a stripe has lost half of what it bears, it does not wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from croft.model.ids import PeerId

GRACE_S: Final = 3_600.0
"""A holder that is away for longer does not come back."""


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


def plan(states: Sequence[StripeState], grace_s: float = GRACE_S) -> list[Rebuild]:
    """What to rebuild, the most endangered first."""
    wanted: list[tuple[int, int, tuple[int, ...]]] = []
    for state in states:
        missing = [index for index in range(state.n) if index not in state.at]
        if not missing or state.margin < 0:
            continue
        is_urgent = 2 * state.margin <= state.n - state.k
        shares = tuple(index for index in missing if is_urgent or state.away_s.get(index, grace_s) >= grace_s)
        if shares:
            wanted.append((state.margin, state.number, shares))
    return [Rebuild(number, shares) for _, number, shares in sorted(wanted)]
