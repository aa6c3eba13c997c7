"""The real store of chunks, on a real disk: what every store promises, and what only segments can break."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from chunk_store_suite import ADA, BOB, ChunkStoreSuite, chunk, key

from croft.adapters.chunk_log import INDEX_NAME
from croft.adapters.chunk_store import DiskChunkStore
from croft.adapters.system import SystemEntropy
from croft.errors import Failed
from croft.ports import Chunk, ChunkStore

DISK_BYTES = 8 << 20
SEGMENT_BYTES = 1 << 20


class RealDisk:
    """A file system of its own, so that it can be filled."""

    def __init__(self, folder: Path, segment_bytes_max: int = 256 << 20) -> None:
        self.folder = folder / "chunks"
        self._segment_bytes_max = segment_bytes_max
        self._filler = folder / "filler"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ChunkStore]:
        store = await DiskChunkStore.open(self.folder, SystemEntropy(), self._segment_bytes_max)
        try:
            yield store
        finally:
            await store.close()

    def segments(self) -> list[Path]:
        return sorted(self.folder.glob("*.seg"))

    def rot(self, owner: bytes, key: bytes, data: bytes) -> None:
        for path in self.segments():
            held = path.read_bytes()
            if (at := held.find(data)) >= 0:
                path.write_bytes(held[:at] + bytes([held[at] ^ 1]) + held[at + 1 :])
                return
        raise AssertionError("no segment holds it")

    @asynccontextmanager
    async def fill(self) -> AsyncIterator[None]:
        # A little is left: what fails is the write of a large chunk, midway.
        free = os.statvfs(self.folder)
        with self._filler.open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize - (1 << 20))
        yield
        self._filler.unlink()

    def taken_bytes(self) -> int:
        """What the segments take on the disk; holes do not count."""
        return sum(path.stat().st_blocks * 512 for path in self.segments())


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A small file system in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class TestRealStore(ChunkStoreSuite):
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[RealDisk]:
        with mounted(tmp_path / "disk") as folder:
            yield RealDisk(folder)


@pytest.fixture
def disk(tmp_path: Path) -> RealDisk:
    return RealDisk(tmp_path, SEGMENT_BYTES)


def test_room_that_is_given_back_is_free_on_the_disk(disk: RealDisk) -> None:
    """E14: large chunks leave holes at once, small ones once their neighbours are gone too; empty segments go."""

    async def test() -> None:
        async with disk.open() as store:
            await store.put([chunk(number, os.urandom(200_000)) for number in range(4)])
            before = disk.taken_bytes()
            await store.delete(ADA, [key(1)])
            assert disk.taken_bytes() < before - 190_000
            assert await store.read(ADA, key(2), 0, 10), "its neighbours live"

            await store.put([chunk(100 + number, os.urandom(1000)) for number in range(100)])
            before = disk.taken_bytes()
            for number in range(100):
                await store.delete(ADA, [key(100 + number)])
            assert disk.taken_bytes() < before - 90_000

            await store.put([chunk(200 + number, os.urandom(300_000)) for number in range(8)])
            count = len(disk.segments())
            assert count > 2
            await store.delete(ADA, [key(number) for number in range(300)])
            assert len(disk.segments()) == 1, "all but the one that is written to"
            assert await store.held_bytes() == 0

    asyncio.run(test())


def test_the_index_is_made_anew_from_the_segments_alone(disk: RealDisk) -> None:
    contents = {number: os.urandom(100 + 37 * number) for number in range(200)}

    async def fill() -> None:
        async with disk.open() as store:
            await store.put([chunk(number, data) for number, data in contents.items()])
            await store.put([chunk(1, b"bob's", BOB)])
            await store.delete(ADA, [key(number) for number in range(0, 200, 3)])

    async def check() -> None:
        async with disk.open() as store:
            assert await store.keys(ADA) == [(key(n), len(data)) for n, data in contents.items() if n % 3]
            assert await store.read(ADA, key(199)) == contents[199]
            assert await store.read(BOB, key(1)) == b"bob's"

    asyncio.run(fill())
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"no database" * 1000)):
        for path in disk.folder.glob(f"{INDEX_NAME}*"):
            damage(path)
        asyncio.run(check())


def test_what_an_owner_puts_cannot_pass_for_a_record_of_another(disk: RealDisk) -> None:
    """Whole records with headers, taken out of another store, inside a chunk that is deleted in part: never found."""

    async def test(tmp: RealDisk) -> None:
        async with tmp.open() as other:
            await other.put([chunk(1, b"forged", BOB)])
        forged = tmp.segments()[0].read_bytes()
        async with disk.open() as store:
            await store.put([Chunk(ADA, key(5), forged + forged[:64] + forged)])
            await store.delete(ADA, [key(5)])
        for path in disk.folder.glob(f"{INDEX_NAME}*"):
            path.unlink()
        async with disk.open() as store:
            assert await store.owners() == []

    asyncio.run(test(RealDisk(disk.folder.parent / "other")))


def test_a_segment_of_a_newer_version_is_left_as_it_is(disk: RealDisk) -> None:
    from blake3 import blake3

    async def fill() -> None:
        async with disk.open() as store:
            await store.put([chunk(1, b"one")])

    asyncio.run(fill())
    path = disk.segments()[0]
    newer = bytearray(path.read_bytes())
    newer[8] = 2
    newer[48:64] = blake3(newer[:48]).digest(length=16)
    path.write_bytes(newer)
    for index in disk.folder.glob(f"{INDEX_NAME}*"):
        index.unlink()
    with pytest.raises(Failed, match="newer version"):
        asyncio.run(fill())
    assert path.read_bytes() == newer


WRITER = """
import asyncio, os, sys
from pathlib import Path
from croft.adapters.chunk_store import DiskChunkStore
from croft.adapters.system import SystemEntropy
from croft.ports import Chunk

async def write(store, lane):
    number = lane
    while True:
        size = 1 + number * 7919 % 60_000
        key = number.to_bytes(32, "big")
        await store.put([Chunk(b"a" * 32, key, bytes([number % 251]) * size)])
        os.write(1, b"+%d\\n" % number)
        if number % 3 == 0:
            await store.delete(b"a" * 32, [key])
            os.write(1, b"-%d\\n" % number)
        number += 8

async def main():
    store = await DiskChunkStore.open(Path(sys.argv[1]), SystemEntropy(), 1 << 20)
    await asyncio.gather(*(write(store, lane) for lane in range(8)))

asyncio.run(main())
"""


def test_a_killed_store_has_all_that_it_acknowledged(disk: RealDisk) -> None:
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(disk.folder)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        said = b"".join(writer.stdout.readline() for _ in range(300))
        writer.kill()
        said += writer.stdout.read()
        writer.wait()
        writer.stdout.close()
        lines = said.split(b"\n")[:-1]
        kept = {int(line[1:]) for line in lines if line[:1] == b"+"}
        gone = {int(line[1:]) for line in lines if line[:1] == b"-"}

        async def check(kept: set[int], gone: set[int]) -> None:
            async with disk.open() as store:
                for number in kept:
                    if number % 3:
                        expected = bytes([number % 251]) * (1 + number * 7919 % 60_000)
                        assert await store.read(ADA, key(number)) == expected
                assert not any(await store.sizes(ADA, [key(number) for number in gone]))
                await store.delete(ADA, [held for held, _ in await store.keys(ADA, count_max=1 << 20)])

        asyncio.run(check(kept, gone))
