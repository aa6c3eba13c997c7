"""Decides which lender gets which tasks of one bag, and records each task's outcome once, whatever dies.

A lost lender's unfinished tasks go back to the front of the queue. Once nothing waits, idle lenders get what would be
done late elsewhere: chunks that wait there are moved, running ones copied. The first outcome of a task counts; later
ones are dropped. Sans-IO: events go in, effects come out.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from croft.compute.bag_state import Chunk, Lender, Task, forecast, typical_paces
from croft.compute.splitter import CHUNK_BYTES_MAX, COPY_AGAIN_FACTOR, Pace, chunk_tasks, is_worth_it
from croft.compute.worker_messages import Status
from croft.errors import PeerMisbehaved
from croft.model.ids import PeerId

LENDERS_LOST_MAX = 5
"""A task that was running on so many lenders when they were lost is failed, not tried again."""
CHUNKS_PER_SLOT = 2
"""Chunks a lender holds: one that runs and one that waits, so that no slot waits for the network."""

MOVED_BYTES_PER_S = 50e6
"""How fast arguments that lie elsewhere come, as long as nobody knows better."""
GROUP_SCAN_MAX = 512
"""How far into the queue to look for a task that a lender may do, of those in groups."""
UNKNOWN = 0.0
"""The time before the first event that tells it."""
COPIES_MAX = 5
"""Live chunks that may hold the same task."""

RETRIED = frozenset({Status.RAISED, Status.DIED, Status.TIMED_OUT})
"""What may go better the next time."""

Outcome = tuple[int, int, bytes]
"""Task, `croft.compute.worker_messages.Status`, payload."""


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TasksAdded:
    """New tasks; `sizes` are the bytes of their arguments.

    `groups`, if any, is of each task the group whose tasks must be done by peers of different people. `near`, if any,
    is of each task who has most of its arguments already: it goes there while that one has room for it.
    """

    function: bytes
    tasks: Sequence[int]
    sizes: Sequence[int]
    groups: Sequence[int] = ()
    near: Sequence[frozenset[PeerId]] = ()


@dataclass(frozen=True, slots=True)
class LenderReady:
    """A lender opened a session with so many slots. `bytes_max`: how much of arguments it has room for; 0: any.

    `owner`: whose it is; empty: nobody else's in the job.
    """

    peer: PeerId
    slots: int
    bytes_max: int = 0
    owner: str = ""


@dataclass(frozen=True, slots=True)
class LenderLost:
    """A lender's session ended, for whatever reason."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class OutcomesReceived:
    """Some tasks of a chunk are done; indices count within the chunk."""

    peer: PeerId
    chunk: int
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class ChunkEnded:
    """A lender says that no more outcomes of a chunk will come."""

    peer: PeerId
    chunk: int
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class FunctionBroken:
    """A lender cannot load a function."""

    peer: PeerId
    function: bytes
    status: int
    reason: bytes


@dataclass(frozen=True, slots=True)
class TasksCancelled:
    """Nobody waits for these tasks any more."""

    tasks: Sequence[int]


@dataclass(frozen=True, slots=True)
class GroupsOver:
    """No more tasks of these groups will come."""

    groups: Sequence[int]


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Some seconds of any clock that only goes forward; a few times a second while tasks are open."""

    now: float


Event = (
    TimePassed
    | TasksAdded
    | LenderReady
    | LenderLost
    | OutcomesReceived
    | ChunkEnded
    | FunctionBroken
    | TasksCancelled
    | GroupsOver
)


# --- effects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendChunk:
    """Give these tasks to a lender, as one chunk."""

    peer: PeerId
    chunk: int
    function: bytes
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RevokeChunk:
    """None of this chunk's outcomes is wanted any more."""

    peer: PeerId
    chunk: int


