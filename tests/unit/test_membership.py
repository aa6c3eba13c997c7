"""Who is in."""

from __future__ import annotations

import dataclasses

from croft.model.ids import PeerId, TwinId
from croft.overlay.membership import DEVICES_PER_TWIN_MAX, Membership
from support.members import CHOIR, VILLAGE, member

ANNA, BO, SELF = (PeerId(name) for name in ("anna", "bo", "self"))


def core(*known: PeerId) -> Membership:
    """A core that is in the village and knows these."""
    membership = Membership(SELF)
    for peer in (SELF, *known):
        membership.take(member(peer))
    return membership


def names(membership: Membership) -> list[str]:
    return sorted(one.name for one in membership.members(VILLAGE))


def test_who_is_gone_from_one_community_is_still_known_in_another() -> None:
    membership = core(ANNA)
    membership.take(member("bo"))
    membership.take(member("bo", community=CHOIR))

    membership.remove(VILLAGE, BO)

    assert names(membership) == ["anna", "self"]
    assert membership.communities_of(BO) == {CHOIR}
    membership.remove(CHOIR, BO)
    assert membership.find(BO) is None


def test_a_twin_has_a_bounded_number_of_devices_and_of_people_let_in() -> None:
    membership = core()
    swarm = [
        dataclasses.replace(member(f"m{number}"), twin=TwinId("mallory")) for number in range(DEVICES_PER_TWIN_MAX)
    ]
    for one in swarm:
        assert membership.has_room(one)
        membership.take(one)

    assert not membership.has_room(dataclasses.replace(member("m-more"), twin=TwinId("mallory")))
    assert membership.has_room(swarm[0]), "who is known may speak again"
    assert membership.has_room(member("bo"))
