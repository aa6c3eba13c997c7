"""One stream between two holders of a job: each sends what the other lacks, and then what is new."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from croft.compute import custody as core
from croft.compute.durable import DurableJobs
from croft.compute.journal import Entry, JournalOutcome
from croft.compute.journal_messages import (
    BetweenHolders,
    Claim,
    HeldAll,
    HeldFunction,
    HeldOutcomes,
    HeldResultPart,
    HeldTasks,
    Holding,
    JobOver,
    Kept,
    Level,
    Release,
)
from croft.compute.messages import Declined
from croft.compute.worker_messages import (
    ARGUMENT_BYTES_MAX,
    FUNCTION_BYTES_MAX,
    PART_BYTES,
    RESULT_BYTES_MAX,
    Status,
    last_part,
    leading_parts,
)
from croft.errors import Busy, ConnectionLost, PeerMisbehaved, by_code
from croft.model.ids import PeerId, is_key_id
from croft.wire.codec import decode_union
from croft.wire.message_stream import MessageStream

STEP = "journal"
HELD_BYTES_MAX = 1 << 30
"""What this peer keeps of jobs of others, in all."""
HELD_TASKS_MAX = 10_000_000
PARTS_BYTES_MAX = 2 * RESULT_BYTES_MAX
STATUSES = frozenset(map(int, Status))


@dataclass(slots=True)
class Held:
    """A job with more than one holder.

    Attributes:
        kept: holders that have all its tasks on disk. level: those whose outcomes, as they were when they were met, are
            here. declined: those that keep no copy, and why.
        room_bytes: how much more of it fits here.
    """

    entry: Entry
    custody: core.Custody
    sessions: dict[PeerId, asyncio.Task[None]] = field(default_factory=dict)
    retry_at: dict[PeerId, float] = field(default_factory=dict)
    kept: set[PeerId] = field(default_factory=set)
    level: set[PeerId] = field(default_factory=set)
    declined: dict[PeerId, str] = field(default_factory=dict)
    room_bytes: int = HELD_BYTES_MAX
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def holders(self) -> list[PeerId]:
        return [self.entry.submitter, *self.entry.delegates]

    def change(self) -> None:
        self.moved.set()
        self.moved = asyncio.Event()


class Host(Protocol):
    """What an exchange asks of whoever looks after the job."""

    async def perform(self, held: Held, effects: Sequence[core.Effect]) -> None: ...

    async def drop(self, number: int) -> None: ...


class Exchange:
    """Keeps this holder and another in step."""

    def __init__(
        self, messages: MessageStream, held: Held, peer: PeerId, own: PeerId, jobs: DurableJobs, host: Host
    ) -> None:
        self._messages = messages
        self._held = held
        self._peer = peer
        self._own = own
        self._jobs = jobs
        self._host = host
        self._heard: set[int] = set()
        self._parts = ResultParts()

    async def run(self, other: Holding) -> None:
        """Works until the stream ends; `other` is what is there. Raises ConnectionLost, PeerMisbehaved, CroftError."""
        await self._host.perform(
            self._held, self._held.custody.handle(core.ClaimHeard(other.epoch, PeerId(other.carrier)))
        )
        if other.is_full and self._held.entry.state != "filling":
            self._held.kept.add(self._peer)
            self._held.change()
        writing = asyncio.create_task(self._write(other), name="journal.write")
        try:
            await self._read()
        finally:
            writing.cancel()
            for result in await asyncio.gather(writing, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, ConnectionLost):
                    raise result

    async def _write(self, other: Holding) -> None:
        held, messages, heard = self._held, self._messages, self._heard
        number, journal = held.entry.number, self._jobs.journal
        if not other.is_full:
            await self._send_tasks(number, other.tasks)
        there = _Ranges(other.recorded)
        told = (other.epoch, PeerId(other.carrier))
        after, is_level = 0, False
        while (entry := await journal.find(held.entry.id)) is not None:
            change = self._jobs.next_change(number)
            if told != (claim := (held.custody.epoch, held.custody.carrier)):
                told = claim
                await messages.send(Claim(*claim))
            outcomes = await journal.outcomes_after(number, after)
            if outcomes:
                after = outcomes[-1].place
                await send_outcomes(messages, [o for o in outcomes if o.task not in there and o.task not in heard])
                heard.difference_update(o.task for o in outcomes)
                continue
            if not is_level:
                is_level = True
                await messages.send(Level())
            if entry.is_over:
                await messages.send(JobOver(entry.state))
                if entry.submitter == self._own:
                    await messages.send(Release())
                await messages.flush()
                return
            await change.wait()
        # Forgotten here: a submitter's delegates need it no more either.
        if held.entry.submitter == self._own:
            await messages.send(Release())
            await messages.flush()

    async def _send_tasks(self, number: int, first: int) -> None:
        messages = self._messages
        journal = self._jobs.journal
        for digest, pickled in (await journal.functions(number)).items():
            await messages.send(HeldFunction(digest, pickled))
        while rows := await journal.tasks_after(number, first - 1, only_open=False):
            for function, group in itertools.groupby(rows, key=lambda row: row.function):
                arguments = [row.arguments for row in group]
                await messages.send(HeldTasks(function, first, arguments))
                first += len(arguments)
        await messages.send(HeldAll())

    async def _read(self) -> None:
        held, peer = self._held, self._peer
        while (payload := await self._messages.receive()) is not None:
            message: BetweenHolders = decode_union(payload, BetweenHolders, step=STEP)
            match message:
                case HeldFunction() | HeldTasks() | HeldAll():
                    await self._take_tasks(message)
                case Kept():
                    held.kept.add(peer)
                    held.change()
                case HeldResultPart():
                    self._parts.take(message)
                case HeldOutcomes(by, last):
                    outcomes = self._parts.whole(last)
                    _check_outcomes(by, outcomes, held.entry)
                    self._heard.update(task for task, _, _ in outcomes)
                    self._jobs.absorb(held.entry.number, PeerId(by), outcomes)
                    await self._jobs.journal.room()
                case Claim(epoch, carrier):
                    await self._host.perform(
                        self._held, self._held.custody.handle(core.ClaimHeard(epoch, PeerId(carrier)))
                    )
                case Level():
                    held.level.add(peer)
                    held.change()
                case JobOver(state):
                    await self._take_end(state)
                case Declined(code, text, remedy):
                    held.declined[peer] = text
                    held.change()
                    raise by_code(code, text, remedy)
                case Release():
                    await self._release()
                    return
                case _:
                    raise PeerMisbehaved(f"{type(message).__name__} between holders", step=STEP)

    async def _release(self) -> None:
        """A delegate drops its copy and says so; then the submitter knows that it need not be told again."""
        held, peer = self._held, self._peer
        if peer == held.entry.submitter:
            await self._host.drop(held.entry.number)
            await self._messages.send(Release())
            await self._messages.flush()
        elif self._own == held.entry.submitter:
            left = [delegate for delegate in held.entry.delegates if delegate != peer]
            held.entry = replace(held.entry, delegates=tuple(left))
            self._jobs.journal.set_delegates(held.entry.number, left)
            await self._jobs.journal.settle()
        else:
            raise PeerMisbehaved("only the submitter releases a copy", step=STEP)

    async def _take_tasks(self, message: HeldFunction | HeldTasks | HeldAll) -> None:
        held = self._held
        number, journal = held.entry.number, self._jobs.journal
        if self._peer != held.entry.submitter:
            raise PeerMisbehaved("only the submitter adds tasks", step=STEP)
        match message:
            case HeldFunction(digest, pickled):
                if len(pickled) > FUNCTION_BYTES_MAX:
                    raise PeerMisbehaved(f"a function of {len(pickled)} bytes", step=STEP)
                journal.add_function(number, digest, pickled)
            case HeldTasks(function, first, arguments):
                if first + len(arguments) > HELD_TASKS_MAX or any(len(a) > ARGUMENT_BYTES_MAX for a in arguments):
                    raise PeerMisbehaved("more tasks, or larger ones, than there may be", step=STEP)
                held.room_bytes -= sum(map(len, arguments))
                if held.room_bytes < 0:
                    await self._host.drop(number)
                    raise Busy("this peer keeps as much for others as it can", remedy="Ask others.")
                journal.add_tasks(number, function, first, arguments)
            case HeldAll():
                journal.set_running(number)
                await journal.settle()
                held.entry = await journal.find(held.entry.id) or held.entry
                self._messages.post(Kept())
        await journal.room()

    async def _take_end(self, state: str) -> None:
        if state not in ("ended", "cancelled"):
            raise PeerMisbehaved("a job that is over in no way that there is", step=STEP)
        await self._jobs.journal.settle()
        entry = await self._jobs.journal.find(self._held.entry.id)
        if entry is not None and not entry.is_over and (state == "cancelled" or entry.done == entry.tasks):
            await self._jobs.finish(entry.number, state)


class _Ranges:
    """A set of numbers, as ranges in order."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges = ranges

    def __contains__(self, number: int) -> bool:
        low, high = 0, len(self._ranges)
        while low < high:
            middle = (low + high) // 2
            start, end = self._ranges[middle]
            if number < start:
                high = middle
            elif number >= end:
                low = middle + 1
            else:
                return True
        return False


