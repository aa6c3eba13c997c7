"""Where shares go: where the owner lets them, each owner once, by weight."""

from __future__ import annotations

from collections import Counter

import pytest

from croft.errors import Refused, Usage
from croft.model.ids import PeerId, TwinId
from croft.storage.placement import (
    Layout,
    Place,
    Rule,
    allowed,
    choose_layout,
    default_layout,
    first_of_domains,
    parse_layout,
    ranked,
)


def place(number: int, weight: float = 1.0, domain: str = "", is_alive: bool = True) -> Place:
    return Place(PeerId(f"p{number}"), f"peer{number}", domain or f"twin{number}", weight, is_alive)


PLACES = [place(number) for number in range(12)]


def test_only_peers_that_the_owner_lets_may_receive_anything() -> None:
    on = Rule(on=(PeerId("p1"), PeerId("p2")))
    never = Rule(never=(PeerId("p3"),), never_twins=(TwinId("twin4"),))

    assert [one.peer for one in allowed(PLACES, on)] == ["p1", "p2"]
    assert {"p3", "p4"}.isdisjoint(one.peer for one in allowed(PLACES, never))
    assert len(allowed(PLACES, never)) == 10


def test_each_owner_holds_one_share() -> None:
    places = [place(number, domain=f"twin{number // 3}") for number in range(12)]

    chosen = first_of_domains(ranked(b"seed", places), 4)

    assert len({one.domain for one in chosen}) == 4


def test_a_peer_that_goes_moves_only_the_shares_that_it_held() -> None:
    for stripe in range(200):
        seed = stripe.to_bytes(4, "big")
        before = first_of_domains(ranked(seed, PLACES), 5)
        after = first_of_domains(ranked(seed, [one for one in PLACES if one.peer != "p7"]), 5)
        stayed = [one for one in before if one.peer != "p7"]
        assert [one for one in after if one in stayed] == stayed


def test_more_disk_holds_more_shares() -> None:
    places = [place(number, weight=4.0 if number == 0 else 1.0) for number in range(12)]
    held = Counter(ranked(stripe.to_bytes(4, "big"), places)[0].peer for stripe in range(3000))

    others = [held[one.peer] for one in places[1:]]
    assert 3 < held[PeerId("p0")] / (sum(others) / len(others)) < 5


def test_the_layout_follows_from_how_many_owners_lend() -> None:
    assert [str(default_layout(count)) for count in (1, 2, 3, 5, 8, 19, 20)] == [
        "copies=1",
        "copies=2",
        "copies=3",
        "2of5",
        "4of8",
        "4of8",
        "10of20",
    ]


def test_a_layout_that_cannot_be_kept_is_refused_with_one_that_can() -> None:
    with pytest.raises(Refused) as refused:
        choose_layout([place(1), place(2), place(3, is_alive=False)], Rule(layout=Layout(4, 8)))

    assert "8 owners" in refused.value.message and "copies=2" in refused.value.remedy
    with pytest.raises(Refused):
        choose_layout([], Rule())


@pytest.mark.parametrize("text", ["5of4", "0of3", "copies=0", "of", "3of", "copies", "3of999", "-1of3", "²of3"])
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(Usage):
        parse_layout(text)


def test_layouts_are_read_as_they_are_shown() -> None:
    for layout in (Layout(4, 8), Layout(1, 3)):
        assert parse_layout(str(layout)) == layout
    assert parse_layout("3-of-6") == Layout(3, 6)
