"""Writes a snapshot, or part of one, into a folder as it was: modes, times, links, attributes, holes.

What is there already and right is left as it is, so that a restore that was interrupted goes on where it was. What is
there and differs is replaced only if the user says so, and that is found out before anything is written.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from croft.errors import Failed, NotFound, Refused
from croft.node.file_attributes import apply_attributes, shown, spans
from croft.node.file_trees import place_below
from croft.ports import Offload
from croft.storage.backup_formats import Blob, Kind, Node
from croft.storage.backup_packs import PackReader
from croft.storage.backup_store import BackupStore

T = TypeVar("T")

FILES_AT_ONCE: Final = 8
FILES_TOGETHER: Final = 128
PIECES_AT_ONCE: Final = 64
PROBLEMS_NAMED_MAX: Final = 100
PRIVATE_MODE: Final = 0o700
PART_MODE: Final = 0o600
SMALL_BYTES: Final = 128 << 10
_SPECIAL: Final = {Kind.FIFO: stat.S_IFIFO, Kind.CHARACTER_DEVICE: stat.S_IFCHR, Kind.BLOCK_DEVICE: stat.S_IFBLK}


@dataclass(slots=True)
class Restored:
    """What was done. `left`: files that were there and right; `problems`: what this system or user may not."""

    files: int = 0
    size_bytes: int = 0
    left: int = 0
    problems: list[str] = field(default_factory=list)


class TreeWriter:
    """Writes from one store. `tell` is told how many files and bytes are done, and how many bytes there are."""

    def __init__(
        self,
        store: BackupStore,
        reader: PackReader,
        offload: Offload,
        *,
        replaces: bool,
        tell: Callable[[int, int, int], None] = lambda files, done, total: None,
    ) -> None:
        self._store = store
        self._reader = reader
        self._offload = offload
        self._replaces = replaces
        self._tell = tell
        self._right: set[bytes] = set()
        self._links: dict[tuple[int, int], bytes] = {}
        self._total_bytes = 0
        self.done = Restored()

    async def write(self, tree: Blob, inside: bytes, into: bytes) -> Restored:
        """Writes what is at `inside` of a snapshot, or all of it if that is empty, into a folder.

        Raises:
            NotFound: nothing is there in the snapshot. Refused: something else is in the way, named.
            Unreachable, Failed: it cannot be read, or written.
        """
        nodes = await self._found(tree, inside)
        for node in nodes:
            await self._look(node, place_below(into, node.name))
        await self._in_thread(into, lambda: os.makedirs(into, exist_ok=True))
        for node in nodes:
            await self._write(node, place_below(into, node.name))
        del self.done.problems[PROBLEMS_NAMED_MAX:]
        return self.done

    async def _found(self, tree: Blob, inside: bytes) -> Sequence[Node]:
        nodes: Sequence[Node] = (await self._store.listing(self._reader, tree)).nodes
        parts = [part for part in inside.split(b"/") if part]
        for at, part in enumerate(parts):
            node = next((node for node in nodes if node.name == part), None)
            if node is None or (node.kind != Kind.FOLDER and at < len(parts) - 1):
                raise NotFound(
                    f"there is no `{shown(inside)}` in this snapshot", remedy="Leave it out to get all there is."
                )
            if at == len(parts) - 1:
                return [node]
            nodes = await self._nodes_below(node)
        return nodes

    async def _nodes_below(self, node: Node) -> Sequence[Node]:
        assert node.blob is not None, "a folder has a listing"
        return (await self._store.listing(self._reader, node.blob)).nodes

    # --- what is there already ---------------------------------------------------------------------------------------

    async def _look(self, node: Node, path: bytes) -> None:
        """Notes what is right, counts what there is to do, and refuses what would be replaced unasked."""
        if node.kind == Kind.FOLDER:
            await self._look_at_folder(path)
            for below in await self._nodes_below(node):
                await self._look(below, place_below(path, below.name))
            return
        self._total_bytes += node.blob.size if node.blob else 0
        try:
            info = os.lstat(path)
        except OSError:
            return
        if await self._is_right(node, path, info):
            self._right.add(path)
        elif not self._replaces or stat.S_ISDIR(info.st_mode):
            raise _in_the_way(path)

    async def _look_at_folder(self, path: bytes) -> None:
        try:
            info = os.lstat(path)
        except OSError:
            return
        if not stat.S_ISDIR(info.st_mode):
            raise _in_the_way(path)

    async def _is_right(self, node: Node, path: bytes, info: os.stat_result) -> bool:
        """Whether it is this very thing, bytes and all; its mode and times are set in any case."""
        if node.kind == Kind.SYMLINK:
            return stat.S_ISLNK(info.st_mode) and os.readlink(path) == node.target
        if node.kind != Kind.FILE or node.blob is None:
            return stat.S_IFMT(info.st_mode) == _SPECIAL.get(Kind(node.kind)) and info.st_rdev == node.device
        if not stat.S_ISREG(info.st_mode) or info.st_size != node.size:
            return False
        chunks = await self._reader.chunks_of(node.blob)
        places = await self._reader.places(chunks)
        sizes = [place.size for place in places]
        name = self._store.chunker.name

        def compare() -> bool:
            with open(path, "rb", buffering=0) as file:
                where = _pieces(node, sizes)
                for chunk, ranges in zip(chunks, where, strict=True):
                    data = b"".join(os.pread(file.fileno(), length, offset) for offset, length in ranges)
                    if name(data) != chunk:
                        return False
            return True

        try:
            return await self._offload.run(compare)
        except OSError:
            return False

    # --- writing -----------------------------------------------------------------------------------------------------

    async def _write(self, node: Node, path: bytes) -> None:
        if node.kind != Kind.FOLDER:
            await self._write_one(node, path)
            return
        await self._in_thread(path, partial(_make_folder, path))
        below = await self._nodes_below(node)
        together = [(one, place_below(path, one.name)) for one in below if not _goes_alone(one)]
        for at in range(0, len(together), FILES_TOGETHER):
            await self._write_together(together[at : at + FILES_TOGETHER])
        for one in filter(_goes_alone, below):
            await self._write(one, place_below(path, one.name))
        await self._offload.run(apply_attributes, path, node, self.done.problems)

    async def _write_together(self, files: Sequence[tuple[Node, bytes]]) -> None:
        """Small ones in one go, as each by itself would mostly wait for its turn; the others side by side."""
        small = [(node, path) for node, path in files if _is_small(node) and path not in self._right]
        chunks = [chunk for node, _ in small if node.blob is not None for chunk in node.blob.chunks]
        places = iter(await self._reader.places(chunks))
        ready: list[tuple[Node, bytes, list[memoryview]]] = []
        for node, path in small:
            assert node.blob is not None, "a small file has bytes"
            ready.append((node, path, [await self._reader.chunk(next(places)) for _ in node.blob.chunks]))
        await self._offload.run(_write_small, ready, self.done.problems)
        for node, path in small:
            self._count(node, path)
        gate = asyncio.Semaphore(FILES_AT_ONCE)

        async def write_one(node: Node, path: bytes) -> None:
            async with gate:
                await self._write_one(node, path)

        done = {path for _, path in small}
        writing = [asyncio.create_task(write_one(*one), name="file.write") for one in files if one[1] not in done]
        try:
            await asyncio.gather(*writing)
        finally:
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)

    async def _write_one(self, node: Node, path: bytes) -> None:
        if path in self._right:
            self.done.left += 1
            self._count(node, path)
            await self._offload.run(apply_attributes, path, node, self.done.problems)
        elif node.link is not None and (first := self._links.get(node.link)) is not None:
            await self._in_thread(path, lambda: _link(first, path))
            self.done.files += 1
        elif node.kind == Kind.FILE and node.blob is not None:
            await self._write_large(node, path, await self._reader.chunks_of(node.blob))
            self._count(node, path)
        elif await self._is_made(node, path):
            await self._offload.run(apply_attributes, path, node, self.done.problems)
            self._count(node, path)

    async def _write_large(self, node: Node, path: bytes, chunks: Sequence[bytes]) -> None:
        part = await self._in_thread(path, lambda: _Part(path, node))
        try:
            at = 0
            for first in range(0, len(chunks), PIECES_AT_ONCE):
                places = await self._reader.places(chunks[first : first + PIECES_AT_ONCE])
                sizes = [place.size for place in places]
                for place, ranges in zip(places, list(_pieces(node, sizes, at)), strict=True):
                    data = await self._reader.chunk(place)
                    await self._in_thread(path, partial(part.write, data, ranges))
                at += sum(sizes)
            await self._in_thread(path, lambda: part.end(self.done.problems))
        finally:
            part.close()

    async def _is_made(self, node: Node, path: bytes) -> bool:
        """Makes what has no bytes; whether this system and user can."""

        def make() -> None:
            if os.path.lexists(path):
                os.unlink(path)
            if node.kind == Kind.SYMLINK:
                os.symlink(node.target, path)
            else:
                os.mknod(path, _SPECIAL[Kind(node.kind)] | 0o600, node.device)

        try:
            await self._offload.run(make)
        except OSError as error:
            self.done.problems.append(f"{shown(path)}: it cannot be made: {error.strerror}")
            return False
        return True

    def _count(self, node: Node, path: bytes) -> None:
        if node.link is not None:
            self._links.setdefault(node.link, path)
        self.done.files += 1
        self.done.size_bytes += node.blob.size if node.blob else 0
        self._tell(self.done.files, self.done.size_bytes, self._total_bytes)

    async def _in_thread(self, path: bytes, work: Callable[[], T]) -> T:
        try:
            return await self._offload.run(work)
        except OSError as error:
            raise _unwritable(path, error) from None


class _Part:
    """A file that is written beside its place, and moved there once it is whole. In threads."""

    def __init__(self, path: bytes, node: Node) -> None:
        self._path = path
        self._node = node
        self._place = os.path.join(os.path.dirname(path), b"." + os.path.basename(path)[:200] + b".croft-part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._place, flags, PART_MODE)
        self._is_whole = False
        os.ftruncate(self._descriptor, node.size)

    def write(self, data: memoryview, ranges: Iterable[tuple[int, int]]) -> None:
        """Writes one chunk to where it belongs: more than one range if there is a hole in between."""
        at = 0
        for offset, length in ranges:
            view = data[at : at + length]
            while view:
                count = os.pwrite(self._descriptor, view, offset)
                offset, view = offset + count, view[count:]
            at += length

    def end(self, problems: list[str]) -> None:
        """It is whole."""
        apply_attributes(self._place, self._node, problems, self._path)
        os.rename(self._place, self._path)
        self._is_whole = True

    def close(self) -> None:
        """Lets go; what is not whole is removed."""
        os.close(self._descriptor)
        if not self._is_whole:
            os.unlink(self._place)


def _write_small(files: Sequence[tuple[Node, bytes, list[memoryview]]], problems: list[str]) -> None:
    """In a thread. Raises Failed."""
    for node, path, data in files:
        try:
            part = _Part(path, node)
            try:
                for piece, ranges in zip(data, _pieces(node, map(len, data)), strict=True):
                    part.write(piece, ranges)
                part.end(problems)
            finally:
                part.close()
        except OSError as error:
            raise _unwritable(path, error) from None


def _make_folder(path: bytes) -> None:
    """In a thread. Its own mode, by which nothing may be written into it perhaps, is set last."""
    os.makedirs(path, PRIVATE_MODE, exist_ok=True)
    os.chmod(path, stat.S_IMODE(os.lstat(path).st_mode) | PRIVATE_MODE)


def _goes_alone(node: Node) -> bool:
    """Folders have a life of their own, and of files with several names the first comes first."""
    return node.kind == Kind.FOLDER or node.link is not None


def _is_small(node: Node) -> bool:
    return node.kind == Kind.FILE and node.blob is not None and not node.blob.depth and node.blob.size <= SMALL_BYTES


def _pieces(node: Node, sizes: Iterable[int], at: int = 0) -> Iterator[list[tuple[int, int]]]:
    """Where in a file each of these chunks belongs. `at`: how many bytes of the file come before them."""
    between = iter(spans(node.size, node.holes))
    offset, left = 0, 0
    skip = at
    for size in sizes:
        ranges: list[tuple[int, int]] = []
        while size:
            while not left:
                offset, left = next(between, (offset, size))
                passed = min(skip, left)
                offset, left, skip = offset + passed, left - passed, skip - passed
            part = min(size, left)
            ranges.append((offset, part))
            offset, left, size = offset + part, left - part, size - part
        yield ranges


def _link(first: bytes, path: bytes) -> None:
    if os.path.lexists(path):
        os.unlink(path)
    os.link(first, path, follow_symlinks=False)


def _in_the_way(path: bytes) -> Refused:
    return Refused(
        f"{shown(path)} is there already, and is something else. Nothing was written",
        remedy="Restore into another folder, or replace files that differ with --force.",
    )


def _unwritable(path: bytes, error: OSError) -> Failed:
    return Failed(f"cannot write {shown(path)}: {error.strerror}", remedy="Name another folder, or make room.")
