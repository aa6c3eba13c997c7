"""Who is in, and whom to dial."""

from __future__ import annotations

import dataclasses

from croft.model.ids import PeerId, TwinId
from croft.overlay.membership import (
    DEVICES_PER_TWIN_MAX,
    REDIAL_MAX_S,
    Dial,
    DialFailed,
    Gone,
    Learned,
    LinkDown,
    LinkUp,
    Membership,
    Tick,
)
from support.members import CHOIR, VILLAGE, member

ANNA, BO, SELF = (PeerId(name) for name in ("anna", "bo", "self"))


def core(*linked: PeerId) -> Membership:
    """A core that is in the village and has links to `linked`, whom it knows."""
    membership = Membership(SELF)
    membership.handle(Learned(member("self"), 0.0))
    for peer in linked:
        membership.handle(LinkUp(peer))
        membership.handle(Learned(member(peer), 0.0))
    return membership


def names(membership: Membership) -> list[str]:
    return sorted(one.name for one in membership.members(VILLAGE))


def test_what_is_learned_during_a_dial_is_tried_at_once() -> None:
    membership = core()
    membership.handle(Learned(member("anna", 1), 0.0))

    assert membership.handle(Learned(member("anna", 2), 1.0)) == [Dial(ANNA, ("anna:2",))]


def test_a_member_without_a_link_is_dialled_once_until_it_is_known_how_that_ended() -> None:
    membership = core(ANNA)

    dial = Dial(BO, ("bo:1",))
    assert membership.handle(Learned(member("bo"), 0.0)) == [dial]
    assert membership.handle(Tick(100.0)) == []
    membership.handle(DialFailed(BO, 100.0))
    assert membership.handle(Tick(200.0)) == [dial]
    membership.handle(LinkUp(BO))
    assert membership.handle(Tick(300.0)) == []


def test_pauses_between_dials_double_up_to_a_limit() -> None:
    membership, now, pauses = core(ANNA), 0.0, []
    membership.handle(Learned(member("bo"), now))
    for _ in range(10):
        membership.handle(DialFailed(BO, now))
        failed_at = now
        while not membership.handle(Tick(now)):
            now += 0.25
        pauses.append(now - failed_at)

    assert pauses[:4] == [1, 2, 4, 8]
    assert pauses[-1] == REDIAL_MAX_S


def test_a_link_that_ends_is_dialled_at_once() -> None:
    membership = core(ANNA)

    assert membership.handle(LinkDown(ANNA, 50.0)) == [Dial(ANNA, ("anna:1",))]


def test_a_peer_that_speaks_from_elsewhere_is_dialled_there_without_waiting() -> None:
    membership = core(ANNA, BO)
    membership.handle(LinkDown(BO, 0.0))
    for _ in range(5):
        membership.handle(DialFailed(BO, 0.0))

    assert membership.handle(Learned(member("bo", 2), 1.0)) == [Dial(BO, ("bo:2",))]


def test_who_is_gone_from_one_community_is_still_known_in_another() -> None:
    membership = core(ANNA)
    membership.handle(Learned(member("bo"), 0.0))
    membership.handle(Learned(member("bo", community=CHOIR), 0.0))

    membership.handle(Gone(VILLAGE, BO))

    assert names(membership) == ["anna", "self"]
    assert membership.communities_of(BO) == {CHOIR}
    membership.handle(Gone(CHOIR, BO))
    assert membership.find(BO) is None


def test_a_twin_has_a_bounded_number_of_devices_and_of_people_let_in() -> None:
    membership = core()
    swarm = [
        dataclasses.replace(member(f"m{number}"), twin=TwinId("mallory")) for number in range(DEVICES_PER_TWIN_MAX)
    ]
    for one in swarm:
        assert membership.has_room(one)
        membership.handle(Learned(one, 0.0))

    assert not membership.has_room(dataclasses.replace(member("m-more"), twin=TwinId("mallory")))
    assert membership.has_room(swarm[0]), "who is known may speak again"
    assert membership.has_room(member("bo"))
