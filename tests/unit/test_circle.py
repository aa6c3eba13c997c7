"""Who may open streams to whom, as one peer of a circle decides it."""

from __future__ import annotations

import pytest

from croft.compute.circle import HOME, MEMBERS_MAX, STREAMS_PER_MEMBER_MAX, Circle
from croft.errors import Busy, NotFound, Refused
from croft.model.ids import PeerId

ADA, BOB, CYD, EVE = map(PeerId, ("ada", "bob", "cyd", "eve"))


def lent() -> Circle:
    """Ada's circle, as Bob knows it, who holds `one`."""
    circle = Circle(ADA, BOB)
    circle.enter("one")
    circle.take_roster({HOME: ADA, "one": BOB, "two": CYD})
    return circle


def test_a_stream_is_taken_from_the_holder_of_its_sender_and_from_the_consumer_alone() -> None:
    circle = lent()

    circle.check(CYD, "two")
    circle.check(ADA, "two")
    circle.check(ADA, HOME)
    for peer, sender in ((EVE, "two"), (CYD, "one"), (CYD, HOME), (EVE, "nobody")):
        with pytest.raises(Refused, match=f"you hold no `{sender}`"):
            circle.check(peer, sender)


def test_a_roster_cannot_move_the_consumers_program() -> None:
    circle = lent()

    circle.take_roster({HOME: EVE})

    assert circle.way(HOME) == ADA
    with pytest.raises(Refused):
        circle.check(EVE, HOME)


def test_the_way_leads_to_the_members_peer_and_for_the_unknown_to_the_consumer() -> None:
    circle = lent()

    assert [circle.way(name) for name in ("one", "two", HOME, "new")] == [BOB, CYD, ADA, ADA]


def test_the_consumer_knows_who_is_not_there() -> None:
    circle = Circle(ADA, ADA)
    circle.place("gone", ADA)

    for name in ("nobody", "gone"):
        with pytest.raises(NotFound, match=f"no `{name}` is in this circle"):
            circle.way(name)


def test_names_are_taken_once_and_members_are_not_without_number() -> None:
    circle = Circle(ADA, ADA)
    for number in range(MEMBERS_MAX):
        circle.place(f"w{number}", BOB)

    with pytest.raises(Refused, match="no more than"):
        circle.place("late", BOB)
    with pytest.raises(Refused, match="in this circle already"):
        circle.place("w1", BOB)
    with pytest.raises(Refused, match="runs here already"):
        lent().enter("one")


def test_streams_are_counted_until_they_end() -> None:
    circle = lent()
    for _ in range(STREAMS_PER_MEMBER_MAX):
        circle.opened("one")

    with pytest.raises(Busy):
        circle.opened("one")
    circle.closed("one")
    circle.opened("one")
    circle.leave("one")
    circle.closed("one")

    assert circle.is_empty
