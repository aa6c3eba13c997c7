"""Stored files as the local API shows, puts and gets them."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from croft.compute.job_sessions import StoredInput
from croft.control import schema
from croft.control.storage_work import Progress
from croft.control.work_messages import GetDone, OpenGet, OpenPut, PutDone
from croft.errors import CroftError, NotFound, Refused, Usage
from croft.model.ids import PeerId, is_key_id
from croft.node.file_trees import (
    Attributes,
    FileSource,
    FileTarget,
    LocalFile,
    found_files,
    place_below,
    read_small,
)
from croft.node.link_desk import LinkDesk, matching, split_link
from croft.node.recovery import Recovery
from croft.storage.contents import BytesSource, Pending, PiecesSource, Putting
from croft.storage.formats import Content, Entry, Version, check_name
from croft.storage.linked_files import OpenedLink
from croft.storage.merging import conflicting
from croft.storage.placement import Layout, Rule, bounds_of, parse_layout
from croft.storage.rebalancing import Move, by_way
from croft.wire.codec import encode

if TYPE_CHECKING:
    from croft.node.assemble import Parts

SMALL_BYTES: Final = 64 << 10
SMALL_AT_ONCE: Final = 64
GETS_AT_ONCE: Final = 4
PEERS_MAX: Final = 256
STATE_S_MAX: Final = 5.0
MOVES_MAX: Final = 10_000
"""Shares that are moved at once."""
INPUTS_MAX: Final = 1_000
"""Stored files that one command may ask for."""
PIPED_MODE: Final = 0o644
FOR_S_MAX: Final = 100 * 366 * 86_400.0


Read = Callable[..., AsyncIterator[bytes | memoryview]]
"""See `croft.storage.contents.Reading.read`."""


class StorageDesk:
    """Fulfils `croft.control.storage_work.StorageDesk` and `croft.control.storage_app.Files`."""

    def __init__(
        self,
        parts: Parts,
        peers: Callable[[], list[schema.Peer]],
        contacts: Callable[[], list[schema.Contact]],
    ) -> None:
        self._parts = parts
        self._links = LinkDesk(parts, peers, contacts)
        self._storage = parts.storage
        self._upkeep = parts.upkeep
        self._offload = parts.ports.offload
        self._recovery = Recovery(parts.overlay, parts.address_book, parts.storage, parts.ports.clock)

    # --- put ---------------------------------------------------------------------------------------------------------

    async def put(self, opening: OpenPut, piped: AsyncIterator[bytes], progress: Progress) -> PutDone:
        """See `croft.control.storage_work.StorageDesk`."""
        rule = self._rule(opening)
        if not 0 <= opening.for_s <= FOR_S_MAX:
            raise Usage("a file cannot be kept for so long a time", remedy="Write it like `--for 90d`.")
        files = await self._offload.run(_found, opening.files)
        names = [file.name for file in files] or [opening.piped]
        for name in names:
            check_name(name)
        if len(set(names)) < len(names):
            raise Usage("two of these files have one name", remedy="Put them one by one, with --as.")
        is_linked = any(split_link(name) for name in names)
        if is_linked:
            if opening.for_s:
                raise Usage("a file behind a link goes when its owner says so", remedy="Put it without --for.")
            owners_rule = await self._links.rule(*self._links.one(names))  # refuses before anything is sent
            if not (rule.on or rule.never):
                rule = replace(owners_rule, layout=rule.layout)
        done, total = 0, sum(file.size for file in files) if files else -1
        made: dict[bytes, tuple[Pending, Attributes]] = {}

        def moved(size: int) -> None:
            nonlocal done
            done += size
            progress(len(made), done, total)

        async with self._storage.putting(rule) as putting:
            putting.on_progress = moved
            if opening.piped:
                source = PiecesSource(piped)
                now = self._parts.ports.clock.now()
                made[opening.piped] = await putting.add(source, has_head=True), Attributes(PIPED_MODE, int(now * 1e9))
            else:
                await self._add_all(putting, files, made)
            await putting.finish()
            putting.on_progress = lambda size: None
            until = math.ceil(self._parts.ports.clock.now() + opening.for_s) if opening.for_s else 0
            bounds = bounds_of(rule)
            changes = {
                name: Version(
                    *(0, b"", 0.0, pending.size, pending.content, attributes.mode, attributes.mtime_ns),
                    *(until, bounds),
                )
                for name, (pending, attributes) in made.items()
            }
            size = sum(pending.size for pending, _ in made.values())
            await (self._links.write if is_linked else self._storage.commit)(changes, putting)
            name_of = self._parts.overlay.name_of
            holders = {name_of(peer): count for peer, count in sorted(putting.holders.items())}
            return PutDone(
                *(len(made), size, putting.stored_bytes, str(putting.layout), putting.losses),
                *(holders, putting.missing),
            )

    async def _add_all(
        self, putting: Putting, files: Sequence[LocalFile], made: dict[bytes, tuple[Pending, Attributes]]
    ) -> None:
        small: list[LocalFile] = []

        async def add_small() -> None:
            read = await self._offload.run(read_small, list(small))
            for file, (data, attributes) in zip(small, read, strict=True):
                made[file.name] = await putting.add(BytesSource(data)), attributes
            small.clear()

        for file in files:
            if file.size < SMALL_BYTES:
                small.append(file)
                if len(small) >= SMALL_AT_ONCE:
                    await add_small()
                continue
            source = await FileSource.open(file.path, self._offload)
            try:
                made[file.name] = await putting.add(source, has_head=True), source.attributes
            finally:
                source.close()
        await add_small()

    def _rule(self, opening: OpenPut) -> Rule:
        if len(opening.on) > PEERS_MAX or len(opening.never) > PEERS_MAX:
            raise Usage("too many peers are named")
        if not all(map(is_key_id, [*opening.on, *opening.never])):
            raise Usage("peers are named by their ids here")
        never = [PeerId(peer) for peer in opening.never]
        twins = [self._parts.overlay.twin_of(peer) for peer in never]
        layout = parse_layout(opening.keep) if opening.keep else None
        return Rule(
            tuple(map(PeerId, opening.on)), tuple(never), tuple(twin for twin in twins if twin is not None), layout
        )

    # --- get ---------------------------------------------------------------------------------------------------------

    async def read(self, opening: OpenGet) -> AsyncIterator[bytes | memoryview]:
        """See `croft.control.storage_work.StorageDesk`."""
        read: Read = self._storage.read
        if (named := split_link(opening.name)) is not None:
            opened = await self._links.open(named[0])
            entry, read = _linked(opened, named[1]), opened.read
        else:
            entry = await self._storage.entry(opening.name, snapshot=opening.snapshot)
        content = _content(_version(entry, opening.number, opening.device), entry.name or opening.name)
        size = None if opening.size < 0 else opening.size
        async with aclosing(read(content, max(0, opening.offset), size)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece

    async def inputs(self, name: bytes, path: str, number: int = 0) -> list[StoredInput]:
        """See `croft.control.storage_work.StorageDesk`."""
        inputs: list[StoredInput] = []
        for place, version in await self._wanted(OpenGet(name, os.fsencode(path), number)):
            content = _content(version, place)
            at = await self._storage.whole_at(content)
            read = partial(self._storage.read, content)
            inputs.append(StoredInput(os.fsdecode(place), content.size, encode(content), at, read))
        if len(inputs) > INPUTS_MAX:
            raise Usage(f"{name.decode(errors='replace')} holds {len(inputs)} files", remedy=f"At most {INPUTS_MAX}.")
        return inputs

    async def get(self, opening: OpenGet, progress: Progress) -> GetDone:
        """See `croft.control.storage_work.StorageDesk`."""
        read: Read = self._storage.read
        if (named := split_link(opening.name)) is not None:
            opened = await self._links.open(named[0])
            wanted, read = _wanted_of_link(opened, named[1], opening), opened.read
        else:
            wanted = await self._wanted(opening)
        faults_before = len(self._storage.faults())
        done, files, total = 0, 0, sum(version.size for _, version in wanted)
        # Files of one pack come together, so that it is fetched once.
        wanted.sort(key=lambda one: _first_stripe(one[1].content))
        gate = asyncio.Semaphore(GETS_AT_ONCE)

        async def get_one(place: bytes, version: Version) -> None:
            nonlocal done, files
            async with gate:
                content = _content(version, place)
                target = FileTarget(place, replaces=opening.replaces)
                try:
                    async for piece in read(content, is_bulk=len(wanted) > 1):
                        if len(piece) < SMALL_BYTES:
                            target.write(piece)
                        else:
                            await self._offload.run(target.write, piece)
                        done += len(piece)
                        progress(files, done, total)
                    target.end(Attributes(version.mode, version.mtime_ns))
                finally:
                    target.close()
                files += 1

        try:
            async with asyncio.TaskGroup() as tasks:
                for batch in _batches(wanted, GETS_AT_ONCE):
                    running = [tasks.create_task(get_one(*one), name="file.get") for one in batch]
                    await asyncio.wait(running)
                    for task in running:
                        task.result()
        except* CroftError as errors:
            raise errors.exceptions[0] from None
        return GetDone(files, done, self._storage.faults()[faults_before:])

    async def _wanted(self, opening: OpenGet) -> list[tuple[bytes, Version]]:
        """Which files, and where each of them goes."""
        try:
            entry = await self._storage.entry(opening.name, snapshot=opening.snapshot)
            return [(opening.place, _version(entry, opening.number, opening.device))]
        except NotFound:
            prefix = opening.name.rstrip(b"/") + b"/"
            below = [entry async for entry in self._storage.entries(prefix, snapshot=opening.snapshot)]
            if not below or opening.number:
                raise
        start = len(opening.name.rstrip(b"/")) + 1
        newest = [(entry.name[start:], entry.versions[-1]) for entry in below]
        return [(place_below(opening.place, name), version) for name, version in newest if version.content is not None]

    # --- the rest ----------------------------------------------------------------------------------------------------

    async def files(self, wanted: schema.FilesWanted) -> list[schema.StoredFile]:
        """Stored files by name."""
        name = _name(wanted.name, wanted.name_hex)
        name_of = self._parts.overlay.name_of
        short = self._upkeep.report.short if self._upkeep.report is not None else {}
        shown: list[schema.StoredFile] = []
        if (named := split_link(name)) is not None:
            entries = _each(await self._links.matching(*named))
        else:
            entries = self._matching(name, wanted.snapshot)
        async for entry in entries:
            if not wanted.with_removed and entry.versions[-1].content is None:
                continue
            margin = await self._margin(entry.versions[-1].content, short) if short else None
            if margin is not None or not wanted.at_risk:
                shown.append(_shown(entry, name_of, margin))
        return shown

    async def _margin(self, content: Content | None, short: Mapping[bytes, int]) -> int | None:
        if content is None:
            return None
        stripes = [part.stripe for part in await self._storage.parts(content)]
        return min((short[stripe.id] - stripe.k for stripe in stripes if stripe.id in short), default=None)

    async def check(self) -> schema.StorageState:
        """Asks all holders now, and mends what can be mended."""
        await self._upkeep.tend()
        return await self.state()

    async def remove(self, wanted: schema.RemovalWanted) -> schema.FilesRemoved:
        """Removes files. Raises NotFound, Usage."""
        name = _name(wanted.name, wanted.name_hex)
        if (named := split_link(name)) is not None:
            return await self._links.remove(*named, wanted)
        entries = [one async for one in self._matching(name) if wanted.is_final or one.versions[-1].content is not None]
        if not entries:
            raise NotFound(f"there is no file `{wanted.name}`", remedy="See which there are: `croft ls`.")
        if not wanted.is_folder and [entry.name for entry in entries] != [name]:
            raise Usage(f"`{wanted.name}` is a folder", remedy="Remove all that is in it with -r.")
        async with self._storage.putting(await self._storage.last_rule()) as putting:
            change = None if wanted.is_final else Version(0, b"", 0.0, 0, None)
            await self._storage.commit({entry.name: change for entry in entries}, putting)
        freed = 0
        if wanted.is_final:
            try:
                freed = await self._upkeep.collect()
            except Refused:
                pass  # it is collected by itself later
        return schema.FilesRemoved(files=len(entries), freed_bytes=freed)

    async def recover(self) -> schema.Recovered:
        """Takes in what peers hold for this twin."""
        return await self._recovery.recover()

    async def collect(self) -> schema.FilesRemoved:
        """Has holders drop what no file needs."""
        return schema.FilesRemoved(files=0, freed_bytes=await self._upkeep.collect())

    async def state(self) -> schema.StorageState:
        """How the files stand, and what each holder says."""
        count = size = 0
        async for entry in self._storage.entries():
            if entry.versions[-1].content is not None:
                count, size = count + 1, size + entry.versions[-1].size
        network = self._parts.overlay
        peers = list(self._storage.places())
        held = await asyncio.gather(*(self._upkeep.held_at(place.peer, STATE_S_MAX) for place in peers))
        holders = [
            schema.HolderState(
                peer=place.peer,
                name=network.name_of(place.peer),
                is_alive=place.is_alive,
                shares=None if told is None else told[0],
                held_bytes=None if told is None else told[1],
                room_bytes=None if told is None else told[2],
                passed=self._storage.standing(place.peer).passed,
                failed=self._storage.standing(place.peer).failed,
            )
            for place, told in zip(peers, held, strict=True)
        ]
        report = self._upkeep.report
        return schema.StorageState(
            files=count,
            size_bytes=size,
            holders=holders,
            faults=self._storage.faults(),
            looked_at=report.at if report else 0.0,
            stripes=report.stripes if report else 0,
            short=len(report.short) if report else 0,
            unreadable=report.unreadable if report else 0,
            rebuilt=self._upkeep.rebuilt,
            watched=[
                schema.WatchedData(
                    twin=twin,
                    looked_at=one.at,
                    stripes=one.stripes,
                    short=len(one.short),
                    rebuilt=self._parts.wards.rebuilt.get(twin, 0),
                )
                for twin, one in self._parts.wards.reports.items()
            ],
        )

    async def rebalance(self, wanted: schema.RebalanceWanted) -> schema.Rebalanced:
        """Moves shares to where they belong now. Raises Usage, Refused."""
        if wanted.bytes_max <= 0:
            raise Usage("nothing can be moved within that limit", remedy="Say it like --limit 10G.")
        name = self._parts.overlay.name_of
        done = await self._upkeep.rebalance(MOVES_MAX, wanted.bytes_max, is_dry=wanted.is_dry)

        def shown(moves: Sequence[Move]) -> list[schema.SharesMoved]:
            return [
                schema.SharesMoved(source=name(way[0]), target=name(way[1]), why=way[2], shares=count, size_bytes=size)
                for way, (count, size) in by_way(moves).items()
            ]

        before, after = done.planned.before, done.planned.after
        return schema.Rebalanced(
            moved=shown(done.moved),
            left=shown(done.left),
            stuck=done.planned.stuck,
            peers=[
                schema.PeerFilled(name=name(peer), before_bytes=before.get(peer, 0), after_bytes=after.get(peer, 0))
                for peer in sorted(after, key=name)
            ],
            problems=list(done.problems),
        )

    async def roll_back(self, wanted: schema.RollbackWanted) -> schema.StoredFile:
        """Makes an earlier version the newest one again. Raises NotFound."""
        name = _name(wanted.name, wanted.name_hex)
        version = _version(await self._storage.entry(name), wanted.number, wanted.device)
        _content(version, name)
        async with self._storage.putting(await self._storage.last_rule()) as putting:
            await self._storage.commit({name: version}, putting)
        return _shown(await self._storage.entry(name), self._parts.overlay.name_of, None)

    async def take_snapshot(self, wanted: schema.SnapshotWanted) -> list[schema.Snapshot]:
        """Keeps the files as they are now under a name. Raises Refused, Usage."""
        await self._storage.take_snapshot(wanted.name)
        return await self.snapshots()

    async def snapshots(self) -> list[schema.Snapshot]:
        """All of them, by name."""
        return [
            schema.Snapshot(name=name, at=version.at, files=version.size)
            async for name, version in self._storage.snapshots()
        ]

    async def drop_snapshot(self, wanted: schema.SnapshotWanted) -> list[schema.Snapshot]:
        """Forgets one. Raises NotFound, Usage."""
        await self._storage.drop_snapshot(wanted.name)
        return await self.snapshots()

    async def links(self) -> list[schema.FileLink]:
        """Those that this owner made, on whatever device."""
        return await self._links.links()

    async def make_link(self, wanted: schema.LinkWanted) -> schema.FileLink:
        """Lets others read files, and write them. Raises NotFound, Usage."""
        return await self._links.make(_name(wanted.name, wanted.name_hex), wanted)

    async def revoke_link(self, wanted: schema.LinkNamed) -> schema.FileLink:
        """Has a link lead to nothing any more. Raises NotFound, Unreachable."""
        return await self._links.revoke(wanted)

    async def verify_link(self, wanted: schema.VerificationWanted) -> schema.LinkVerified:
        """Has holders prove that all behind a link is there. Raises Refused, NotFound, Unreachable."""
        return await self._links.verify(wanted)

    async def _matching(self, name: bytes, snapshot: str = "") -> AsyncIterator[Entry]:
        """The file of this name, and all below it; one after the other, as there may be very many."""
        below = name if not name or name.endswith(b"/") else name + b"/"
        async for entry in self._storage.entries(name, snapshot=snapshot):
            if entry.name == name or entry.name.startswith(below):
                yield entry


def _linked(opened: OpenedLink, below: bytes) -> Entry:
    """The file of this name behind a link. Raises NotFound."""
    if (entry := opened.entries.get(below)) is None:
        raise NotFound(
            f"there is no file `{below.decode(errors='replace')}` behind this link",
            remedy="See which there are: `croft ls LINE`.",
        )
    return entry


def _wanted_of_link(opened: OpenedLink, below: bytes, opening: OpenGet) -> list[tuple[bytes, Version]]:
    """Which files behind a link, and where each of them goes. Raises NotFound."""
    if opening.snapshot:
        raise Usage("a link leads to files as they are now", remedy="Get them without --at.")
    if below in opened.entries or opening.number or opening.device:
        return [(opening.place, _version(_linked(opened, below), opening.number, opening.device))]
    found = [name for name in matching(opened.entries, below) if name in opened.files()]
    if not found and below:
        _linked(opened, below)
    start = len(below) + 1 if below else 0
    return [(place_below(opening.place, name[start:]), opened.files()[name]) for name in found]


async def _each(entries: Iterable[Entry]) -> AsyncIterator[Entry]:
    for entry in entries:
        yield entry


def _found(files: Iterable[tuple[bytes, bytes]]) -> list[LocalFile]:
    return [file for path, name in files for file in found_files(path, name)]


def _batches(items: Sequence[tuple[bytes, Version]], size: int) -> Iterable[list[tuple[bytes, Version]]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch


def _name(name: str, name_hex: str) -> bytes:
    try:
        return bytes.fromhex(name_hex) if name_hex else os.fsencode(name)
    except (ValueError, UnicodeEncodeError):
        raise Usage("this is no name of a file") from None


def _version(entry: Entry, number: int, device: str) -> Version:
    """One version of a file; 0: the newest; put by a device, if one is named. Raises NotFound."""
    fit = [one for one in entry.versions if not device or one.device.hex() == device]
    found = next((version for version in reversed(fit) if number in (0, version.number)), None)
    if found is None:
        shown = entry.name.decode(errors="replace")
        raise NotFound(
            f"there is no version {number} of `{shown}`", remedy=f"See which there are: `croft ls --versions {shown}`."
        )
    return found


def _content(version: Version, name: bytes) -> Content:
    if version.content is None:
        shown = name.decode(errors="replace")
        raise NotFound(
            f"`{shown}` was removed", remedy=f"Earlier versions are there still: `croft ls --versions {shown}`."
        )
    return version.content


def _first_stripe(content: Content | None) -> bytes:
    return content.parts[0].stripe.shares[0] if content is not None and content.parts else b""


def _layout(content: Content | None) -> str:
    if content is None or not content.parts:
        return ""
    stripe = content.parts[0].stripe
    return _layout_name(stripe.k, stripe.n)


@cache
def _layout_name(k: int, n: int) -> str:
    return str(Layout(k, n))


def _shown(entry: Entry, name_of: Callable[[PeerId], str], margin: int | None) -> schema.StoredFile:
    text = entry.name.decode(errors="replace")
    newest = entry.versions[-1]
    return schema.StoredFile(
        name=text,
        name_hex="" if text.encode() == entry.name else entry.name.hex(),
        size_bytes=newest.size,
        at=newest.at,
        is_removed=newest.content is None,
        margin=margin,
        is_conflict=bool(conflicting(entry)),
        versions=[
            schema.StoredVersion(
                number=version.number,
                size_bytes=version.size,
                at=version.at,
                device=name_of(PeerId(version.device.hex())),
                mode=version.mode,
                mtime=version.mtime_ns / 1e9,
                is_removed=version.content is None,
                layout=_layout(version.content),
                until=version.until or None,
            )
            for version in entry.versions
        ],
    )