@dataclass(frozen=True, slots=True)
class Record:
    """These outcomes count; each task is recorded once, ever."""

    peer: PeerId
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Too many lenders were lost with this task; it is done, without an outcome."""

    task: int
    lenders: int


Effect = SendChunk | RevokeChunk | Record | GiveUp


class Bag:
    """The tasks of one job, from arrival to record."""

    def __init__(self, retries: int = 0, deterministic: bool | None = None) -> None:
        """`retries`: how often a task that failed is run again before its failure is its outcome.

        `deterministic`: whether the same task gives the same outcome each time, so that what it raised is not tried
        again; if False, no task is copied while it runs. None: nobody knows.
        """
        self._retries = retries
        self._retried = RETRIED - {Status.RAISED} if deterministic else RETRIED
        self._copies = deterministic is not False
        self._tasks: dict[int, Task] = {}
        self._queue: deque[int] = deque()
        self._lenders: dict[PeerId, Lender] = {}
        self._chunks: dict[int, Chunk] = {}
        self._next_chunk = 1
        self._now = UNKNOWN
        self._has_groups = False
        self._owners: dict[int, set[str]] = {}
        """Of each group, whose peers have or had one of its tasks."""
        self._placed: set[int] = set()
        """Tasks whose arguments lie somewhere."""

    @property
    def open_tasks(self) -> int:
        """Tasks that are not recorded yet."""
        return len(self._tasks)

    @property
    def waiting_tasks(self) -> int:
        """Tasks that no lender has."""
        return len(self._queue)

    @property
    def lenders(self) -> list[PeerId]:
        """Peers with a session."""
        return list(self._lenders)

    def handle(self, event: Event) -> Sequence[Effect]:
        """What to do about `event`. Raises PeerMisbehaved if a lender answers what it was not asked."""
        match event:
            case TimePassed(now):
                if self._now == UNKNOWN:
                    for chunk in self._chunks.values():
                        chunk.moved_at = now
                self._now = now
                return self._deal()
            case TasksAdded(function, tasks, sizes, groups, near):
                self._has_groups = self._has_groups or bool(groups)
                for task, size, group in zip(tasks, sizes, groups or itertools.repeat(None, len(tasks)), strict=True):
                    assert task not in self._tasks, "task numbers are unique in a bag"
                    self._tasks[task] = Task(function, size, group)
                for task, peers in zip(tasks, near, strict=False):
                    if peers:
                        self._tasks[task].near = peers
                        self._placed.add(task)
                self._queue.extend(tasks)
                return self._deal()
            case LenderReady(peer, slots, bytes_max, owner):
                assert peer not in self._lenders, "one session per lender"
                self._lenders[peer] = Lender(slots, owner or peer, bytes_max)
                return self._deal()
            case LenderLost(peer):
                return self._lose(peer)
            case OutcomesReceived(peer, chunk, outcomes):
                return self._record(peer, chunk, outcomes)
            case ChunkEnded(peer, chunk, elapsed_s):
                return self._end(peer, chunk, elapsed_s)
            case FunctionBroken(peer, function, status, reason):
                return self._fail_function(peer, function, status, reason)
            case TasksCancelled(tasks):
                return self._cancel(tasks)
            case GroupsOver(groups):
                for group in groups:
                    self._owners.pop(group, None)
                return []
            case _:
                assert_never(event)

    def validate(self) -> None:
        """Asserts what must always hold: every open task is queued, or in one or two live chunks, and never in both."""
        held: dict[int, list[int]] = {}
        for number, chunk in self._chunks.items():
            assert chunk.open <= set(chunk.tasks), "a chunk has open tasks that are not its own"
            for task in chunk.open:
                held.setdefault(task, []).append(number)
        queued = set(self._queue)
        assert len(queued) == len(self._queue), "a task is queued twice"
        assert queued.isdisjoint(held), "a task is queued and dealt"
        assert queued | held.keys() == self._tasks.keys(), "a task is lost"
        for number, task_chunks in held.items():
            assert sorted(self._tasks[number].chunks) == sorted(task_chunks), "a task does not know its chunks"
            assert len(task_chunks) <= COPIES_MAX, "a task has too many copies"

    def _deal(self) -> list[Effect]:
        effects: list[Effect] = []
        slots_total = sum(lender.slots for lender in self._lenders.values())
        # Round by round, so that few tasks go to many lenders rather than all to the first. What is left to lenders at
        # which it lies may be for others once these are full.
        rounds = max((lender.slots for lender in self._lenders.values()), default=0) * CHUNKS_PER_SLOT
        for depth in range(1, rounds * (2 if self._placed else 1) + 1):
            for peer, lender in self._lenders.items():
                if not self._queue:
                    return [*effects, *self._share_tail()]
                if len(lender.chunks) >= min(depth, lender.slots * CHUNKS_PER_SLOT):
                    continue
                if self._bring_forward(peer, lender) and self._has_room(lender, self._queue[0]):
                    effects.append(self._deal_one(peer, lender, slots_total))
        return effects

    def _bring_forward(self, peer: PeerId, lender: Lender) -> bool:
        """Whether a task that the lender is to do is at the front of the queue, put there if it was not far.

        What lies at the lender comes first; what lies at another one that has a slot for it is left to that one.
        """
        if not self._has_groups and not self._placed:
            return True
        found: int | None = None
        for position, task in enumerate(itertools.islice(self._queue, GROUP_SCAN_MAX)):
            if not self._may_do(lender, task):
                continue
            near = self._tasks[task].near
            if peer in near or (found is None and not self._is_for_another(task, near)):
                found = position
            if peer in near or (found is not None and not self._placed):
                break
        if found:
            task = self._queue[found]
            del self._queue[found]
            self._queue.appendleft(task)
        return found is not None

    def _is_for_another(self, task: int, near: frozenset[PeerId]) -> bool:
        """Whether a lender at which a task's arguments lie has a slot for it, or soon will."""
        there = [lender for peer, lender in self._lenders.items() if peer in near] if near else []
        return any(
            len(lender.chunks) < lender.slots * CHUNKS_PER_SLOT
            and self._may_do(lender, task)
            and self._has_room(lender, task)
            for lender in there
        )

    def _may_do(self, lender: Lender, task: int) -> bool:
        group = self._tasks[task].group
        return group is None or lender.owner not in self._owners.get(group, ())

    def _has_room(self, lender: Lender, task: int) -> bool:
        """Whether a task's arguments fit beside what the lender holds; one that holds nothing is to try."""
        size = self._tasks[task].size
        return not lender.chunks or not lender.bytes_max or lender.bytes_held + size <= lender.bytes_max

    def _deal_one(self, peer: PeerId, lender: Lender, slots_total: int) -> SendChunk:
        function = self._tasks[self._queue[0]].function
        pace = lender.pace.setdefault(function, Pace())
        count = chunk_tasks(pace, waiting=len(self._queue), slots_total=slots_total)
        if self._tasks[self._queue[0]].lenders_lost:
            # It may have been what killed its lender: nothing else is to die with it.
            count = 1
        tasks: list[int] = []
        size = 0
        taken: set[int | None] = set()
        while self._queue and len(tasks) < count and self._bring_forward(peer, lender):
            task = self._tasks[self._queue[0]]
            if task.function != function or (tasks and size + task.size > CHUNK_BYTES_MAX):
                break
            if (tasks and task.lenders_lost) or (task.group is not None and task.group in taken):
                break
            taken.add(task.group)
            tasks.append(self._queue.popleft())
            size += task.size
        return self._give(peer, lender, function, tuple(tasks))

    def _give(self, peer: PeerId, lender: Lender, function: bytes, tasks: tuple[int, ...]) -> SendChunk:
        number = self._next_chunk
        self._next_chunk += 1
        size = sum(self._tasks[task].size for task in tasks)
        self._chunks[number] = Chunk(peer, lender.owner, function, tasks, set(tasks), size, self._now)
        lender.chunks[number] = None
        lender.bytes_held += size
        for task in tasks:
            self._tasks[task].chunks.append(number)
            if (group := self._tasks[task].group) is not None:
                self._owners.setdefault(group, set()).add(lender.owner)
        return SendChunk(peer, number, function, tasks)

    # --- the tail ----------------------------------------------------------------------------------------------------

    def _share_tail(self) -> list[Effect]:
        """Gives lenders that have nothing to do what would be done late elsewhere, the fastest lender the latest work.

        What waits at its lender is moved; what runs is copied, and the first outcome counts.
        """
        idle = [peer for peer, lender in self._lenders.items() if not lender.chunks]
        if not idle or not self._chunks:
            return []
        effects: list[Effect] = []
        typical = typical_paces(self._lenders.values())
        # The end of the list is the fastest.
        idle.sort(key=lambda peer: -self._best_pace(peer, typical))
        # By when it will be done as things stand, the latest first. No chunk is looked at twice.
        late = sorted(
            forecast(self._lenders.values(), self._chunks, typical, self._now), key=lambda one: (-one[0], one[1])
        )
        for due_s, number in late:
            if not idle:
                break
            help_ = self._help(number, due_s, idle[-1], typical)
            if help_:
                idle.pop()
                effects.extend(help_)
        return effects

    def _best_pace(self, peer: PeerId, typical: Mapping[bytes, float]) -> float:
        """By which idle lenders are compared: that of the function that is dealt now."""
        function = next(iter(self._chunks.values())).function
        pace = self._lenders[peer].pace.get(function)
        return pace.task_s if pace and pace.task_s is not None else typical.get(function, 0.0)

    def _help(self, number: int, due_s: float, peer: PeerId, typical: Mapping[bytes, float]) -> list[Effect]:
        """What to give an idle lender of a chunk that is due elsewhere in so many seconds; nothing if it is no help."""
        chunk, lender = self._chunks[number], self._lenders[peer]
        pace = lender.pace.setdefault(chunk.function, Pace())
        task_s = pace.task_s if pace.task_s is not None else typical[chunk.function]
        holder = self._lenders[chunk.peer]
        is_waiting = list(holder.chunks).index(number) >= holder.slots
        left = [task for task in chunk.tasks if task in chunk.open]
        if is_waiting and all(len(self._tasks[task].chunks) == 1 and self._may_do(lender, task) for task in left):
            if not is_worth_it(due_s, task_s * len(left) + self._moving_s(left, peer)):
                return []
            self._forget_chunk(number)
            for task in left:
                self._tasks[task].chunks.remove(number)
                if (group := self._tasks[task].group) is not None:
                    self._owners.get(group, set()).discard(chunk.owner)
            return [RevokeChunk(chunk.peer, number), self._give(peer, lender, chunk.function, tuple(left))]
        # Its lender works from the front: half of the rest, from the back, is what it comes to last.
        copied = [task for task in left[len(left) // 2 :] if self._may_copy(task, peer, task_s)]
        if not copied or not is_worth_it(due_s, task_s * len(copied) + self._moving_s(copied, peer)):
            return []
        for task in copied:
            self._tasks[task].copied_at = self._now
        return [self._give(peer, lender, chunk.function, tuple(copied))]

    def _moving_s(self, tasks: Sequence[int], peer: PeerId) -> float:
        """How long it takes to bring what these tasks need to a lender where it does not lie."""
        far = [self._tasks[task] for task in tasks]
        return sum(task.size for task in far if task.near and peer not in task.near) / MOVED_BYTES_PER_S

    def _may_copy(self, number: int, peer: PeerId, task_s: float) -> bool:
        task = self._tasks[number]
        if not self._copies or not self._may_do(self._lenders[peer], number):
            return False
        if len(task.chunks) >= COPIES_MAX or any(self._chunks[chunk].peer == peer for chunk in task.chunks):
            return False
        # A copy gets its time before there is another one.
        return len(task.chunks) == 1 or self._now - task.copied_at > COPY_AGAIN_FACTOR * task_s

    def _forget_chunk(self, number: int) -> Chunk:
        """A chunk is its lender's no more; what waited behind it begins."""
        chunk = self._chunks.pop(number)
        lender = self._lenders[chunk.peer]
        del lender.chunks[number]
        lender.bytes_held -= chunk.size
        for place, begun in enumerate(lender.chunks):
            if place == lender.slots - 1:
                self._chunks[begun].moved_at = self._now
        return chunk

    def _chunk_of(self, peer: PeerId, number: int) -> Chunk | None:
        """The chunk, if `peer` has it; None for one that it had and lost. Raises PeerMisbehaved for another's."""
        chunk = self._chunks.get(number)
        if chunk is None and 0 < number < self._next_chunk:
            return None
        if chunk is None or chunk.peer != peer:
            raise PeerMisbehaved(f"answers chunk {number}, which it was not given", step="task results")
        return chunk

    def chunks_of(self, task: int) -> list[tuple[PeerId, int]]:
        """Who has a task now, and in which chunk."""
        known = self._tasks.get(task)
        return [] if known is None else [(self._chunks[number].peer, number) for number in known.chunks]

    def running_task(self, peer: PeerId, number: int, index: int) -> int | None:
        """The task at a place of a chunk that `peer` has, if it is open. Raises PeerMisbehaved for another's."""
        chunk = self._chunk_of(peer, number)
        if chunk is None:
            return None
        if not 0 <= index < len(chunk.tasks):
            raise PeerMisbehaved(f"task {index} of a chunk of {len(chunk.tasks)}", step="task results")
        return chunk.tasks[index] if chunk.tasks[index] in chunk.open else None

    def _record(self, peer: PeerId, number: int, outcomes: Sequence[Outcome]) -> Sequence[Effect]:
        chunk = self._chunk_of(peer, number)
        if chunk is None:
            return []
        recorded: list[Outcome] = []
        effects: list[Effect] = []
        for index, status, payload in outcomes:
            if not 0 <= index < len(chunk.tasks):
                raise PeerMisbehaved(f"task {index} of a chunk of {len(chunk.tasks)}", step="task results")
            task = chunk.tasks[index]
            if task in chunk.open:
                chunk.answered += 1
                if status in self._retried and self._tasks[task].failures < self._retries:
                    self._tasks[task].failures += 1
                    self._take_back(task, number)
                    continue
                if status == Status.LOST and len(self._tasks[task].chunks) > 1:
                    self._take_back(task, number)  # others may have it all
                    continue
                effects.extend(self._drop(task, but=number))
                recorded.append((task, status, payload))
        chunk.moved_at = self._now
        return [Record(peer, tuple(recorded)), *effects] if recorded else []

    def _take_back(self, number: int, chunk: int) -> None:
        """What a chunk says of a task does not count; if no other has it, it is run again, after all that waits."""
        task = self._tasks[number]
        task.chunks.remove(chunk)
        self._chunks[chunk].open.discard(number)
        if task.group is not None:
            self._owners.get(task.group, set()).discard(self._chunks[chunk].owner)
        if not task.chunks:
            self._queue.append(number)

    def _drop(self, task: int, but: int = 0) -> list[Effect]:
        """Forgets a task that is over; chunks that have no other left are revoked, except `but`."""
        effects: list[Effect] = []
        self._placed.discard(task)
        for number in self._tasks.pop(task).chunks:
            chunk = self._chunks[number]
            chunk.open.discard(task)
            if not chunk.open and number != but:
                effects.append(RevokeChunk(chunk.peer, number))
        return effects

    def _end(self, peer: PeerId, number: int, elapsed_s: float) -> Sequence[Effect]:
        chunk = self._chunk_of(peer, number)
        if chunk is None:
            return []
        self._forget_chunk(number)
        self._lenders[peer].pace[chunk.function].learn(chunk.answered, elapsed_s)
        # A lender that ends a chunk early has lost the rest, as if it had died with them.
        return [*self._requeue(number, chunk, self._running_in([chunk])), *self._deal()]

    def _running_in(self, chunks: Sequence[Chunk]) -> set[int]:
        """The tasks that were running when these chunks were lost: a chunk's tasks run one after the other."""
        firsts = (next((task for task in chunk.tasks if task in chunk.open), None) for chunk in chunks)
        return {task for task in firsts if task is not None}

    def _requeue(self, chunk_number: int, chunk: Chunk, suspects: set[int]) -> list[Effect]:
        effects: list[Effect] = []
        back: list[int] = []
        for number in chunk.tasks:
            if number not in chunk.open:
                continue
            task = self._tasks[number]
            task.chunks.remove(chunk_number)
            if task.group is not None:
                self._owners.get(task.group, set()).discard(chunk.owner)
            if task.chunks:
                continue
            task.lenders_lost += number in suspects
            if task.lenders_lost >= LENDERS_LOST_MAX:
                del self._tasks[number]
                self._placed.discard(number)
                effects.append(GiveUp(number, task.lenders_lost))
            else:
                back.append(number)
        self._queue.extendleft(reversed(back))
        return effects

    def _lose(self, peer: PeerId) -> Sequence[Effect]:
        lender = self._lenders.pop(peer, None)
        if lender is None:
            return []
        effects: list[Effect] = []
        held = sorted(lender.chunks)
        suspects = self._running_in([self._chunks[number] for number in held[: lender.slots]])
        for number in reversed(held):
            effects.extend(self._requeue(number, self._chunks.pop(number), suspects))
        return [*effects, *self._deal()]

    def _fail_function(self, peer: PeerId, function: bytes, status: int, reason: bytes) -> Sequence[Effect]:
        held = [n for n, chunk in self._chunks.items() if chunk.peer == peer and chunk.function == function]
        if not held:
            raise PeerMisbehaved("says that a function is broken that it was not given", step="task results")
        outcomes: list[Outcome] = []
        effects: list[Effect] = []
        for number in held:
            chunk = self._chunks[number]
            for task in chunk.tasks:
                if task in chunk.open:
                    effects.extend(self._drop(task, but=number))
                    outcomes.append((task, status, reason))
            self._forget_chunk(number)
        return [Record(peer, tuple(outcomes)), *effects, *self._deal()]

    def _cancel(self, tasks: Sequence[int]) -> Sequence[Effect]:
        gone = {task for task in tasks if task in self._tasks}
        if not gone:
            return []
        self._queue = deque(task for task in self._queue if task not in gone)
        effects: list[Effect] = []
        for task in tasks:
            if task in self._tasks:
                effects.extend(self._drop(task))
        return effects
