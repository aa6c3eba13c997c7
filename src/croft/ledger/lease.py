"""Decides who holds how much of what this peer offers, and never sells anything twice.

A lease is one box. Whoever asks is granted it, refused, or waits in line; a lease lasts while somebody uses it. When
its last user has gone it rests: kept warm, but given up to whoever needs it. When its holder fell silent, or this peer
was restarted, it is kept for GRACE_S, and nobody else gets it in that time.

Sans-IO: events go in, effects come out. `now` is the time of a clock that never jumps; a lease that is read back after
a restart therefore has its grace in full, whatever the wall clock did. A grant is told only once it is on disk.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import assert_never

from croft.model.amounts import BOX, Amounts
from croft.model.lease import Lease, Request, Stage

GRACE_S = 30.0
WARM_S = 60.0
ENDING_S_MAX = 30.0
"""How long at least whoever asked waits for a box that is being closed to make room."""
WAITING_MAX = 256


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Offered:
    """What is offered from now on, by the name of the offer; `total` caps all of it. What is held stays held."""

    offers: Mapping[str, Amounts]
    total: Amounts
    now: float


@dataclass(frozen=True, slots=True)
class Restored:
    """Leases that the last run left on disk."""

    leases: Sequence[Lease]
    now: float


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody asks, and would wait for so long."""

    ask: int
    request: Request
    wait_s: float
    now: float


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Whoever asked no longer waits for the answer."""

    ask: int
    now: float


@dataclass(frozen=True, slots=True)
class Written:
    """A lease is on disk, or could not be written."""

    number: int
    is_done: bool
    now: float


@dataclass(frozen=True, slots=True)
class Resized:
    """A lease that is held is to be of another size, from one of these offers; `Write` or `Refuse` follows.

    `is_taken`: it holds so much already, whatever is offered.
    """

    ask: int
    number: int
    wants: Amounts
    offers: tuple[str, ...]
    is_taken: bool
    now: float


@dataclass(frozen=True, slots=True)
class Left:
    """One of a lease's users has gone; if it was the last one, the lease goes into `stage`."""

    number: int
    stage: Stage
    now: float


@dataclass(frozen=True, slots=True)
class Ended:
    """A lease's box is gone, and what it held is free."""

    number: int
    now: float


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Something may be due."""

    now: float


Event = Offered | Restored | Asked | Withdrawn | Written | Resized | Left | Ended | TimePassed


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Write:
    """Put this lease on disk; `Written` follows."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Grant:
    """Tell whoever asked that it may use this lease."""

    ask: int
    lease: Lease


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a request does not fit: of `name`, `wanted` were asked for, `free` of `offered` are not taken.

    `free_in_s`: when the next lease that holds some of it ends at the latest; None: with its work.
    """

    name: str
    wanted: int
    free: int
    offered: int
    free_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell whoever asked that it gets nothing, and why. No lacks: the lease could not be written."""

    ask: int
    lacks: tuple[Lack, ...]


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Close this lease's box; `Ended` follows."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Erase:
    """Take this lease off the disk: what it held is free."""

    number: int


Effect = Write | Grant | Refuse | Reclaim | Erase


@dataclass(slots=True)
class _Entry:
    lease: Lease
    stage: Stage
    ends: float = inf
    users: int = 0
    askers: list[int] = field(default_factory=list)
    until: float = inf


@dataclass(slots=True)
class _Waiting:
    ask: int
    request: Request
    deadline: float


