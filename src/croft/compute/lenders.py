"""Decides which peers a job asks for slots, in which order, and when to ask again after a refusal.

Sans-IO. Others come before this peer itself, idle ones before busy ones, near ones before far ones; a peer that
refused or failed is asked again after a pause that doubles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from croft.errors import Busy, CroftError, Refused
from croft.model.ids import PeerId

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 20.0
NOBODY_S_MAX = 10.0
"""A job that no peer takes for this long fails, with every peer's reason."""
DECLINED_S_MAX = 3.0
"""The same where every peer has said no. Some first: a peer that has only just let us in may not know it yet."""
ROUND_TRIP_GUESSED_S = 0.1
"""Of a peer to which there is no link yet."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reachable member that lends processor time."""

    peer: PeerId
    name: str
    is_self: bool
    slots: int
    slots_busy: int
    round_trip_s: float | None
    python: str
    grade: str
    owner: str = ""
    """Whose peer it is, for work that different people must do; one's own devices stand each for itself."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which peers a job may use. `only` and `never` hold peer ids; empty `only`: any."""

    python: str = ""
    only: frozenset[PeerId] = frozenset()
    never: frozenset[PeerId] = frozenset()


@dataclass(slots=True)
class _Pause:
    until: float
    wait_s: float
    reason: str
    is_declined: bool = False


class Lenders:
    """One job's view of who could work for it."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._pauses: dict[PeerId, _Pause] = {}
        self._mismatches: dict[PeerId, str] = {}
        self._banned: set[PeerId] = set()

    def ban(self, peer: PeerId, name: str, reason: str) -> None:
        """Never asks this peer again."""
        self._banned.add(peer)
        self._mismatches[peer] = f"{name}: caught lying: {reason}"

    def ranked(self, candidates: Iterable[Candidate], taken: Iterable[PeerId], now: float) -> list[Candidate]:
        """The candidates to ask now, best first, without those `taken` already."""
        used = set(taken)
        fit = [
            candidate
            for candidate in candidates
            if candidate.peer not in used and self._fits(candidate) and self._is_rested(candidate.peer, now)
        ]
        return sorted(fit, key=_rank)

    def refused(self, candidate: Candidate, reason: str, now: float, *, is_declined: bool = False) -> None:
        """A candidate could not be reached or has no room, or, with `is_declined`, does not want this job at all."""
        pause = self._pauses.get(candidate.peer)
        wait_s = RETRY_FIRST_S if pause is None else min(pause.wait_s * 2, RETRY_MAX_S)
        self._pauses[candidate.peer] = _Pause(now + wait_s, wait_s, f"{candidate.name}: {reason}", is_declined)

    def accepted(self, peer: PeerId) -> None:
        """A candidate let the job in."""
        self._pauses.pop(peer, None)

    def patience_s(self, candidates: Iterable[Candidate]) -> float:
        """How long to go on without a lender: not as long where all that there are have declined."""
        # Where peers were named, one that does not fit has declined too; else another that fits may yet come.
        asked = [one for one in candidates if self._fits(one) or one.peer in self._wish.only]
        return DECLINED_S_MAX if asked and all(map(self._has_declined, asked)) else NOBODY_S_MAX

    def _has_declined(self, candidate: Candidate) -> bool:
        pause = self._pauses.get(candidate.peer)
        return not self._fits(candidate) or (pause is not None and pause.is_declined)

    def reasons(self) -> list[str]:
        """Why nobody works, a line per peer."""
        return [*self._mismatches.values(), *(pause.reason for pause in self._pauses.values())]

    def _fits(self, candidate: Candidate) -> bool:
        wish = self._wish
        if (
            candidate.peer in self._banned
            or candidate.peer in wish.never
            or (wish.only and candidate.peer not in wish.only)
        ):
            return False
        if candidate.slots <= 0:
            if wish.only:
                self._mismatches[candidate.peer] = f"{candidate.name}: lends no processors now"
            return False
        self._mismatches.pop(candidate.peer, None)
        if wish.python and candidate.python != wish.python:
            self._mismatches[candidate.peer] = (
                f"{candidate.name}: runs Python {candidate.python}, the job is made by Python {wish.python}"
            )
            return False
        return True

    def _is_rested(self, peer: PeerId, now: float) -> bool:
        pause = self._pauses.get(peer)
        return pause is None or pause.until <= now


def is_decline(error: CroftError) -> bool:
    """Whether a peer that answered so does not want the job at all; one that has no room for now may want it later."""
    return isinstance(error, Refused) and not isinstance(error, Busy)


def _rank(candidate: Candidate) -> tuple[bool, float, float, PeerId]:
    busy = candidate.slots_busy / candidate.slots
    round_trip_s = ROUND_TRIP_GUESSED_S if candidate.round_trip_s is None else candidate.round_trip_s
    return candidate.is_self, busy, round_trip_s, candidate.peer
