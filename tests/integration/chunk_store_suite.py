"""What every store of chunks promises, as tests: both the real and the simulated one must pass all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pytest

from croft.errors import Failed, NotFound
from croft.ports import Chunk, ChunkStore

ADA, BOB = b"a" * 32, b"b" * 32


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def chunk(number: int, data: bytes, owner: bytes = ADA) -> Chunk:
    return Chunk(owner, key(number), data)


class Disk(Protocol):
    """What stores are opened on, again and again."""

    def open(self) -> AbstractAsyncContextManager[ChunkStore]: ...

    def rot(self, owner: bytes, key: bytes, data: bytes) -> None:
        """Flips a bit of a chunk that is held as `data`."""
        ...

    def fill(self) -> AbstractAsyncContextManager[None]:
        """There is no room on the disk for a while."""
        ...


class ChunkStoreSuite:
    """Inherit, and give a fixture `disk`."""

    @pytest.fixture
    def disk(self) -> Iterator[Disk]:
        raise NotImplementedError

    def run(self, disk: Disk, test: Callable[[ChunkStore], object]) -> None:
        async def within() -> None:
            async with disk.open() as store:
                await test(store)  # type: ignore[misc]

        asyncio.run(within())

    def test_what_is_put_is_read(self, disk: Disk) -> None:
        async def test(store: ChunkStore) -> None:
            await store.put([chunk(1, b"one"), chunk(2, memoryview(b"zwei")), chunk(3, b"")])
            assert await store.read(ADA, key(1)) == b"one"
            assert await store.read(ADA, key(2)) == b"zwei"
            assert await store.read(ADA, key(3)) == b""

        self.run(disk, test)

    def test_part_of_a_chunk_is_read_as_far_as_it_goes(self, disk: Disk) -> None:
        async def test(store: ChunkStore) -> None:
            await store.put([chunk(1, b"0123456789")])
            assert await store.read(ADA, key(1), 2, 3) == b"234"
            assert await store.read(ADA, key(1), 8, 5) == b"89"
            assert await store.read(ADA, key(1), 20, 5) == b""
            assert await store.read(ADA, key(1), 7) == b"789"

        self.run(disk, test)

    def test_owners_are_apart(self, disk: Disk) -> None:
        async def test(store: ChunkStore) -> None:
            await store.put([chunk(1, b"ada's"), chunk(1, b"bob's own", BOB)])
            assert await store.read(BOB, key(1)) == b"bob's own"
            await store.delete(BOB, [key(1)])
            assert await store.read(ADA, key(1)) == b"ada's"
            with pytest.raises(NotFound):
                await store.read(BOB, key(1))
            assert await store.owners() == [ADA]

        self.run(disk, test)

    def test_what_is_not_held_is_said_so(self, disk: Disk) -> None:
        async def test(store: ChunkStore) -> None:
            await store.put([chunk(2, b"two")])
            with pytest.raises(NotFound):
                await store.read(ADA, key(1))
            assert await store.sizes(ADA, [key(1), key(2)]) == [None, 3]
            assert await store.delete(ADA, [key(1)]) == 0

        self.run(disk, test)

    def test_keys_come_in_order_page_by_page(self, disk: Disk) -> None:
        async def test(store: ChunkStore) -> None:
            await store.put([chunk(number, b"x" * number) for number in (5, 3, 1, 4, 2)])
            first = await store.keys(ADA, count_max=2)
            assert first == [(key(1), 1), (key(2), 2)]
            assert await store.keys(ADA, after=first[-1][0]) == [(key(number), number) for number in (3, 4, 5)]
            assert await store.keys(BOB) == []

        self.run(disk, test)

    def test_a_second_put_changes_nothing(self, disk: Disk) -> None:
        async def test(store: ChunkStore) -> None:
            await store.put([chunk(1, b"first")])
            before = await store.held_bytes(ADA)
            await store.put([chunk(1, b"first"), chunk(1, b"first")])
            assert await store.held_bytes(ADA) == before
            assert await store.read(ADA, key(1)) == b"first"

        self.run(disk, test)

    def test_puts_at_the_same_time_are_all_kept(self, disk: Disk) -> None:
        async def test(store: ChunkStore) -> None:
            await asyncio.gather(*(store.put([chunk(number, bytes([number]) * 100)]) for number in range(200)))
            assert [await store.read(ADA, key(number)) for number in range(200)] == [
                bytes([number]) * 100 for number in range(200)
            ]

        self.run(disk, test)

    def test_a_put_that_is_cancelled_takes_nobody_with_it(self, disk: Disk) -> None:
        async def test(store: ChunkStore) -> None:
            puts = [asyncio.create_task(store.put([chunk(number, b"data")])) for number in range(20)]
            await asyncio.sleep(0)
            for put in puts[::2]:
                put.cancel()
            await asyncio.gather(*puts[1::2])
            await asyncio.gather(*puts[::2], return_exceptions=True)
            assert await store.sizes(ADA, [key(number) for number in range(1, 20, 2)]) == [4] * 10

        self.run(disk, test)

    def test_bytes_are_counted_and_given_back(self, disk: Disk) -> None:
        async def test(store: ChunkStore) -> None:
            assert await store.held_bytes() == 0
            await store.put([chunk(1, b"x" * 5000), chunk(2, b"y" * 700), chunk(1, b"z" * 300, BOB)])
            held = await store.held_bytes(ADA)
            assert held >= 5700
            assert await store.held_bytes() == held + await store.held_bytes(BOB)
            assert await store.delete(ADA, [key(1), key(2), key(3)]) == held
            assert await store.held_bytes(ADA) == 0
            assert await store.keys(ADA) == []

        self.run(disk, test)

    def test_what_is_put_outlives_the_store(self, disk: Disk) -> None:
        async def first(store: ChunkStore) -> None:
            await store.put([chunk(number, b"%d" % number * 500) for number in range(50)])
            await store.delete(ADA, [key(7)])

        async def second(store: ChunkStore) -> None:
            assert await store.read(ADA, key(49)) == b"49" * 500
            assert await store.sizes(ADA, [key(7)]) == [None]
            await store.put([chunk(7, b"anew")])
            assert await store.read(ADA, key(7)) == b"anew"

        self.run(disk, first)
        self.run(disk, second)

    def test_what_has_rotted_is_never_read_as_whole(self, disk: Disk) -> None:
        async def put(store: ChunkStore) -> None:
            await store.put([chunk(1, b"sound" * 100), chunk(2, b"other" * 100)])

        async def read(store: ChunkStore) -> None:
            with pytest.raises(Failed, match="damaged"):
                await store.read(ADA, key(1))
            assert await store.sizes(ADA, [key(1), key(2)]) == [None, 500]
            assert await store.read(ADA, key(2)) == b"other" * 100
            await store.put([chunk(1, b"sound" * 100)])
            assert await store.read(ADA, key(1)) == b"sound" * 100, "it is written anew"
            assert await store.keys(ADA) == [(key(1), 500), (key(2), 500)]

        self.run(disk, put)
        disk.rot(ADA, key(1), b"sound" * 100)
        self.run(disk, read)

    def test_a_full_disk_is_said_and_takes_nothing_that_was_kept(self, disk: Disk) -> None:
        async def test(store: ChunkStore) -> None:
            await store.put([chunk(1, b"kept" * 1000)])
            async with disk.fill():
                with pytest.raises(Failed, match="full"):
                    await store.put([chunk(2, b"more" * 1_000_000)])
                assert await store.read(ADA, key(1)) == b"kept" * 1000
                assert await store.sizes(ADA, [key(2)]) == [None]
            await store.put([chunk(2, b"more" * 1_000_000)])
            assert await store.read(ADA, key(2)) == b"more" * 1_000_000

        self.run(disk, test)
