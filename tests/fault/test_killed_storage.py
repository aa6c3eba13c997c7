"""SIGKILL in the middle of everything that storage does, at many moments: what was acknowledged is there, whole.

The moments are spread over the time that the work takes undisturbed: a few of them, and many in a campaign.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from croft.adapters.chunk_store import DiskChunkStore
from croft.adapters.system import SystemEntropy
from croft.client.stored_files import StoredFiles
from croft.errors import CroftError
from croft.storage import merkle
from support import peers
from support.peers import RealPeer, until
from support.worlds import IS_CAMPAIGN

MOMENTS = 40 if IS_CAMPAIGN else 3
KEEP = "2of3"
LARGE_BYTES = 10 << 20
SMALL_BYTES, SMALL_FILES = 5_000, 150
TIMEOUT_S = 3_600

Work = Callable[[], object]


class Village:
    """An owner, four who hold, and what the owner was told is stored."""

    def __init__(self, base: Path) -> None:
        self.ada, *self.holders = peers.community(base, ["ada", "bob", "cyd", "dan", "eve"])
        self.files = StoredFiles(self.ada.files, self.ada.api)
        self.base = base
        self.kept: dict[str, bytes] = {}
        self.maybe: dict[str, bytes] = {}
        self.count = 0

    def put(self, size: int) -> None:
        """A file more."""
        self.count += 1
        name, data = f"file{self.count}", secrets.token_bytes(size)
        self.maybe[name] = data
        self.files.put(data, name, keep=KEEP)
        self.kept[name] = data

    def put_many(self) -> None:
        """Many small files more, which share packs, all at once."""
        self.count += 1
        folder = self.base / f"folder{self.count}"
        folder.mkdir()
        made = {f"{folder.name}/{number}": secrets.token_bytes(SMALL_BYTES) for number in range(SMALL_FILES)}
        for name, data in made.items():
            (self.base / name).write_bytes(data)
        self.maybe |= made
        self.files.put(folder, keep=KEEP)
        self.kept |= made

    def remove(self, name: str) -> None:
        """A file less, and the holders drop its shares."""
        self.maybe[name] = self.kept.pop(name)
        self.files.rm(name, is_final=True)

    def killed(self, victim: RealPeer, work: Work, after_s: float) -> None:
        """Kills a peer in the middle of some work, starts it again, and reads all that counts."""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(work)
            time.sleep(after_s)
            victim.kill()
            if victim is not self.ada:
                self.assert_whole(victim)
            victim.start()
            peers.await_links([self.ada, *self.holders])
            error = running.exception()
        assert error is None or isinstance(error, CroftError), error
        self.check()

    def moments(self, work: Work) -> Iterator[float]:
        """When to kill: spread over what the work takes."""
        begin = time.monotonic()
        work()
        took = time.monotonic() - begin
        for number in range(MOMENTS):
            yield took * (number + 0.5) / MOMENTS

    def check(self) -> None:
        """All that counts is listed and byte-equal; what was cut off is there as it was to be, or not at all."""
        listed = {file.name for file in self.files.ls()}
        assert self.kept.keys() <= listed <= self.kept.keys() | self.maybe.keys()
        place = self.base / "back"
        for top in sorted({name.partition("/")[0] for name in listed}):
            self.files.fetch(top, place / top)
        for name in listed:
            assert (place / name).read_bytes() == {**self.maybe, **self.kept}[name], name
        shutil.rmtree(place, ignore_errors=True)

    def assert_whole(self, holder: RealPeer) -> None:
        """Every share on a dead holder's disk is what its id says."""

        async def look() -> None:
            copy = self.base / "copy"
            shutil.copytree(holder.files.chunks, copy)
            store = await DiskChunkStore.open(copy, SystemEntropy())
            for owner in await store.owners():
                for key, size in await store.keys(owner, count_max=1 << 20):
                    data = await store.read(owner, key)
                    assert len(data) == size and merkle.share_id(bytearray(data)) == key
            await store.close()
            shutil.rmtree(copy)

        asyncio.run(look())

    def assert_nothing_is_left(self) -> None:
        """Once all files are removed, holders have not one share of them: nothing is kept for ever."""
        for top in sorted({file.name.partition("/")[0] for file in self.files.ls()}):
            self.files.rm(top, is_folder=True, is_final=True)
        self.kept.clear()
        self.maybe.clear()

        def is_empty() -> bool:
            self.ada.api.collect()
            return sum(holder.held_bytes or 0 for holder in self.ada.api.storage().holders) < LARGE_BYTES // 100

        until(is_empty, "nothing of the files is left")


@pytest.fixture(scope="module")
def village() -> Iterator[Village]:
    with peers.homes() as base:
        yield Village(base)


@pytest.fixture
def clean(village: Village) -> Iterator[Village]:
    """The village; afterwards nothing is left of what was stored."""
    village.put(SMALL_BYTES)
    yield village
    village.assert_nothing_is_left()


@pytest.mark.timeout(TIMEOUT_S)
def test_an_owner_that_dies_while_it_puts_a_large_file(clean: Village) -> None:
    for after_s in clean.moments(lambda: clean.put(LARGE_BYTES)):
        clean.killed(clean.ada, lambda: clean.put(LARGE_BYTES), after_s)


@pytest.mark.timeout(TIMEOUT_S)
def test_an_owner_that_dies_while_a_pack_of_small_files_is_put(clean: Village) -> None:
    for after_s in clean.moments(clean.put_many):
        clean.killed(clean.ada, clean.put_many, after_s)


@pytest.mark.timeout(TIMEOUT_S)
def test_an_owner_that_dies_while_it_collects(clean: Village) -> None:
    clean.put_many()
    clean.put(LARGE_BYTES)
    for after_s in clean.moments(lambda: clean.remove(f"file{clean.count}")):
        clean.put(LARGE_BYTES)
        clean.killed(clean.ada, lambda: clean.remove(f"file{clean.count}"), after_s)


@pytest.mark.timeout(TIMEOUT_S)
def test_an_owner_that_dies_while_it_mends(clean: Village) -> None:
    clean.put_many()
    clean.put(LARGE_BYTES)

    def mend() -> None:
        clean.ada.api.check_storage()

    def lose(holder: RealPeer) -> None:
        holder.kill()
        shutil.rmtree(holder.files.chunks)
        holder.start()
        peers.await_links([clean.ada, *clean.holders])

    lose(clean.holders[0])
    for number, after_s in enumerate(clean.moments(mend)):
        until(lambda: not clean.ada.api.check_storage().short, "all is mended")
        lose(clean.holders[number % len(clean.holders)])
        clean.killed(clean.ada, mend, after_s)
    until(lambda: not clean.ada.api.check_storage().short, "all is mended at last")


@pytest.mark.timeout(TIMEOUT_S)
def test_a_holder_that_dies_while_it_stores(clean: Village) -> None:
    for number, after_s in enumerate(clean.moments(lambda: clean.put(LARGE_BYTES))):
        clean.killed(clean.holders[number % 4], lambda: clean.put(LARGE_BYTES), after_s)


@pytest.mark.timeout(TIMEOUT_S)
def test_a_holder_that_dies_while_it_collects(clean: Village) -> None:
    clean.put_many()
    clean.put(LARGE_BYTES)
    for number, after_s in enumerate(clean.moments(lambda: clean.remove(f"file{clean.count}"))):
        clean.put(LARGE_BYTES)
        clean.killed(clean.holders[number % 4], lambda: clean.remove(f"file{clean.count}"), after_s)
