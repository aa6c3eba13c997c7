"""When whoever looks after stored data goes a round."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from random import Random
from typing import cast

import pytest

from croft.model.ids import PeerId
from croft.sim import virtual_time
from croft.storage.transfer import Network
from croft.storage.wards import ROUND_EVERY_S, SETTLE_S, START_S, UNSETTLED_S_MAX, Watchman

HOUR_S = 3_600.0


class Crowd:
    """Of which one comes or goes every so often."""

    def __init__(self, count: int, every_s: float) -> None:
        self._count, self._every_s = count, every_s

    def alive(self) -> list[PeerId]:
        turn = int(asyncio.get_running_loop().time() / self._every_s) if self._every_s else 0
        return [PeerId(f"p{number}") for number in range(self._count) if number != turn % self._count]


def rounds(crowd: Crowd) -> list[float]:
    """When rounds are gone in an hour."""

    async def main(_: Random) -> list[float]:
        loop, watchman, times = asyncio.get_running_loop(), Watchman(cast(Network, crowd)), list[float]()
        while loop.time() < HOUR_S:
            await watchman.something_to_do()
            times.append(loop.time())
        return times

    return virtual_time.run(main, limit_virtual_s=3 * HOUR_S)


def test_where_nobody_comes_or_goes_rounds_are_gone_now_and_then() -> None:
    times = rounds(Crowd(20, 0.0))

    assert times[0] <= START_S + 2 * SETTLE_S
    assert all(after - before >= ROUND_EVERY_S for before, after in pairwise(times))


@pytest.mark.parametrize("every_s", [2.0, 40.0])
def test_among_many_who_come_and_go_all_the_time_rounds_are_neither_often_nor_never(every_s: float) -> None:
    times = rounds(Crowd(500, every_s))

    gaps = [after - before for before, after in pairwise(times)]
    assert len(times) >= 3 and min(gaps) >= 450 and max(gaps) <= ROUND_EVERY_S + 2 * UNSETTLED_S_MAX


def test_among_few_a_change_is_followed_by_a_round_within_moments() -> None:
    times = rounds(Crowd(8, 600.0))

    assert len(times) >= 5
    assert all(at % 600 < 40 or at < START_S + 20 for at in times)
