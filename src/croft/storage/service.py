"""What an owner does with storage: puts contents, reads them, and keeps the list of files.

`putting` puts contents under a rule, `read` reads them; `commit` changes the list of files, all at once or not at all.
The list is stored like any content; its head, signed by this device, is on disk here and there before a change counts.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import msgspec
from msgspec.structs import replace as replace_fields

from croft.errors import CroftError, Failed, NotFound, Refused, Usage
from croft.model.ids import PeerId
from croft.ports import Clock, Database, Entropy, Offload
from croft.storage.contents import BytesSource, Putting, Reading
from croft.storage.file_list import FileList
from croft.storage.formats import (
    FORMAT,
    Child,
    Content,
    Entry,
    Head,
    Part,
    Root,
    Stripe,
    Version,
    check_name,
    decode_stored,
)
from croft.storage.head_book import HeadBook, Owner
from croft.storage.heads import open_head, open_root
from croft.storage.held import whole_at
from croft.storage.merging import merged, with_bounds, with_version, without_versions
from croft.storage.node_store import NodeStore
from croft.storage.placement import BoundedStripe, Place, Rule, allowed, bounds_of, choose_layout, rule_of
from croft.storage.proposing import with_taken
from croft.storage.sealing import derive
from croft.storage.share_client import Holders
from croft.storage.stripes import Buffers
from croft.storage.tending import Standing, Tending
from croft.storage.transfer import Network, Receiving
from croft.storage.upload import margin
from croft.wire.codec import encode

log = logging.getLogger(__name__)

RULE_SETTING: Final = "storage.rule"
SECRET_SETTING: Final = "storage.secret"
SYNC_EVERY_S: Final = 2.0
UNSEEN_S: Final = 86_400.0
"""What one device puts, others do not know of until it counts: so long they leave alone what nothing seems to need."""
SNAPSHOT_CHARS_MAX: Final = 100
HIDDEN: Final = b"\0"
"""What is kept beside the files is called so; no file can be."""
NOTES_EVERY_S: Final = 30.0
SNAPSHOTS: Final = HIDDEN + b"snapshots/"
NOTHING: Final[Mapping[bytes, Sequence[Version]]] = {}


class Storage:
    """The files of this peer's owner. `places` says who lends disk to this peer."""

    def __init__(
        self,
        owner: Owner,
        network: Network,
        holders: Holders,
        tending: Tending,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        offload: Offload,
    ) -> None:
        self._owner = owner
        self._id = bytes.fromhex(owner.twin)
        self._network = network
        self._tending = tending
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._offload = offload
        self._holders = holders
        self._sending = Buffers()
        self._receiving = Receiving(self._id, network, self._holders, offload, Buffers())
        self._reading = Reading(self._receiving, offload)
        self.puttings: set[Putting] = set()
        self.changing = asyncio.Lock()
        self._files: FileList | None = None
        self._head: tuple[Head, bytes] | None = None
        self._vector: dict[bytes, int] = {}
        self._synced_at = -SYNC_EVERY_S
        self._key = owner.secret
        self.heads = HeadBook(owner, network, holders, database, clock, entropy)
        self._nodes = NodeStore(database, self._reading)
        self._load = self._nodes.load
        self._noted: dict[bytes, bytes] = {}
        self.notes: Callable[[], Mapping[bytes, bytes]] = dict
        """Small things that are kept beside the files, by name: what is to be there at each change."""
        self.changed = asyncio.Event()
        self._leaf_stripes: dict[bytes, dict[bytes, BoundedStripe]] = {}

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""
        await self._tending.load()

    async def serve(self) -> None:
        """Keeps streams to holders, and notes beside the files; until cancelled."""
        try:
            await self._keep_notes()
        finally:
            self._holders.close()

    # --- contents ----------------------------------------------------------------------------------------------------

    def putting(self, rule: Rule) -> Putting:
        """Puts contents where the rule lets them: an async context manager. Raises Refused where peers are too few."""
        places = self.places()
        layout = choose_layout(places, rule)
        putting = Putting(
            rule,
            *(self._id, self._holders, self._offload, self._sending, self._entropy),
            *(layout, allowed(places, rule)),
        )
        self.puttings.add(putting)
        putting.on_exit = self.puttings.discard
        return putting

    async def parts(self, content: Content) -> list[Part]:
        """Where the bytes of a content lie. Raises CroftError."""
        return await self._reading.parts(content)

    async def stripes_of(self, content: Content) -> list[Stripe]:
        """Those in which a content lies, and the list of its parts. Raises CroftError."""
        deep = await self._reading.parts(content) if content.depth else []
        return [part.stripe for part in [*content.parts, *deep]]

    async def last_rule(self) -> Rule:
        """The rule of the last change of the list: where the list goes if nothing else is said."""
        sql = "SELECT value FROM setting WHERE name = ?"
        row = await self._database.run(lambda db: db.execute(sql, (RULE_SETTING,)).fetchone())
        return Rule() if row is None else msgspec.json.decode(row[0], type=Rule)

    def read(
        self, content: Content, offset: int = 0, size: int | None = None, *, is_bulk: bool = False
    ) -> AsyncIterator[bytes | memoryview]:
        """See `Reading.read`."""
        return self._reading.read(content, offset, size, is_bulk=is_bulk)

    async def whole_at(self, content: Content) -> frozenset[PeerId]:
        """The peers that held enough of a content, when it was put, to read all of it alone. Raises Unreachable."""
        return whole_at([*content.parts, *await self._reading.parts(content)])

    def places(self) -> Sequence[Place]:
        """Who lends disk to this peer, dead peers too; those count for less that could not prove what they hold."""
        return [
            replace(place, weight=place.weight * self._tending.standing.get(place.peer, Standing()).weight)
            for place in self._network.places()
        ]

    def standing(self, peer: PeerId) -> Standing:
        """How a peer did when it was asked for proof."""
        return self._tending.standing.get(peer, Standing())

    @property
    def found(self) -> dict[bytes, list[PeerId]]:
        """Where shares were found that were not where they had been put."""
        return self._receiving.found

    def blame(self, faults: Sequence[str]) -> None:
        """Remembers what holders were caught at."""
        self._receiving.note(faults)

    def faults(self) -> list[str]:
        """What holders were caught at since this peer started."""
        return list(self._receiving.faults)

    # --- the list of files -------------------------------------------------------------------------------------------

    async def entries(
        self, prefix: bytes = b"", *, snapshot: str = "", with_dropped: bool = False
    ) -> AsyncIterator[Entry]:
        """The files whose name begins so, in order of their names; as they are, or as they were. Raises NotFound.

        `with_dropped`: also what is left of those that were given up.
        """
        files = await self._as_of(snapshot)
        async for entry in files.entries(self._nodes.loading(files.leaves), prefix):
            if (entry.versions or with_dropped) and not entry.name.startswith(HIDDEN):
                yield entry

    async def find(self, name: bytes) -> Entry | None:
        """One file, or what is left of one that was given up."""
        return await (await self._as_of("")).find(self._load, name)

    async def entry(self, name: bytes, *, snapshot: str = "") -> Entry:
        """One file. Raises NotFound."""
        found = await (await self._as_of(snapshot)).find(self._load, name)
        if found is None or not found.versions:
            shown = name.decode(errors="replace")
            raise NotFound(f"there is no file `{shown}`", remedy="See which there are: `croft ls`.")
        return found

    async def commit(self, changes: Mapping[bytes, Version | None], putting: Putting) -> None:
        """Adds a version to each of these files; None: takes the file off the list, with all its versions.

        All of it counts once this returns. A version's number and device are set here. Raises CroftError; then nothing
        has changed.
        """
        for name in changes:
            check_name(name)
        await self._change(changes, putting)

    async def take_in(
        self, written: Mapping[bytes, Sequence[Version]], kept: Mapping[bytes, Version | None], putting: Putting
    ) -> None:
        """Adds versions that others wrote, and keeps something beside the files. Raises as `commit`."""
        for name in written:
            check_name(name)
        await self._change(with_bounds(kept, bounds_of(putting.rule)), putting, written)

    async def keep(self, changes: Mapping[bytes, Version | None], putting: Putting) -> None:
        """Keeps something beside the files, under names that no file can have, or no more. Raises as `commit`."""
        assert all(name.startswith(HIDDEN) for name in changes), "files are changed by `commit`"
        await self._change(with_bounds(changes, bounds_of(putting.rule)), putting)

    async def listing(self) -> Putting:
        """Puts the list where it was put last, or, while too few are here who may hold it then, wherever it may be."""
        rule = await self.last_rule()
        try:
            return self.putting(rule)
        except Refused:
            putting = self.putting(Rule())
            putting.rule = rule
            return putting

    async def kept(self, prefix: bytes) -> AsyncIterator[tuple[bytes, Version]]:
        """What is kept beside the files under names that begin so. Raises Unreachable, Failed, Refused."""
        files = await self._as_of("")
        async for entry in files.entries(self._load, prefix):
            if entry.versions:
                yield entry.name, entry.versions[-1]

    async def secret_for(self, purpose: str) -> bytes:
        """A secret of the owner for one purpose. Raises Refused if the key is not here yet."""
        return derive(await self._secret(), purpose)

    async def _change(
        self,
        changes: Mapping[bytes, Version | None],
        putting: Putting,
        written: Mapping[bytes, Sequence[Version]] = NOTHING,
    ) -> None:
        await self._refresh()
        async with self.changing:
            files = await self._list()
            entries: dict[bytes, Entry | None] = {}
            device, now = bytes.fromhex(self._owner.peer), self._clock.now()
            notes = await self._changed_notes()
            changes = {**changes, **await self._put_notes(notes, putting)}
            for name, version in sorted(changes.items(), key=lambda change: change[0]):
                known = await files.find(self._load, name)
                if version is not None:
                    entries[name] = with_version(known, name, replace_fields(version, device=device, at=now))
                else:
                    entries[name] = without_versions(known) if known and self.has_other_writers() else None
            for name, versions in written.items():
                entries[name] = with_taken(await files.find(self._load, name), name, versions)
            await self._assure(putting)
            await self._commit(files, entries, putting)
            self._noted.update(notes)

    async def _assure(self, putting: Putting) -> None:
        """Has holders confirm that they have what was put long ago. Raises Failed if it is gone meanwhile."""
        age_s = asyncio.get_running_loop().time() - putting.began_at
        if age_s < UNSEEN_S / 2 or not self.has_other_writers():
            return
        for stripe in putting.stripes():
            if len(await self._receiving.locate(stripe.shares)) < stripe.k:
                raise Failed(
                    "another device of yours had holders drop what this took too long to put", remedy="Put it again."
                )

    # --- small things beside the files -------------------------------------------------------------------------------

    async def _keep_notes(self) -> None:
        while True:
            await asyncio.sleep(NOTES_EVERY_S)
            if self._owner.secret is None:
                continue
            try:
                if (await self._list()).leaves and await self._changed_notes():
                    async with self.putting(await self.last_rule()) as putting:
                        await self.commit({}, putting)
            except CroftError as error:
                log.info("what is noted beside the files is not kept now: %s", error.message)

    async def _changed_notes(self) -> dict[bytes, bytes]:
        notes = self.notes()
        for name in notes.keys() - self._noted.keys():
            if (kept := await self.note(name)) is not None:
                self._noted[name] = kept
        return {name: data for name, data in notes.items() if self._noted.get(name) != data}

    async def note(self, name: bytes) -> bytes | None:
        """What is kept beside the files under a name. Raises Unreachable, Failed."""
        entry = await (await self._list()).find(self._load, HIDDEN + name)
        content = entry.versions[-1].content if entry is not None and entry.versions else None
        return None if content is None else await self._reading.whole(content)

    async def _put_notes(self, notes: Mapping[bytes, bytes], putting: Putting) -> dict[bytes, Version]:
        pending = {HIDDEN + name: await putting.add(BytesSource(data)) for name, data in notes.items()}
        if pending:
            await putting.finish()
        return {name: Version(0, b"", 0.0, one.size, one.content) for name, one in pending.items()}

    # --- earlier states of the list ----------------------------------------------------------------------------------

    async def take_snapshot(self, name: str) -> None:
        """Keeps the list as it is now under a name. Raises Refused if there is a snapshot of this name."""
        if name in [known async for known, _ in self.snapshots()]:
            raise Refused(f"there is a snapshot `{name}` already", remedy="Give it another name.")
        async with self.putting(await self.last_rule()) as putting:
            files = await self._as_of("")
            pending = await putting.add(BytesSource(encode(Root(FORMAT, files.top))))
            await putting.finish()
            version = Version(0, b"", 0.0, await self._count(), pending.content)
            await self._change({_snapshot(name): version}, putting)

    async def snapshots(self) -> AsyncIterator[tuple[str, Version]]:
        """Their names, and when each was taken."""
        async for name, version in self.kept(SNAPSHOTS):
            yield name.removeprefix(SNAPSHOTS).decode(), version

    async def drop_snapshot(self, name: str) -> None:
        """Forgets one; what only it needed is collected later. Raises NotFound."""
        await self._open_snapshot(name)
        async with self.putting(await self.last_rule()) as putting:
            await self._change({_snapshot(name): None}, putting)

    async def _as_of(self, snapshot: str) -> FileList:
        await self._refresh()
        return await self._open_snapshot(snapshot) if snapshot else await self._list()

    async def _open_snapshot(self, name: str) -> FileList:
        found = await (await self._list()).find(self._load, _snapshot(name))
        content = found.versions[-1].content if found is not None and found.versions else None
        if content is None:
            raise NotFound(f"there is no snapshot `{name}`", remedy="See which there are: `croft snapshot list`.")
        return await self._open_root(content)

    async def _open_root(self, content: Content) -> FileList:
        root = decode_stored(await self._reading.whole(content), Root)
        return await FileList.open(await self._secret(), root.top, self._load)

    # --- other devices of the owner ----------------------------------------------------------------------------------

    async def knows_list(self) -> bool:
        """Whether this device has heard of a list of the owner's files, without asking anybody. Raises CroftError."""
        await self._list()
        return bool(self._vector)

    async def sync(self) -> None:
        """Takes in what other devices of the owner changed, as far as peers that are up know it. Raises CroftError."""
        async with self.changing:
            await self._sync()

    async def recover(self) -> int:
        """On a new device of an owner whose others are gone: takes in the lists of files that peers hold.

        Returns how many files there are. Raises:
            NotFound: no peer that is up holds a list. Refused: there are files here already, or the key is not.
        """
        await self._list()
        if self._head is not None:
            raise Refused("this device has files already", remedy="Recover on a fresh one.")
        await self.sync()
        if not (await self._list()).leaves:
            raise NotFound(
                "no peer that is up holds a list of your files",
                remedy="Peers that do may be off: see `croft peers`, and try again: `croft recovery files`.",
            )
        self.changed.set()
        return await self._count()

    async def _count(self) -> int:
        return len([entry async for entry in self.entries() if entry.versions[-1].content is not None])

    async def node_keys(self) -> set[bytes]:
        """Of the contents in which the list lies now."""
        return {node.content.key for node in (await self._list()).nodes}

    def has_other_writers(self) -> bool:
        """Whether other devices change the list too."""
        return len(self._vector) > 1 or self._network.has_other_devices()

    async def _refresh(self) -> None:
        """Syncs if there may be something to take in and the last time is a while ago; bears with failures."""
        await self._list()
        now = asyncio.get_running_loop().time()
        is_alone = self._head is not None and not self._network.has_other_devices()
        if not self.heads.is_behind and (is_alone or now - self._synced_at < SYNC_EVERY_S):
            return
        try:
            await self.sync()
        except CroftError as error:
            log.info("what other devices changed is not known yet: %s", error.message)

    async def _sync(self) -> None:
        files = await self._list()
        for head, record in await self.heads.newest():
            if head.sequence <= self._vector.get(head.device, 0):
                continue
            secret = await self._secret()
            other = await FileList.open(secret, open_root(secret, head.sealed).top, self._load)
            vector = dict(head.vector)
            if all(vector.get(device, 0) >= count for device, count in self._vector.items()):
                self._files = files = other
                self._vector = vector
                await self._keep(head, record)
                self.changed.set()
                continue
            changes = await self._differences(files, other)
            for device, count in vector.items():
                self._vector[device] = max(count, self._vector.get(device, 0))
            async with self.putting(await self.last_rule()) as putting:
                await self._commit(files, changes, putting)
            files = await self._list()
            await self._keep(head, record)
        self._synced_at = asyncio.get_running_loop().time()
        self.heads.is_behind = False

    async def _differences(self, mine: FileList, theirs: FileList) -> dict[bytes, Entry | None]:
        """What is to change in this list so that it takes in another one."""
        known = {leaf.digest for leaf in mine.leaves}
        changes: dict[bytes, Entry | None] = {}
        for leaf in theirs.leaves:
            if leaf.digest in known:
                continue
            for entry in await theirs.entries_of(self._load, leaf):
                here = await mine.find(self._load, entry.name)
                both = merged(here, entry)
                if both != here:
                    changes[entry.name] = both
        return changes

    async def _keep(self, head: Head, record: bytes) -> None:
        row = (head.device, head.sequence, record)
        sql = "INSERT OR REPLACE INTO storage_head VALUES (?, ?, ?)"
        await self._database.run(lambda db: db.execute(sql, row).rowcount)
        if head.device.hex() == self._owner.peer:
            self._head = head, record

    async def _commit(self, files: FileList, entries: Mapping[bytes, Entry | None], putting: Putting) -> None:
        nodes: dict[bytes, bytes] = {}

        async def store(plains: Sequence[bytes]) -> list[Content]:
            pending = [await putting.add(BytesSource(plain)) for plain in plains]
            await putting.finish()
            made = [one.content for one in pending]
            nodes.update((content.key, plain) for content, plain in zip(made, plains, strict=True))
            return made

        changed = await files.updated(entries, self._load, store)
        last = self._head[1] if self._head else b""
        record, head = await self.heads.sign(changed.top, await self._secret(), self._vector, last)
        # So many keep it that it survives the loss of as many holders as a share does.
        peers = [place.peer for place in putting.chosen]
        await self.heads.tell(record, peers, min(len(peers), margin(putting.layout) + 1))
        row = (head.device, head.sequence, record)
        rule = (RULE_SETTING, msgspec.json.encode(putting.rule))

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", rule)
            db.execute("INSERT OR REPLACE INTO storage_head VALUES (?, ?, ?)", row)
            db.executemany("INSERT OR REPLACE INTO storage_node VALUES (?, ?)", list(nodes.items()))

        await self._database.run(write)
        self._files, self._head, self._vector = changed, (head, record), dict(head.vector)
        self.heads.may_be_ahead = False
        self.changed.set()

    async def settle(self) -> None:
        """Puts a head above any of this device that peers may keep though its change does not count: nobody takes that
        in any more, so what it alone needs may go. Raises CroftError."""
        await self._list()
        if await self.heads.is_ahead(self._vector.get(bytes.fromhex(self._owner.peer), 0)):
            async with await self.listing() as putting:
                await self._change({}, putting)

    # --- what upkeep needs to know -----------------------------------------------------------------------------------

    async def head_record(self) -> bytes:
        """The newest head of this device, as holders keep it; empty if there is none."""
        await self._list()
        return self._head[1] if self._head else b""

    async def stripes(self) -> dict[bytes, Stripe]:
        """All that some version of a file, or the list of files, needs, by id. Raises CroftError."""
        return {name: stripe for name, (stripe, _) in (await self.bounded_stripes()).items()}

    async def bounded_stripes(self) -> dict[bytes, BoundedStripe]:
        """The same, each with the rule that says who may hold it. Raises CroftError."""
        known, self._leaf_stripes = self._leaf_stripes, {}
        return await self._stripes_of(await self._list(), await self.last_rule(), known)

    async def _stripes_of(
        self, files: FileList, rule: Rule, known: Mapping[bytes, dict[bytes, BoundedStripe]] | None = None
    ) -> dict[bytes, BoundedStripe]:
        stripes: dict[bytes, BoundedStripe] = {}

        async def add(content: Content, rule: Rule, to: dict[bytes, BoundedStripe]) -> None:
            to.update((stripe.id, (stripe, rule)) for stripe in await self.stripes_of(content))

        for node in files.nodes:
            await add(node.content, rule, stripes)
        for leaf in files.leaves:
            found = (known or {}).get(leaf.digest)
            if found is None:
                found = {}
                for entry in await files.entries_of(self._load, leaf):
                    for version in entry.versions:
                        if version.content is not None:
                            await add(version.content, rule_of(version.bounds), found)
                            if entry.name.startswith(SNAPSHOTS):
                                found |= await self._stripes_of(await self._open_root(version.content), rule)
            self._leaf_stripes[leaf.digest] = found
            stripes.update(found)
        return stripes

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _secret(self) -> bytes:
        """The secret of the owner's files. Raises Refused if it is not here, and no other device tells it now."""
        if self._key is None:
            sql = "SELECT value FROM setting WHERE name = ?"
            row = await self._database.run(lambda db: db.execute(sql, (SECRET_SETTING,)).fetchone())
            self._key = row[0] if row is not None else None
        if self._key is None and (told := await self._network.secret_of_own_devices()) is not None:
            pair = (SECRET_SETTING, told)
            sql = "INSERT OR REPLACE INTO setting VALUES (?, ?)"
            await self._database.run(lambda db: db.execute(sql, pair).rowcount)
            self._key = told
        if self._key is None:
            raise Refused(
                "the key of your files is not on this device yet",
                remedy="Start the device on which you made your identity; this one asks it.",
            )
        return self._key

    async def _list(self) -> FileList:
        if self._files is not None:
            return self._files
        secret = await self._secret()
        sql = "SELECT record FROM storage_head"
        rows = await self._database.run(lambda db: db.execute(sql).fetchall())
        heads = [(open_head(record), record) for (record,) in rows]
        own = [pair for pair in heads if pair[0].device.hex() == self._owner.peer]
        top: Iterable[Child] = ()
        for head, record in [*own, *(pair for pair in heads if pair not in own)]:
            vector = dict(head.vector)
            if all(vector.get(device, 0) >= count for device, count in self._vector.items()):
                top, self._vector = open_root(secret, head.sealed).top, vector
            if head.device.hex() == self._owner.peer:
                self._head = head, record
        self._files = await FileList.open(secret, list(top), self._load)
        return self._files


def _snapshot(name: str) -> bytes:
    if not name or len(name) > SNAPSHOT_CHARS_MAX or not name.isprintable():
        raise Usage("a snapshot needs a name", remedy=f"Give it one of up to {SNAPSHOT_CHARS_MAX} letters.")
    return SNAPSHOTS + name.encode()
