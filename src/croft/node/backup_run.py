"""One run of a backup: reads what changed, stores what no pack has yet, and makes a snapshot of it.

Reading, looking up and sending go on side by side; work on bytes and on the disk is done in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from croft.errors import PeerMisbehaved
from croft.node.tree_reading import Batch, Counts, SeenFolder, TreeReader, Wanted
from croft.ports import Clock, Entropy, Offload
from croft.storage.backup_formats import Blob, Definition, SnapshotRecord, snapshot_name
from croft.storage.backup_index import Changes
from croft.storage.backup_packs import PackWriter
from croft.storage.backup_store import BackupStore
from croft.storage.formats import FORMAT
from croft.storage.placement import Rule
from croft.wire.codec import decode, encode

NONE_SEEN: Mapping[bytes, bytes] = {}
Tell = Callable[[int, int], None]
"""Is told now and then how many files were looked at, and how many bytes these are."""


@dataclass(frozen=True, slots=True)
class RunDone:
    """A run that came to its end."""

    number: int
    record: SnapshotRecord
    counts: Counts
    new_bytes: int
    sent_bytes: int


@dataclass(slots=True)
class BackupRun:
    """Hold the store's `writing` while it runs. `never`: folders that are no part of any backup.

    `is_anew`: everything is read and sent, whatever packs have: holders may have lost some of them for good.
    """

    store: BackupStore
    definition: Definition
    rule: Rule
    never: Sequence[bytes]
    clock: Clock
    entropy: Entropy
    offload: Offload
    tell: Tell = lambda files, size: None
    is_anew: bool = False
    _is_trusted: bool = False
    _seen: Changes = field(default_factory=Changes)
    _sent_anew: set[bytes] = field(default_factory=set)

    async def run(self) -> RunDone:
        """Raises CroftError: then there is no new snapshot, and what was stored need not be sent again."""
        began_at = self.clock.now()
        await self.store.refresh()
        numbers = await self.store.numbers()
        self._is_trusted = bool(numbers) and await self.store.index.seen_for() == numbers[-1]
        paths = list(self.definition.paths)
        reader = TreeReader(self.store.chunker, self.definition.exclude, self.never)
        async with self.store.writer(self.rule, self.clock, self.entropy) as writer:
            tree = await self._read(reader, reader.read(paths), writer)
            number = (numbers[-1] if numbers else 0) + 1
            counts = reader.counts
            took_s = max(0.0, self.clock.now() - began_at)
            record = SnapshotRecord(
                *(FORMAT, began_at, took_s, paths, tree),
                *(counts.files, counts.size_bytes, counts.unreadable, counts.torn),
            )
            self._seen.seen_for = number
            await writer.commit({snapshot_name(self.store.name.prefix, number): encode(record)}, seen=self._seen)
        return RunDone(number, record, counts, writer.new_bytes, writer.sent_bytes)

    async def _read(
        self, reader: TreeReader, steps: Generator[Wanted | Batch, Mapping[bytes, bytes], Blob], writer: PackWriter
    ) -> Blob:
        """Takes the reader from step to step; while a batch is stored, the next one is read."""
        storing: asyncio.Task[None] | None = None
        answer: Mapping[bytes, bytes] | None = None
        try:
            while True:
                step = await self.offload.run(_next, steps, answer)
                answer = NONE_SEEN
                if isinstance(step, Wanted):
                    answer = await self._seen_in(step.folders)
                    continue
                if storing is not None:
                    await storing
                if isinstance(step, Blob):
                    return step
                storing = asyncio.create_task(self._store(step, writer), name="backup.store")
                self.tell(reader.counts.files, reader.counts.size_bytes)
        finally:
            if storing is not None:
                storing.cancel()
                await asyncio.gather(storing, return_exceptions=True)

    async def _store(self, batch: Batch, writer: PackWriter) -> None:
        known = await self._known(dict.fromkeys(chunk for chunk, _, _ in batch.chunks))
        for chunk, data, is_listing in batch.chunks:
            if chunk not in known and not writer.is_fresh(chunk):
                await writer.add(chunk, data, is_listing=is_listing)
        self._seen.seen.update(batch.seen)
        self._seen.forgotten += batch.forgotten
        if self.is_anew:
            self._sent_anew.update(chunk for chunk, _, _ in batch.chunks)
        if writer.is_due:
            # Until there is a snapshot, nothing but the index says that what was seen is stored.
            self._seen.seen_for = 0
            await writer.commit(seen=self._seen)
            self._seen = Changes()

    async def _known(self, chunks: Iterable[bytes]) -> Collection[bytes]:
        return self._sent_anew if self.is_anew else await self.store.index.known(chunks)

    async def _seen_in(self, folders: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """What was seen there, but for files of which a chunk is in no pack any more."""
        seen = {} if self.is_anew else await self.store.index.seen(folders)
        if self._is_trusted or not seen:
            return seen
        return {path: encode(await self._still_stored(record)) for path, record in seen.items()}

    async def _still_stored(self, record: bytes) -> SeenFolder:
        try:
            entries = decode(record, SeenFolder, step="backup").entries
        except PeerMisbehaved:
            return SeenFolder([])  # of another version
        wanted = {chunk for entry in entries if entry.node.blob is not None for chunk in entry.node.blob.chunks}
        known = await self.store.index.known(wanted)
        return SeenFolder(
            [
                entry
                for entry in entries
                if entry.node.blob is None or (not entry.node.blob.depth and known.issuperset(entry.node.blob.chunks))
            ]
        )


def _next(
    steps: Generator[Wanted | Batch, Mapping[bytes, bytes], Blob], answer: Mapping[bytes, bytes] | None
) -> Wanted | Batch | Blob:
    """One step, in a thread. `answer` None: the first one."""
    try:
        return next(steps) if answer is None else steps.send(answer)
    except StopIteration as end:
        tree: Blob = end.value
        return tree
