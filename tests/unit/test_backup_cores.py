"""Which snapshots stay, which packs go, and when a backup is due."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from croft.errors import Usage
from croft.storage.backup_formats import check_backup_name
from croft.storage.backup_schedule import RETRY_S, due_at
from croft.storage.pruning import SMALL_PACKS_MAX, PackUse, plan
from croft.storage.retention import Policy, kept

HOUR_S, DAY_S = 3600.0, 86_400.0
START = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()
FULL = 8 << 20


def every(step_s: float, count: int) -> dict[int, float]:
    return {number: START + step_s * number for number in range(1, count + 1)}


def test_without_a_policy_everything_is_kept() -> None:
    assert kept(Policy(), every(HOUR_S, 50)) == set(range(1, 51))


def test_the_newest_is_kept_whatever_the_policy_says() -> None:
    assert kept(Policy(yearly=1), every(HOUR_S, 5)) == {5}


def test_of_each_period_the_newest_stands_for_it() -> None:
    times = every(6 * HOUR_S, 12)  # 18:00, 00:00, 06:00, 12:00 and so on

    assert kept(Policy(daily=2), times) == {9, 12}
    assert kept(Policy(last=3, daily=2), times) == {9, 10, 11, 12}


def test_periods_without_a_snapshot_do_not_count() -> None:
    times = {1: START, 2: START + 40 * DAY_S, 3: START + 41 * DAY_S}

    assert kept(Policy(daily=3), times) == {1, 2, 3}
    assert kept(Policy(monthly=2), times) == {1, 3}
    assert kept(Policy(weekly=1, yearly=1), times) == {3}


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(Usage):
        Policy(daily=-1).check()


def test_a_pack_without_anything_live_goes_and_a_mostly_dead_one_is_written_anew() -> None:
    packs = [PackUse(1, FULL, 0), PackUse(2, FULL, FULL), PackUse(3, FULL, FULL // 2), PackUse(4, FULL, FULL * 3 // 4)]

    todo = plan(packs, FULL)

    assert (todo.drop, todo.rewrite) == ((1,), (3,))


def test_small_packs_become_large_ones_once_they_are_many() -> None:
    small = [PackUse(number, 10_000, 10_000) for number in range(SMALL_PACKS_MAX)]

    assert plan(small, FULL).rewrite == ()
    assert len(plan([*small, PackUse(99, 20_000, 20_000)], FULL).rewrite) == SMALL_PACKS_MAX + 1


def test_what_is_not_scheduled_is_never_due() -> None:
    assert due_at(0.0, 1_000.0, 0.0, is_whole=True, is_interrupted=True) == math.inf


def test_a_first_run_and_one_that_was_interrupted_are_due_at_once() -> None:
    assert due_at(HOUR_S, 5_000.0, 0.0, is_whole=False, is_interrupted=False) == 5_000.0
    assert due_at(HOUR_S, 5_000.0, 4_990.0, is_whole=False, is_interrupted=True) == 5_000.0


def test_a_run_that_failed_is_tried_again_soon_and_one_that_did_not_in_its_time() -> None:
    assert due_at(HOUR_S, 5_000.0, 4_000.0, is_whole=False, is_interrupted=False) == 4_000.0 + RETRY_S
    assert due_at(HOUR_S, 5_000.0, 4_000.0, is_whole=True, is_interrupted=False) == 4_000.0 + HOUR_S
    assert due_at(120.0, 5_000.0, 4_900.0, is_whole=False, is_interrupted=False) == 5_020.0


def test_a_clock_that_was_a_year_ahead_does_not_stop_backups_for_a_year() -> None:
    assert due_at(HOUR_S, 5_000.0, 5_000.0 + 365 * DAY_S, is_whole=True, is_interrupted=False) == 5_000.0


@pytest.mark.parametrize("name", ["", "a/b", "a@1", "laptop:a", "a\n", "x" * 65])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(Usage):
        check_backup_name(name)
