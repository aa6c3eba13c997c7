"""Values that a peer keeps for the next call: until released, after a restart too, within bounds, for who knows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from croft.errors import Busy, NotFound
from croft.model.ids import PeerId
from croft.model.kept import Held
from croft.ports import OWN_VALUES
from croft.sim.chunk_store import SimulatedChunkStore
from croft.sim.machine import SimulatedClock, SimulatedDisk, SimulatedEntropy
from croft.twins.kept_values import CHUNK_BYTES, LIFETIME_S, KeptValues

OWN = PeerId("a" * 64)


class Nobody:
    """No other peers."""

    async def open_stream(self, peer: PeerId, purpose: str) -> Any:
        raise AssertionError("nobody is asked")

    def name_of(self, peer: PeerId) -> str:
        return peer


class Machine:
    def __init__(self) -> None:
        self.chunks, self.disk, self.clock = SimulatedChunkStore(), SimulatedDisk(), SimulatedClock(0.0)
        self.starts, self.bytes_max = 0, 1 << 30

    async def start(self) -> KeptValues:
        self.starts += 1
        entropy = SimulatedEntropy(f"values/{self.starts}")
        database = self.disk.open_database()
        values = KeptValues(OWN, "cyd", Nobody(), self.chunks, database, self.clock, entropy, self.bytes_max)
        await values.load()
        return values

    async def chunk_count(self) -> int:
        return len(await self.chunks.keys(OWN_VALUES))


async def whole(values: KeptValues, value: Held) -> bytes:
    return b"".join([part async for part in values.read(value)])


def told(story: Callable[[Machine], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story(Machine()))


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_a_value_is_read_as_it_was_kept_until_it_is_released(size: int) -> None:
    async def story(machine: Machine) -> None:
        values = await machine.start()
        data = bytes(number % 251 for number in range(1_000)) * (size // 1_000 + 1)
        parts = [data[:size][at : at + 300_000] for at in range(0, size, 300_000)]
        value = await values.keep("ada", parts)
        assert (value.peer, value.size) == (OWN, size)
        assert await whole(values, value) == data[:size]
        again = await machine.start()
        assert await whole(again, value) == data[:size]
        await again.release([value.token, b"another"])
        assert again.kept_bytes == 0 and await machine.chunk_count() == 0
        with pytest.raises(NotFound):
            await whole(again, value)

    told(story)


def test_what_was_not_finished_when_the_peer_died_is_dropped_at_the_next_start() -> None:
    async def story(machine: Machine) -> None:
        values = await machine.start()
        kept = await values.keep("ada", [b"whole"])
        await values._put(b"t" * 32, 0, b"a part of something")
        assert await machine.chunk_count() == 2
        again = await machine.start()
        assert await machine.chunk_count() == 1 and await whole(again, kept) == b"whole"

    told(story)


def test_one_caller_does_not_fill_the_disk_and_all_together_not_more_than_the_owner_says() -> None:
    async def story(machine: Machine) -> None:
        machine.bytes_max = 20
        values = await machine.start()
        await values.keep("ada", [b"12345678"])
        with pytest.raises(Busy):
            await values.keep("ada", [b"123"])
        await values.keep("cyd", [b"12345", b"678"])
        with pytest.raises(Busy):
            await values.keep("bob", [b"12345"])
        await values.keep("bob", [b"1234"])
        assert values.kept_bytes == 20 and await machine.chunk_count() == 3

    told(story)


def test_what_nobody_uses_for_long_goes() -> None:
    async def story(machine: Machine) -> None:
        values = await machine.start()
        old = await values.keep("ada", [b"old"])
        machine.clock.skew_s += LIFETIME_S / 2
        used = await values.keep("ada", [b"used"])
        machine.clock.skew_s += LIFETIME_S / 2 + 1
        assert await whole(values, used) == b"used"
        serving = asyncio.create_task(values.serve())
        while values.kept_bytes != len(b"used"):
            await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(NotFound):
            await whole(values, old)

    told(story)
