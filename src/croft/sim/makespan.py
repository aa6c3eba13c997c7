"""How long bags of tasks take on many unequal peers that vanish, against what could not be beaten.

Croft's own bag (`croft.compute.job`) is played against simpler policies on the same peers, tasks and losses. Each
peer has one slot, a speed of its own and a round trip; peers vanish silently, are noticed after LOST_AFTER_S, and
others come in their place. The bound is the time in which the speeds of all that live add up to all the work, or the
longest task on the fastest peer if that takes longer.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from croft.compute.job import (
    Bag,
    ChunkEnded,
    Effect,
    Event,
    LenderLost,
    LenderReady,
    OutcomesReceived,
    Record,
    RevokeChunk,
    SendChunk,
    TasksAdded,
    TimePassed,
)
from croft.model.ids import PeerId

LOST_AFTER_S = 9.0
"""As the overlay takes, see `croft.overlay.control_stream`."""
TICK_S = 0.25
"""As `croft.compute.jobs` does."""
FUNCTION = b"f"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated. Work and speeds are lognormal; `lost_per_minute` is a share of the peers."""

    peers: int = 100
    tasks: int = 10_000
    task_s: float = 1.0
    task_variation: float = 1.0
    speed_sigma: float = 0.5
    round_trip_s: float = 0.02
    lost_per_minute: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run. `wasted`: work done in vain, as a share of all that was needed."""

    makespan_s: float
    bound_s: float
    wasted: float

    @property
    def ratio(self) -> float:
        """How many times the bound it took."""
        return self.makespan_s / self.bound_s


class Policy(Protocol):
    """What decides: Croft's bag, or something simpler with the same events and effects."""

    def handle(self, event: Event) -> Sequence[Effect]: ...


class Simple:
    """A policy that gives chunks of some size, one at a time, and gives what a lost peer had to others.

    `size` says how many tasks a chunk has, from those that wait and the number of lenders; `dealt` chunks went before.
    """

    def __init__(self, size: Callable[[int, int, int], int]) -> None:
        self._size = size
        self._queue: deque[int] = deque()
        self._idle: list[PeerId] = []
        self._held: dict[PeerId, tuple[int, dict[int, int]]] = {}
        self._lenders: set[PeerId] = set()
        self._numbers = itertools.count(1)
        self._dealt = 0

    def handle(self, event: Event) -> Sequence[Effect]:
        recorded: list[Effect] = []
        match event:
            case TasksAdded(_, tasks, _):
                self._queue.extend(tasks)
            case LenderReady(peer, _):
                self._lenders.add(peer)
                self._idle.append(peer)
            case LenderLost(peer):
                self._lenders.discard(peer)
                if peer in self._idle:
                    self._idle.remove(peer)
                self._queue.extendleft(self._held.pop(peer, (0, {}))[1].values())
            case OutcomesReceived(peer, chunk, outcomes):
                number, tasks_left = self._held.get(peer, (0, {}))
                if number == chunk:
                    done = [(tasks_left.pop(index), 0, b"") for index, _, _ in outcomes]
                    recorded.append(Record(peer, tuple(done)))
            case ChunkEnded(peer, _, _):
                if peer in self._lenders:
                    self._held.pop(peer, None)
                    self._idle.append(peer)
        return [*recorded, *self._deal()]

    def _deal(self) -> list[Effect]:
        effects: list[Effect] = []
        while self._queue and self._idle:
            count = max(1, min(self._size(len(self._queue), len(self._lenders), self._dealt), len(self._queue)))
            self._dealt += 1
            peer, number = self._idle.pop(0), next(self._numbers)
            tasks = tuple(self._queue.popleft() for _ in range(count))
            self._held[peer] = (number, dict(enumerate(tasks)))
            effects.append(SendChunk(peer, number, FUNCTION, tasks))
        return effects


def factoring(tasks: int) -> Simple:
    """Rounds of equal chunks, one per lender, of half of what is left (Hummel, Schonberg and Flynn 1992)."""
    left, chunk, in_round = tasks, 1, 0

    def size(waiting: int, lenders: int, _: int) -> int:
        nonlocal left, chunk, in_round
        if in_round == 0:
            in_round, chunk = lenders, math.ceil(waiting / (2 * max(1, lenders)))
        in_round -= 1
        return chunk

    return Simple(size)


POLICIES: dict[str, Callable[[Setting], Policy]] = {
    "static": lambda setting: Simple(
        lambda waiting, _, dealt: math.ceil(setting.tasks / setting.peers) if dealt < setting.peers else waiting
    ),
    "pull one": lambda _: Simple(lambda *_: 1),
    "factoring": lambda setting: factoring(setting.tasks),
    "croft": lambda _: Bag(),
}


@dataclass(slots=True)
class _Peer:
    name: PeerId
    speed: float
    born: float
    died: float | None = None
    chunks: deque[SendChunk] = field(default_factory=deque)
    index: int = 0
    began: float = 0.0
    chunk_began: float = 0.0
    version: int = 0


