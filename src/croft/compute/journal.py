"""Keeps jobs on disk: functions, arguments by content, and each task's outcome once, whatever dies.

What is posted while a transaction is under way goes into the next one, all together: a commit costs the same for one
outcome as for thousands. Everything happens on the database's own thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from croft.compute.journal_messages import JobSpec
from croft.compute.worker_messages import Status
from croft.errors import CroftError
from croft.model.ids import JobId, PeerId, TwinId
from croft.wire.codec import decode, encode

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import Clock, Database

log = logging.getLogger(__name__)

INLINE_BYTES_MAX = 4 << 10
"""Arguments above this are kept by their digest, once."""
COMMIT_BYTES_MAX = 16 << 20
UNWRITTEN_BYTES_MAX = 32 << 20
COMMIT_EVERY_S = 0.05
"""Unless somebody waits for the disk, outcomes of so long make one commit."""
RETRY_S = 1.0
ROW_BYTES = 256
"""What a row takes in memory beside its bytes."""
READ_BYTES_MAX = 4 << 20
READ_ROWS_MAX = 2_000

Work = Callable[["sqlite3.Connection"], Any]

_JOB_FIELDS = (
    "number, id, spec, twin, submitter, delegates, carrier, epoch, created_at, ended_at, state, tasks, done, failed"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A job as the journal has it. `state`: filling (its program still adds tasks), running, ended or cancelled."""

    number: int
    id: JobId
    spec: JobSpec
    twin: TwinId
    submitter: PeerId
    delegates: tuple[PeerId, ...]
    carrier: PeerId
    epoch: int
    created_at: float
    ended_at: float | None
    state: str
    tasks: int
    done: int
    failed: int

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be recorded."""
        return self.state in ("ended", "cancelled")


@dataclass(frozen=True, slots=True)
class JournalTask:
    """A task that has no outcome yet."""

    task: int
    function: bytes
    arguments: bytes


@dataclass(frozen=True, slots=True)
class JournalOutcome:
    """What came of a task. `place` counts in the order of recording, over all jobs."""

    place: int
    task: int
    status: int
    payload: bytes
    peer: PeerId


@dataclass(slots=True)
class _Posted:
    work: Work
    size: int
    then: Callable[[Any], None] | None


class Journal:
    """The jobs on this peer's disk. `serve` writes what is posted; questions are answered from disk."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._posted: list[_Posted] = []
        self._posted_bytes = 0
        self._has_posted = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._settling: set[asyncio.Future[None]] = set()
        self._is_ended = False

    # --- writing -----------------------------------------------------------------------------------------------------

    def post(self, work: Work, size: int = 0, then: Callable[[Any], None] | None = None) -> None:
        """Has `work` done in one of the next transactions, in order; `then` hears what it returned once on disk."""
        self._posted.append(_Posted(work, size, then))
        self._posted_bytes += size
        if self._posted_bytes > UNWRITTEN_BYTES_MAX:
            self._has_room.clear()
            self._is_urgent.set()
        self._has_posted.set()

    async def room(self) -> None:
        """Waits while more than UNWRITTEN_BYTES_MAX is posted and not on disk."""
        await self._has_room.wait()

    async def settle(self) -> None:
        """Waits until all that was posted so far is on disk. Cancelled if the journal ends before that."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settling.add(future)
        future.add_done_callback(self._settling.discard)
        # An empty piece of work of its own: whatever was posted before is in the same transaction or an earlier one.
        self.post(lambda _: None, 0, lambda _: None if future.done() else future.set_result(None))
        self._is_urgent.set()
        if self._is_ended:
            future.cancel()
        await future

    async def serve(self) -> None:
        """Writes until cancelled. A disk that is full holds up what is posted, and loses nothing of it."""
        self._is_ended = False
        try:
            while True:
                await self._has_posted.wait()
                try:
                    async with asyncio.timeout(COMMIT_EVERY_S):
                        await self._is_urgent.wait()
                except TimeoutError:
                    pass
                await self._commit()
        finally:
            # Whoever waits for the disk would wait for ever.
            self._is_ended = True
            for future in list(self._settling):
                future.cancel()
            self._has_room.set()

    async def _commit(self) -> None:
        batch: list[_Posted] = []
        size = 0
        for posted in self._posted:
            batch.append(posted)
            size += posted.size
            if size > COMMIT_BYTES_MAX:
                break
        try:
            results = await self._database.run(lambda db: [posted.work(db) for posted in batch])
        except CroftError as error:
            log.warning("the journal cannot be written, and will be tried again: %s", error.message)
            await asyncio.sleep(RETRY_S)
            return
        del self._posted[: len(batch)]
        self._posted_bytes -= size
        if not self._posted:
            self._has_posted.clear()
            self._is_urgent.clear()
        if self._posted_bytes <= UNWRITTEN_BYTES_MAX:
            self._has_room.set()
        for posted, result in zip(batch, results, strict=True):
            if posted.then is not None:
                posted.then(result)

    async def create(self, job: JobId, spec: JobSpec, twin: TwinId, submitter: PeerId) -> Entry:
        """A new job without tasks, on disk; its submitter carries it. Raises Failed."""
        return await self.adopt(job, spec, twin, submitter, (), self._clock.now(), 1, submitter)

    async def adopt(
        self,
        job: JobId,
        spec: JobSpec,
        twin: TwinId,
        submitter: PeerId,
        delegates: Sequence[PeerId],
        created_at: float,
        epoch: int,
        carrier: PeerId,
    ) -> Entry:
        """Like `create`, for a job that began elsewhere. Raises Failed."""
        row = (job, encode(spec), twin, submitter, _packed(delegates), carrier, epoch, created_at)

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO journal_job (id, spec, twin, submitter, delegates, carrier, epoch, created_at, state)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'filling')",
                row,
            )

        await self._database.run(write)
        entry = await self.find(job)
        assert entry is not None, "just written"
        return entry

    def set_delegates(self, job: int, delegates: Sequence[PeerId]) -> None:
        """Who holds copies, by rank."""
        row = (_packed(delegates), job)
        self.post(lambda db: db.execute("UPDATE journal_job SET delegates = ? WHERE number = ?", row))

    def add_function(self, job: int, digest: bytes, pickled: bytes) -> None:
        """Keeps a function; before its first task."""

        def write(db: sqlite3.Connection) -> None:
            if _takes_more(db, job):
                db.execute("INSERT OR IGNORE INTO journal_function VALUES (?, ?, ?)", (job, digest, pickled))

        self.post(write, len(pickled))

    def add_tasks(
        self,
        job: int,
        function: bytes,
        first: int,
        arguments: Sequence[bytes],
        then: Callable[[None], None] | None = None,
    ) -> None:
        """Keeps tasks numbered from `first` on; those that it has already stay as they are."""
        rows: list[tuple[int, int, bytes, bytes | None, bytes | None]] = []
        values: dict[bytes, bytes] = {}
        for task, pickled in enumerate(arguments, first):
            if len(pickled) <= INLINE_BYTES_MAX:
                rows.append((job, task, function, pickled, None))
            else:
                digest = blake3(pickled).digest()
                values[digest] = pickled
                rows.append((job, task, function, None, digest))

        def write(db: sqlite3.Connection) -> None:
            if not _takes_more(db, job):
                return
            large = [(job, digest, value) for digest, value in values.items()]
            db.executemany("INSERT OR IGNORE INTO journal_value VALUES (?, ?, ?)", large)
            added = db.executemany("INSERT OR IGNORE INTO journal_task VALUES (?, ?, ?, ?, ?)", rows).rowcount
            db.execute("UPDATE journal_job SET tasks = tasks + ? WHERE number = ?", (added, job))

        self.post(write, sum(map(len, arguments)) + ROW_BYTES * len(arguments), then)

    def record(
        self,
        job: int,
        peer: PeerId,
        outcomes: Sequence[tuple[int, int, bytes]],
        then: Callable[[int], None] | None = None,
    ) -> None:
        """Records outcomes, unless their tasks have one already. `then` hears how many were new."""
        good = [(job, task, status, payload, peer) for task, status, payload in outcomes if status == Status.OK]
        bad = [(job, task, status, payload, peer) for task, status, payload in outcomes if status != Status.OK]
        sql = "INSERT OR IGNORE INTO journal_outcome (job, task, status, payload, peer) VALUES (?, ?, ?, ?, ?)"

        def write(db: sqlite3.Connection) -> int:
            if not _takes_more(db, job):
                return 0
            done = db.executemany(sql, good).rowcount if good else 0
            failed = db.executemany(sql, bad).rowcount if bad else 0
            db.execute(
                "UPDATE journal_job SET done = done + ?, failed = failed + ? WHERE number = ?",
                (done + failed, failed, job),
            )
            return done + failed

        self.post(write, sum(ROW_BYTES + len(payload) for _, _, payload in outcomes), then)

    def set_running(self, job: int) -> None:
        """All tasks are in."""
        self.post(
            lambda db: db.execute(
                "UPDATE journal_job SET state = 'running' WHERE number = ? AND state = 'filling'", (job,)
            )
        )

    def set_carrier(self, job: int, epoch: int, carrier: PeerId) -> None:
        """Somebody carries the job on; an older epoch changes nothing."""
        row = (epoch, carrier, job, epoch)
        self.post(
            lambda db: db.execute("UPDATE journal_job SET epoch = ?, carrier = ? WHERE number = ? AND epoch < ?", row)
        )

    def end(self, job: int, state: str) -> None:
        """Nothing more will be recorded: what the tasks needed is dropped, their outcomes stay until `forget`."""
        now = self._clock.now()

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE journal_job SET state = ?, ended_at = ? WHERE number = ? AND state IN ('filling', 'running')",
                (state, now, job),
            )
            for table in ("journal_task", "journal_value", "journal_function"):
                db.execute(f"DELETE FROM {table} WHERE job = ?", (job,))

        self.post(write)

    def forget(self, job: int) -> None:
        """Drops all that is known of a job."""
        self.post(lambda db: db.execute("DELETE FROM journal_job WHERE number = ?", (job,)))

    # --- reading -----------------------------------------------------------------------------------------------------

    async def find(self, job: JobId) -> Entry | None:
        """A job by its id."""
        rows = await self._entries("WHERE id = ?", job)
        return rows[0] if rows else None

    async def entries(self) -> list[Entry]:
        """All jobs, newest first."""
        return await self._entries("ORDER BY created_at DESC, number DESC")

    async def _entries(self, condition: str, *values: object) -> list[Entry]:
        def read(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
            return db.execute(f"SELECT {_JOB_FIELDS} FROM journal_job {condition}", values).fetchall()

        return [_entry(row) for row in await self._database.run(read)]

    async def functions(self, job: int) -> dict[bytes, bytes]:
        """A job's functions by digest."""

        def read(db: sqlite3.Connection) -> list[tuple[bytes, bytes]]:
            return db.execute("SELECT digest, pickled FROM journal_function WHERE job = ?", (job,)).fetchall()

        return dict(await self._database.run(read))

    async def tasks_after(self, job: int, after: int, *, only_open: bool = True) -> list[JournalTask]:
        """Tasks numbered above `after`, in order: some READ_ROWS_MAX or READ_BYTES_MAX of them; none at the end."""
        is_open = (
            "AND NOT EXISTS (SELECT 1 FROM journal_outcome o WHERE o.job = t.job AND o.task = t.task)"
            if only_open
            else ""
        )
        query = (
            "SELECT t.task, t.function, coalesce(t.arguments, v.value) FROM journal_task t"
            " LEFT JOIN journal_value v ON v.job = t.job AND v.digest = t.value"
            f" WHERE t.job = ? AND t.task > ? {is_open} ORDER BY t.task LIMIT {READ_ROWS_MAX}"
        )

        def read(db: sqlite3.Connection) -> list[JournalTask]:
            tasks: list[JournalTask] = []
            size = 0
            for row in db.execute(query, (job, after)):
                tasks.append(JournalTask(*row))
                size += len(tasks[-1].arguments)
                if size > READ_BYTES_MAX:
                    break
            return tasks

        return await self._database.run(read)

    async def outcomes_after(self, job: int, after: int, *, in_order: bool = False) -> list[JournalOutcome]:
        """Outcomes recorded after the place `after`; or, in order, those of the tasks `after`, `after + 1`, …, as far
        as they are recorded without a gap. Some READ_ROWS_MAX or READ_BYTES_MAX of them."""
        column = "task" if in_order else "place"
        bound = ">=" if in_order else ">"
        query = (
            "SELECT place, task, status, payload, peer FROM journal_outcome"
            f" WHERE job = ? AND {column} {bound} ? ORDER BY {column} LIMIT {READ_ROWS_MAX}"
        )

        def read(db: sqlite3.Connection) -> list[JournalOutcome]:
            outcomes: list[JournalOutcome] = []
            size = 0
            for row in db.execute(query, (job, after)):
                outcome = JournalOutcome(*row)
                if in_order and outcome.task != after + len(outcomes):
                    break
                outcomes.append(outcome)
                size += len(outcome.payload)
                if size > READ_BYTES_MAX:
                    break
            return outcomes

        return await self._database.run(read)

    async def recorded(self, job: int, ranges_max: int) -> list[tuple[int, int]]:
        """The tasks that have an outcome, as ranges [from, to) in order; the first `ranges_max` of them."""

        def read(db: sqlite3.Connection) -> list[tuple[int, int]]:
            ranges: list[tuple[int, int]] = []
            for (task,) in db.execute("SELECT task FROM journal_outcome WHERE job = ? ORDER BY task", (job,)):
                if ranges and ranges[-1][1] == task:
                    ranges[-1] = (ranges[-1][0], task + 1)
                elif len(ranges) < ranges_max:
                    ranges.append((task, task + 1))
                else:
                    break
            return ranges

        return await self._database.run(read)

    async def bytes_for_others(self, own: PeerId) -> int:
        """What jobs take on this disk that others submitted."""
        sizes = " + ".join(
            f"(SELECT coalesce(sum(length({column})), 0) FROM {table} t WHERE t.job = j.number)"
            for table, column in (
                ("journal_task", "arguments"),
                ("journal_value", "value"),
                ("journal_function", "pickled"),
                ("journal_outcome", "payload"),
            )
        )
        query = f"SELECT coalesce(sum({sizes}), 0) FROM journal_job j WHERE submitter != ?"

        def read(db: sqlite3.Connection) -> int:
            return int(db.execute(query, (own,)).fetchone()[0])

        return await self._database.run(read)

    async def done_by(self, job: int) -> dict[PeerId, int]:
        """How many tasks each peer did."""

        def read(db: sqlite3.Connection) -> list[tuple[PeerId, int]]:
            return db.execute(
                "SELECT peer, count(*) FROM journal_outcome WHERE job = ? GROUP BY peer", (job,)
            ).fetchall()

        return dict(await self._database.run(read))


def _packed(peers: Sequence[PeerId]) -> bytes:
    return msgspec.msgpack.encode(list(peers))


def _takes_more(db: sqlite3.Connection, job: int) -> bool:
    """Whether a job is still there and not over: what comes later than its end is of no use to anybody."""
    query = "SELECT 1 FROM journal_job WHERE number = ? AND state IN ('filling', 'running')"
    return db.execute(query, (job,)).fetchone() is not None


def _entry(row: tuple[Any, ...]) -> Entry:
    number, job, spec, twin, submitter, delegates, *rest = row
    return Entry(
        number,
        JobId(job),
        decode(spec, JobSpec, step="journal"),
        TwinId(twin),
        PeerId(submitter),
        tuple(PeerId(peer) for peer in msgspec.msgpack.decode(delegates, type=list[str])),
        *rest,
    )
