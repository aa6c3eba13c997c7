"""Runs the jobs that are kept in the journal: what programs submit is on disk first, and what comes of it stays there.

A job that is carried here reads its tasks from disk a window at a time, so its size does not matter, and ends when
every task has an outcome on disk. After a crash it goes on with the tasks that have none.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from croft.compute.job import Outcome
from croft.compute.jobs import OnOutcomes, TaskJob
from croft.compute.journal import Entry, Journal, JournalOutcome
from croft.compute.journal_messages import JobSpec
from croft.compute.worker_messages import LoadFunction
from croft.errors import Failed, NotFound, Usage
from croft.model.ids import JobId, PeerId, TwinId

if TYPE_CHECKING:
    from croft.ports import Entropy

JOB_ID_BYTES = 8
CARRIED_MAX = 32
"""Jobs that this peer works on at a time; others wait, in the order in which they came."""
OPEN_TASKS_MAX = 20_000
OPEN_BYTES_MAX = 64 << 20
"""What is read ahead of the lenders, per job."""

MakeTasks = Callable[[JobId, JobSpec, OnOutcomes], TaskJob]


class Carried:
    """A job that this peer carries on."""

    def __init__(self, journal: Journal, entry: Entry, make_tasks: MakeTasks, on_change: Callable[[int], None]) -> None:
        self.id = entry.id
        self.number = entry.number
        self.spec = entry.spec
        self.is_full = entry.state != "filling"
        self._journal = journal
        self._on_change = on_change
        self._moved = asyncio.Event()
        self._sizes: dict[int, int] = {}
        self._open_bytes = 0
        self._unwritten = 0
        self.tasks = make_tasks(entry.id, entry.spec, self._take)

    def moved(self, _: object = None) -> None:
        """More tasks are on disk, or all are."""
        self._moved.set()

    async def run(self) -> None:
        """Works until every task has an outcome on disk."""
        for digest, pickled in (await self._journal.functions(self.number)).items():
            self.tasks.add_function(LoadFunction(digest, pickled, self.spec.python))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self.tasks.run(), name=f"job.{self.id}.tasks")
            await self._feed()
            running.cancel()
        self._journal.end(self.number, "ended")
        await self._journal.settle()
        self._on_change(self.number)

    def cancel(self, tasks: Sequence[int]) -> None:
        """Somebody else has the outcomes of these."""
        self._open_bytes -= sum(self._sizes.pop(task, 0) for task in tasks)
        self.tasks.cancel(tasks)
        self._moved.set()

    async def _feed(self) -> None:
        after = -1
        while True:
            self._moved.clear()
            is_full = self.is_full
            if self.tasks.open_tasks < OPEN_TASKS_MAX and self._open_bytes < OPEN_BYTES_MAX:
                rows = await self._journal.tasks_after(self.number, after)
                for function, same in itertools.groupby(rows, key=lambda row: row.function):
                    group = list(same)
                    self._sizes.update((row.task, len(row.arguments)) for row in group)
                    self._open_bytes += sum(len(row.arguments) for row in group)
                    self.tasks.add(function, [row.task for row in group], [row.arguments for row in group])
                if rows:
                    after = rows[-1].task
                    continue
                if is_full and self.tasks.open_tasks == 0 and self._unwritten == 0:
                    return
            await self._moved.wait()

    def _take(self, peer: PeerId, outcomes: Sequence[Outcome]) -> None:
        self._open_bytes -= sum(self._sizes.pop(task, 0) for task, _, _ in outcomes)
        outcomes = self.tasks.whole(peer, outcomes)
        self._unwritten += 1

        def written(_: int) -> None:
            self._unwritten -= 1
            self._moved.set()
            self._on_change(self.number)

        self._journal.record(self.number, peer, outcomes, written)


class Filling:
    """A new job whose program adds tasks; what is added counts once `seal` has returned."""

    def __init__(self, jobs: DurableJobs, carried: Carried) -> None:
        self._jobs = jobs
        self._carried = carried
        self._tasks = 0
        self.id = carried.id

    async def add_function(self, digest: bytes, pickled: bytes) -> None:
        """Makes a function known; before its first task."""
        self._jobs.journal.add_function(self._carried.number, digest, pickled)
        self._carried.tasks.add_function(LoadFunction(digest, pickled, self._carried.spec.python))
        await self._jobs.journal.room()

    async def add(self, function: bytes, first: int, arguments: Sequence[bytes]) -> None:
        """Adds tasks, numbered without a gap. Waits while the disk does not keep up. Raises Usage."""
        if first != self._tasks:
            raise Usage(f"task {first} comes after task {self._tasks - 1}", remedy="Number tasks without gaps.")
        self._tasks += len(arguments)
        self._jobs.journal.add_tasks(self._carried.number, function, first, arguments, self._carried.moved)
        await self._jobs.journal.room()

    async def seal(self) -> int:
        """All tasks are in: how many, once they are on disk. Raises Failed if the job was dropped meanwhile."""
        self._jobs.journal.set_running(self._carried.number)
        await self._jobs.journal.settle()
        if not self._jobs.is_carried(self._carried):
            raise Failed("the job was ended before all its tasks were in", remedy="Submit it again.")
        self._carried.is_full = True
        self._carried.moved()
        return self._tasks

    async def drop(self) -> None:
        """Forgets the job: its program went away before all tasks were in."""
        await self._jobs.drop(self._carried.number)


class DurableJobs:
    """The jobs of this peer's journal, and those of them that it carries on."""

    def __init__(self, journal: Journal, make_tasks: MakeTasks, entropy: Entropy, twin: TwinId, own: PeerId) -> None:
        self.journal = journal
        self._make_tasks = make_tasks
        self._entropy = entropy
        self._twin = twin
        self._own = own
        self._carried: dict[int, Carried] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._events: dict[int, asyncio.Event] = {}
        self._slots = asyncio.Semaphore(CARRIED_MAX)
        self._group: asyncio.TaskGroup | None = None
        self._is_ready = asyncio.Event()
        self.before_resuming: Callable[[Entry], Awaitable[None] | None] = lambda _: None

    # --- life --------------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Takes up what an earlier run had not finished, and works until cancelled.

        A job whose program had not added all its tasks is dropped.
        """
        self._carried.clear()
        self._running.clear()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.journal.serve(), name="journal.write")
            self._group = group
            try:
                for entry in reversed(await self.journal.entries()):
                    if entry.state == "filling" and entry.submitter == self._own:
                        self.journal.forget(entry.number)
                    elif entry.state == "running" and entry.carrier == self._own:
                        self.carry(entry, after=self.before_resuming(entry))
                self._is_ready.set()
                await asyncio.Event().wait()
            finally:
                self._is_ready.clear()
                self._group = None

    async def ready(self) -> None:
        """Waits until what an earlier run had not finished is taken up."""
        await self._is_ready.wait()

    def carry(self, entry: Entry, *, after: Awaitable[None] | None = None) -> Carried:
        """Works on a job from where it stopped, `after` something; does nothing more if that is under way."""
        assert self._group is not None, "carried while it serves"
        if (carried := self._carried.get(entry.number)) is None:
            carried = self._carried[entry.number] = Carried(self.journal, entry, self._make_tasks, self.fire)
            self._running[entry.number] = self._group.create_task(self._run(carried, after), name=f"job.{carried.id}")
        return carried

    async def _run(self, carried: Carried, after: Awaitable[None] | None) -> None:
        if after is not None:
            await after
        async with self._slots:
            await carried.run()
        self._running.pop(carried.number, None)
        self._carried.pop(carried.number, None)

    def is_carried(self, carried: Carried) -> bool:
        """Whether this very work is still under way, or waits to be."""
        return self._carried.get(carried.number) is carried

    # --- what programs ask -------------------------------------------------------------------------------------------

    async def open(self, spec: JobSpec) -> Filling:
        """A new job, to be filled. Raises Failed."""
        await self._is_ready.wait()
        job = JobId(self._entropy.token(JOB_ID_BYTES).hex())
        entry = await self.journal.create(job, spec, self._twin, self._own)
        return Filling(self, self.carry(entry))

    async def find(self, name: str, twin: TwinId | None = None) -> Entry:
        """A job of a person, by default this peer's owner, by its id, the beginning of its id, or its label.

        The newest, if several have it. Raises NotFound.
        """
        entries = [entry for entry in await self.journal.entries() if entry.twin == (twin or self._twin)]
        if name:
            for entry in [
                *(entry for entry in entries if name in (entry.id, entry.spec.label)),
                *(entry for entry in entries if entry.id.startswith(name)),
            ]:
                return entry
        raise NotFound(f"no job `{name}` is kept here", remedy="See which are: `croft jobs`.")

    def tasks_of(self, job: int) -> TaskJob | None:
        """What works on a job here, if anything does."""
        carried = self._carried.get(job)
        return carried.tasks if carried is not None else None

    async def cancel(self, entry: Entry) -> None:
        """Ends a job here and on its lenders; what is recorded stays. Idempotent."""
        await self.finish(entry.number, "cancelled")
        await self.journal.settle()

    async def finish(self, job: int, state: str) -> None:
        """Ends a job here: it is over, whoever did its tasks."""
        await self.stop(job)
        self.journal.end(job, state)
        self.fire(job, after_disk=True)

    async def forget(self, entry: Entry) -> None:
        """Ends a job if it runs, and drops all that is known of it."""
        await self.drop(entry.number)
        await self.journal.settle()

    async def drop(self, job: int) -> None:
        """Like `forget`, without waiting for the disk."""
        await self.stop(job)
        self.journal.forget(job)
        self.fire(job, after_disk=True)

    def absorb(self, job: int, peer: PeerId, outcomes: Sequence[Outcome]) -> None:
        """Records outcomes that another holder of the job has."""
        if (carried := self._carried.get(job)) is not None:
            carried.cancel([task for task, _, _ in outcomes])
        self.journal.record(job, peer, outcomes)
        self.fire(job, after_disk=True)

    async def outcomes(self, job: JobId, *, is_in_order: bool, after: int) -> AsyncIterator[list[JournalOutcome]]:
        """A job's outcomes as they are on disk, until it is over. Raises NotFound once it is forgotten."""
        while (entry := await self.journal.find(job)) is not None:
            change = self.next_change(entry.number)
            outcomes = await self.journal.outcomes_after(entry.number, after, in_order=is_in_order)
            if outcomes:
                after = outcomes[-1].task + 1 if is_in_order else outcomes[-1].place
                yield outcomes
            elif entry.is_over:
                return
            else:
                await change.wait()
        raise NotFound(f"job {job} was forgotten", remedy="See which are kept: `croft jobs`.")

    def next_change(self, job: int) -> asyncio.Event:
        """Set when something more of a job is on disk than now."""
        return self._events.setdefault(job, asyncio.Event())

    async def stop(self, job: int) -> None:
        """Ends the work on a job here, which somebody else may go on with."""
        self._carried.pop(job, None)
        if (running := self._running.pop(job, None)) is not None:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def fire(self, job: int, *, after_disk: bool = False) -> None:
        """Wakes whoever waits for a change of a job, once all that was posted is on disk if that is wanted."""
        if after_disk:
            self.journal.post(lambda _: None, 0, lambda _: self.fire(job))
        elif (event := self._events.pop(job, None)) is not None:
            event.set()
