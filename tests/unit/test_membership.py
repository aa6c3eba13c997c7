"""Who is in, whom to tell, whom to dial."""

from __future__ import annotations

import pytest

from croft.model.ids import PeerId
from croft.overlay.membership import (
    CLOCK_AHEAD_S_MAX,
    MEMBERS_MAX,
    RECORD_BYTES_PER_NOTICE_MAX,
    RECORDS_PER_NOTICE_MAX,
    REDIAL_MAX_S,
    Dial,
    DialFailed,
    DigestReceived,
    Effect,
    Forget,
    Left,
    LinkDown,
    LinkUp,
    Membership,
    OwnChanged,
    OwnKeyUsedElsewhere,
    RecordsReceived,
    Remember,
    SendDigest,
    SendRecords,
    Tick,
)
from support.members import CHOIR, VILLAGE, member

ANNA, BO, CLEO, SELF = (PeerId(name) for name in ("anna", "bo", "cleo", "self"))
HERE = frozenset([VILLAGE])


def core(*linked: PeerId) -> Membership:
    """A core that is in the village and has links to `linked`, whose records it knows."""
    membership = Membership(SELF, b"this run")
    membership.handle(OwnChanged(member("self", instance=b"this run")))
    for peer in linked:
        membership.handle(LinkUp(peer, HERE))
        membership.handle(RecordsReceived(peer, [member(peer)], 0.0))
    return membership


def only(effects: object, kind: type[Effect]) -> list[Effect]:
    assert isinstance(effects, list | tuple)
    return [effect for effect in effects if isinstance(effect, kind)]


def names(membership: Membership) -> list[str]:
    return sorted(one.name for one in membership.members(VILLAGE))


def test_a_new_link_is_told_what_is_known_in_every_shared_community() -> None:
    membership = core()
    membership.handle(OwnChanged(member("self", 5, community=CHOIR)))

    assert membership.handle(LinkUp(ANNA, frozenset([VILLAGE, CHOIR]))) == [
        SendDigest(ANNA, CHOIR, (("self", 5),)),
        SendDigest(ANNA, VILLAGE, (("self", 1),)),
    ]


def test_a_digest_is_answered_with_what_its_sender_lacks() -> None:
    membership = core(ANNA, BO)

    effects = membership.handle(DigestReceived(ANNA, VILLAGE, [("anna", 1), ("bo", 0), ("unknown", 9)]))

    assert effects == [SendRecords(ANNA, VILLAGE, (member("self").record, member("bo").record))]


@pytest.mark.parametrize("sender", [CLEO, ANNA])
def test_a_digest_of_a_community_that_the_sender_is_not_in_is_not_answered(sender: PeerId) -> None:
    membership = core(ANNA)
    membership.handle(OwnChanged(member("self", community=CHOIR)))

    assert membership.handle(DigestReceived(sender, CHOIR, [])) == []


def test_news_goes_to_all_links_but_its_sender_and_its_subject() -> None:
    membership = core(ANNA, BO, CLEO)

    effects = membership.handle(RecordsReceived(ANNA, [member("bo", 2)], 0.0))

    assert effects == [Remember(member("bo", 2)), SendRecords(CLEO, VILLAGE, (member("bo", 2).record,))]


@pytest.mark.parametrize("sequence", [0, 1])
def test_what_is_old_is_not_taken_and_not_passed_on(sequence: int) -> None:
    membership = core(ANNA, BO)

    assert membership.handle(RecordsReceived(ANNA, [member("bo", sequence)], 0.0)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        member("dora", expires_at=99.0),
        member("dora", int((100 + CLOCK_AHEAD_S_MAX + 1) * 1000)),
        member("dora", community=CHOIR),
    ],
    ids=["expired", "from the future", "of another community"],
)
def test_what_cannot_be_is_not_taken(wrong: object) -> None:
    membership = core(ANNA)

    assert membership.handle(RecordsReceived(ANNA, [wrong], 100.0)) == []  # type: ignore[list-item]  # a Member
    assert names(membership) == ["anna", "self"]


def test_records_of_somebody_without_a_link_are_not_taken() -> None:
    membership = core()

    assert membership.handle(RecordsReceived(ANNA, [member("bo")], 0.0)) == []


def test_a_community_has_a_greatest_size() -> None:
    membership = core(ANNA)
    many = [member(f"m{number}") for number in range(MEMBERS_MAX + 5)]

    membership.handle(RecordsReceived(ANNA, many, 0.0))

    assert len(membership.members(VILLAGE)) == MEMBERS_MAX
    assert "self" in names(membership)


