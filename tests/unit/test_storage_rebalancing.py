"""Shares are moved only where that is needed: to obey a rule, to lie at one owner each, to follow the room."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from croft.model.ids import PeerId, TwinId
from croft.storage.placement import Place, Rule, allowed
from croft.storage.rebalancing import Plan, Spread, Why, bounded, plan

MIB = 1 << 20


def place(name: str, weight: float = 1.0, domain: str = "", *, is_alive: bool = True) -> Place:
    return Place(PeerId(name), name, TwinId(domain or name), weight, is_alive)


def spread(number: int, *peers: str, rule: Rule | None = None, size: int = MIB) -> Spread:
    return Spread(number, size, rule or Rule(), [(index, PeerId(peer)) for index, peer in enumerate(peers)])


def moved(planned: Plan) -> list[tuple[int, str, str, Why]]:
    return [(move.index, move.source, move.target, move.why) for move in planned.moves]


def test_what_lies_well_stays() -> None:
    places = [place("a"), place("b"), place("c")]

    planned = plan([spread(number, "a", "b", "c") for number in range(5)], places)
    assert planned.moves == [] and planned.stuck == 0 and planned.before == planned.after


def test_a_share_leaves_whoever_may_not_hold_it_or_lends_no_more() -> None:
    places = [place("a"), place("b"), place("c")]

    barred = plan([spread(0, "a", "b", rule=Rule(never=(PeerId("b"),)))], places)
    assert moved(barred) == [(1, "b", "c", Why.RULE)]
    left = plan([spread(0, "a", "gone")], places)
    assert [(index, source, why) for index, source, _, why in moved(left)] == [(1, "gone", Why.RULE)]
    assert left.moves[0].target != "a"


def test_of_two_shares_at_one_owner_one_moves_to_another_owner() -> None:
    places = [place("a1", domain="a"), place("a2", domain="a"), place("b"), place("c", is_alive=False)]

    assert moved(plan([spread(0, "a1", "a2")], places)) == [(1, "a2", "b", Why.OWNER)]
    nowhere = plan([spread(0, "a1", "a2", "b")], places)
    assert nowhere.moves == [] and nowhere.stuck == 1, "the dead are brought nothing"


def test_whoever_joined_gets_as_much_as_its_room_is_worth() -> None:
    places = [place("a"), place("b"), place("c", 2.0), place("new", 4.0)]

    planned = plan([spread(number, "a", "b") for number in range(40)], places)
    assert all(move.why is Why.ROOM for move in planned.moves)
    assert planned.after[PeerId("new")] > planned.after[PeerId("c")] > 0
    again = plan(after(planned, [spread(number, "a", "b") for number in range(40)]), places)
    assert again.moves == [], "it is done at once"


def test_moves_are_bounded_by_number_and_by_bytes() -> None:
    planned = plan([spread(number, "a") for number in range(40)], [place("a"), place("new")])

    assert len(planned.moves) == 19
    assert len(bounded(planned.moves, 5, 1 << 40)) == 5
    assert len(bounded(planned.moves, 1_000, 3 * MIB)) == 3
    assert len(bounded(planned.moves, 1_000, 1)) == 1, "or nothing would ever come of it"


def after(planned: Plan, spreads: list[Spread]) -> list[Spread]:
    """Where shares are once all of it is done."""
    where = {spread.number: dict(spread.held) for spread in spreads}
    for move in planned.moves:
        assert where[move.number][move.index] == move.source
        where[move.number][move.index] = move.target
    return [Spread(one.number, one.share_bytes, one.rule, list(where[one.number].items())) for one in spreads]


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.integers(2, 9), st.integers(1, 30))
def test_however_shares_lie_they_end_where_they_may_and_stay_there(seed: int, peers: int, stripes: int) -> None:
    chance = Random(seed)
    names = [f"p{number}" for number in range(peers)]
    places = [
        place(name, chance.choice([0.5, 1, 4]), chance.choice([name, "shared"]), is_alive=chance.random() < 0.8)
        for name in names
    ]
    alive = [one.peer for one in places if one.is_alive]
    rules = [Rule(), Rule(never=(PeerId(chance.choice(names)),)), Rule(on=tuple(map(PeerId, chance.sample(names, 2))))]
    spreads = [
        spread(number, *chance.sample(alive, chance.randint(0, len(alive))), rule=chance.choice(rules))
        for number in range(stripes)
    ]
    domains = {one.peer: one.domain for one in places}

    planned = plan(spreads, places)
    ended = after(planned, spreads)

    for move in planned.moves:
        others = {domains[peer] for index, peer in spreads[move.number].held if index != move.index}
        assert domains[move.target] not in others, "whatever other moves fail, one owner has one share"
    for was, became in zip(spreads, ended, strict=True):
        assert len(became.held) == len(was.held), "no share is lost or made"
        fit = {one.peer for one in allowed(places, became.rule) if one.is_alive}
        kept = dict(was.held)
        for index, peer in became.held:
            assert peer in fit or kept[index] == peer
            assert peer in alive
    wrong = sum(
        peer not in {one.peer for one in allowed(places, one_spread.rule)}
        for one_spread in ended
        for _, peer in one_spread.held
    )
    twice = sum(len(one.held) - len({domains[peer] for _, peer in one.held}) for one in ended)
    assert max(wrong, twice) <= planned.stuck <= wrong + twice
    assert sum(planned.after.values()) == sum(planned.before.values())
    follow = plan(ended, places)
    assert not [move for move in follow.moves if move.why is not Why.ROOM] or planned.stuck
    weights = {one.peer: one.weight for one in places}
    if all(move.why is Why.ROOM for move in planned.moves):
        before, now = (
            max((loads[peer] / weights[peer] for peer in loads), default=0.0)
            for loads in (planned.before, planned.after)
        )
        assert now <= before
