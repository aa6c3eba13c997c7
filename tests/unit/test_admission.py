"""Whose work runs next on the slots that a peer lends."""

from __future__ import annotations

import pytest

from croft.compute.admission import (
    UNITS_QUEUED_MIN,
    UNITS_QUEUED_PER_SLOT,
    Admission,
    SessionClosed,
    SessionOpened,
    SlotsChanged,
    Start,
    UnitArrived,
    UnitEnded,
)
from croft.errors import PeerMisbehaved


def opened(slots: int, *sessions: int) -> Admission:
    admission = Admission(slots)
    for session in sessions:
        admission.handle(SessionOpened(session))
    return admission


def test_units_start_while_there_are_slots_and_wait_after_that() -> None:
    admission = opened(2, 1)

    assert admission.handle(UnitArrived(1, 10)) == [Start(1, 10)]
    assert admission.handle(UnitArrived(1, 11)) == [Start(1, 11)]
    assert admission.handle(UnitArrived(1, 12)) == []
    assert admission.handle(UnitEnded(1, 10)) == [Start(1, 12)]
    assert admission.slots_busy == 2


def test_a_long_queue_does_not_keep_a_short_one_waiting() -> None:
    admission = opened(1, 1, 2)
    admission.handle(UnitArrived(1, 0))
    for unit in range(1, 20):
        admission.handle(UnitArrived(1, unit))
    admission.handle(UnitArrived(2, 100))

    assert admission.handle(UnitEnded(1, 0)) == [Start(2, 100)]
    assert admission.handle(UnitEnded(2, 100)) == [Start(1, 1)]


def test_of_one_twin_what_has_the_higher_priority_goes_first() -> None:
    admission = Admission(1)
    for session, priority in ((1, 0), (2, 5), (3, -5)):
        admission.handle(SessionOpened(session, twin="ada", priority=priority))
    admission.handle(UnitArrived(1, 0))
    for session in (3, 1, 2):
        admission.handle(UnitArrived(session, 10))
        admission.handle(UnitArrived(session, 11))

    running, order = (1, 0), []
    for _ in range(6):
        (start,) = admission.handle(UnitEnded(*running))
        running = (start.session, start.unit)
        order.append(start.session)
    assert order == [2, 2, 1, 1, 3, 3]


def test_a_priority_means_nothing_to_other_twins() -> None:
    admission = Admission(1)
    admission.handle(SessionOpened(1, twin="ada", priority=-100))
    admission.handle(SessionOpened(2, twin="bob", priority=100))
    admission.handle(UnitArrived(2, 0))
    for session in (1, 2):
        admission.handle(UnitArrived(session, 10))
        admission.handle(UnitArrived(session, 11))

    running, order = (2, 0), []
    for _ in range(4):
        (start,) = admission.handle(UnitEnded(*running))
        running = (start.session, start.unit)
        order.append(start.session)
    assert order in ([1, 2, 1, 2], [2, 1, 2, 1])


def test_sessions_take_turns() -> None:
    admission = opened(1, 1, 2, 3)
    for unit in range(3):
        for session in (1, 2, 3):
            admission.handle(UnitArrived(session, unit))
    running, order = (1, 0), []
    for _ in range(8):
        (start,) = admission.handle(UnitEnded(*running))
        assert isinstance(start, Start)
        running = (start.session, start.unit)
        order.append(start.session)

    assert sorted(order[:3]) == sorted(order[3:6]) == [1, 2, 3]


def test_a_unit_that_wants_more_than_is_lent_gets_all_of_it() -> None:
    admission = opened(2, 1)

    assert admission.handle(UnitArrived(1, 0, slots=100)) == [Start(1, 0)]
    assert admission.slots_busy == 2


def test_a_wide_unit_waits_until_it_fits_while_narrow_ones_of_others_pass() -> None:
    admission = opened(2, 1, 2)
    admission.handle(UnitArrived(1, 0))
    assert admission.handle(UnitArrived(2, 1, slots=2)) == []
    assert admission.handle(UnitArrived(1, 2)) == [Start(1, 2)]
    admission.handle(UnitEnded(1, 0))

    assert admission.handle(UnitEnded(1, 2)) == [Start(2, 1)]


def test_a_waiting_unit_that_is_no_longer_wanted_never_starts() -> None:
    admission = opened(1, 1)
    admission.handle(UnitArrived(1, 0))
    admission.handle(UnitArrived(1, 1))
    admission.handle(UnitEnded(1, 1))

    assert admission.handle(UnitEnded(1, 0)) == []


def test_a_closed_session_frees_its_slots_and_forgets_its_queue() -> None:
    admission = opened(1, 1, 2)
    admission.handle(UnitArrived(1, 0))
    admission.handle(UnitArrived(1, 1))
    admission.handle(UnitArrived(2, 2))

    assert admission.handle(SessionClosed(1)) == [Start(2, 2)]
    assert admission.handle(UnitEnded(1, 0)) == []
    assert admission.slots_busy == 1


def test_lending_less_stops_nothing_and_lending_more_starts_at_once() -> None:
    admission = opened(2, 1)
    for unit in range(4):
        admission.handle(UnitArrived(1, unit))

    assert admission.handle(SlotsChanged(1)) == []
    assert admission.slots_busy == 2
    assert admission.handle(UnitEnded(1, 0)) == []
    assert admission.handle(SlotsChanged(3)) == [Start(1, 2), Start(1, 3)]


@pytest.mark.parametrize("slots", [1, 100])
def test_a_consumer_that_queues_too_much_misbehaves(slots: int) -> None:
    admission = opened(slots, 1)
    fair = slots + max(UNITS_QUEUED_MIN, slots * UNITS_QUEUED_PER_SLOT)
    for unit in range(fair):
        admission.handle(UnitArrived(1, unit))

    with pytest.raises(PeerMisbehaved):
        admission.handle(UnitArrived(1, fair))


def test_reserved_slots_are_kept_for_their_session_while_others_take_turns_at_the_rest() -> None:
    admission = Admission(3)
    admission.handle(SessionOpened(1, "all", reserved=2))
    admission.handle(SessionOpened(2))
    for unit in range(3):
        admission.handle(UnitArrived(2, unit))

    assert admission.slots_busy == 1, "the other two slots wait for the session that reserved them"
    assert admission.handle(UnitArrived(1, 10)) == [Start(1, 10)]
    assert admission.handle(UnitArrived(1, 11)) == [Start(1, 11)]
    assert admission.handle(UnitArrived(1, 12)) == []
    assert admission.handle(SessionClosed(1)) == [Start(2, 1), Start(2, 2)]


def test_what_one_offer_lends_is_lent_to_all_who_came_by_it_together() -> None:
    admission = Admission(0)
    admission.handle(SlotsChanged(4, {"few": 1, "many": 4}))
    for session, offer in ((1, "few"), (2, "few"), (3, "many")):
        admission.handle(SessionOpened(session, offer))

    assert admission.handle(UnitArrived(1, 0)) == [Start(1, 0)]
    assert admission.handle(UnitArrived(2, 0)) == []
    started = [start for unit in range(4) for start in admission.handle(UnitArrived(3, unit))]
    assert started == [Start(3, unit) for unit in range(3)]
    assert admission.handle(UnitEnded(1, 0)) == [Start(2, 0)]
