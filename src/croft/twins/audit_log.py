"""Writes down what others do here, a moment later and many at a time: the shell of `audit`."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from croft.errors import CroftError, PeerMisbehaved
from croft.identity.keys import SecretKey
from croft.model.ids import PeerId, TwinId
from croft.twins.audit import LINES_KEPT, Act, Chain, Finding, Line, Repeats, open_seal, verify

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import Clock, Database

log = logging.getLogger(__name__)

SAVE_EVERY_S: Final = 0.5
UNSAVED_MAX: Final = 50_000
"""Acts that wait for a disk that takes none; more are counted and not kept one by one."""
DROP_AT_ONCE: Final = 1_000


class Actor(Protocol):
    """Who did something; what the hello proved."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def twin(self) -> TwinId: ...


class AuditLog:
    """The log of one device."""

    def __init__(
        self, database: Database, clock: Clock, device: SecretKey, own: PeerId, name_of: Callable[[PeerId], str]
    ) -> None:
        self._database = database
        self._clock = clock
        self._device = device
        self._own = own
        self._name_of = name_of
        self._chain = Chain()
        self._repeats = Repeats()
        self._twins: dict[str, str] = {}
        """Of peers whose acts are counted at present."""
        self._lost = 0
        self.on_broken: Callable[[str], None] = lambda what: None
        """Told if the log is not as it was left."""

    def record(self, act: str, actor: Actor, on: str = "", outcome: str = "ok", why: str = "") -> None:
        """Somebody did something here; what this peer's own programs do is not written down."""
        if actor.peer == self._own:
            return
        if not self._repeats.is_line(act, actor.peer, outcome, self._clock.now()):
            self._twins[actor.peer] = actor.twin
            return
        if len(self._chain.added) >= UNSAVED_MAX:
            self._lost += 1
            return
        name = self._name_of(actor.peer)
        self._chain.add(self._clock.now(), act, name, actor.peer, actor.twin, on, outcome, why)

    async def acts(self, since: float = 0.0, count_max: int = LINES_KEPT) -> list[Act]:
        """What is written down, oldest first, at most the last `count_max`. Raises Failed."""
        await self.save()

        def read(db: sqlite3.Connection) -> list[bytes]:
            rows = db.execute("SELECT text FROM audit_line ORDER BY number DESC LIMIT ?", (count_max,)).fetchall()
            return [text for (text,) in reversed(rows)]

        found = []
        for text in await self._database.run(read):
            try:
                act = msgspec.json.decode(text, type=Act)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue  # `verify` tells of it
            if act.at >= since:
                found.append(act)
        return found

    async def verify(self) -> tuple[int, list[Finding]]:
        """How many lines there are, and all that is wrong with them. Raises Failed."""
        await self.save()
        count, findings, _, _ = await self._database.run(self._read_all)
        return count, findings

    async def load(self) -> None:
        """Goes on where the last run ended. Raises Failed."""
        count, findings, last, head = await self._database.run(self._read_all)
        try:
            seal = open_seal(head, self._own) if head is not None else None
        except PeerMisbehaved:
            seal = None
        # What is new is chained to what the seal says, and never to lines that somebody may have put there.
        if seal is not None:
            self._chain = Chain(seal.first, seal.before, seal.number, seal.link)
        elif last is not None:
            self._chain = Chain(last.number + 1, last.link, last.number, last.link)
        if findings:
            self.on_broken(findings[0].what)
            self._note("broken", findings[0].what)
        elif not count:
            self._note("ok", "it begins here")

    async def serve(self) -> None:
        """Writes down what happens; until cancelled."""
        try:
            while True:
                await asyncio.sleep(SAVE_EVERY_S)
                try:
                    await self.save()
                except CroftError as error:
                    log.warning("the audit log cannot be written: %s", error.message)
        finally:
            await self.save(is_last=True)

    async def save(self, *, is_last: bool = False) -> None:
        """Writes what is not on disk yet. Raises Failed, and keeps it to be written later."""
        for act, peer, outcome, count in self._repeats.over(math.inf if is_last else self._clock.now()):
            name, twin = self._name_of(PeerId(peer)), self._twins.pop(peer, "")
            self._chain.add(self._clock.now(), act, name, peer, twin, "", outcome, f"{count:,} more of these")
        if self._lost and len(self._chain.added) < UNSAVED_MAX:
            lost, self._lost = self._lost, 0
            self._note("lost", f"{lost} acts were too many for the disk")
        if not self._chain.added:
            return
        excess = self._chain.number - self._chain.first + 1 - LINES_KEPT
        dropped_before = self._chain.first + max(excess, 0) if excess >= DROP_AT_ONCE else 0
        if dropped_before:
            await self._drop(dropped_before)
        lines, head = self._chain.seal(self._device)
        rows = [(line.number, line.text, line.link) for line in lines]

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM audit_line WHERE number < ?", (dropped_before,))
            db.executemany("INSERT OR REPLACE INTO audit_line VALUES (?, ?, ?)", rows)
            db.execute("INSERT OR REPLACE INTO audit_head VALUES (1, ?)", (head,))

        try:
            await self._database.run(write)
        except CroftError:
            self._chain.added = [*lines, *self._chain.added]
            raise

    def _note(self, outcome: str, why: str) -> None:
        """A line about the log itself."""
        self._chain.add(self._clock.now(), "log", self._name_of(self._own), self._own, "", "", outcome, why)

    async def _drop(self, first: int) -> None:
        """Lets the log begin with a later line."""

        def read(db: sqlite3.Connection) -> list[tuple[int, bytes, bytes]]:
            query = "SELECT number, text, link FROM audit_line WHERE number BETWEEN ? AND ? ORDER BY number"
            return db.execute(query, (first - 1, first)).fetchall()

        rows = [Line(*row) for row in await self._database.run(read)]
        if len(rows) == 2:
            self._chain.drop_before(rows[1], rows[0].link)

    def _read_all(self, db: sqlite3.Connection) -> tuple[int, list[Finding], Line | None, bytes | None]:
        """How many lines there are, what is wrong with them, the last one, and the seal; off the loop."""
        lines = [Line(*row) for row in db.execute("SELECT number, text, link FROM audit_line ORDER BY number")]
        row = db.execute("SELECT record FROM audit_head").fetchone()
        head = row[0] if row else None
        return len(lines), verify(lines, head, self._own), lines[-1] if lines else None, head
