"""The simulated machine: the shared suite on virtual time, and the faults that only it can have."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from machine_suite import Machine, MachineSuite, RunOn, names, put

from croft.errors import Failed
from croft.ports import Clock, Database, Entropy, Offload
from croft.sim import virtual_time
from croft.sim.machine import InlineOffload, SimulatedClock, SimulatedDisk, SimulatedEntropy


class ImaginedMachine:
    """One disk, one seed."""

    def __init__(self) -> None:
        self.disk = SimulatedDisk()

    async def database(self) -> Database:
        return self.disk.open_database()

    def clock(self) -> Clock:
        return SimulatedClock(skew_s=3.0)

    def entropy(self) -> Entropy:
        return SimulatedEntropy(1)

    def offload(self) -> Offload:
        return InlineOffload()


@pytest.fixture
def run_on() -> RunOn:
    def start(story: Callable[[Machine], Awaitable[None]]) -> None:
        async def main(_: Random) -> None:
            await story(ImaginedMachine())

        virtual_time.run(main)

    return start


class TestSimulatedMachine(MachineSuite):
    """In memory."""


def test_a_failing_disk_fails_every_transaction_until_it_recovers() -> None:
    async def main(_: Random) -> None:
        disk = SimulatedDisk()
        database = disk.open_database()
        disk.failure = Failed("the disk is full", remedy="Free some space.")
        with pytest.raises(Failed, match="full"):
            await database.run(put("x", b""))
        disk.failure = None
        assert await database.run(names) == []

    virtual_time.run(main)


def test_a_skewed_clock_is_wrong_by_its_skew_and_drift() -> None:
    async def main(_: Random) -> None:
        right, wrong = SimulatedClock(), SimulatedClock(skew_s=10, drift=0.01)
        await asyncio.sleep(100)
        assert wrong.now() - right.now() == pytest.approx(11)

    virtual_time.run(main)


def test_the_same_seed_gives_the_same_secrets() -> None:
    assert SimulatedEntropy("a").token(16) == SimulatedEntropy("a").token(16) != SimulatedEntropy("b").token(16)
