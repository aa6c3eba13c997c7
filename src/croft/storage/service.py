"""What an owner does with storage: puts contents, reads them, and keeps the list of files.

`putting` puts contents under a rule and `read` reads them; `commit` changes the list of files, all at once or not at
all. The list is stored at holders like any content; its head, signed by this device, is on this disk and at holders
before a change counts.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import msgspec

from croft.errors import CroftError, Failed, NotFound, PeerMisbehaved, Refused, Usage
from croft.identity.keys import SecretKey
from croft.model.ids import PeerId, TwinId
from croft.ports import Clock, Database, Entropy, Offload
from croft.storage.contents import BytesSource, Putting, Reading
from croft.storage.file_list import FileList
from croft.storage.formats import (
    FORMAT,
    NAME_BYTES_MAX,
    Child,
    Content,
    Entry,
    Head,
    Node,
    Part,
    Root,
    Stripe,
    StripeList,
    Version,
    decode_node,
    decode_stored,
)
from croft.storage.heads import digest, open_head, open_root, seal_root, sign_head
from croft.storage.held import whole_at
from croft.storage.messages import (
    SHARES_ASKED_MAX,
    SHARES_LISTED_MAX,
    Done,
    Dropped,
    DropShares,
    Heads,
    Listed,
    ListShares,
    PutHead,
    ReadHeads,
    Watch,
)
from croft.storage.permits import LIFETIME_S, Permit, sign_permit
from croft.storage.placement import Place, Rule, allowed, choose_layout
from croft.storage.sealing import NONCE_BYTES
from croft.storage.share_client import Holders
from croft.storage.stripes import Buffers
from croft.storage.tending import Report, Standing, Tending, Ward
from croft.storage.transfer import Network, Receiving
from croft.storage.upload import margin
from croft.storage.wards import Watchman
from croft.wire.codec import encode

log = logging.getLogger(__name__)

T = TypeVar("T")

HEAD_S_MAX: Final = 10.0
RULE_SETTING: Final = "storage.rule"
HIDDEN: Final = b"\0"
"""With which names begin that are no files; no file's can."""
NOTES_EVERY_S: Final = 30.0
LIST_SETTING: Final = "storage.stripes"
DELEGATES: Final = 3
"""Peers that look after the data while this one is away."""
SETTLE_S: Final = 2.0
"""Changes in so short a time are told to delegates at once."""
VERSIONS_MAX: Final = 64
"""Of one file; older ones are given up."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files these are, and the device that speaks. `secret`: derived from the twin's entropy; None: not here."""

    twin: TwinId
    peer: PeerId
    device: SecretKey
    certificate: bytes
    secret: bytes | None


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
        self._puttings: set[Putting] = set()
        self._changing = asyncio.Lock()
        self._files: FileList | None = None
        self._head: tuple[Head, bytes] | None = None
        self._signed = 0
        self._noted: dict[bytes, bytes] = {}
        self.notes: Callable[[], Mapping[bytes, bytes]] = dict
        """Small things that are kept beside the files, by name: what is to be there at each change."""

        self._listed = asyncio.Event()
        self._kept_list: Content | None = None
        self._leaf_stripes: dict[bytes, dict[bytes, Stripe]] = {}
        self._mending = asyncio.Lock()
        self.report: Report | None = None
        self.rebuilt = 0

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""
        await self._tending.load()

    async def serve(self) -> None:
        """Looks after what is stored, and tells delegates what there is to look after; until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._tell_delegates(), name="storage.tell")
                tasks.create_task(self._tend(), name="storage.tend")
                tasks.create_task(self._keep_notes(), name="storage.notes")
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
        self._puttings.add(putting)
        putting.on_exit = self._puttings.discard
        return putting

    async def parts(self, content: Content) -> list[Part]:
        """Where the bytes of a content lie. Raises CroftError."""
        return await self._reading.parts(content)

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

    async def held_at(self, peer: PeerId, timeout_s: float) -> tuple[int, int, int] | None:
        """How many shares a peer holds for this owner, the bytes they take, and the room there is; None: no answer."""
        count, after = 0, b""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    listed = await self._holders[peer].ask(ListShares(after), Listed)
                    count += len(listed.shares)
                    if len(listed.shares) < SHARES_LISTED_MAX:
                        return count, listed.held_bytes, listed.room_bytes
                    after = listed.shares[-1][0]
        except (CroftError, TimeoutError):
            return None

    def faults(self) -> list[str]:
        """What holders were caught at since this peer started."""
        return list(self._receiving.faults)

    # --- the list of files -------------------------------------------------------------------------------------------

    async def entries(self, prefix: bytes = b"") -> AsyncIterator[Entry]:
        """The files whose name begins so, in order of their names."""
        files = await self._list()
        async for entry in files.entries(self._load, prefix):
            if not entry.name.startswith(HIDDEN):
                yield entry

    async def entry(self, name: bytes) -> Entry:
        """One file. Raises NotFound."""
        found = await (await self._list()).find(self._load, name)
        if found is None:
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
        async with self._changing:
            files = await self._list()
            entries: dict[bytes, Entry | None] = {}
            for name, version in changes.items():
                entries[name] = None if version is None else await self._with_version(files, name, version)
            notes = await self._changed_notes()
            entries.update(await self._note_entries(notes, putting))
            await self._commit(files, entries, putting)
            self._noted.update(notes)

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
        content = entry.versions[-1].content if entry is not None else None
        return None if content is None else await self._reading.whole(content)

    async def recover(self) -> int:
        """On a new device of an owner whose others are gone: takes in the newest list of files that a peer holds.

        Returns how many files it names. Raises:
            NotFound: no peer that is up holds a list. Refused: there are files here already, or the key is not.
        """
        async with self._changing:
            secret = self._secret()
            if (await self._list()).leaves:
                raise Refused("this device has files already", remedy="Recover on a fresh one.")
            heads = await self._heads_at_holders()
            if not heads:
                raise NotFound(
                    "no peer that is up holds a list of your files",
                    remedy="Peers that do may be off: see `croft peers`, and try again: `croft recovery files`.",
                )
            head, record = max(heads, key=lambda one: (sum(number for _, number in one[0].vector), one[0].at))
            files = await FileList.open(secret, list(open_root(secret, head.sealed).top), self._load)
            row = (head.device, head.sequence, record)
            await self._database.run(
                lambda db: db.execute("INSERT OR REPLACE INTO storage_head VALUES (?, ?, ?)", row).rowcount
            )
            self._files, self._head = files, (head, record)
            self._listed.set()
        count = 0
        async for entry in self.entries():
            count += entry.versions[-1].content is not None
        return count

    async def _heads_at_holders(self) -> list[tuple[Head, bytes]]:
        async def ask(peer: PeerId) -> list[tuple[Head, bytes]]:
            try:
                async with asyncio.timeout(HEAD_S_MAX):
                    records = (await self._holders[peer].ask(ReadHeads(), Heads)).records
                return [(open_head(record), record) for record in records]
            except (CroftError, PeerMisbehaved, TimeoutError) as error:
                log.info("%s shows no head of ours: %s", self._network.name(peer), error)
                return []

        found = [one for some in await asyncio.gather(*map(ask, self._network.alive())) for one in some]
        return [one for one in found if one[0].owner == self._id]

    async def _note_entries(self, notes: Mapping[bytes, bytes], putting: Putting) -> dict[bytes, Entry]:
        device, now = bytes.fromhex(self._owner.peer), self._clock.now()
        pending = {name: await putting.add(BytesSource(data)) for name, data in notes.items()}
        if pending:
            await putting.finish()
        return {
            HIDDEN + name: Entry(HIDDEN + name, [Version(1, device, now, one.size, one.content)])
            for name, one in pending.items()
        }

    async def _with_version(self, files: FileList, name: bytes, version: Version) -> Entry:
        known = await files.find(self._load, name)
        versions = known.versions if known is not None else []
        number = max((one.number for one in versions), default=0) + 1
        numbered = Version(
            number,
            bytes.fromhex(self._owner.peer),
            self._clock.now(),
            version.size,
            version.content,
            version.mode,
            version.mtime_ns,
        )
        return Entry(name, [*versions, numbered][-VERSIONS_MAX:])

    async def _commit(self, files: FileList, entries: Mapping[bytes, Entry | None], putting: Putting) -> None:
        nodes: dict[bytes, bytes] = {}

        async def store(plains: Sequence[bytes]) -> list[Content]:
            pending = [await putting.add(BytesSource(plain)) for plain in plains]
            await putting.finish()
            made = [one.content for one in pending]
            nodes.update((content.key, plain) for content, plain in zip(made, plains, strict=True))
            return made

        changed = await files.updated(entries, self._load, store)
        record, head = self._sign(changed.top)
        await self._tell(record, putting)
        row = (head.device, head.sequence, record)
        rule = (RULE_SETTING, msgspec.json.encode(putting.rule))

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", rule)
            db.execute("INSERT OR REPLACE INTO storage_head VALUES (?, ?, ?)", row)
            db.executemany("INSERT OR REPLACE INTO storage_node VALUES (?, ?)", list(nodes.items()))

        await self._database.run(write)
        self._files, self._head = changed, (head, record)
        self._listed.set()

    def _sign(self, top: Sequence[Child]) -> tuple[bytes, Head]:
        owner = self._owner
        before, record = self._head or (None, b"")
        # A head that holders may have seen is never signed again with something else in it.
        self._signed = sequence = max(self._signed, before.sequence if before is not None else 0) + 1
        vector = dict(before.vector) if before is not None else {}
        if before is not None and before.device.hex() != owner.peer:
            record = b""  # of another device of the owner's: this one has signed nothing yet
        device = bytes.fromhex(owner.peer)
        vector[device] = sequence
        sealed = seal_root(self._secret(), Root(FORMAT, list(top)), self._entropy.token(NONCE_BYTES))
        head = Head(
            *(FORMAT, self._id, device, sequence, digest(record) if record else b""),
            *(sorted(vector.items()), sealed, self._clock.now()),
        )
        return sign_head(owner.device, owner.certificate, head), head

    async def _tell(self, record: bytes, putting: Putting) -> None:
        """Brings a head to the peers that hold something of this change.

        Raises CroftError unless so many have it that it survives the loss of as many holders as a share does.
        """
        peers = [place.peer for place in putting.chosen]

        async def tell(peer: PeerId) -> str:
            try:
                async with asyncio.timeout(HEAD_S_MAX):
                    await self._holders[peer].ask(PutHead(record), Done)
                return ""
            except TimeoutError:
                return f"{self._network.name(peer)} does not answer"
            except CroftError as error:
                return f"{self._network.name(peer)}: {error.message}"

        problems = await asyncio.gather(*map(tell, peers))
        if problems.count("") < min(len(peers), margin(putting.layout) + 1):
            raise Failed(
                f"too few peers keep the new list of files: {'; '.join(filter(None, problems))}",
                remedy="Try again when more peers are up.",
            )

    # --- what nobody needs any more ----------------------------------------------------------------------------------

    async def collect(self) -> int:
        """Has holders drop what no file and no version needs; returns how many bytes. Raises CroftError: then nothing
        is dropped that was not known to be needless."""
        async with self._mending, self._changing:
            live = {share for stripe in (await self._stripes()).values() for share in stripe.shares}
            kept = await self._known_list()
            parts = await self._reading.parts(kept) if kept is not None else []
            live.update(share for part in [*parts, *(kept.parts if kept else [])] for share in part.stripe.shares)
            freed = 0
            for peer in self._network.alive():
                try:
                    freed += await self._collect_at(peer, live)
                except CroftError as error:
                    log.info("nothing is collected at %s: %s", self._network.name(peer), error.message)
            return freed

    async def _stripes(self) -> dict[bytes, Stripe]:
        """Every stripe that some file, some version or the list of files needs, by id. Raises CroftError."""
        files = await self._list()
        stripes: dict[bytes, Stripe] = {}

        async def add(content: Content, to: dict[bytes, Stripe]) -> None:
            deep = await self._reading.parts(content) if content.depth else []
            to.update((part.stripe.id, part.stripe) for part in [*content.parts, *deep])

        known, self._leaf_stripes = self._leaf_stripes, {}
        for node in files.nodes:
            await add(node.content, stripes)
        for leaf in files.leaves:
            found = known.get(leaf.digest)
            if found is None:
                found = {}
                for entry in await files.entries_of(self._load, leaf):
                    for version in entry.versions:
                        if version.content is not None:
                            await add(version.content, found)
            self._leaf_stripes[leaf.digest] = found
            stripes.update(found)
        return stripes

    async def _collect_at(self, peer: PeerId, live: set[bytes]) -> int:
        client, after, freed = self._holders[peer], b"", 0
        while True:
            listed = await client.ask(ListShares(after), Listed)
            flying = {share for putting in self._puttings for share in putting.shares()}
            needless = [share for share, _ in listed.shares if share not in live and share not in flying]
            for at in range(0, len(needless), SHARES_ASKED_MAX):
                dropped = await client.ask(DropShares(needless[at : at + SHARES_ASKED_MAX]), Dropped)
                freed += dropped.freed_bytes
            if len(listed.shares) < SHARES_LISTED_MAX:
                return freed
            after = listed.shares[-1][0]

    # --- looking after it --------------------------------------------------------------------------------------------

    async def tend(self) -> Report:
        """Looks at every stripe now, and mends what can be mended. Raises CroftError."""
        async with self._mending:
            stripes = list((await self._stripes()).values())
            ward = Ward(self._id, stripes, await self.last_rule())
            report = await self._tending.round(ward, self._receiving.found)
            self._receiving.note(report.caught)
            self.report = report
            self.rebuilt += report.rebuilt
            return report

    async def _tend(self) -> None:
        watch = Watchman(self._network)
        while True:
            await watch.something_to_do()
            if self._owner.secret is None:
                continue
            try:
                await self.tend()
            except CroftError as error:
                log.info("stored data is not looked after now: %s", error.message)

    async def _tell_delegates(self) -> None:
        """After a change, tells peers that are to look after the data while this one is away what there is now."""
        while True:
            await self._listed.wait()
            await asyncio.sleep(SETTLE_S)
            self._listed.clear()
            try:
                await self._tell_delegates_now()
            except CroftError as error:
                log.info("no delegate knows of the last change yet: %s", error.message)

    async def _tell_delegates_now(self) -> None:
        rule = await self.last_rule()
        async with self.putting(rule) as putting:
            async with self._changing:
                stripes = list((await self._stripes()).values())
            pending = await putting.add(BytesSource(encode(StripeList(FORMAT, stripes))))
            await putting.finish()
            kept = pending.content
            row = (LIST_SETTING, encode(kept))
            sql = "INSERT OR REPLACE INTO setting VALUES (?, ?)"
            await self._database.run(lambda db: db.execute(sql, row).rowcount)
            self._kept_list = kept
        fit = [place for place in allowed(self.places(), rule) if place.is_alive]
        fit.sort(key=lambda place: (place.domain != self._owner.twin, -place.weight, place.peer))
        delegates = [place.peer for place in fit[:DELEGATES]]
        now, owner = self._clock.now(), self._owner
        device, peers = bytes.fromhex(owner.peer), [bytes.fromhex(peer) for peer in delegates]
        permit = Permit(self._id, device, peers, [], [], True, now + LIFETIME_S)
        watch = Watch(
            int(now * 1000),
            sign_permit(owner.device, owner.certificate, permit),
            kept,
            [bytes.fromhex(peer) for peer in rule.on],
            [device, *(bytes.fromhex(peer) for peer in rule.never)],
            [bytes.fromhex(twin) for twin in rule.never_twins],
        )
        for peer in delegates:
            try:
                await self._holders[peer].ask(watch, Done)
            except CroftError as error:
                log.info("%s does not look after stored data: %s", self._network.name(peer), error.message)

    async def _known_list(self) -> Content | None:
        """The list of stripes that delegates were told of last."""
        if self._kept_list is None:
            sql = "SELECT value FROM setting WHERE name = ?"
            row = await self._database.run(lambda db: db.execute(sql, (LIST_SETTING,)).fetchone())
            self._kept_list = decode_stored(row[0], Content) if row is not None else None
        return self._kept_list

    # --- inside ------------------------------------------------------------------------------------------------------

    def _secret(self) -> bytes:
        if self._owner.secret is None:
            raise Refused(
                "the key of your files is not on this device", remedy="Use the device on which you made your identity."
            )
        return self._owner.secret

    async def _list(self) -> FileList:
        if self._files is not None:
            return self._files
        secret = self._secret()
        # What this device signed itself, else what it recovered.
        sql = "SELECT record FROM storage_head ORDER BY device <> ? LIMIT 1"
        device = bytes.fromhex(self._owner.peer)
        row = await self._database.run(lambda db: db.execute(sql, (device,)).fetchone())
        top: Iterable[Child] = ()
        if row is not None:
            head = open_head(row[0])
            top = open_root(secret, head.sealed).top
            self._head = head, row[0]
        self._files = await FileList.open(secret, list(top), self._load)
        return self._files

    async def _load(self, child: Child) -> Node:
        """A node, from this disk if it is here, else from its holders."""
        key = child.content.key
        sql = "SELECT plain FROM storage_node WHERE content = ?"
        row = await self._database.run(lambda db: db.execute(sql, (key,)).fetchone())
        if row is not None:
            return decode_node(row[0])
        plain = await self._reading.whole(child.content)
        node = decode_node(plain)
        await self._database.run(
            lambda db: db.execute("INSERT OR REPLACE INTO storage_node VALUES (?, ?)", (key, plain)).rowcount
        )
        return node


def check_name(name: bytes) -> None:
    """Raises Usage for what cannot be the name of a file."""
    if not name or len(name) > NAME_BYTES_MAX or b"\0" in name:
        raise Usage(f"a file cannot be called {name[:60]!r}", remedy=f"Names have 1 to {NAME_BYTES_MAX} bytes.")