async def send_outcomes(messages: MessageStream, outcomes: Sequence[JournalOutcome]) -> None:
    """Sends outcomes as they are recorded, large results in parts."""
    for peer, same in by_peer(outcomes):
        for task, _, payload in same:
            for part in leading_parts(payload):
                await messages.send(HeldResultPart(task, part))
        await messages.send(HeldOutcomes(peer, [(task, status, last_part(data)) for task, status, data in same]))


class ResultParts:
    """Puts large results together again."""

    def __init__(self) -> None:
        self._parts: dict[int, list[bytes]] = {}
        self._size = 0

    def take(self, part: HeldResultPart) -> None:
        """The next part. Raises PeerMisbehaved if there are more than one message of outcomes may refer to."""
        self._size += len(part.data)
        if self._size > PARTS_BYTES_MAX or len(part.data) > PART_BYTES:
            raise PeerMisbehaved("results that are larger than they may be", step=STEP)
        self._parts.setdefault(part.task, []).append(part.data)

    def whole(self, outcomes: Sequence[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
        """These outcomes with what came of them before."""
        parts, self._parts, self._size = self._parts, {}, 0
        return [(task, status, b"".join([*parts.get(task, ()), last])) for task, status, last in outcomes]


def by_peer(outcomes: Sequence[JournalOutcome]) -> Iterator[tuple[PeerId, list[tuple[int, int, bytes]]]]:
    """Runs of outcomes by who did them, as they travel."""
    for peer, group in itertools.groupby(outcomes, key=lambda outcome: outcome.peer):
        yield peer, [(outcome.task, outcome.status, outcome.payload) for outcome in group]


def _check_outcomes(peer: str, outcomes: Sequence[tuple[int, int, bytes]], entry: Entry) -> None:
    if peer and not is_key_id(peer):
        raise PeerMisbehaved("outcomes of nobody", step=STEP)
    for task, status, payload in outcomes:
        if not 0 <= task < entry.tasks or status not in STATUSES or len(payload) > RESULT_BYTES_MAX + 4096:
            raise PeerMisbehaved("an outcome that no task can have", step=STEP)
