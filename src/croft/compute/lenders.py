"""Decides which peers a job asks for slots, in which order, and when to ask again after a refusal.

Sans-IO. Others come before this peer itself, idle ones before busy ones, near ones before far ones; a peer that
refused or failed is asked again after a pause that doubles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from blake3 import blake3

from croft.errors import Busy, CroftError, Refused
from croft.model.ids import PeerId

RETRY_FIRST_S = 0.5
RETRY_MAX_S = 20.0
RETRY_FULL_MAX_S = 2.0
NOBODY_S_MAX = 10.0
"""A job that no peer takes for this long fails, with every peer's reason."""
DECLINED_S_MAX = 3.0
"""The same where every peer has said no. Some first: a peer that has only just let us in may not know it yet."""
ROUND_TRIP_GUESSED_S = 0.1
"""Of a peer to which there is no link yet."""
ROUND_TRIP_EQUAL_S = 0.002
"""Below this, one peer is as near as another."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reachable member that lends processor time. `devices`: what else it lends to us; `reason`: why no slots now."""

    peer: PeerId
    name: str
    is_self: bool
    slots: int
    slots_busy: int
    round_trip_s: float | None
    python: str
    grade: str
    devices: frozenset[str] = frozenset()
    reason: str = ""
    owner: str = ""
    """Whose peer it is, for work that different people must do; one's own devices stand each for itself."""
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Wish:
    """Which peers a job may use. `only` and `never` hold peer ids; empty `only`: any.

    `needs`: devices, all of them. `labels`: words, all of them. `cpus`: slots that one task takes.
    `priority`: before which other jobs of the same twin its tasks go. `near`: who has its data; they are asked first.
    """

    python: str = ""
    only: frozenset[PeerId] = frozenset()
    never: frozenset[PeerId] = frozenset()
    needs: tuple[str, ...] = ()
    labels: frozenset[str] = frozenset()
    cpus: int = 1
    priority: int = 0
    near: frozenset[PeerId] = frozenset()


@dataclass(slots=True)
class _Pause:
    until: float
    wait_s: float
    reason: str
    is_declined: bool = False
    is_full: bool = False


class Lenders:
    """One job's view of who could work for it."""

    def __init__(self, wish: Wish, salt: str = "") -> None:
        """`salt` differs from job to job, so that not all prefer the same of several equal peers."""
        self._wish = wish
        self._salt = salt
        self._pauses: dict[PeerId, _Pause] = {}
        self._mismatches: dict[PeerId, str] = {}
        self._banned: set[PeerId] = set()
        self.near: set[PeerId] = set(wish.near)
        """Who has data of the job; they are asked first."""

    def ban(self, peer: PeerId, name: str, reason: str) -> None:
        """Never asks this peer again."""
        self.exclude(peer, f"{name}: caught lying: {reason}")

    def exclude(self, peer: PeerId, why: str) -> None:
        """The same for one that cannot do what the job needs."""
        self._banned.add(peer)
        self._mismatches[peer] = why

    def ranked(self, candidates: Iterable[Candidate], taken: Iterable[PeerId], now: float) -> list[Candidate]:
        """The candidates to ask now, best first, without those `taken` already."""
        used = set(taken)
        fit = [
            candidate
            for candidate in candidates
            if candidate.peer not in used and self._fits(candidate) and self._is_rested(candidate.peer, now)
        ]
        return sorted(fit, key=self._rank)

    def refused(
        self, candidate: Candidate, reason: str, now: float, *, is_declined: bool = False, is_full: bool = False
    ) -> None:
        """A candidate could not be reached or has no room, or, with `is_declined`, does not want this job at all.

        With `is_full`, it would take the job, and does so once others have gone: it is asked more often.
        """
        pause = self._pauses.get(candidate.peer)
        wait_s_max = RETRY_FULL_MAX_S if is_full else RETRY_MAX_S
        wait_s = min(RETRY_FIRST_S if pause is None else pause.wait_s * 2, wait_s_max)
        why = f"{candidate.name}: {reason}"
        self._pauses[candidate.peer] = _Pause(now + wait_s, wait_s, why, is_declined, is_full)

    def accepted(self, peer: PeerId) -> None:
        """A candidate let the job in."""
        self._pauses.pop(peer, None)

    def patience_s(self, candidates: Iterable[Candidate]) -> float:
        """How long to go on without a lender: less where all have declined, and for ever while one is only full."""
        # Where peers were named, one that does not fit has declined too; else another that fits may yet come.
        asked = [one for one in candidates if self._fits(one) or one.peer in self._wish.only]
        if any(self._is_full(one) for one in asked):
            return inf
        return DECLINED_S_MAX if asked and all(map(self._has_declined, asked)) else NOBODY_S_MAX

    def _has_declined(self, candidate: Candidate) -> bool:
        pause = self._pauses.get(candidate.peer)
        return not self._fits(candidate) or (pause is not None and pause.is_declined)

    def _is_full(self, candidate: Candidate) -> bool:
        pause = self._pauses.get(candidate.peer)
        return pause is not None and pause.is_full and self._fits(candidate)

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
                why = f": {candidate.reason}" if candidate.reason else ""
                self._mismatches[candidate.peer] = f"{candidate.name}: lends no processors now{why}"
            return False
        if candidate.slots < wish.cpus:
            self._mismatches[candidate.peer] = (
                f"{candidate.name}: lends {candidate.slots} processors, one task wants {wish.cpus}"
            )
            return False
        if lacking := [need for need in wish.needs if need not in candidate.devices]:
            self._mismatches[candidate.peer] = f"{candidate.name}: lends us no {' and no '.join(lacking)}"
            return False
        if unlabelled := sorted(wish.labels - candidate.labels):
            self._mismatches[candidate.peer] = f"{candidate.name}: has no label {' and none '.join(unlabelled)}"
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

    def _rank(self, candidate: Candidate) -> tuple[bool, bool, float, int, bytes]:
        busy = candidate.slots_busy / candidate.slots
        round_trip_s = ROUND_TRIP_GUESSED_S if candidate.round_trip_s is None else candidate.round_trip_s
        # By its order of magnitude: among peers that are about as near, submitters spread out.
        distance = math.frexp(max(round_trip_s, ROUND_TRIP_EQUAL_S))[1]
        chance = blake3(f"{self._salt}/{candidate.peer}".encode()).digest()
        return candidate.peer not in self.near, candidate.is_self, busy, distance, chance


def is_decline(error: CroftError) -> bool:
    """Whether a peer that answered so does not want the job at all; one that has no room for now may want it later."""
    return isinstance(error, Refused) and not isinstance(error, Busy)