class Run:
    """One bag under one policy."""

    def __init__(self, setting: Setting, policy: Policy, seed: int) -> None:
        self._setting = setting
        self._policy = policy
        random = Random(seed)
        sigma = math.sqrt(math.log(1 + setting.task_variation**2))
        mean = math.log(setting.task_s) - sigma**2 / 2
        self._work = [random.lognormvariate(mean, sigma) for _ in range(setting.tasks)]
        self._losses = Random(seed + 1_000_000)
        self._numbers = itertools.count()
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._peers: dict[PeerId, _Peer] = {}
        self._done: set[int] = set()
        self._spent = 0.0
        self._now = 0.0
        for _ in range(setting.peers):
            self._come(random)

    def play(self) -> Outcome:
        """Plays it to its end."""
        setting = self._setting
        # After the lenders have come, so that policies that count them count all.
        self._at(2 * setting.round_trip_s, self._feed, TasksAdded(FUNCTION, range(setting.tasks), [1] * setting.tasks))
        self._at(TICK_S, self._tick)
        self._lose_later()
        while len(self._done) < setting.tasks:
            self._now, _, what, arguments = heapq.heappop(self._agenda)
            what(*arguments)
        makespan_s = self._now
        for peer in self._peers.values():
            self._spend(peer)
        needed = sum(self._work)
        return Outcome(makespan_s, self._bound(), max(0.0, self._spent - needed) / needed)

    # --- the world ---------------------------------------------------------------------------------------------------

    def _at(self, after_s: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._agenda, (self._now + after_s, next(self._numbers), what, arguments))

    def _come(self, random: Random) -> None:
        sigma = self._setting.speed_sigma
        peer = _Peer(PeerId(f"p{len(self._peers)}"), random.lognormvariate(-(sigma**2) / 2, sigma), self._now)
        self._peers[peer.name] = peer
        self._at(self._setting.round_trip_s, self._feed, LenderReady(peer.name, 1))

    def _lose_later(self) -> None:
        rate = self._setting.lost_per_minute * self._setting.peers / 60
        if rate:
            self._at(self._losses.expovariate(rate), self._lose_one)

    def _lose_one(self) -> None:
        peer = self._losses.choice([one for one in self._peers.values() if one.died is None])
        peer.died = self._now
        self._spend(peer)
        self._at(LOST_AFTER_S, self._feed, LenderLost(peer.name))
        self._come(self._losses)
        self._lose_later()

    def _tick(self) -> None:
        self._feed(TimePassed(self._now))
        self._at(TICK_S, self._tick)

    def _bound(self) -> float:
        changes = sorted(
            [(peer.born, peer.speed) for peer in self._peers.values()]
            + [(peer.died, -peer.speed) for peer in self._peers.values() if peer.died is not None]
        )
        left, capacity, since, bound = sum(self._work), 0.0, 0.0, math.inf
        for at, change in [*changes, (math.inf, 0.0)]:
            if capacity > 0 and capacity * (at - since) >= left:
                bound = since + left / capacity
                break
            left -= capacity * (at - since)
            capacity, since = capacity + change, at
        longest = max(self._work) / max(peer.speed for peer in self._peers.values())
        return max(bound, longest) + self._setting.round_trip_s

    # --- the submitter -----------------------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        for effect in self._policy.handle(event):
            match effect:
                case SendChunk(peer):
                    self._at(self._setting.round_trip_s / 2, self._arrive, self._peers[peer], effect)
                case RevokeChunk(peer, chunk):
                    self._at(self._setting.round_trip_s / 2, self._revoke, self._peers[peer], chunk)
                case Record(_, outcomes):
                    self._done.update(task for task, _, _ in outcomes)
                case _:
                    raise AssertionError(f"no lender loses so many tasks: {effect}")

    # --- the lenders -------------------------------------------------------------------------------------------------

    def _arrive(self, peer: _Peer, chunk: SendChunk) -> None:
        if peer.died is None:
            peer.chunks.append(chunk)
            if len(peer.chunks) == 1:
                self._begin_chunk(peer)

    def _begin_chunk(self, peer: _Peer) -> None:
        peer.index, peer.chunk_began = 0, self._now
        self._begin_task(peer)

    def _begin_task(self, peer: _Peer) -> None:
        peer.began = self._now
        peer.version += 1
        task = peer.chunks[0].tasks[peer.index]
        self._at(self._work[task] / peer.speed, self._finish, peer, peer.version)

    def _finish(self, peer: _Peer, version: int) -> None:
        if peer.died is not None or version != peer.version:
            return
        self._spend(peer)
        chunk = peer.chunks[0]
        half_s = self._setting.round_trip_s / 2
        self._at(half_s, self._feed, OutcomesReceived(peer.name, chunk.chunk, [(peer.index, 0, b"")]))
        peer.index += 1
        if peer.index < len(chunk.tasks):
            self._begin_task(peer)
            return
        self._at(half_s, self._feed, ChunkEnded(peer.name, chunk.chunk, self._now - peer.chunk_began))
        self._next_chunk(peer)

    def _next_chunk(self, peer: _Peer) -> None:
        peer.chunks.popleft()
        peer.version += 1
        if peer.chunks:
            self._begin_chunk(peer)

    def _spend(self, peer: _Peer) -> None:
        """Counts what the running task has cost so far."""
        if peer.chunks and (peer.died is None or peer.died == self._now):
            self._spent += (self._now - peer.began) * peer.speed

    def _revoke(self, peer: _Peer, number: int) -> None:
        if peer.died is not None or all(chunk.chunk != number for chunk in peer.chunks):
            return
        self._at(self._setting.round_trip_s / 2, self._feed, ChunkEnded(peer.name, number, 0.0))
        if peer.chunks[0].chunk == number:
            self._spend(peer)
            self._next_chunk(peer)
        else:
            peer.chunks = deque(chunk for chunk in peer.chunks if chunk.chunk != number)


def play(setting: Setting, policy: str, seed: int) -> Outcome:
    """One run of a policy by its name."""
    return Run(setting, POLICIES[policy](setting), seed).play()