class Leases:
    """Every lease of one peer. `number` is the first that is free."""

    def __init__(self, number: int = 1) -> None:
        self._number = number
        self._offers: dict[str, Amounts] = {}
        self._total = Amounts()
        self._entries: dict[int, _Entry] = {}
        self._keys: dict[str, _Entry] = {}
        self._waiting: list[_Waiting] = []

    # --- questions ---------------------------------------------------------------------------------------------------

    def taken(self, offer: str | None = None, *, without: Collection[Stage] = ()) -> Amounts:
        """What is held, in all or under one offer."""
        held: dict[str, int] = {}
        for entry in self._entries.values():
            if entry.stage in without:
                continue
            for name, amount in entry.lease.amounts.pairs:
                if offer in (None, entry.lease.offer_of(name)):
                    held[name] = held.get(name, 0) + amount
        return Amounts.of(held)

    def most(self, offers: Sequence[str]) -> Amounts:
        """The most of each resource that is offered to somebody with these offers, taken or not."""
        return self._best([self._offers.get(offer, Amounts()) for offer in offers]).least(self._total)

    def room(self, offers: Sequence[str]) -> Amounts:
        """The most of each resource that somebody with these offers could be granted at once."""
        resting = (Stage.WARM, Stage.ENDING)
        left = [self._offers.get(offer, Amounts()) - self.taken(offer, without=resting) for offer in offers]
        return self._best(left).least(self._total - self.taken(without=resting))

    def stage(self, number: int) -> Stage | None:
        """Where a lease stands; None once it has ended."""
        entry = self._entries.get(number)
        return None if entry is None else entry.stage

    def shown(self) -> list[tuple[Lease, Stage]]:
        """Every lease and its stage, oldest first."""
        return [(entry.lease, entry.stage) for entry in self._entries.values()]

    # --- events ------------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`."""
        match event:
            case Offered(offers, total, now):
                self._offers, self._total = dict(offers), total
                return self._serve_waiting(now)
            case Restored(leases, now):
                for lease in leases:
                    self._keep(_Entry(lease, Stage.SILENT, until=now + GRACE_S))
                return []
            case Asked(ask, request, wait_s, now):
                return self._asked(_Waiting(ask, request, now + wait_s), now)
            case Withdrawn(ask, now):
                return self._withdrawn(ask, now)
            case Written(number, is_done, now):
                entry = self._entries.get(number)
                is_new = entry is not None and entry.stage is Stage.WRITING
                return self._written(entry, is_done, now) if entry is not None and is_new else []
            case Resized():
                return self._resize(self._entries[event.number], event)
            case Left(number, stage, now):
                return self._left(self._entries[number], stage, now)
            case Ended(number, now):
                self._drop(self._entries[number])
                return [Erase(number), *self._serve_waiting(now)]
            case TimePassed(now):
                return [*self._overdue(now), *self._serve_waiting(now)]
            case _:
                assert_never(event)

    def _asked(self, waiting: _Waiting, now: float) -> list[Effect]:
        entry = self._keys.get(waiting.request.key)
        match entry:
            case _Entry(stage=Stage.WRITING):
                entry.askers.append(waiting.ask)
                return []
            case _Entry(stage=Stage.HELD | Stage.SILENT | Stage.WARM):
                entry.stage, entry.until = Stage.HELD, inf
                entry.users += 1
                return [Grant(waiting.ask, entry.lease)]
            case _:
                effects, is_settled = self._try(waiting, self._waiting, now)
                if not is_settled:
                    if waiting.deadline <= now or len(self._waiting) >= WAITING_MAX:
                        return [*effects, self._refusal(waiting, now)]
                    self._line_up(waiting)
                return effects

    def _line_up(self, waiting: _Waiting) -> None:
        """At the end of the line; then the twin's own places in it go by priority, and nobody else's change."""
        self._waiting.append(waiting)
        places = [i for i, other in enumerate(self._waiting) if other.request.twin == waiting.request.twin]
        own = sorted((self._waiting[i] for i in places), key=lambda other: -other.request.priority)
        for place, other in zip(places, own, strict=True):
            self._waiting[place] = other

    def _try(self, waiting: _Waiting, earlier: Sequence[_Waiting], now: float) -> tuple[list[Effect], bool]:
        """Grants or refuses for good if that can be said now; asks leases that rest to make room."""
        request = waiting.request
        if request.key in self._keys:  # its box is being closed: a new one may be had after that
            if self._keys[request.key].stage is not Stage.ENDING:
                return self._asked(waiting, now), True
            waiting.deadline = max(waiting.deadline, now + ENDING_S_MAX)
            return [], False
        if self.most(request.offers).lacking(request.wants):
            return [self._refusal(waiting, now)], True
        if any(self._is_before(other, request) for other in earlier):
            return [], False
        if (drawn := self._draw(request, ())) is not None:
            return self._grant(waiting, drawn, now), True
        resting = [e for e in self._entries.values() if e.stage is Stage.WARM]
        given_up = [e.lease.number for e in self._entries.values() if e.stage is Stage.ENDING]
        effects: list[Effect] = []
        if self._draw(request, [*given_up, *(e.lease.number for e in resting)]) is not None:
            waiting.deadline = max(waiting.deadline, now + ENDING_S_MAX)
            for entry in resting:
                if self._draw(request, given_up) is not None:
                    break
                effects.append(self._reclaim(entry))
                given_up.append(entry.lease.number)
        return effects, False

    def _best(self, amounts: Sequence[Amounts]) -> Amounts:
        best = Amounts.of({BOX: self._total[BOX]})  # boxes are nobody's in particular
        for one in amounts:
            best = best.most(one)
        return best

    def _is_before(self, other: _Waiting, request: Request) -> bool:
        """Whether somebody who waits already wants what this request would take: first come, first served."""
        return any(request.wants[name] for name in self._lacking(other.request))

    def _lacking(self, request: Request) -> tuple[str, ...]:
        left = self._best([self._offers.get(offer, Amounts()) - self.taken(offer) for offer in request.offers])
        return left.least(self._total - self.taken()).lacking(request.wants)

    def _draw(self, request: Request, without: Collection[int]) -> tuple[tuple[str, str], ...] | None:
        """From which offers the request can be served, once the leases `without` are gone; each resource from one."""
        gone = [entry.lease for entry in self._entries.values() if entry.lease.number in without]
        freed = sum((lease.amounts for lease in gone), Amounts())
        if (self._total - self.taken() + freed).lacking(request.wants):
            return None
        drawn: list[tuple[str, str]] = []
        for name in request.wants:
            if name == BOX:
                continue
            for offer in request.offers:
                back = sum(lease.amounts[name] for lease in gone if lease.offer_of(name) == offer)
                if self._offers.get(offer, Amounts())[name] - self.taken(offer)[name] + back >= request.wants[name]:
                    drawn.append((name, offer))
                    break
            else:
                return None
        return tuple(drawn)

    def _grant(self, waiting: _Waiting, drawn: tuple[tuple[str, str], ...], now: float) -> list[Effect]:
        lease = Lease(self._number, waiting.request, drawn)
        self._number += 1
        self._keep(_Entry(lease, Stage.WRITING, now + waiting.request.lasts_s, askers=[waiting.ask]))
        for name, offer in drawn:
            assert self.taken(offer)[name] <= self._offers[offer][name], "an offer is sold twice"
        # Of what was not asked for, more may be held than is offered: the owner may have lowered it.
        for name, _ in waiting.request.wants.pairs:
            assert self.taken()[name] <= self._total[name], "this peer is sold twice"
        return [Write(lease)]

    def _written(self, entry: _Entry, is_done: bool, now: float) -> list[Effect]:
        askers, entry.askers = entry.askers, []
        if not is_done:
            self._drop(entry)
            return [*(Refuse(ask, ()) for ask in askers), *self._serve_waiting(now)]
        if not askers:
            self._drop(entry)
            return [Erase(entry.lease.number), *self._serve_waiting(now)]
        entry.stage, entry.users = Stage.HELD, len(askers)
        return [Grant(ask, entry.lease) for ask in askers]

    def _resize(self, entry: _Entry, event: Resized) -> list[Effect]:
        old, drawn, lacks = entry.lease, [], []
        for name, wanted in event.wants.pairs:
            held, own = old.amounts[name], old.offer_of(name)
            spare = self._total[name] - self.taken()[name] + held
            room = {
                offer: min(
                    spare, self._offers.get(offer, Amounts())[name] - self.taken(offer)[name] + held * (offer == own)
                )
                for offer in dict.fromkeys((own, *event.offers))
            }
            offer = next((offer for offer, free in room.items() if event.is_taken or wanted <= max(free, held)), None)
            if offer is None:
                offered = self.most((own, *event.offers))[name]
                lacks.append(Lack(name, wanted, max(0, *room.values()), offered))
            else:
                drawn.append((name, offer))
        if lacks:
            return [Refuse(event.ask, tuple(lacks))]
        entry.lease = replace(old, request=replace(old.request, wants=event.wants), drawn=tuple(drawn))
        return [Write(entry.lease), *self._serve_waiting(event.now)]

    def _withdrawn(self, ask: int, now: float) -> list[Effect]:
        self._waiting = [waiting for waiting in self._waiting if waiting.ask != ask]
        for entry in self._entries.values():
            if ask in entry.askers:
                entry.askers.remove(ask)
        return self._serve_waiting(now)

    def _left(self, entry: _Entry, stage: Stage, now: float) -> list[Effect]:
        assert entry.users > 0, "only a user leaves"
        entry.users -= 1
        if entry.users or entry.stage is Stage.ENDING:
            return []
        entry.stage = stage
        match stage:
            case Stage.WARM:
                entry.until = now + WARM_S
                return self._serve_waiting(now)
            case Stage.SILENT:
                entry.until = now + GRACE_S
            case _:
                assert stage is Stage.ENDING, "what a lease can go into"
        return []

    def _overdue(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for entry in self._entries.values():
            if entry.stage in (Stage.WARM, Stage.SILENT, Stage.HELD) and min(entry.until, entry.ends) <= now:
                effects.append(self._reclaim(entry))
        late = [waiting for waiting in self._waiting if waiting.deadline <= now]
        self._waiting = [waiting for waiting in self._waiting if waiting.deadline > now]
        return [*effects, *(self._refusal(waiting, now) for waiting in late)]

    def _serve_waiting(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        queue, self._waiting = self._waiting, []
        for waiting in queue:
            done, is_settled = self._try(waiting, self._waiting, now)
            effects += done
            if not is_settled:
                self._waiting.append(waiting)
        return effects

    def _reclaim(self, entry: _Entry) -> Reclaim:
        entry.stage = Stage.ENDING
        return Reclaim(entry.lease)

    def _refusal(self, waiting: _Waiting, now: float) -> Refuse:
        request = waiting.request
        offered, room = self.most(request.offers), self.room(request.offers)
        names = room.lacking(request.wants) or self._lacking(request)
        lacks = [Lack(n, request.wants[n], max(0, room[n]), offered[n], self._free_in_s(n, now)) for n in names]
        if not lacks:  # it would fit, but others came first
            lacks = [Lack(n, request.wants[n], max(0, room[n]), offered[n]) for n in request.wants]
        return Refuse(waiting.ask, tuple(lacks))

    def _free_in_s(self, name: str, now: float) -> float | None:
        ends = [min(entry.until, entry.ends) for entry in self._entries.values() if entry.lease.amounts[name]]
        soonest = min(ends, default=inf)
        return None if soonest == inf else max(0.0, soonest - now)

    def _keep(self, entry: _Entry) -> None:
        self._entries[entry.lease.number] = entry
        self._keys[entry.lease.request.key] = entry
        self._number = max(self._number, entry.lease.number + 1)

    def _drop(self, entry: _Entry) -> None:
        del self._entries[entry.lease.number]
        del self._keys[entry.lease.request.key]
