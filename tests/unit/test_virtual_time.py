"""Virtual time: jumps, order, limits and deadlocks."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest

from croft.sim.virtual_time import Deadlock, LimitReached, run


def test_a_day_of_sleep_takes_no_real_time() -> None:
    async def main(_: Random) -> float:
        await asyncio.sleep(86_400)
        return asyncio.get_running_loop().time()

    started = time.monotonic()
    assert run(main, limit_virtual_s=100_000) == pytest.approx(86_400)
    assert time.monotonic() - started < 1


def test_timers_fire_in_the_order_of_their_times() -> None:
    async def main(_: Random) -> list[int]:
        order: list[int] = []

        async def at(number: int) -> None:
            await asyncio.sleep(number * 0.1)
            order.append(number)

        await asyncio.gather(*(at(number) for number in (3, 1, 5, 2, 4)))
        return order

    assert run(main) == [1, 2, 3, 4, 5]


def test_timeouts_and_queues_work_as_on_any_loop() -> None:
    async def main(_: Random) -> float:
        queue: asyncio.Queue[int] = asyncio.Queue()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 5)
        asyncio.get_running_loop().call_later(3, queue.put_nowait, 1)
        assert await queue.get() == 1
        return asyncio.get_running_loop().time()

    assert run(main) == pytest.approx(8)


def test_waiting_for_nothing_is_a_deadlock_that_names_the_waiter() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def main(_: Random) -> None:
        await asyncio.create_task(forever(), name="the stuck one")

    with pytest.raises(Deadlock, match=r"the stuck one: .*locks\.py"):
        run(main)


def test_a_run_ends_at_its_limit_of_virtual_time() -> None:
    async def main(_: Random) -> None:
        while True:
            await asyncio.sleep(1)

    with pytest.raises(LimitReached, match="60 s"):
        run(main, limit_virtual_s=60)


def test_a_loop_that_never_waits_ends_at_its_limit_of_steps() -> None:
    async def main(_: Random) -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(LimitReached, match="steps"):
        run(main, steps_max=1_000)


def test_the_seed_decides_the_chance() -> None:
    async def main(random: Random) -> float:
        return random.random()

    assert run(main, seed=1) == run(main, seed=1) != run(main, seed=2)


def test_tasks_that_are_left_over_clean_up_in_virtual_time() -> None:
    ended: list[float] = []

    async def left_over() -> None:
        try:
            await asyncio.sleep(1_000)
        finally:
            await asyncio.sleep(5)
            ended.append(asyncio.get_running_loop().time())

    async def main(_: Random) -> None:
        asyncio.create_task(left_over())
        await asyncio.sleep(1)

    run(main)
    assert ended == [pytest.approx(6)]


def test_threads_are_refused() -> None:
    async def main(_: Random) -> None:
        await asyncio.to_thread(print)

    with pytest.raises(AssertionError, match="no threads"):
        run(main)
