"""Decides to whom to keep links: to everybody while they are few, to a bounded random choice of them above that.

The choice is like the active view of HyParView (Leitão et al. 2007): both ends of a link agree to be neighbours;
whoever has too few asks more, and is let in; whoever has too many then parts with one that came by itself, so that a
crowd cannot displace those whom it chose, and one twin's devices get few of the places that others want. The passive
view is the list of members. Links that are no neighbourhood are made when needed, and closed once neither end needs
them. Sans-IO.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay.failure_detector import Chance

NEIGHBOURS_MAX = 12
"""Up to so many others, everybody is linked to everybody."""
NEIGHBOURS_WANTED = 7
"""Above that, per community, so many at least."""
NEIGHBOURS_PER_TWIN = 3
"""Devices of one twin that keep their places while others want them."""
ASKED_AT_ONCE_MAX = 4
CHOICE = 4
"""Candidates drawn for each place: of them those are asked whose twins have the fewest places."""
REDIAL_FIRST_S = 1.0
REDIAL_MAX_S = 30.0
HEAL_EVERY_S = 20.0
"""How often somebody who is held for dead is dialled all the same: the other half of a split may be back."""
ANSWER_S_MAX = 5.0


class Word(enum.IntEnum):
    """What ends of a link say to each other about it."""

    ASK = 1
    ACCEPT = 2
    LEAVE = 3
    REST = 4
    """The sender does not need this link at present."""


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link is live; perhaps in place of an older one, to a peer that started anew."""

    peer: PeerId
    now: float


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A link ended."""

    peer: PeerId
    now: float


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A dial that was asked for did not succeed."""

    peer: PeerId
    now: float


@dataclass(frozen=True, slots=True)
class SpokeAnew:
    """A member's descriptor is new or changed: perhaps it is elsewhere now."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Said:
    """The other end of a link says this."""

    peer: PeerId
    word: Word


@dataclass(frozen=True, slots=True)
class Tick:
    """Time to look: the other members of each community, and who is held for dead."""

    members: Mapping[CommunityId, Sequence[PeerId]]
    dead: frozenset[PeerId]
    now: float


Event = LinkUp | LinkDown | DialFailed | SpokeAnew | Said | Tick


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dial:
    """Make a link to a member; answered by `LinkUp` or `DialFailed`."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Say:
    """Say this to the other end of a link."""

    peer: PeerId
    word: Word


Effect = Dial | Say


@dataclass(slots=True)
class _Redial:
    after: float = 0.0
    wait_s: float = REDIAL_FIRST_S
    is_under_way: bool = False


