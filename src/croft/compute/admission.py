"""Decides whose work runs next on the slots that this peer lends.

Every session (one consumer's job here) has a queue; free slots go round the sessions in turn, so that a long queue
never keeps a short one waiting. Sans-IO: events go in, effects come out.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from croft.errors import PeerMisbehaved

SESSIONS_MAX = 256
UNITS_QUEUED_MIN = 64
UNITS_QUEUED_PER_SLOT = 4
"""Per session: what a consumer may have waiting here, at least and by the slots that this peer lends."""


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A consumer was let in."""

    session: int


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
    """The owner lends more or less. What runs goes on."""

    slots: int


Event = SessionOpened | UnitArrived | UnitEnded | SessionClosed | SlotsChanged


@dataclass(frozen=True, slots=True)
class Start:
    """Run this unit now."""

    session: int
    unit: int


Effect = Start


@dataclass(slots=True)
class _Session:
    queue: deque[tuple[int, int]] = field(default_factory=deque)
    running: dict[int, int] = field(default_factory=dict)


class Admission:
    """The slots that one peer lends."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._sessions: OrderedDict[int, _Session] = OrderedDict()

    @property
    def slots_busy(self) -> int:
        """Slots in use; may exceed `slots` just after the owner lowered it."""
        return sum(sum(session.running.values()) for session in self._sessions.values())

    @property
    def is_full(self) -> bool:
        """Whether no further session is let in."""
        return len(self._sessions) >= SESSIONS_MAX

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`. Raises PeerMisbehaved if a consumer queues too much."""
        match event:
            case SessionOpened(session):
                assert session not in self._sessions, "session numbers are unique"
                assert not self.is_full, "the shell asks before it opens"
                self._sessions[session] = _Session()
            case UnitArrived(session, unit, slots):
                queue = self._sessions[session].queue
                limit = max(UNITS_QUEUED_MIN, self.slots * UNITS_QUEUED_PER_SLOT)
                if len(queue) >= limit:
                    raise PeerMisbehaved(f"over {limit} chunks waiting", step="task queue")
                # What asks for more than is lent at all gets all of it rather than waiting for ever.
                queue.append((unit, max(1, min(slots, self.slots))))
            case UnitEnded(session, unit):
                if session in self._sessions:
                    entry = self._sessions[session]
                    if entry.running.pop(unit, None) is None:
                        entry.queue = deque(item for item in entry.queue if item[0] != unit)
            case SessionClosed(session):
                self._sessions.pop(session, None)
            case SlotsChanged(slots):
                self.slots = slots
            case _:
                assert_never(event)
        return self._fill()

    def _fill(self) -> list[Effect]:
        effects: list[Effect] = []
        free = self.slots - self.slots_busy
        idle_rounds = 0
        while free > 0 and idle_rounds < len(self._sessions):
            number, session = next(iter(self._sessions.items()))
            self._sessions.move_to_end(number)
            if session.queue and session.queue[0][1] <= free:
                unit, slots = session.queue.popleft()
                session.running[unit] = slots
                free -= slots
                effects.append(Start(number, unit))
                idle_rounds = 0
            else:
                idle_rounds += 1
        return effects
