"""What the owner's rules forbid."""

from __future__ import annotations

import math

from croft.compute.lending_time import LendingTime


def test_without_rules_nothing_is_forbidden() -> None:
    assert LendingTime().at(0.0) == ""


def test_a_pause_ends_by_itself() -> None:
    rules = LendingTime(paused_until=100.0)

    assert "paused" in rules.at(99.0)
    assert rules.at(100.0) == ""


def test_a_pause_without_end_lasts_until_it_is_lifted() -> None:
    rules = LendingTime(paused_until=math.inf)
    assert rules.at(1e12)

    rules.paused_until = 0.0

    assert rules.at(1e12) == ""
