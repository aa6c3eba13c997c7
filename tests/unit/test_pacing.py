"""Limits on what passes, on time that a test makes pass."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

from croft.control.quantities import hours_of_day
from croft.errors import Busy, NotFound, Usage
from croft.model.hours import Hours, parse_hours, show_hours
from croft.model.ids import PeerId
from croft.overlay.pacing import (
    LIMITS_MAX,
    OVERHEAD,
    Direction,
    Flow,
    Limit,
    Pacer,
    Pass,
    TimePassed,
    Wake,
    Wanted,
    Withdrawn,
)

ADA, BOB, CYD = (PeerId(name) for name in ("ada", "bob", "cyd"))
RATE = 100_000.0
NOON = 720


def up(peer: PeerId, purpose: str = "tunnel", *, is_own: bool = False) -> Flow:
    return Flow(peer, purpose, Direction.UP, is_own)


def pacer(*limits: Limit) -> Pacer:
    made = Pacer()
    for number, limit in enumerate(limits, 1):
        made.add(replace(limit, number=number), 0.0)
    return made


def passed(core: Pacer, flows: list[Flow], seconds: float, size: int = 1_000, start: float = 0.0) -> dict[Flow, int]:
    """How many bytes pass in so long a time if each of the flows always has a piece waiting."""
    bytes_passed: dict[Flow, int] = defaultdict(int)
    waiting: dict[int, Flow] = {}
    numbers = iter(range(1, 1_000_000))
    now, wake = start, start
    todo = list(flows)
    while now < start + seconds:
        effects = []
        for flow in todo:
            number = next(numbers)
            waiting[number] = flow
            effects += core.handle(Wanted(number, flow, size, now))
        if not todo:
            now = min(wake, start + seconds)
            effects += core.handle(TimePassed(now, NOON))
        todo = []
        for effect in effects:
            if isinstance(effect, Pass):
                flow = waiting.pop(effect.request)
                bytes_passed[flow] += size
                todo.append(flow)
            elif isinstance(effect, Wake):
                assert effect.at > now
                wake = effect.at
    for number in waiting:
        core.handle(Withdrawn(number, now))
    return bytes_passed


def test_a_limit_is_kept_to_with_what_the_wire_adds() -> None:
    found = passed(pacer(Limit(0, RATE)), [up(ADA)], 10.0)

    assert 0.98 * RATE * 10 <= found[up(ADA)] * OVERHEAD <= 1.02 * RATE * 10


def test_without_a_limit_nothing_waits() -> None:
    assert pacer().piece_bytes(up(ADA)) == 0
    assert pacer(Limit(0, RATE, peer=BOB)).piece_bytes(up(ADA)) == 0
    assert pacer(Limit(0, RATE, purpose="tasks")).piece_bytes(up(ADA)) == 0
    assert pacer(Limit(0, RATE, direction=Direction.DOWN)).piece_bytes(up(ADA)) == 0
    assert Pacer().handle(Wanted(1, up(ADA), 1_000, 0.0)) == [Pass(1)]


def test_all_peers_together_keep_to_a_limit_and_each_gets_its_share() -> None:
    found = passed(pacer(Limit(0, RATE)), [up(ADA), up(BOB), up(CYD)], 10.0)

    assert sum(found.values()) * OVERHEAD <= 1.02 * RATE * 10
    assert max(found.values()) - min(found.values()) <= 2_000


def test_a_peer_with_many_streams_gets_no_more_than_one_with_few() -> None:
    found = passed(pacer(Limit(0, RATE)), [up(ADA, purpose) for purpose in "abcde"] + [up(BOB)], 10.0)

    adas = sum(size for flow, size in found.items() if flow.peer == ADA)
    assert abs(adas - found[up(BOB)]) <= 6_000


def test_what_the_owner_asked_for_goes_first() -> None:
    own = up(ADA, is_own=True)

    found = passed(pacer(Limit(0, RATE)), [up(BOB), own, up(CYD)], 10.0)

    assert found[own] >= 0.97 * sum(found.values())


def test_each_way_has_the_whole_rate() -> None:
    down = Flow(ADA, "tunnel", Direction.DOWN, False)

    found = passed(pacer(Limit(0, RATE)), [up(ADA), down], 10.0)

    assert all(size * OVERHEAD >= 0.98 * RATE * 10 for size in found.values())


def test_every_limit_that_applies_holds() -> None:
    core = pacer(Limit(0, RATE), Limit(0, RATE / 10, peer=ADA), Limit(0, RATE / 2, purpose="tunnel"))

    found = passed(core, [up(ADA), up(BOB), up(CYD, "tasks")], 20.0)

    assert found[up(ADA)] * OVERHEAD <= 1.03 * RATE / 10 * 20
    assert (found[up(ADA)] + found[up(BOB)]) * OVERHEAD <= 1.03 * RATE / 2 * 20
    assert 0.95 * RATE * 20 <= sum(found.values()) * OVERHEAD <= 1.03 * RATE * 20


def test_one_who_waits_for_a_narrower_limit_does_not_hold_up_the_others() -> None:
    core = pacer(Limit(0, 1_000.0, peer=ADA))

    core.handle(Wanted(1, up(ADA), 1_400, 0.0))
    [wake] = core.handle(Wanted(2, up(ADA), 1_400, 0.0))[-1:]

    assert isinstance(wake, Wake)
    assert Pass(3) in core.handle(Wanted(3, up(BOB), 1_400, 0.0))


def test_hours_are_those_of_the_day_also_over_midnight() -> None:
    office, night = parse_hours("08-18"), parse_hours("22:30-6")

    assert [minute in office for minute in (479, 480, 1_079, 1_080)] == [False, True, True, False]
    assert [minute in night for minute in (1_349, 1_350, 0, 359, 360)] == [False, True, True, True, False]
    assert parse_hours(show_hours(night)) == night == Hours(1_350, 360)
    core = pacer(Limit(0, RATE, hours=office))
    core.handle(TimePassed(0.0, 60))
    assert core.piece_bytes(up(ADA)) == 0
    core.handle(TimePassed(1.0, NOON))
    assert core.piece_bytes(up(ADA)) > 0


@pytest.mark.parametrize("text", ["", "8", "8-", "-8", "8-8", "25-3", "8:60-9", "a-b", "8-18-20", "²-3"])
def test_what_are_no_hours_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_hours(text)
    with pytest.raises(Usage, match="no hours"):
        hours_of_day(text)


def test_removing_a_limit_lets_pass_what_waits() -> None:
    core = pacer(Limit(0, 1_000.0))
    core.handle(Wanted(1, up(ADA), 1_400, 0.0))
    core.handle(Wanted(2, up(ADA), 1_400, 0.0))

    core.remove(1)

    assert [effect for effect in core.handle(TimePassed(0.1, NOON)) if isinstance(effect, Pass)] in (
        [Pass(2)],
        [Pass(1), Pass(2)],
    )
    with pytest.raises(NotFound):
        core.remove(1)


def test_limits_are_bounded() -> None:
    core = pacer(*[Limit(0, RATE)] * LIMITS_MAX)

    with pytest.raises(Busy):
        core.add(Limit(LIMITS_MAX + 1, RATE), 0.0)
    for rate in (0.0, -1.0, float("nan"), 999.0):
        with pytest.raises(Usage):
            Pacer().add(Limit(1, rate), 0.0)
