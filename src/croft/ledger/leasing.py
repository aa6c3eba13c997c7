"""The book of leases: the shell of `ledger.lease`. A grant is on disk before it is told.

What was used under a lease is settled here and nowhere else: `settled` hears of it, and the record is kept.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, assert_never

from croft.errors import Busy, CroftError, Failed, Full, Refused
from croft.ledger import lease as core
from croft.model.amounts import Amounts, show_amount, show_part
from croft.model.ids import PeerId, TwinId
from croft.model.lease import Lease, Request, Stage, Usage

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import Clock, Database

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
RECORDS_KEPT_MAX = 10_000
RECORDS_SHOWN_MAX = 100
RESTARTED = "this peer ended while it lasted"

Change = Callable[["sqlite3.Connection"], object]


@dataclass(frozen=True, slots=True)
class Settled:
    """A lease that has ended, and what was used under it. `ended_at` in Unix seconds."""

    lease: Lease
    usage: Usage
    ended_at: float


class LeaseBook:
    """Every lease of this peer. `load` before `serve`; nothing is granted while it does not serve.

    `reclaim` is called to close a lease's box; `ended` must follow. `settled` hears what was used under each lease.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._core = core.Leases()
        self._asks = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Lease]] = {}
        self._changes: list[tuple[Change, int | None]] = []
        self._has_changes = asyncio.Event()
        self._is_open = False
        self._granted: dict[int, Lease] = {}
        self._usage: dict[int, Usage] = {}
        self.reclaim: Callable[[Lease], None] = lambda lease: self.ended(lease)
        self.settled: Callable[[Settled], None] = lambda settled: None
        self.granted: Callable[[Request], None] = lambda request: None
        """Told of each use of a lease that is granted."""

    # --- questions ---------------------------------------------------------------------------------------------------

    def most(self, offers: Sequence[str]) -> Amounts:
        """The most of each resource that is offered to somebody with these offers, taken or not."""
        return self._core.most(offers)

    def room(self, offers: Sequence[str]) -> Amounts:
        """The most of each resource that somebody with these offers could be granted at once."""
        return self._core.room(offers)

    def shown(self) -> list[tuple[Lease, Stage]]:
        """Leases that are held, oldest first."""
        return [(self._granted[lease.number], stage) for lease, stage in self._core.shown()]

    async def records(self) -> list[Settled]:
        """Leases that have ended, newest first. Raises Failed."""

        def read(db: sqlite3.Connection) -> list[tuple[object, ...]]:
            query = (
                "SELECT number, '', peer, twin, purpose, job, offer, amounts, granted_at, ended_at, cpu_s, "
                "memory_peak_bytes, received_bytes, sent_bytes, tasks, death FROM lease_usage ORDER BY number DESC"
            )
            return db.execute(f"{query} LIMIT ?", (RECORDS_SHOWN_MAX,)).fetchall()

        rows = await self._database.run(read)
        return [Settled(_lease_of(row[:9]), Usage(*row[10:]), float(row[9])) for row in rows]  # type: ignore[arg-type]  # columns are STRICT

    # --- what lenders do ---------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Takes in the leases that the last run left: each is kept for its holder for a while. Raises Failed."""

        def read(db: sqlite3.Connection) -> tuple[list[tuple[object, ...]], int]:
            rows = db.execute(
                "SELECT number, key, peer, twin, purpose, job, offer, amounts, granted_at FROM lease ORDER BY number"
            ).fetchall()
            (last,) = db.execute("SELECT coalesce(max(number), 0) FROM lease_usage").fetchone()
            return rows, last

        rows, last = await self._database.run(read)
        self._core = core.Leases(last + 1)
        leases = [_lease_of(row) for row in rows]
        self._granted = {lease.number: lease for lease in leases}
        self._usage = {lease.number: Usage(death=RESTARTED) for lease in leases}
        self._perform(self._core.handle(core.Restored(leases, _now())))

    def offer(self, offers: Mapping[str, Amounts], total: Amounts) -> None:
        """What is offered from now on, and the most in all. What is held stays held."""
        self._perform(self._core.handle(core.Offered(offers, total, _now())))

    async def take(self, request: Request, wait_s: float = 0.0) -> Lease:
        """The lease, held by one user more; `leave` it once.

        Raises:
            Full: others hold what it needs, and it was not free within `wait_s`.
            Refused: it asks for more than is offered. Failed: it cannot be written down.
        """
        if not self._is_open:
            raise _closed()
        ask = next(self._asks)
        answer = self._answers[ask] = asyncio.get_running_loop().create_future()
        self._perform(self._core.handle(core.Asked(ask, request, wait_s, _now())))
        try:
            lease: Lease = await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self.leave(answer.result(), Stage.WARM)
            else:
                self._perform(self._core.handle(core.Withdrawn(ask, _now())))
            raise
        finally:
            del self._answers[ask]
        self.granted(request)
        return lease

    def resize(self, lease: Lease, wants: Amounts, offers: Sequence[str], *, is_taken: bool = False) -> Lease:
        """The same lease of another size; written down soon. `is_taken`: so much is held already.

        Raises Full: others hold what it needs. Refused: it asks for more than is offered.
        """
        ask = next(self._asks)
        effects = self._core.handle(core.Resized(ask, lease.number, wants, tuple(offers), is_taken, _now()))
        self._perform(effects)
        for effect in effects:
            if isinstance(effect, core.Refuse) and effect.ask == ask:
                raise self._refusal(effect.lacks)
        return self._granted[lease.number]

    def leave(self, lease: Lease, stage: Stage) -> None:
        """One of a lease's users is gone. If it was the last one, the lease rests (`WARM`), is kept for a holder that
        was lost (`SILENT`), or is over (`ENDING`; `ended` follows)."""
        self._perform(self._core.handle(core.Left(lease.number, stage, _now())))

    def stage(self, lease: Lease) -> Stage | None:
        """Where a lease stands; None once it has ended."""
        return self._core.stage(lease.number)

    def used(self, lease: Lease, usage: Usage) -> None:
        """Adds to what was used under a lease."""
        self._usage[lease.number] = self._usage.get(lease.number, Usage()) + usage

    def ended(self, lease: Lease) -> None:
        """A lease's box is gone: what it held is free, and what was used is settled."""
        usage = self._usage.pop(lease.number, None)
        if usage is not None:
            settled = Settled(self._granted[lease.number], usage, self._clock.now())
            self._write(partial(_record, settled))
            self.settled(settled)
        self._perform(self._core.handle(core.Ended(lease.number, _now())))

    async def serve(self) -> None:
        """Writes down what changes, and ends what is due; until cancelled."""
        self._is_open = True
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_time(), name="leases.time")
                await self._keep_book()
        finally:
            self._is_open = False
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(_closed())

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._perform(self._core.handle(core.TimePassed(_now())))

    async def _keep_book(self) -> None:
        while True:
            await self._has_changes.wait()
            self._has_changes.clear()
            changes, self._changes = self._changes, []
            is_done = await self._write_down([change for change, _ in changes])
            for _, number in changes:
                if number is not None:
                    self._perform(self._core.handle(core.Written(number, is_done, _now())))

    async def _write_down(self, changes: Sequence[Change]) -> bool:
        def write(db: sqlite3.Connection) -> None:
            for change in changes:
                change(db)

        try:
            await self._database.run(write)
        except CroftError as error:
            log.warning("leases are not written down: %s", error.message)
            return False
        return True

    def _write(self, change: Change, number: int | None = None) -> None:
        self._changes.append((change, number))
        self._has_changes.set()

    def _perform(self, effects: Sequence[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Write(lease):
                    known = self._granted.get(lease.number)
                    granted_at = self._clock.now() if known is None else known.granted_at
                    dated = self._granted[lease.number] = replace(lease, granted_at=granted_at)
                    self._write(partial(_insert, _row(dated)), lease.number)
                case core.Erase(number):
                    self._granted.pop(number, None)
                    self._write(partial(_delete, number))
                case core.Grant(ask, lease):
                    self._grant(ask, lease)
                case core.Refuse(ask, lacks):
                    answer = self._answers.get(ask)
                    if answer is not None and not answer.done():
                        answer.set_exception(self._refusal(lacks))
                case core.Reclaim(lease):
                    self.reclaim(lease)
                case _:
                    assert_never(effect)

    def _grant(self, ask: int, lease: Lease) -> None:
        answer = self._answers.get(ask)
        if answer is None or answer.done():
            self.leave(lease, Stage.WARM)  # whoever asked has gone in this very moment
        else:
            answer.set_result(lease)

    def _refusal(self, lacks: Sequence[core.Lack]) -> CroftError:
        if not lacks:
            return Failed("the lease cannot be written down", remedy="See the disk of that peer, and its log.")
        for lack in lacks:
            if lack.wanted > lack.offered:
                asked, offered = show_amount(lack.name, lack.wanted), show_amount(lack.name, lack.offered)
                return Refused(
                    f"it asks for {asked}, this peer lends {offered}",
                    remedy="Ask for less, or use a larger peer: `croft peers`.",
                )
        return Full("full: " + "; ".join(map(self._taken, lacks)), remedy="Try later, ask for less, or use others.")

    def _taken(self, lack: core.Lack) -> str:
        text = f"{show_part(lack.name, lack.offered - lack.free, lack.offered)} taken"
        if lack.free_in_s is None:
            return f"{text} for as long as the work of others lasts"
        free_at = datetime.fromtimestamp(self._clock.now() + lack.free_in_s, UTC)
        return f"{text}, some of it until {free_at:%H:%M:%S} UTC at the latest"


def _closed() -> CroftError:
    return Busy("this peer is starting or ending", remedy="Try again in a moment.")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _row(lease: Lease) -> tuple[object, ...]:
    request = lease.request
    amounts = json.dumps(dict(request.wants.pairs))
    who = (request.peer, request.twin, request.purpose, request.job)
    return (lease.number, request.key, *who, json.dumps(dict(lease.drawn)), amounts, lease.granted_at)


def _lease_of(row: Sequence[object]) -> Lease:
    number, key, peer, twin, purpose, job, drawn, amounts, granted_at = row
    wants = Amounts.of(json.loads(str(amounts)))
    request = Request(str(key), PeerId(str(peer)), TwinId(str(twin)), str(purpose), str(job), (), wants)
    return Lease(int(str(number)), request, tuple(json.loads(str(drawn)).items()), float(str(granted_at)))


def _insert(row: Sequence[object], db: sqlite3.Connection) -> None:
    db.execute("INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def _delete(number: int, db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM lease WHERE number = ?", (number,))


def _record(settled: Settled, db: sqlite3.Connection) -> None:
    number, _, *rest = _row(settled.lease)
    usage = settled.usage
    used = (usage.cpu_s, usage.memory_peak_bytes, usage.received_bytes, usage.sent_bytes, usage.tasks, usage.death)
    row = (number, *rest, settled.ended_at, *used)
    db.execute(f"INSERT OR REPLACE INTO lease_usage VALUES ({', '.join('?' * len(row))})", row)
    db.execute("DELETE FROM lease_usage WHERE number <= ?", (int(str(number)) - RECORDS_KEPT_MAX,))
