"""The cache of wheels and environments: whole or not at all, and never more than its bounds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from croft.adapters.environment_cache import EnvironmentCache
from croft.errors import NotFound

MIB = 1 << 20


@pytest.fixture
def cache(tmp_path: Path) -> EnvironmentCache:
    return EnvironmentCache(tmp_path / "cache", 2 * MIB)


async def parts(*data: bytes) -> AsyncIterator[bytes]:
    for part in data:
        yield part


def keep(cache: EnvironmentCache, data: bytes) -> bytes:
    digest = blake3(data).digest()
    assert asyncio.run(cache.keep(digest, parts(data)))
    return digest


def used_at(cache: EnvironmentCache, digest: bytes, when: float) -> None:
    os.utime(cache.place(digest), (when, when))


def test_what_is_kept_can_be_read_in_parts(cache: EnvironmentCache) -> None:
    digest = keep(cache, b"0123456789")

    assert cache.has(digest)
    assert asyncio.run(cache.read(digest, 4, 3)) == b"456"
    assert asyncio.run(cache.read(digest, 10, 3)) == b""


def test_what_is_not_what_its_digest_says_leaves_nothing(cache: EnvironmentCache) -> None:
    digest = blake3(b"right").digest()

    assert not asyncio.run(cache.keep(digest, parts(b"wr", b"ong")))

    assert not cache.has(digest)
    assert list(cache.wheels.iterdir()) == []
    with pytest.raises(NotFound):
        asyncio.run(cache.read(digest, 0, 1))


def test_a_source_that_breaks_off_leaves_nothing(cache: EnvironmentCache) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(cache.keep(bytes(32), broken()))
    assert list(cache.wheels.iterdir()) == []


def test_what_was_not_used_for_longest_goes_first_and_what_is_used_stays(cache: EnvironmentCache) -> None:
    old, used, new = (keep(cache, bytes([number]) * MIB) for number in range(3))
    for when, digest in enumerate((old, used, new)):
        used_at(cache, digest, 1000.0 + when)

    asyncio.run(cache.trim({str(cache.place(old))}))

    assert [cache.has(digest) for digest in (old, used, new)] == [True, False, True]


def test_environments_are_bounded_too_and_those_from_before_a_restart_of_the_machine_go(
    cache: EnvironmentCache, tmp_path: Path
) -> None:
    places = []
    for number in range(3):
        folder = tmp_path / f"job-{number}"
        folder.mkdir()
        (folder / "x").write_bytes(bytes(MIB))
        places.append(asyncio.run(cache.adopt(bytes([number]) * 32, folder)))
        os.utime(places[-1], (1000.0 + number, 1000.0 + number))
    stale = places[0].parent / "00000000-feed"
    stale.mkdir()

    asyncio.run(cache.trim({str(places[0])}))

    assert [place.is_dir() for place in places] == [True, False, True]
    assert not stale.exists()
    assert cache.find(bytes([2]) * 32) == places[2]
    assert cache.find(bytes([1]) * 32) is None


def test_which_wheel_was_packed_is_forgotten_with_the_wheel(cache: EnvironmentCache) -> None:
    digest = keep(cache, b"wheel")
    cache.remember_packed("key", "tiny-1.0-py3-none-any.whl", 5, digest)

    assert cache.packed("key") == ("tiny-1.0-py3-none-any.whl", 5, digest)
    cache.drop(digest)
    assert cache.packed("key") is None
    assert cache.packed("other") is None
