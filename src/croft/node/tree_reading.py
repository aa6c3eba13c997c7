"""Reads folders for a backup: what changed since it was seen last is read and cut, the rest is not touched.

All of it is one generator, each step of which is run in a thread; between steps it asks for what was seen before, and
hands over chunks. Memory is bounded by the batch, whatever the size of a file or of a tree is.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from croft.errors import Failed, PeerMisbehaved, Usage
from croft.node.file_attributes import holes_of, kind_of, node_of, shown, spans
from croft.storage.backup_formats import CHUNKS_LISTED_MAX, DEPTH_MAX, Blob, ChunkList, Kind, Listing, Node
from croft.storage.chunking import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, Chunker
from croft.storage.formats import FORMAT
from croft.wire.codec import Message, decode, encode

BATCH_BYTES: Final = 8 << 20
BATCH_ITEMS: Final = 2_000
FOLDERS_ASKED_MAX: Final = 256
WINDOW_BYTES: Final = 4 << 20
READS_MAX: Final = 2
"""A file that changes while it is read is read so often, and then marked."""
RACY_NS: Final = 20_000_000
"""A file that was changed so short a time ago may change again without its times telling."""
FOLDER_DEPTH_MAX: Final = 200
NAMED_MAX: Final = 100
"""So many of the files that could not be read are named; the others are counted."""
LINKS_KNOWN_MAX: Final = 200_000


class SeenEntry(Message, frozen=True):
    """A name as it was: (size, mtime, ctime, inode), and what was kept of it."""

    key: tuple[int, int, int, int]
    node: Node


class SeenFolder(Message, frozen=True):
    """What was seen in a folder."""

    entries: list[SeenEntry]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The reader asks what was seen in these folders; it is sent the records that there are."""

    folders: Sequence[bytes]


@dataclass(slots=True)
class Batch:
    """What was read: (chunk, its bytes, whether of a listing), and what was seen of folders."""

    chunks: list[tuple[bytes, bytes | memoryview, bool]] = field(default_factory=list)
    seen: dict[bytes, bytes] = field(default_factory=dict)
    forgotten: list[bytes] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def is_full(self) -> bool:
        """Whether it is to be handed over."""
        return self.size_bytes >= BATCH_BYTES or len(self.chunks) + len(self.seen) >= BATCH_ITEMS


Seen = Mapping[bytes, bytes]
Steps = Generator[Wanted | Batch, Seen]


@dataclass(slots=True)
class Counts:
    """What a reader did."""

    files: int = 0
    size_bytes: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    read_bytes: int = 0
    unreadable: int = 0
    torn: int = 0
    named_unreadable: list[str] = field(default_factory=list)
    named_torn: list[str] = field(default_factory=list)


