"""Decides when each piece of data may pass, under the owner's limits: own traffic first, the others in fair turns.

A limit is a token bucket (RFC 2697's, without colours). A piece passes when every bucket that it falls under has a
token left, and is then charged to each, so that the mean rate is exact. Among those waiting on one bucket, what this
machine's owner asked for goes first; the others take turns by the bytes they had (start-time fair queueing, Goyal
1996).

Sans-IO: events go in, effects come out; time is an argument.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from croft.errors import Busy, NotFound, Usage
from croft.model.hours import Hours
from croft.model.ids import PeerId

LIMITS_MAX = 64
RATE_MIN = 1_000.0
"""Bytes per second."""
OVERHEAD = 1.07
"""What the headers of Ethernet, IP, UDP and QUIC add, and acknowledgements: limits are on what the wire carries."""
BURST_S = 0.05
PIECE_BYTES_MIN = 1_400
PIECE_BYTES_MAX = 16 << 10


class Direction(enum.StrEnum):
    """Seen from this machine."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `rate` bytes a second each way, of what falls under it. None: whatever peer, purpose, direction, hour."""

    number: int
    rate: float
    peer: PeerId | None = None
    purpose: str | None = None
    direction: Direction | None = None
    hours: Hours | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """Whose data, for what, which way. `is_own`: this machine's owner asked for it."""

    peer: PeerId
    purpose: str
    direction: Direction
    is_own: bool


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """A piece waits to pass."""

    request: int
    flow: Flow
    size_bytes: int
    now: float


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Nobody waits for that piece any more."""

    request: int
    now: float


@dataclass(frozen=True, slots=True)
class TimePassed:
    """It is `minute` minutes after local midnight."""

    now: float
    minute: int


Event = Wanted | Withdrawn | TimePassed


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pass:
    """This piece may pass."""

    request: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Nothing more can pass before this time."""

    at: float


Effect = Pass | Wake


@dataclass(slots=True)
class _Bucket:
    rate: float
    level: float
    at: float

    def fill(self, now: float) -> None:
        self.level = min(self.rate * BURST_S, self.level + max(0.0, now - self.at) * self.rate)
        self.at = now

    def ready_at(self) -> float:
        return self.at if self.level > 0 else self.at - self.level / self.rate + 1e-6


@dataclass(slots=True)
class _Queue:
    flow: Flow
    pieces: deque[tuple[int, int]] = field(default_factory=deque)


class Pacer:
    """The owner's limits, and whatever waits because of them."""

    def __init__(self) -> None:
        self._limits: dict[int, Limit] = {}
        self._buckets: dict[tuple[int, Direction], _Bucket] = {}
        self._queues: dict[Flow, _Queue] = {}
        self._served: dict[PeerId, float] = {}
        self._minute = 0

    # --- what the owner does -----------------------------------------------------------------------------------------

    def limits(self) -> list[Limit]:
        """All of them, in the order in which they were set."""
        return list(self._limits.values())

    def add(self, limit: Limit, now: float) -> None:
        """Sets one more limit. Raises Usage for a rate that is none, Busy if there are too many."""
        if not limit.rate >= RATE_MIN:
            raise Usage("a limit is 8 kbit a second at least", remedy="To shut somebody out: `croft contacts block`.")
        if len(self._limits) >= LIMITS_MAX:
            raise Busy(f"{LIMITS_MAX} limits are set already", remedy="Remove some: `croft limit remove`.")
        self._limits[limit.number] = limit
        for direction in Direction:
            if limit.direction in (None, direction):
                self._buckets[limit.number, direction] = _Bucket(limit.rate, 0.0, now)

    def remove(self, number: int) -> Limit:
        """Removes a limit. Raises NotFound."""
        limit = self._limits.pop(number, None)
        if limit is None:
            raise NotFound(f"there is no limit {number}", remedy="See them: `croft limit list`.")
        for direction in Direction:
            self._buckets.pop((number, direction), None)
        return limit

    # --- what flows do -----------------------------------------------------------------------------------------------

    def piece_bytes(self, flow: Flow) -> int:
        """In what pieces a flow is to pass now; 0 if nothing limits it."""
        rates = [bucket.rate for bucket in self._over(flow)]
        if not rates:
            return 0
        return int(max(PIECE_BYTES_MIN, min(PIECE_BYTES_MAX, min(rates) * BURST_S)))

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Wanted(request, flow, size_bytes, now):
                if flow not in self._queues:
                    # Whoever was idle has saved up nothing by it.
                    active = [self._served[other.peer] for other in self._queues if other.peer in self._served]
                    floor = min(active, default=0.0)
                    self._served[flow.peer] = max(self._served.get(flow.peer, floor), floor)
                    self._queues[flow] = _Queue(flow)
                self._queues[flow].pieces.append((request, size_bytes))
                return self._pass(now)
            case Withdrawn(request, now):
                for queue in self._queues.values():
                    queue.pieces = deque(piece for piece in queue.pieces if piece[0] != request)
                self._tidy()
                return self._pass(now)
            case TimePassed(now, minute):
                self._minute = minute
                return self._pass(now)
            case _:
                assert_never(event)

    def _over(self, flow: Flow) -> list[_Bucket]:
        """The buckets that a flow falls under now."""
        return [
            self._buckets[limit.number, flow.direction]
            for limit in self._limits.values()
            if limit.peer in (None, flow.peer)
            and limit.purpose in (None, flow.purpose)
            and limit.direction in (None, flow.direction)
            and (limit.hours is None or self._minute in limit.hours)
        ]

    def _pass(self, now: float) -> list[Effect]:
        for bucket in self._buckets.values():
            bucket.fill(now)
        effects: list[Effect] = []
        ready_at: list[float] = []
        held: set[int] = set()
        while (queue := self._next(held)) is not None:
            buckets = self._over(queue.flow)
            empty = [bucket for bucket in buckets if bucket.ready_at() > now]
            if empty:
                # Whoever comes later on one of these buckets does not overtake.
                held.update(id(bucket) for bucket in empty)
                ready_at.extend(bucket.ready_at() for bucket in empty)
                continue
            request, size_bytes = queue.pieces.popleft()
            for bucket in buckets:
                bucket.level -= size_bytes * OVERHEAD
            self._served[queue.flow.peer] += size_bytes
            effects.append(Pass(request))
            self._tidy()
        return [*effects, Wake(min(ready_at))] if ready_at else effects

    def _next(self, held: set[int]) -> _Queue | None:
        """Whose turn it is, among those under no bucket that is empty."""
        waiting = [
            queue for queue in self._queues.values() if not any(id(bucket) in held for bucket in self._over(queue.flow))
        ]
        return min(waiting, key=lambda queue: (not queue.flow.is_own, self._served[queue.flow.peer]), default=None)

    def _tidy(self) -> None:
        for flow in [flow for flow, queue in self._queues.items() if not queue.pieces]:
            del self._queues[flow]
        if not self._queues:
            self._served.clear()


def numbers_of(limits: Iterable[Limit]) -> int:
    """A number that none of these limits has."""
    return max((limit.number for limit in limits), default=0) + 1
