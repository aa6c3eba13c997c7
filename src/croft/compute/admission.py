"""Decides whose work runs next on the slots that this peer lends.

Every session (one consumer's job here) has a queue; free slots go round the sessions in turn, so that a long queue
never keeps a short one waiting. Among the sessions of one twin those of lower priority wait for those of higher; to
others a priority means nothing. A session may have slots reserved, which nobody else is given. What is lent under one
offer is lent to all who came by it together. Sans-IO: events go in, effects come out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from croft.errors import PeerMisbehaved

SESSIONS_MAX = 256
UNITS_QUEUED_MIN = 64
UNITS_QUEUED_PER_SLOT = 4
"""Per session: what a consumer may have waiting here, at least and by the slots that this peer lends."""


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A consumer, one of `twin`'s, was let in, under an offer, with so many slots of its own."""

    session: int
    offer: str = ""
    reserved: int = 0
    twin: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class UnitArrived:
    """A session wants to run one unit (a chunk, a command) that takes `slots` slots."""

    session: int
    unit: int
    slots: int = 1


@dataclass(frozen=True, slots=True)
class UnitEnded:
    """A running unit is over, or a waiting one is no longer wanted."""

    session: int
    unit: int


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """All of a session's units are over."""

    session: int


@dataclass(frozen=True, slots=True)
class SlotsChanged:
    """The owner lends more or less, in all and under each offer; one that is not named has no limit of its own.

    What runs goes on.
    """

    slots: int
    offers: Mapping[str, int] = field(default_factory=dict)


Event = SessionOpened | UnitArrived | UnitEnded | SessionClosed | SlotsChanged


@dataclass(frozen=True, slots=True)
class Start:
    """Run this unit now."""

    session: int
    unit: int


Effect = Start


@dataclass(slots=True)
class _Session:
    offer: str = ""
    reserved: int = 0
    twin: str = ""
    priority: int = 0
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    running: dict[int, int] = field(default_factory=dict)

    @property
    def slots_busy(self) -> int:
        return sum(self.running.values())

    @property
    def slots_kept(self) -> int:
        """Slots reserved for it that it does not use now."""
        return max(0, self.reserved - self.slots_busy)


class Admission:
    """The slots that one peer lends."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._offers: Mapping[str, int] = {}
        self._sessions: OrderedDict[int, _Session] = OrderedDict()

    @property
    def slots_busy(self) -> int:
        """Slots in use; may exceed `slots` just after the owner lowered it."""
        return sum(session.slots_busy for session in self._sessions.values())

    @property
    def is_full(self) -> bool:
        """Whether no further session is let in."""
        return len(self._sessions) >= SESSIONS_MAX

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`. Raises PeerMisbehaved if a consumer queues too much."""
        match event:
            case SessionOpened(session, offer, reserved, twin, priority):
                assert session not in self._sessions, "session numbers are unique"
                assert not self.is_full, "the shell asks before it opens"
                self._sessions[session] = _Session(offer, reserved, twin, priority)
            case UnitArrived(session, unit, slots):
                entry = self._sessions[session]
                queue = entry.queue
                limit = max(UNITS_QUEUED_MIN, self.slots * UNITS_QUEUED_PER_SLOT)
                if len(queue) >= limit:
                    raise PeerMisbehaved(f"over {limit} chunks waiting", step="task queue")
                # What asks for more than is lent at all gets all of it rather than waiting for ever.
                most = min(self.slots, self._offers.get(entry.offer, self.slots))
                queue.append((unit, max(1, min(slots, max(most, entry.reserved)))))
            case UnitEnded(session, unit):
                if session in self._sessions:
                    entry = self._sessions[session]
                    if entry.running.pop(unit, None) is None:
                        entry.queue = deque(item for item in entry.queue if item[0] != unit)
            case SessionClosed(session):
                self._sessions.pop(session, None)
            case SlotsChanged(slots, offers):
                self.slots = slots
                self._offers = dict(offers)
            case _:
                assert_never(event)
        return self._fill()

    def _fill(self) -> list[Effect]:
        effects: list[Effect] = []
        free = self.slots - self.slots_busy
        kept = sum(session.slots_kept for session in self._sessions.values())
        idle_rounds = 0
        while free > 0 and idle_rounds < len(self._sessions):
            number, session = next(iter(self._sessions.items()))
            self._sessions.move_to_end(number)
            if session.queue and not self._yields(session) and self._fits(session, session.queue[0][1], free, kept):
                unit, slots = session.queue.popleft()
                kept -= session.slots_kept
                session.running[unit] = slots
                kept += session.slots_kept
                free -= slots
                effects.append(Start(number, unit))
                idle_rounds = 0
            else:
                idle_rounds += 1
        return effects

    def _yields(self, session: _Session) -> bool:
        """Whether another session of the same twin goes first."""
        return any(
            other.priority > session.priority and other.twin == session.twin and other.queue
            for other in self._sessions.values()
        )

    def _fits(self, session: _Session, slots: int, free: int, kept: int) -> bool:
        """Whether a unit may start: on its session's own slots, or on what neither others nor the offer keep back."""
        if session.slots_busy + slots <= session.reserved:
            return slots <= free
        if slots > free - (kept - session.slots_kept):
            return False
        limit = self._offers.get(session.offer)
        if limit is None:
            return True
        used = sum(
            max(other.slots_busy, other.reserved) for other in self._sessions.values() if other.offer == session.offer
        )
        own = max(session.slots_busy, session.reserved)
        return used - own + max(session.slots_busy + slots, session.reserved) <= limit