class TreeReader:
    """Reads some paths. `never`: folders that are left out whatever they are called."""

    def __init__(self, chunker: Chunker, exclude: Sequence[str], never: Sequence[bytes] = ()) -> None:
        self._chunker = chunker
        self._never = frozenset(map(os.path.realpath, never))
        names = [pattern for pattern in exclude if "/" not in pattern]
        self._excluded_names = _any_of(names)
        self._excluded_paths = _any_of([pattern for pattern in exclude if pattern not in names])
        self._batch = Batch()
        self._links: dict[tuple[int, int], Node] = {}
        self.counts = Counts()

    def read(self, paths: Sequence[bytes]) -> Generator[Wanted | Batch, Seen, Blob]:
        """The tree of these paths, each by its last part. Raises Failed if one of them cannot be read at all."""
        nodes: list[Node] = []
        for path in paths:
            place = os.path.realpath(path)
            name = root_name(path)
            refuse_own(path, self._never)
            try:
                info = os.lstat(place)
                if stat.S_ISDIR(info.st_mode):
                    os.scandir(place).close()
            except OSError as error:
                raise _no_root(path, error) from None
            seen = yield Wanted([place + b"/"])
            kept = _opened(seen.get(place + b"/")).get(name)
            entry = yield from self._entry(name, place, info, kept, 0)
            if entry is None:
                raise Failed(f"cannot back up {shown(path)}", remedy="Name a file or a folder that can be read.")
            nodes.append(entry.node)
            # A root is seen under its own path with a slash: no folder has that one.
            self._saw(place + b"/", [entry])
        tree = yield from self._blob_of(encode(Listing(FORMAT, sorted(nodes, key=lambda node: node.name))))
        yield from self._hand_over()
        return tree

    # --- inside ------------------------------------------------------------------------------------------------------

    def _folder(self, path: bytes, record: bytes | None, depth: int) -> Generator[Wanted | Batch, Seen, Blob]:
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        before = _opened(record)
        kept: list[SeenEntry] = []
        nodes: list[Node] = []
        for at in range(0, len(found), FOLDERS_ASKED_MAX):
            part = [entry for entry in found[at : at + FOLDERS_ASKED_MAX] if not self._is_excluded(entry)]
            below = [entry.path for entry in part if entry.is_dir(follow_symlinks=False)]
            seen = (yield Wanted(below)) if below else {}
            for entry in part:
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError as error:
                    self._unreadable(entry.path, error.strerror)
                    continue
                known, records = before.get(entry.name), seen.get(entry.path)
                made = yield from self._entry(entry.name, entry.path, info, known, depth, records)
                if made is not None:
                    nodes.append(made.node)
                    kept.append(made)
        names = {node.name for node in nodes if node.kind == Kind.FOLDER}
        gone = [name for name, one in before.items() if one.node.kind == Kind.FOLDER and name not in names]
        self._batch.forgotten += [os.path.join(path, name) for name in gone]
        blob = yield from self._blob_of(encode(Listing(FORMAT, nodes)))
        self._saw(path, kept, record)
        if self._batch.is_full:
            yield from self._hand_over()
        return blob

    def _entry(
        self,
        name: bytes,
        path: bytes,
        info: os.stat_result,
        known: SeenEntry | None,
        depth: int,
        record: bytes | None = None,
    ) -> Generator[Wanted | Batch, Seen, SeenEntry | None]:
        """What is kept of one name; None: it is left out."""
        kind = kind_of(info)
        if kind is None:
            return None
        key = (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)
        is_same = known is not None and known.key == key and known.node.kind == kind
        try:
            if kind is Kind.FOLDER:
                if depth >= FOLDER_DEPTH_MAX:
                    self._unreadable(path, f"it lies more than {FOLDER_DEPTH_MAX} folders deep")
                    return None
                base = known.node if known is not None and is_same else node_of(name, path, info, kind)
                if record is None and depth == 0:
                    record = (yield Wanted([path])).get(path)
                blob = yield from self._folder(path, record, depth + 1)
                return SeenEntry(key, _with(base, blob=blob))
            if kind is not Kind.FILE:
                return known if is_same else SeenEntry(key, node_of(name, path, info, kind))
            if is_same and known is not None:
                self.counts.unchanged += 1
                node: Node | None = known.node
            else:
                node = yield from self._file(name, path)
                self.counts.changed += known is not None
                self.counts.new += known is None
        except OSError as error:
            self._unreadable(path, error.strerror)
            return None
        assert node is not None, "a file that is read has a node"
        self.counts.files += 1
        self.counts.size_bytes += node.size
        return SeenEntry(key, node)

    def _file(self, name: bytes, path: bytes) -> Generator[Wanted | Batch, Seen, Node]:
        """Reads a file; again if it changed meanwhile. Raises OSError."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            for _ in range(READS_MAX):
                info = os.fstat(descriptor)
                if not stat.S_ISREG(info.st_mode):
                    raise OSError(0, "it became something else while it was looked at")
                node = node_of(name, path, info, Kind.FILE)
                if node.link is not None and node.link in self._links:
                    twin = self._links[node.link]
                    return _with(node, blob=twin.blob, holes=twin.holes, size=twin.size, is_torn=twin.is_torn)
                holes = holes_of(descriptor, info)
                blob = yield from self._bytes_of(descriptor, info.st_size, holes)
                after = os.fstat(descriptor)
                is_torn = _times(info) != _times(after)
                node = _with(node, blob=blob, holes=holes, is_torn=is_torn, size=_size(blob, holes, info.st_size))
                if not is_torn:
                    break
            if node.is_torn:
                self.counts.torn += 1
                _name(self.counts.named_torn, shown(path))
            if node.link is not None and len(self._links) < LINKS_KNOWN_MAX:
                self._links[node.link] = node
            return node
        finally:
            os.close(descriptor)

    def _bytes_of(
        self, descriptor: int, size: int, holes: Sequence[tuple[int, int]]
    ) -> Generator[Wanted | Batch, Seen, Blob]:
        if not holes and size <= CHUNK_BYTES_MIN:
            data = os.pread(descriptor, CHUNK_BYTES_MIN + 1, 0)
            if len(data) <= CHUNK_BYTES_MIN:
                self.counts.read_bytes += len(data)
                return Blob(len(data), 0, [self._chunk(data, is_listing=False)] if data else [])
        names: list[bytes] = []
        held, total = bytearray(), 0
        # What a file without holes has grown by is read too; it is then found to have changed.
        for offset, length in spans(size, holes) if holes else [(0, 1 << 62)]:
            end = offset + length
            while offset < end and (piece := os.pread(descriptor, min(WINDOW_BYTES, end - offset), offset)):
                offset += len(piece)
                total += len(piece)
                self.counts.read_bytes += len(piece)
                held += piece
                if len(held) < WINDOW_BYTES + CHUNK_BYTES_MAX:
                    continue
                used = 0
                for chunk in self._chunker.cut(held, is_end=False):
                    used += len(chunk)
                    names.append(self._chunk(bytes(chunk), is_listing=False))
                    chunk.release()
                held = held[used:]
                if self._batch.is_full:
                    yield from self._hand_over()
        names += [self._chunk(bytes(chunk), is_listing=False) for chunk in self._chunker.cut(held, is_end=True)]
        if self._batch.is_full:
            yield from self._hand_over()
        return self._listed(total, names)

    def _blob_of(self, data: bytes) -> Generator[Wanted | Batch, Seen, Blob]:
        """A listing, as chunks."""
        names = [self._chunk(chunk, is_listing=True) for chunk in self._chunker.cut(data, is_end=True)]
        if self._batch.is_full:
            yield from self._hand_over()
        return self._listed(len(data), names)

    def _listed(self, size: int, names: list[bytes]) -> Blob:
        """A blob of these chunks; a long list of them is stored itself."""
        depth = 0
        while len(names) > CHUNKS_LISTED_MAX and depth < DEPTH_MAX:
            depth += 1
            listed = encode(ChunkList(FORMAT, names))
            names = [self._chunk(chunk, is_listing=True) for chunk in self._chunker.cut(listed, is_end=True)]
        return Blob(size, depth, names)

    def _chunk(self, data: bytes | memoryview, *, is_listing: bool) -> bytes:
        name = self._chunker.name(data)
        self._batch.chunks.append((name, data, is_listing))
        self._batch.size_bytes += len(data)
        return name

    def _saw(self, path: bytes, entries: Sequence[SeenEntry], before: bytes | None = None) -> None:
        """Notes what is to be known next time: nothing of files that are read anew then."""
        until = time.time_ns() - RACY_NS
        folder = Kind.FOLDER
        kept = [
            SeenEntry(one.key, _with(one.node, blob=None)) if one.node.kind == folder else one
            for one in entries
            if one.node.kind == folder or (not one.node.is_torn and one.key[2] < until)
        ]
        record = encode(SeenFolder(kept))
        if record != before:
            self._batch.seen[path] = record

    def _hand_over(self) -> Steps:
        batch, self._batch = self._batch, Batch()
        yield batch

    def _is_excluded(self, entry: os.DirEntry[bytes]) -> bool:
        if self._excluded_names and self._excluded_names.fullmatch(os.fsdecode(entry.name)):
            return True
        if self._excluded_paths and self._excluded_paths.fullmatch(os.fsdecode(entry.path)):
            return True
        return bool(self._never) and entry.path in self._never

    def _unreadable(self, path: bytes, reason: str | None) -> None:
        self.counts.unreadable += 1
        _name(self.counts.named_unreadable, f"{shown(path)}: {reason}")


def refuse_own(path: bytes, own_folders: Collection[bytes]) -> None:
    """Raises Usage for what the peer keeps for itself."""
    place = os.path.realpath(path)
    if any(place == own or place.startswith(own + b"/") for own in map(os.path.realpath, own_folders)):
        raise Usage(
            f"{shown(path)} is what this peer keeps for itself",
            remedy="Leave it out: your words bring it back, and its key must not be on two machines.",
        )


def root_name(path: bytes) -> bytes:
    """What a path is called in a snapshot."""
    return os.path.basename(os.path.normpath(path)) or b"root"


def _with(node: Node, **changes: object) -> Node:
    from msgspec.structs import replace

    return replace(node, **changes)


def _opened(record: bytes | None) -> dict[bytes, SeenEntry]:
    if record is None:
        return {}
    try:
        return {entry.node.name: entry for entry in decode(record, SeenFolder, step="backup").entries}
    except PeerMisbehaved:
        return {}  # of another version: all is read anew


def _size(blob: Blob, holes: Sequence[tuple[int, int]], size: int) -> int:
    """How long the file is whose bytes were read: what it was said to be may be wrong by now."""
    return size if holes else blob.size


def _times(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _any_of(patterns: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(fnmatch.translate, patterns)), re.DOTALL) if patterns else None


def _name(named: list[str], what: str) -> None:
    if len(named) < NAMED_MAX:
        named.append(what)


def _no_root(path: bytes, error: OSError) -> Failed:
    return Failed(
        f"cannot back up {shown(path)}: {error.strerror}",
        remedy="Nothing was changed. Mount it, mend its permissions, or leave it out of the backup.",
    )
