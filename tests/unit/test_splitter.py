"""How many tasks go into one chunk."""

import itertools
import math

import pytest

from croft.compute.splitter import (
    CHUNK_S,
    CHUNK_TASKS_MAX,
    FACTOR,
    GROWTH,
    TASK_S_MIN,
    Pace,
    chunk_tasks,
    is_worth_it,
    remaining_s,
)


def test_nothing_is_known_so_the_first_chunk_is_one_task() -> None:
    assert chunk_tasks(Pace(), waiting=1_000_000, slots_total=1) == 1


def test_a_chunk_is_worth_its_time_at_the_measured_pace() -> None:
    pace = Pace()
    pace.learn(100, 100 * CHUNK_S / 20)

    assert chunk_tasks(pace, waiting=1_000_000, slots_total=4) == 20


def test_long_tasks_go_one_by_one() -> None:
    pace = Pace()
    pace.learn(1, 100.0)

    assert chunk_tasks(pace, waiting=1_000_000, slots_total=4) == 1


def test_chunks_grow_at_a_bounded_rate_and_to_a_bounded_size() -> None:
    pace = Pace()
    sizes = []
    for _ in range(6):
        sizes.append(chunk_tasks(pace, waiting=1_000_000, slots_total=1))
        pace.learn(sizes[-1], sizes[-1] * TASK_S_MIN)

    assert all(later <= earlier * GROWTH for earlier, later in itertools.pairwise(sizes))
    assert sizes[-1] == CHUNK_TASKS_MAX


@pytest.mark.parametrize("waiting", [1, 3, 10, 100, 1000])
def test_no_chunk_takes_more_than_its_share_of_what_is_left(waiting: int) -> None:
    pace = Pace(TASK_S_MIN, largest=CHUNK_TASKS_MAX)

    assert 1 <= chunk_tasks(pace, waiting=waiting, slots_total=4) <= max(1, waiting // (FACTOR * 4))


def test_chunks_shrink_towards_the_end() -> None:
    pace = Pace(TASK_S_MIN, largest=CHUNK_TASKS_MAX)
    waiting, sizes = 1000, []
    while waiting:
        sizes.append(chunk_tasks(pace, waiting=waiting, slots_total=2))
        waiting -= sizes[-1]

    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1


def test_the_pace_follows_a_lender_that_becomes_slow() -> None:
    pace = Pace()
    pace.learn(10, 0.01)
    for _ in range(40):
        pace.learn(10, 10.0)

    assert pace.task_s == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("elapsed_s", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_a_lender_cannot_break_the_split_by_a_senseless_time(elapsed_s: float) -> None:
    pace = Pace()
    pace.learn(1, elapsed_s)

    assert 1 <= chunk_tasks(pace, waiting=1000, slots_total=1) <= CHUNK_TASKS_MAX


def test_an_empty_chunk_teaches_nothing() -> None:
    pace = Pace()
    pace.learn(0, 5.0)

    assert pace == Pace()


def test_a_task_that_runs_longer_than_others_is_expected_to_run_the_longer_still() -> None:
    assert remaining_s(1.0, 0.25) == pytest.approx(0.75)
    assert 1.0 < remaining_s(1.0, 10.0) < remaining_s(1.0, 20.0)


def test_help_that_would_come_later_is_no_help() -> None:
    assert is_worth_it(2.0, 1.0)
    assert not is_worth_it(1.0, 1.0)
    assert not is_worth_it(0.05, 0.0), "not worth a message"
