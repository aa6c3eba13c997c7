"""What the owner's rules forbid, and when what was stopped goes on."""

from __future__ import annotations

import math

from croft.compute.owners_rules import CALM_S, MOVE_AFTER_S, OwnersRules, Rules

WALL = 1_750_000_000.0


def test_without_rules_nothing_is_forbidden() -> None:
    rules = OwnersRules(Rules())
    rules.seen(1.0, is_on_battery=True, now=0.0)

    assert rules.refusal(WALL) == rules.end(WALL, 1000.0) == "" and not rules.is_holding


def test_a_pause_ends_by_itself() -> None:
    rules = OwnersRules(Rules(), paused_until=WALL + 100)

    assert "paused" in rules.refusal(WALL + 99) and "paused" in rules.end(WALL + 99, 0.0)
    assert rules.refusal(WALL + 100) == ""


def test_a_pause_without_end_lasts_until_it_is_lifted() -> None:
    rules = OwnersRules(Rules(), paused_until=math.inf)
    assert rules.refusal(1e12)

    rules.paused_until = 0.0

    assert rules.refusal(1e12) == ""


def test_on_battery_nothing_is_lent_unless_the_owner_says_so() -> None:
    careful, careless = OwnersRules(Rules(on_battery=False)), OwnersRules(Rules(on_battery=True))
    for rules in (careful, careless):
        rules.seen(0.0, is_on_battery=True, now=0.0)

    assert careful.refusal(WALL) == careful.end(WALL, 0.0) == "it runs on battery"
    assert careless.refusal(WALL) == ""
    careful.seen(0.0, is_on_battery=False, now=1.0)
    assert careful.refusal(WALL) == ""


def test_load_stops_the_work_of_others_at_once_and_sends_it_away_if_it_lasts() -> None:
    rules = OwnersRules(Rules(busy_max=0.25))
    rules.seen(0.24, is_on_battery=False, now=0.0)
    assert not rules.is_holding

    rules.seen(0.8, is_on_battery=False, now=1.0)

    assert rules.is_holding and "80%" in rules.refusal(WALL)
    assert rules.end(WALL, 1.0 + MOVE_AFTER_S - 0.1) == ""
    assert "80%" in rules.end(WALL, 1.0 + MOVE_AFTER_S)


def test_what_was_stopped_goes_on_once_the_load_has_been_gone_for_a_while() -> None:
    rules = OwnersRules(Rules(busy_max=0.25))
    rules.seen(0.9, is_on_battery=False, now=0.0)

    rules.seen(0.22, is_on_battery=False, now=1.0)
    assert rules.is_holding, "less load, and not gone"
    rules.seen(0.05, is_on_battery=False, now=2.0)
    rules.seen(0.22, is_on_battery=False, now=2.0 + CALM_S)
    assert rules.is_holding, "it came back midway"
    rules.seen(0.0, is_on_battery=False, now=10.0)
    rules.seen(0.0, is_on_battery=False, now=10.0 + CALM_S)

    assert not rules.is_holding and rules.refusal(WALL) == rules.end(WALL, 20.0) == ""
