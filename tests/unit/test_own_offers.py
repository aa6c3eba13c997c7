"""Which of an owner's offers stand for whom."""

from __future__ import annotations

import pytest

from croft.errors import Busy, NotFound, Refused
from croft.ledger.own_offers import FRIENDS, MEMBERS, MINE, OFFERS_MAX, SETTINGS, Asker, OwnOffer, OwnOffers, largest
from croft.model.amounts import Amounts
from croft.model.hours import parse_when
from croft.model.ids import CommunityId, TwinId

BO, CLEO = TwinId("b" * 64), TwinId("c" * 64)
VILLAGE, TOWN = CommunityId("1" * 64), CommunityId("2" * 64)
NOON, NIGHT = 12 * 60, 23 * 60


def asker(twin: TwinId = BO, *communities: CommunityId, is_own: bool = False, is_friend: bool = False) -> Asker:
    return Asker(twin, frozenset(communities or [VILLAGE]), is_own, is_friend)


def offers(*to: str, when: str = "", **lent: int) -> OwnOffers:
    return OwnOffers(OwnOffer(SETTINGS, Amounts.of(lent or {"cpu": 2}), to, parse_when(when) if when else None))


@pytest.mark.parametrize(
    ("to", "who", "is_meant"),
    [
        (MEMBERS, asker(), True),
        (FRIENDS, asker(), False),
        (FRIENDS, asker(is_friend=True), True),
        (MINE, asker(is_friend=True), False),
        (MINE, asker(is_own=True), True),
        (CLEO, asker(is_own=True), True),
        (BO, asker(), True),
        (CLEO, asker(), False),
        (VILLAGE, asker(), True),
        (TOWN, asker(), False),
    ],
)
def test_an_offer_is_for_whom_it_says_and_for_the_owners_own_devices(to: str, who: Asker, is_meant: bool) -> None:
    found = offers(to)

    if is_meant:
        assert found.standing_for(who, NOON) == (SETTINGS,)
    else:
        with pytest.raises(Refused, match="offers nothing to you") as refused:
            found.standing_for(who, NOON)
        assert refused.value.remedy


def test_a_stranger_is_offered_nothing_by_an_offer_to_members() -> None:
    with pytest.raises(Refused, match="nothing to you"):
        offers(MEMBERS).standing_for(Asker(BO, frozenset(), False, False), NOON)


def test_out_of_hours_the_refusal_says_when() -> None:
    found = offers(MEMBERS, when="20-08")
    assert found.standing_for(asker(), NIGHT) == (SETTINGS,)

    with pytest.raises(Refused, match=r"only at 20:00-08:00, and there it is mon 12:00"):
        found.standing_for(asker(), NOON)
    assert found.standing(NOON) == {} and found.hours() == "20:00-08:00"


def test_whom_several_offers_mean_has_the_one_with_most_processors_first() -> None:
    found = offers(MEMBERS, cpu=1)
    found.add(OwnOffer("1", Amounts.of({"cpu": 4}), (FRIENDS,)))
    found.add(OwnOffer("2", Amounts.of({"camera": 1}), (BO,), places=(("camera", "/tmp/cam.jpg"),)))

    assert found.standing_for(asker(is_friend=True), NOON) == ("1", SETTINGS, "2")
    assert largest(found.standing(NOON).values()) == Amounts.of({"cpu": 4, "camera": 1})
    assert found.places() == {"camera": "/tmp/cam.jpg"}


def test_an_owner_who_lends_nothing_offers_nothing() -> None:
    found = OwnOffers(OwnOffer(SETTINGS, Amounts(), (MEMBERS,)))

    with pytest.raises(Refused):
        found.standing_for(asker(is_own=True), NOON)


def test_offers_are_bounded_and_that_of_the_settings_cannot_be_withdrawn() -> None:
    found = offers(MEMBERS)
    for number in range(1, OFFERS_MAX):
        found.add(OwnOffer(str(number), Amounts.of({"cpu": 1}), (MEMBERS,)))

    with pytest.raises(Busy):
        found.add(OwnOffer("9", Amounts.of({"cpu": 1}), (MEMBERS,)))
    with pytest.raises(Refused, match="settings"):
        found.remove(SETTINGS)
    with pytest.raises(NotFound):
        found.remove("77")
    assert found.remove("3").name == "3"


def test_what_a_descriptor_says_already_is_plain() -> None:
    assert offers(MEMBERS).all()[0].is_plain
    assert not offers(MEMBERS, when="20-08").all()[0].is_plain
    assert not offers(FRIENDS).all()[0].is_plain
    assert not offers(MEMBERS, cpu=1, gpu=1).all()[0].is_plain
