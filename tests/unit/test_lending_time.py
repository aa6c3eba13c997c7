"""When the owner lends."""

from __future__ import annotations

import math

from croft.compute.lending_time import LendingTime
from croft.model.hours import parse_hours

NOON, MIDNIGHT = 12 * 60, 0


def test_without_rules_all_slots_are_lent_always() -> None:
    assert LendingTime(4, None).at(0.0, NOON).slots == 4


def test_outside_the_hours_nothing_is_lent_and_the_reason_names_them() -> None:
    lending = LendingTime(4, parse_hours("20-08"))

    assert lending.at(0.0, MIDNIGHT).slots == 4
    refused = lending.at(0.0, NOON)
    assert refused.slots == 0 and "20:00-08:00" in refused.reason


def test_a_pause_ends_by_itself() -> None:
    lending = LendingTime(4, None, paused_until=100.0)

    assert lending.at(99.0, NOON).slots == 0 and "paused" in lending.at(99.0, NOON).reason
    assert lending.at(100.0, NOON).slots == 4


def test_a_pause_without_end_lasts_until_it_is_lifted() -> None:
    lending = LendingTime(4, None, paused_until=math.inf)
    assert lending.at(1e12, NOON).slots == 0

    lending.paused_until = 0.0

    assert lending.at(1e12, NOON).slots == 4


def test_an_owner_who_lends_nothing_is_asked_for_nothing() -> None:
    assert LendingTime(0, None).at(0.0, NOON).slots == 0