class Neighbours:
    """The active view. `twin_of` tells whose device a peer is."""

    def __init__(self, own: PeerId, chance: Chance, twin_of: Callable[[PeerId], TwinId | None]) -> None:
        self._own = own
        self._chance = chance
        self._twin_of = twin_of
        self._linked: dict[PeerId, None] = {}
        self._active: dict[PeerId, None] = {}
        self._asked: dict[PeerId, float] = {}
        self._sought: dict[PeerId, None] = {}
        self._wanted: dict[PeerId, None] = {}
        self._redials: dict[PeerId, _Redial] = {}
        self._heal_at = HEAL_EVERY_S

    def is_neighbour(self, peer: PeerId) -> bool:
        """Whether the link to `peer` is to be kept."""
        return peer in self._active

    def neighbours(self) -> list[PeerId]:
        """All of them."""
        return list(self._active)

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case LinkUp(peer, now):
                self._linked[peer] = None
                self._redials.pop(peer, None)
                is_wanted = False
                for table in (self._wanted, self._active, self._asked):
                    is_wanted |= peer in table
                    table.pop(peer, None)
                return self._ask(peer, now) if is_wanted else []
            case LinkDown(peer, now):
                for table in (self._linked, self._active, self._asked, self._sought):
                    table.pop(peer, None)
                self._redials[peer] = _Redial(after=now)
                return []
            case DialFailed(peer, now):
                self._wanted.pop(peer, None)
                redial = self._redials.setdefault(peer, _Redial())
                redial.after = now + redial.wait_s
                redial.wait_s = min(redial.wait_s * 2, REDIAL_MAX_S)
                redial.is_under_way = False
                return []
            case SpokeAnew(peer):
                redial_of = self._redials.get(peer)
                if redial_of is not None and redial_of.is_under_way:
                    # It is dialled by what was known before, perhaps without the relay by which alone it is reached.
                    return [Dial(peer)] if peer not in self._linked else []
                self._redials.pop(peer, None)
                return []
            case Said(peer, word):
                return self._said(peer, word) if peer in self._linked else []
            case Tick(members, dead, now):
                return self._look(members, dead, now)
            case _:
                assert_never(event)

    # --- agreeing ----------------------------------------------------------------------------------------------------

    def _ask(self, peer: PeerId, now: float) -> list[Effect]:
        self._asked[peer] = now
        self._sought[peer] = None
        return [Say(peer, Word.ASK)]

    def _said(self, peer: PeerId, word: Word) -> Sequence[Effect]:
        match word:
            case Word.ASK:
                return [*self._admit(peer), Say(peer, Word.ACCEPT)]
            case Word.ACCEPT:
                if peer in self._active:
                    self._asked.pop(peer, None)
                    return []
                return self._admit(peer) if peer in self._asked else [Say(peer, Word.LEAVE)]
            case Word.LEAVE:
                for table in (self._active, self._asked, self._sought):
                    table.pop(peer, None)
                return []
            case Word.REST:
                return []
            case _:
                assert_never(word)

    def _admit(self, peer: PeerId) -> list[Effect]:
        self._asked.pop(peer, None)
        effects: list[Effect] = []
        if peer not in self._active and len(self._active) >= NEIGHBOURS_MAX:
            [victim] = self._chance.sample(self._who_may_go(peer), 1)
            del self._active[victim]
            self._sought.pop(victim, None)
            effects.append(Say(victim, Word.LEAVE))
        self._active[peer] = None
        return effects

    def _who_may_go(self, newcomer: PeerId) -> list[PeerId]:
        """Of a full house: who came by itself; of the twin with the most places, if it has more than its own."""
        places = Counter(self._twin_of(other) for other in (*self._active, newcomer))
        crowd, count = places.most_common(1)[0]
        there = list(self._active)
        if crowd is not None and count > NEIGHBOURS_PER_TWIN:
            there = [other for other in there if self._twin_of(other) == crowd]
        return [other for other in there if other not in self._sought] or there

    # --- looking -----------------------------------------------------------------------------------------------------

    def _look(
        self, members: Mapping[CommunityId, Sequence[PeerId]], dead: frozenset[PeerId], now: float
    ) -> Sequence[Effect]:
        for peer in [peer for peer, at in self._asked.items() if now - at > ANSWER_S_MAX]:
            del self._asked[peer]
        effects: list[Effect] = []
        for others in members.values():
            if len(others) <= NEIGHBOURS_MAX:
                for peer in others:
                    effects += self._seek(peer, now)
                continue
            active = sum(1 for peer in others if peer in self._active)
            asked = sum(1 for peer in others if peer in self._asked or peer in self._wanted)
            missing = min(NEIGHBOURS_WANTED - active, ASKED_AT_ONCE_MAX) - asked
            if missing > 0:
                fit = [peer for peer in others if peer not in dead and self._is_free(peer, now)]
                places = Counter(self._twin_of(peer) for peer in (*self._active, *self._asked))
                drawn = self._chance.sample(fit, min(missing * CHOICE, len(fit)))
                for peer in sorted(drawn, key=lambda peer: places[self._twin_of(peer)])[:missing]:
                    effects += self._seek(peer, now)
        if now >= self._heal_at:
            self._heal_at = now + HEAL_EVERY_S
            lost = [peer for others in members.values() for peer in others if peer in dead and self._is_free(peer, now)]
            for peer in self._chance.sample(lost, min(1, len(lost))):
                effects += self._dial(peer, now)
        return effects

    def _is_free(self, peer: PeerId, now: float) -> bool:
        if peer in self._active or peer in self._asked or peer == self._own:
            return False
        redial = self._redials.get(peer)
        return redial is None or (not redial.is_under_way and redial.after <= now)

    def _seek(self, peer: PeerId, now: float) -> list[Effect]:
        if not self._is_free(peer, now):
            return []
        if peer in self._linked:
            return self._ask(peer, now)
        self._wanted[peer] = None
        return self._dial(peer, now)

    def _dial(self, peer: PeerId, now: float) -> list[Effect]:
        if peer in self._linked:
            return []
        redial = self._redials.setdefault(peer, _Redial(after=now))
        redial.is_under_way = True
        return [Dial(peer)]
