"""The owner's backups: which there are, running them when they are due, and never one of them twice at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from croft.errors import Busy, ConnectionLost, CroftError, Failed, NotFound, Refused, Usage
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.node.backup_run import BackupRun
from croft.node.health import Health
from croft.overlay.service import Overlay
from croft.ports import Clock, Database, Entropy, Offload
from croft.storage.backup_formats import DEFINITIONS, Definition, StoreName
from croft.storage.backup_schedule import due_at
from croft.storage.backup_store import BackupStore
from croft.storage.formats import decode_stored
from croft.storage.kept_records import KeptRecords
from croft.storage.placement import Rule, allowed, choose_layout, parse_layout
from croft.storage.retention import kept
from croft.storage.service import Storage

log = logging.getLogger(__name__)

LOOK_S: Final = 5.0
SETTLE_S: Final = 60.0
"""So long after the start, a run waits until every peer that may hold it is here."""
PRUNE_EVERY_S: Final = 86_400.0
NOBODY: Final = Rule(on=(PeerId("0" * 64),))
FRIENDS: Final = "friends"
COMMUNITY_MARK: Final = "community:"


class LastRun(msgspec.Struct, frozen=True, array_like=True):
    """How the last run of a backup ended; `ended_at` 0: it did not, or not yet. Kept on this disk."""

    began_at: float
    ended_at: float = 0.0
    error: str = ""
    remedy: str = ""
    number: int = 0
    files: int = 0
    size_bytes: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    read_bytes: int = 0
    new_bytes: int = 0
    sent_bytes: int = 0
    unreadable: int = 0
    torn: int = 0
    named_unreadable: Sequence[str] = ()
    named_torn: Sequence[str] = ()
    pruned_at: float = 0.0


Watcher = Callable[[int, int], None]


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[LastRun]
    watchers: list[Watcher] = field(default_factory=list)


class Backups:
    """Of this device, and a view of those of the owner's others. `friends`: people whom the owner trusts.

    `never`: folders of this machine that are part of no backup.
    """

    def __init__(
        self,
        storage: Storage,
        overlay: Overlay,
        friends: Callable[[], Iterable[TwinId]],
        health: Health,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        offload: Offload,
        never: Sequence[bytes] = (),
    ) -> None:
        self._storage = storage
        self._overlay = overlay
        self._friends = friends
        self._health = health
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._offload = offload
        self._never = never
        self._device = bytes.fromhex(overlay.own.peer)
        self._stores: dict[StoreName, BackupStore] = {}
        self._records = KeptRecords(storage, database)
        self._definitions: dict[StoreName, Definition] = {}
        self._unknown: dict[StoreName, Failed] = {}
        self._running: dict[str, _Running] = {}
        self._waits: dict[StoreName, str] = {}
        self._arriving: set[StoreName] = set()
        self._changed = asyncio.Event()

    async def serve(self) -> None:
        """Runs backups when they are due, one after the other, so that they leave room for others; until cancelled."""
        began_at = asyncio.get_running_loop().time()
        while True:
            names = await self._own_names()
            is_settling = asyncio.get_running_loop().time() - began_at < SETTLE_S
            for name in names:
                try:
                    await self._run_if_due(name, is_settling)
                except CroftError as error:
                    log.info("whether %s is due is not known now: %s", name.name, error.message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if names else None):
                    await self._changed.wait()
            self._changed.clear()

    # --- which there are ---------------------------------------------------------------------------------------------

    def is_own(self, name: StoreName) -> bool:
        """Whether it is this device's."""
        return name.device == self._device

    async def all(self) -> dict[StoreName, Definition]:
        """Every backup of the owner, those of this device first. Raises CroftError."""
        found: dict[StoreName, Definition] = {}
        unknown: dict[StoreName, Failed] = {}
        async for place, data in self._records.below(DEFINITIONS):
            name = StoreName.of_definition(place)
            try:
                found[name] = decode_stored(data, Definition)
            except Failed as newer:
                unknown[name] = newer  # the others, and all that is stored, are none the worse for it
        self._definitions, self._unknown = found, unknown
        order = sorted(found, key=lambda name: (name.device != self._device, name.name, name.device))
        return {name: found[name] for name in order}

    async def find(self, text: str) -> tuple[StoreName, Definition]:
        """The backup that is called so here: by its name, or DEVICE:NAME. Raises NotFound, Usage."""
        everything = await self.all()
        device, colon, last = text.rpartition(":")
        fit = [
            name
            for name, definition in everything.items()
            if name.name == last and (not colon or device in (definition.device_name, name.device.hex()))
        ]
        fit = [name for name in fit if self.is_own(name)] if len(fit) > 1 and not colon else fit
        if len(fit) > 1:
            raise Usage(f"several devices have a backup `{last}`", remedy="Say whose: DEVICE:NAME, as the list shows.")
        if not fit:
            if newer := next((error for name, error in self._unknown.items() if name.name == last), None):
                raise newer
            raise NotFound(f"there is no backup `{text}`", remedy="See which there are: `croft backup list`.")
        return fit[0], everything[fit[0]]

    async def store(self, name: StoreName) -> BackupStore:
        """What is stored of it."""
        if name not in self._stores:
            self._stores[name] = await BackupStore.open(self._storage, self._database, name)
        return self._stores[name]

    async def define(self, text: str, definition: Definition) -> StoreName:
        """One more backup of this device. Raises Busy if there is one of this name."""
        name = StoreName(self._device, text)
        if name in await self.all() or name in self._unknown:
            raise Busy(f"there is a backup `{text}` already", remedy="Give this one another name: --name NAME.")
        async with self._coming(name):
            await (await self.store(name)).define(definition, self.rule(definition))
        return name

    async def redefine(self, name: StoreName, definition: Definition) -> None:
        """Changes what is backed up of one of this device; what is stored stays. Raises Refused."""
        if not self.is_own(name):
            raise Refused("this is the backup of another device", remedy="Change it there.")
        await (await self.store(name)).define(definition, self.rule(definition))
        await self.all()
        self._changed.set()

    async def remove(self, name: StoreName, definition: Definition) -> None:
        """Drops it with all that is stored. Raises Busy, Refused."""
        self._refuse_if_up(name, definition, "Remove it there.")
        store = await self.writable(name)
        async with store.writing:
            await store.remove(await self._storage.last_rule())
        self._definitions.pop(name, None)
        self._health.clear(_warning(name.name))
        await self._forget_run(name)

    async def adopt(self, name: StoreName, text: str, definition: Definition) -> StoreName:
        """Makes the backup of a device that is gone one of this device; nothing is sent again. Raises Busy, Refused."""
        if self.is_own(name):
            raise Refused("this is a backup of this device already")
        self._refuse_if_up(name, definition, "Go on with it there.")
        new = StoreName(self._device, text)
        if new in await self.all() or new in self._unknown:
            raise Busy(f"there is a backup `{text}` already", remedy="Give this one another name: --name NAME.")
        adopted = msgspec.structs.replace(definition, device_name=self._overlay.own.name)
        store = await self.store(name)
        async with store.writing, self._coming(new):
            await store.move(new, adopted, self.rule(adopted))
        self._definitions.pop(name, None)
        return new

    def _refuse_if_up(self, name: StoreName, definition: Definition, remedy: str) -> None:
        if not self.is_own(name) and self._overlay.is_alive(PeerId(name.device.hex())):
            raise Refused(
                f"this is the backup of {definition.device_name}, which is up and may be running it", remedy=remedy
            )

    async def writable(self, name: StoreName) -> BackupStore:
        """Its store, which no run writes now. Raises Busy."""
        if self.is_running(name):
            raise Busy(f"`{name.name}` is running", remedy="Wait until that is done: `croft backup list`.")
        return await self.store(name)

    def rule(self, definition: Definition) -> Rule:
        """Who may hold it now. Raises Refused if nobody may."""
        layout = parse_layout(definition.keep) if definition.keep else None
        if not definition.to:
            return Rule(layout=layout)
        overlay, friends = self._overlay, frozenset(self._friends())
        peers: list[PeerId] = []
        for word in definition.to:
            if word == FRIENDS:
                peers += [member.peer for member in overlay.members() if member.twin in friends]
            elif word.startswith(COMMUNITY_MARK):
                community = CommunityId(word.removeprefix(COMMUNITY_MARK))
                peers += [member.peer for member in overlay.community_members(community)]
            else:
                peers.append(PeerId(word))
        peers = [peer for peer in dict.fromkeys(peers) if peer != overlay.own.peer]
        if not peers:
            raise Refused(
                "nobody is here who may hold this backup",
                remedy="See who is: `croft peers`, and whom you trust: `croft contacts`.",
            )
        return Rule(on=tuple(peers), layout=layout)

    async def rules(self) -> dict[bytes, Rule]:
        """Where each stripe of each backup may be. Raises CroftError."""
        found: dict[bytes, Rule] = {}
        for name, definition in (await self.all()).items():
            try:
                rule = self.rule(definition)
            except Refused:
                rule = NOBODY
            async for _, version in (await self.store(name)).packs():
                assert version.content is not None, "a pack has a content"
                parts = [*version.content.parts, *await self._storage.parts(version.content)]
                found.update((part.stripe.id, rule) for part in parts)
        return found

    # --- running -----------------------------------------------------------------------------------------------------

    def is_running(self, name: StoreName) -> bool:
        """Whether it runs now."""
        return self.is_own(name) and name.name in self._running

    def waits(self, name: StoreName) -> str:
        """What a run that is due waits for; empty: it waits for nothing."""
        return self._waits.get(name, "")

    async def next_at(self, name: StoreName, definition: Definition) -> float | None:
        """When it runs next; None: only when it is told to."""
        if not definition.every_s or not self.is_own(name):
            return None
        return await self._due_at(name, definition)

    async def run(
        self,
        name: StoreName,
        watcher: Watcher = lambda files, size: None,
        *,
        is_attended: bool = True,
        is_anew: bool = False,
    ) -> LastRun:
        """Runs it, or watches if it runs already. Raises CroftError.

        A run ends with whoever started it by this call; one that was only watched goes on. What was not `is_attended`
        when it ended is caught up at the next start. `is_anew`: everything is read and sent.
        """
        if not self.is_own(name):
            raise Refused("this is the backup of another device", remedy="Run it there; here it can be restored.")
        running = self._running.get(name.name)
        if running is not None:
            running.watchers.append(watcher)
            try:
                return await asyncio.shield(running.task)
            except asyncio.CancelledError:
                if running.task.cancelled():
                    raise _stopped() from None
                raise
        watchers = [watcher]
        task = asyncio.create_task(self._run(name, watchers, is_anew), name="backup.run")
        self._running[name.name] = _Running(task, watchers)
        try:
            return await task  # who is cancelled here cancels it
        except asyncio.CancelledError:
            if is_attended:
                await self._note_stopped(name)
            raise
        finally:
            self._running.pop(name.name, None)

    async def last_run(self, name: StoreName) -> LastRun | None:
        """How the last one ended."""
        if not self.is_own(name):
            return None
        sql = "SELECT record FROM backup_run WHERE name = ?"
        row = await self._database.run(lambda db: db.execute(sql, (name.name,)).fetchone())
        last = None if row is None else msgspec.msgpack.decode(row[0], type=LastRun)
        return last if last is not None and last.began_at else None

    async def _run(self, name: StoreName, watchers: list[Watcher], is_anew: bool) -> LastRun:
        _, definition = await self.find(f"{name.device.hex()}:{name.name}")
        before = await self.last_run(name)
        pruned_at = before.pruned_at if before else 0.0
        last = LastRun(self._clock.now(), pruned_at=pruned_at)
        await self._note_run(name, last)

        def tell(files: int, size: int) -> None:
            for watcher in list(watchers):
                try:
                    watcher(files, size)
                except ConnectionLost:
                    watchers.remove(watcher)  # whoever looked on has gone

        store = await self.store(name)
        rule = self.rule(definition)
        try:
            async with store.writing:
                run = BackupRun(
                    *(store, definition, rule, self._never),
                    *(self._clock, self._entropy, self._offload, tell),
                    is_anew=is_anew,
                )
                done = await run.run()
                counts = done.counts
                last = LastRun(
                    *(last.began_at, self._clock.now(), "", "", done.number, counts.files, counts.size_bytes),
                    *(counts.new, counts.changed, counts.unchanged, counts.read_bytes),
                    *(done.new_bytes, done.sent_bytes, counts.unreadable, counts.torn),
                    *(counts.named_unreadable, counts.named_torn, pruned_at),
                )
                await self._note_run(name, last)
                last = await self._tidy(store, definition, rule, last)
        except CroftError as error:
            failed = msgspec.structs.replace(last, ended_at=self._clock.now(), error=error.message, remedy=error.remedy)
            await self._note_run(name, failed)
            raise
        self._health.clear(_warning(name.name))
        return last

    async def _tidy(self, store: BackupStore, definition: Definition, rule: Rule, last: LastRun) -> LastRun:
        """Forgets what the policy lets go; what only that needed goes once a day."""
        if not await self.forget(store, definition, rule) or last.ended_at - last.pruned_at < PRUNE_EVERY_S:
            return last
        try:
            await store.prune(rule, self._clock, self._entropy)
        except CroftError as error:
            log.warning("%s is not pruned now: %s", store.name.name, error.message)
            return last
        pruned = msgspec.structs.replace(last, pruned_at=self._clock.now())
        await self._note_run(store.name, pruned)
        return pruned

    async def forget(self, store: BackupStore, definition: Definition, rule: Rule) -> list[int]:
        """Forgets the snapshots that the policy does not keep; their numbers."""
        if definition.policy.keeps_everything:
            return []
        times = {number: (await store.snapshot(number)).at for number in await store.numbers()}
        gone = sorted(times.keys() - kept(definition.policy, times))
        await store.forget(gone, rule)
        return gone

    async def prune(self, name: StoreName, definition: Definition) -> tuple[list[int], int, int, int]:
        """Forgets what the policy lets go, and drops what nothing needs any more.

        Returns the numbers of what was forgotten, how many packs were dropped, and written anew, and how many bytes
        less there are in packs. Raises CroftError.
        """
        if not self.is_own(name):
            raise Refused("this is the backup of another device", remedy="Prune it there, or remove it as a whole.")
        store, rule = await self.writable(name), self.rule(definition)
        async with store.writing:
            forgotten = await self.forget(store, definition, rule)
            pruned = await store.prune(rule, self._clock, self._entropy)
        return forgotten, pruned.packs_dropped, pruned.packs_rewritten, pruned.freed_bytes

    # --- when it is due ----------------------------------------------------------------------------------------------

    async def _due_at(self, name: StoreName, definition: Definition) -> float:
        last, now = await self.last_run(name), self._clock.now()
        if last is None:
            return due_at(definition.every_s, now, 0.0, is_whole=False, is_interrupted=False)
        if self.is_running(name):
            return last.began_at + definition.every_s
        is_over = last.ended_at > 0
        return due_at(
            definition.every_s,
            now,
            last.began_at,
            is_whole=is_over and not last.error,
            is_interrupted=not is_over,
        )

    async def _run_if_due(self, name: StoreName, is_settling: bool) -> None:
        definition = self._definitions.get(name) or (await self.all()).get(name)
        if definition is None:
            await self._forget_run(name)  # another device of the owner has removed it
            self._health.clear(_warning(name.name))
            return
        is_due = not self.is_running(name) and await self._due_at(name, definition) <= self._clock.now()
        if is_due and self._may_run(name, definition, is_settling):
            await self._run_unattended(name)

    def _may_run(self, name: StoreName, definition: Definition, is_settling: bool) -> bool:
        """Whether to wait no longer for others: with fewer of them than there are, fewer could be lost."""
        self._waits.pop(name, None)
        if not is_settling:
            return True
        try:
            rule = self.rule(definition)
            choose_layout(self._storage.places(), rule)
        except CroftError as error:
            self._waits[name] = error.message
            return False
        return all(place.is_alive for place in allowed(self._storage.places(), rule))

    async def _run_unattended(self, name: StoreName) -> None:
        try:
            await self.run(name, is_attended=False)
        except CroftError as error:
            log.warning("the backup %s failed: %s", name.name, error.message)
            self._health.warn(
                _warning(name.name), f"The backup `{name.name}` failed: {error.message}.", remedy=error.remedy
            )

    async def _own_names(self) -> list[StoreName]:
        """The backups that were defined here."""
        rows = await self._database.run(lambda db: db.execute("SELECT name FROM backup_run ORDER BY name").fetchall())
        names = [StoreName(self._device, name) for (name,) in rows]
        return [name for name in names if name not in self._arriving]

    @contextlib.asynccontextmanager
    async def _coming(self, name: StoreName) -> AsyncIterator[None]:
        """While a backup becomes one of this device. It is noted first, so that none is there that never runs."""
        self._arriving.add(name)
        try:
            await self._note_run(name, LastRun(0.0))
            yield
        except BaseException:
            await self._forget_run(name)
            raise
        finally:
            self._arriving.discard(name)
        self._changed.set()

    async def _note_stopped(self, name: StoreName) -> None:
        if (last := await self.last_run(name)) is not None and not last.ended_at:
            stopped = _stopped()
            over = msgspec.structs.replace(
                last, ended_at=self._clock.now(), error=stopped.message, remedy=stopped.remedy
            )
            await self._note_run(name, over)

    async def _note_run(self, name: StoreName, last: LastRun) -> None:
        row = (name.name, msgspec.msgpack.encode(last))
        sql = "INSERT OR REPLACE INTO backup_run VALUES (?, ?)"
        await self._database.run(lambda db: db.execute(sql, row).rowcount)

    async def _forget_run(self, name: StoreName) -> None:
        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM backup_run WHERE name = ?", (name.name,))

        if self.is_own(name):
            await self._database.run(write)


def _stopped() -> Failed:
    return Failed("the run was stopped before its end", remedy="Run it again; what was stored is not sent again.")


def _warning(name: str) -> str:
    return f"backup.{name}"