def test_notices_are_bounded_in_number_and_in_bytes() -> None:
    membership = core()
    membership.handle(RecordsReceived(None, [member(f"m{number}", size=20_000) for number in range(200)], 0.0))
    membership.handle(LinkUp(ANNA, HERE))

    notices = membership.handle(DigestReceived(ANNA, VILLAGE, []))

    batches = [notice.records for notice in notices if isinstance(notice, SendRecords)]
    assert sum(map(len, batches)) == 201
    assert all(len(batch) <= RECORDS_PER_NOTICE_MAX for batch in batches)
    assert all(sum(map(len, batch)) <= RECORD_BYTES_PER_NOTICE_MAX for batch in batches)


def test_a_member_without_a_link_is_dialled_once_until_it_is_known_how_that_ended() -> None:
    membership = core(ANNA)

    dial = Dial(BO, ("bo:1",))
    assert only(membership.handle(RecordsReceived(ANNA, [member("bo")], 0.0)), Dial) == [dial]
    assert membership.handle(Tick(100.0)) == []
    membership.handle(DialFailed(BO, 100.0))
    assert membership.handle(Tick(200.0)) == [dial]
    membership.handle(LinkUp(BO, HERE))
    assert membership.handle(Tick(300.0)) == []


def test_pauses_between_dials_double_up_to_a_limit() -> None:
    membership, now, pauses = core(ANNA), 0.0, []
    membership.handle(RecordsReceived(ANNA, [member("bo")], now))
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

    effects = membership.handle(RecordsReceived(ANNA, [member("bo", 2)], 1.0))

    assert only(effects, Dial) == [Dial(BO, ("bo:2",))]


def test_members_that_expire_are_forgotten_but_not_while_they_are_linked_and_never_oneself() -> None:
    membership = Membership(SELF, b"this run")
    membership.handle(OwnChanged(member("self", expires_at=50.0)))
    membership.handle(LinkUp(ANNA, HERE))
    membership.handle(RecordsReceived(None, [member("anna", expires_at=50.0), member("bo", expires_at=50.0)], 0.0))

    assert only(membership.handle(Tick(51.0)), Forget) == [Forget(VILLAGE, BO)]
    assert names(membership) == ["anna", "self"]


def test_leaving_forgets_everybody_there_and_nobody_elsewhere() -> None:
    membership = core(ANNA)
    membership.handle(OwnChanged(member("self", community=CHOIR)))
    membership.handle(RecordsReceived(None, [member("bo", community=CHOIR)], 0.0))

    assert membership.handle(Left(CHOIR)) == [Forget(CHOIR, SELF), Forget(CHOIR, BO)]
    assert membership.find(BO) is None
    assert names(membership) == ["anna", "self"]


def test_ones_own_words_that_come_back_change_nothing() -> None:
    membership = core(ANNA)

    assert membership.handle(RecordsReceived(ANNA, [member("self", 0, instance=b"last run")], 0.0)) == []
    assert membership.handle(RecordsReceived(ANNA, [member("self", 1, instance=b"this run")], 0.0)) == []


def test_newer_words_under_ones_own_key_are_told_and_not_taken() -> None:
    membership = core(ANNA)

    effects = membership.handle(RecordsReceived(ANNA, [member("self", 7, instance=b"a copy")], 0.0))

    assert effects == [OwnKeyUsedElsewhere(("self:7",))]
    assert membership.find(SELF) == member("self", instance=b"this run")


def test_a_link_serves_a_further_community_once_a_record_proves_that_both_are_in_it() -> None:
    membership = core(ANNA)
    own = member("self", community=CHOIR)
    membership.handle(OwnChanged(own))
    theirs = member("anna", community=CHOIR)

    effects = membership.handle(RecordsReceived(ANNA, [theirs], 0.0))

    assert effects == [
        SendRecords(ANNA, CHOIR, (own.record,)),
        SendDigest(ANNA, CHOIR, (("self", 1), ("anna", 1))),
        Remember(theirs),
    ]
    assert membership.handle(DigestReceived(ANNA, CHOIR, [("anna", 1)])) == [SendRecords(ANNA, CHOIR, (own.record,))]


def test_a_member_speaks_for_others_only_where_it_is_known_to_be() -> None:
    membership = core(ANNA)
    membership.handle(OwnChanged(member("self", community=CHOIR)))

    assert membership.handle(RecordsReceived(ANNA, [member("bo", community=CHOIR)], 0.0)) == []
