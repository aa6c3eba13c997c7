"""To whom links are kept."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from croft.model.ids import PeerId, TwinId
from croft.overlay.neighbours import (
    ANSWER_S_MAX,
    HEAL_EVERY_S,
    NEIGHBOURS_MAX,
    NEIGHBOURS_PER_TWIN,
    NEIGHBOURS_WANTED,
    REDIAL_MAX_S,
    Dial,
    DialFailed,
    Effect,
    LinkDown,
    LinkUp,
    Neighbours,
    Said,
    Say,
    SpokeAnew,
    Tick,
    Word,
)
from support.members import VILLAGE

SELF = PeerId("self")
NOBODY: frozenset[PeerId] = frozenset()


def peers(count: int) -> list[PeerId]:
    return [PeerId(f"p{n}") for n in range(count)]


def alone(twin_of: Callable[[PeerId], TwinId] = TwinId) -> Neighbours:
    """Nobody's neighbour; by default every peer is its own twin's."""
    return Neighbours(SELF, Random(1), twin_of)


def look(made: Neighbours, others: list[PeerId], now: float = 0.0, dead: frozenset[PeerId] = NOBODY) -> list[Effect]:
    return list(made.handle(Tick({VILLAGE: others}, dead, now)))


def with_neighbours(count: int) -> Neighbours:
    made = alone()
    for peer in peers(count):
        made.handle(LinkUp(peer, 0.0))
        made.handle(Said(peer, Word.ASK))
    assert len(made.neighbours()) == count
    return made


def test_while_they_are_few_everybody_is_dialled_dead_or_not() -> None:
    made, others = alone(), peers(NEIGHBOURS_MAX)

    dials = look(made, others, dead=frozenset(others[:2]))

    assert dials == [Dial(peer) for peer in others]
    assert look(made, others, 1.0) == [], "once, until it is known how that ended"


def test_above_that_as_many_as_are_missing_and_none_that_is_dead() -> None:
    others = peers(50)
    made, dead = with_neighbours(4), frozenset(others[4:30])

    dials = look(made, others, dead=dead)

    assert len(dials) == NEIGHBOURS_WANTED - 4
    assert all(isinstance(d, Dial) and d.peer in others[30:] for d in dials)


def test_a_link_that_was_wanted_is_asked_to_be_a_neighbourhood_and_another_one_is_not() -> None:
    made, others = alone(), peers(2)
    look(made, others[:1])

    assert made.handle(LinkUp(others[0], 0.0)) == [Say(others[0], Word.ASK)]
    made.handle(Said(others[0], Word.ACCEPT))
    assert made.handle(LinkUp(others[1], 0.0)) == []
    assert made.neighbours() == [others[0]]


def test_whoever_is_full_parts_with_one_that_came_by_itself_for_one_that_has_too_few() -> None:
    made, others = alone(), peers(40)
    look(made, others)
    sought = [peer for peer in others if made.handle(LinkUp(peer, 0.0))]
    for peer in others:
        made.handle(Said(peer, Word.ACCEPT if peer in sought else Word.ASK))

    assert len(made.neighbours()) == NEIGHBOURS_MAX
    assert sought and all(made.is_neighbour(peer) for peer in sought), "the crowd does not displace who was chosen"


def test_who_came_last_of_a_full_house_is_told() -> None:
    made, late = with_neighbours(NEIGHBOURS_MAX), PeerId("late")
    made.handle(LinkUp(late, 0.0))

    leave, accept = made.handle(Said(late, Word.ASK))

    assert isinstance(leave, Say) and leave.word is Word.LEAVE and not made.is_neighbour(leave.peer)
    assert accept == Say(late, Word.ACCEPT)


def test_many_devices_of_one_twin_get_few_of_the_places_that_others_want() -> None:
    crowd, others = peers(200)[50:], peers(50)
    made = alone(lambda peer: TwinId("crowd" if peer in crowd else peer))
    for peer in crowd[:NEIGHBOURS_MAX]:
        made.handle(LinkUp(peer, 0.0))
        made.handle(Said(peer, Word.ASK))
    assert len(made.neighbours()) == NEIGHBOURS_MAX, "while nobody else wants them"

    for peer in others[:NEIGHBOURS_MAX]:
        made.handle(LinkUp(peer, 0.0))
        made.handle(Said(peer, Word.ASK))
    for peer in crowd[NEIGHBOURS_MAX:]:
        made.handle(LinkUp(peer, 0.0))
        made.handle(Said(peer, Word.ASK))

    assert sum(peer in crowd for peer in made.neighbours()) == NEIGHBOURS_PER_TWIN


def test_those_are_sought_whose_twins_have_the_fewest_places() -> None:
    crowd, others = peers(100)[20:], peers(20)
    made = alone(lambda peer: TwinId("crowd" if peer in crowd else peer))
    for peer in crowd[:3]:
        made.handle(LinkUp(peer, 0.0))
        made.handle(Said(peer, Word.ASK))

    dials = [effect.peer for effect in look(made, peers(100)) if isinstance(effect, Dial)]

    assert dials and sum(peer in others for peer in dials) >= 2, "though they are one in five"


def test_an_unasked_acceptance_is_declined_and_an_unanswered_question_asked_again() -> None:
    made, [peer] = alone(), peers(1)
    made.handle(LinkUp(peer, 0.0))

    assert made.handle(Said(peer, Word.ACCEPT)) == [Say(peer, Word.LEAVE)]
    assert look(made, [peer], 0.0) == [Say(peer, Word.ASK)]
    assert look(made, [peer], ANSWER_S_MAX - 1) == []
    assert look(made, [peer], ANSWER_S_MAX + 1) == [Say(peer, Word.ASK)]


def test_a_neighbour_that_started_anew_is_asked_anew() -> None:
    made = with_neighbours(2)

    assert made.handle(LinkUp(PeerId("p0"), 5.0)) == [Say(PeerId("p0"), Word.ASK)]
    made.handle(Said(PeerId("p0"), Word.ACCEPT))
    assert made.is_neighbour(PeerId("p0"))


def test_a_neighbour_whose_link_ends_or_who_leaves_is_replaced() -> None:
    made, others = with_neighbours(NEIGHBOURS_WANTED), peers(40)
    assert look(made, others, 1.0) == []
    made.handle(LinkDown(others[0], 1.0))
    made.handle(Said(others[1], Word.LEAVE))

    assert len(look(made, others, 2.0)) == 2


def test_pauses_between_dials_double_up_to_a_limit_and_end_when_the_peer_speaks() -> None:
    made, others, now, pauses = alone(), peers(1), 0.0, []
    look(made, others)
    for _ in range(10):
        made.handle(DialFailed(others[0], now))
        failed_at = now
        while not look(made, others, now):
            now += 0.25
        pauses.append(now - failed_at)

    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-1] == REDIAL_MAX_S
    made.handle(DialFailed(others[0], now))
    made.handle(SpokeAnew(others[0]))
    assert look(made, others, now) == [Dial(others[0])]


def test_now_and_then_somebody_dead_is_dialled_in_case_a_split_is_over() -> None:
    made, others = with_neighbours(NEIGHBOURS_WANTED), peers(40)
    dead = frozenset(others[20:])

    assert look(made, others, HEAL_EVERY_S - 1, dead) == []
    [dial] = look(made, others, HEAL_EVERY_S, dead)
    assert isinstance(dial, Dial) and dial.peer in dead
    assert look(made, others, HEAL_EVERY_S + 1, dead) == []


def test_what_is_learned_during_a_dial_is_tried_at_once() -> None:
    made, others = alone(), peers(1)
    look(made, others)

    assert made.handle(SpokeAnew(others[0])) == [Dial(others[0])]
    made.handle(LinkUp(others[0], 3.0))
    assert made.handle(SpokeAnew(others[0])) == []
