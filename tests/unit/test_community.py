"""A community's state: what counts, what does not and why, what is refused, and what hostile people can do."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from croft.errors import PeerMisbehaved
from croft.identity.grants import admit, found
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, TwinId
from croft.twins.community import BY_MEMBER_MAX, REFUSED_KEPT_MAX, WAITING_MAX, Community
from croft.twins.community_operation import (
    OPERATION_BYTES_MAX,
    PARENTS_MAX,
    Operation,
    open_operation,
    reopen_operation,
    write_operation,
)
from croft.twins.community_reducer import (
    GUESTS_INVITE_NOBODY,
    RULE_FORBIDS,
    SENIOR,
    STAYS_OUT,
    THE_FOUNDER,
    TWO_TONGUES,
    UNSEATED,
)
from croft.wire.codec import decode, encode
from croft.wire.envelope import SignedRecord
from support.communities import FOUNDER, VILLAGE, Village, replica, signed, twin

ROOT, FAY, ANN = (SecretKey(bytes([number]) * 32) for number in (1, 2, 3))
PLACE = CommunityId(ROOT.public)


@pytest.fixture
def village() -> Village:
    """Fay's: ann and bob became admins in this order; cat and dan are members; all know all."""
    made = Village()
    for name in ("ann", "bob", "cat", "dan"):
        made.act("fay", "admit", name, name.title())
    for name in ("ann", "bob"):
        made.act("fay", "role", name, "admin")
    for name in ("ann", "bob", "cat", "dan"):
        made.meet("fay", name)
    return made


def why(known: Community, act: str, author: str) -> list[str]:
    return [one.why_not for one in known.log() if one.act == act and one.author == twin(author)]


def roles(known: Community, *names: str) -> list[str]:
    return [known.role(twin(name)) for name in names]


# --- roles -----------------------------------------------------------------------------------------------------------


def test_roles_are_what_was_given_last(village: Village) -> None:
    village.act("ann", "role", "cat", "guest")
    village.act("ann", "role", "dan", "guest")
    village.act("ann", "role", "dan", "member")

    assert roles(village["ann"], "fay", "ann", "cat", "dan", "eve") == ["founder", "admin", "guest", "member", ""]


def test_whoever_has_no_right_is_refused_and_noted_here_alone(village: Village) -> None:
    for act, subject, value in (("remove", "ann", ""), ("role", "cat", "admin"), ("rule", "invite", "founders")):
        with pytest.raises(PeerMisbehaved, match="no admin"):
            village.act("cat", act, subject, value)

    assert [one.act for one in village["cat"].refused] == ["remove", "role", "rule"]
    assert len(village["cat"]) == len(village["fay"])
    assert "no admin" not in village["cat"].would_count(twin("cat"), "remove", twin("ann"), "")


def test_an_admin_cannot_act_on_a_senior_one_whether_they_know_of_each_other_or_not(village: Village) -> None:
    village.act("bob", "remove", "ann")
    village.act("ann", "role", "bob", "member")
    village.act("bob", "remove", "fay")

    village.everybody_meets()

    assert roles(village["dan"], "fay", "ann", "bob") == ["founder", "admin", "member"]
    assert why(village["dan"], "remove", "bob") == [UNSEATED, UNSEATED]
    assert village["dan"].would_count(twin("ann"), "remove", FOUNDER, "") == THE_FOUNDER


def test_a_senior_admin_who_lost_the_role_can_be_removed_by_a_junior(village: Village) -> None:
    assert village["bob"].would_count(twin("bob"), "remove", twin("ann"), "") == SENIOR
    village.act("fay", "role", "ann", "member")
    village.meet("fay", "bob")

    village.act("bob", "remove", "ann")

    assert roles(village["bob"], "ann") == [""]


def test_an_admin_who_was_made_one_again_is_the_most_junior(village: Village) -> None:
    village.act("fay", "role", "ann", "member")
    village.act("fay", "role", "ann", "admin")
    village.meet("fay", "ann", "bob")

    assert village["ann"].would_count(twin("ann"), "remove", twin("bob"), "") == SENIOR
    assert village["bob"].would_count(twin("bob"), "remove", twin("ann"), "") == ""


def test_whoever_steps_down_does_so_at_once(village: Village) -> None:
    village.act("ann", "role", "ann", "member")

    assert roles(village["ann"], "ann") == ["member"]
    assert village["ann"].would_count(twin("ann"), "remove", twin("dan"), "") != ""


# --- removal ---------------------------------------------------------------------------------------------------------


def test_a_removal_voids_what_the_removed_did_meanwhile_and_leaves_what_was_known(village: Village) -> None:
    village.act("ann", "admit", "eve")
    village.meet("ann", "fay")
    village.act("ann", "admit", "kim")
    village.act("ann", "role", "cat", "admin")
    village.act("fay", "remove", "ann")

    village.everybody_meets()

    assert roles(village["dan"], "ann", "eve", "kim", "cat") == ["", "member", "", "member"]
    assert why(village["dan"], "admit", "ann") == ["", UNSEATED]


def test_of_a_chain_of_admins_only_those_go_whose_right_fell(village: Village) -> None:
    village.act("bob", "role", "cat", "admin")
    village.meet("bob", "cat")
    village.act("cat", "admit", "eve")
    village.meet("cat", "dan")
    village.act("ann", "remove", "bob")

    village.everybody_meets()

    # Bob's promotion of Cat is void, so Cat let Eve in as a member, which members may.
    assert roles(village["dan"], "bob", "cat", "eve") == ["", "member", "member"]


def test_a_back_dated_act_of_a_removed_one_is_void(village: Village) -> None:
    village.act("fay", "remove", "bob")
    village.everybody_meets()

    old = [one.id for one in village["fay"].log() if one.act == "role"][-1:]
    village.act("bob", "remove", "dan", parents=old)
    village.everybody_meets()

    assert roles(village["fay"], "dan") == ["member"]
    assert why(village["fay"], "remove", "bob") == [UNSEATED]


def test_whoever_was_removed_is_let_in_again_by_admins_only(village: Village) -> None:
    village.act("fay", "remove", "cat")
    village.everybody_meets()
    village.act("dan", "admit", "cat")
    assert roles(village["dan"], "cat") == [""]
    assert why(village["dan"], "admit", "dan") == [STAYS_OUT]

    village.everybody_meets()
    village.act("bob", "admit", "cat")
    village.everybody_meets()

    assert roles(village["dan"], "cat") == ["member"]


def test_whoever_left_is_let_in_again_by_anybody(village: Village) -> None:
    village.act("cat", "leave")
    village.everybody_meets()
    assert (roles(village["dan"], "cat"), village["dan"].refusal(twin("cat"))) == ([""], "left")

    village.act("dan", "admit", "cat")

    assert roles(village["dan"], "cat") == ["member"]


# --- rules -----------------------------------------------------------------------------------------------------------


def test_the_tighter_of_two_rules_that_were_set_apart_holds_also_for_what_was_done_meanwhile(village: Village) -> None:
    village.act("ann", "rule", "invite", "admins")
    village.act("bob", "rule", "invite", "members")
    village.act("cat", "admit", "eve")

    village.everybody_meets()

    assert village["dan"].rules()["invite"] == "admins"
    assert why(village["dan"], "admit", "cat") == [RULE_FORBIDS]
    village.act("fay", "rule", "invite", "members")
    assert village["fay"].rules()["invite"] == "members"


def test_guests_invite_nobody(village: Village) -> None:
    village.act("fay", "role", "cat", "guest")
    village.act("cat", "admit", "eve")

    village.everybody_meets()

    assert why(village["dan"], "admit", "cat") == [GUESTS_INVITE_NOBODY]


# --- grants alone ----------------------------------------------------------------------------------------------------


def test_a_grant_alone_makes_a_member_as_long_as_its_inviters_may_invite(village: Village) -> None:
    known, eve = village["fay"], twin("eve")
    by_cat = (FOUNDER, twin("cat"), eve)
    assert known.role(eve, by_cat) == "member"
    assert known.role(eve, (twin("mallory"), eve)) == ""
    village.act("fay", "rule", "invite", "admins")
    assert known.refusal(eve, by_cat) == RULE_FORBIDS
    assert known.role(eve, (FOUNDER, twin("ann"), eve)) == "member"

    village.act("fay", "remove", "ann")

    assert known.role(eve, (FOUNDER, twin("ann"), eve)) == ""


# --- the graph -------------------------------------------------------------------------------------------------------


def test_what_comes_before_its_parents_waits_for_them_up_to_a_bound(village: Village) -> None:
    operations = list(village.all.values())
    known = replica()

    for one in reversed(operations):
        known.take(one)
    assert len(known) == len(operations)
    for number in range(3 * WAITING_MAX):
        parent = number.to_bytes(32, "big")
        known.take(signed(FOUNDER, Operation(VILLAGE, number, [parent], "admit", twin("eve"), "", 0.0)))

    assert len(known) == len(operations)
    assert len(known._waiting) == WAITING_MAX
    assert len(known._awaited) <= 3 * WAITING_MAX


def test_a_peer_is_sent_what_it_lacks_and_no_more(village: Village) -> None:
    village.act("ann", "admit", "eve")
    village.act("bob", "admit", "kim")
    ann, bob = village["ann"], village["bob"]

    lacked = [one.author for one in ann.lacking(bob.sample(64), ann.heads(64))]

    assert lacked == [twin("ann")]
    assert len(list(ann.lacking((), ann.heads(64)))) == len(ann)


# --- hostile ---------------------------------------------------------------------------------------------------------


def test_a_flood_of_somebody_without_rights_costs_no_memory(village: Village) -> None:
    known = village["fay"]
    before, head = len(known), known.heads(1)
    for number in range(20_000):
        flood = Operation(VILLAGE, number, head, "remove", twin("ann"), "", 0.0)
        with pytest.raises(PeerMisbehaved):
            known.take(signed(twin("dan"), flood))

    assert (len(known), len(known.refused)) == (before, REFUSED_KEPT_MAX)
    assert roles(known, "ann") == ["admin"]


def test_one_author_is_not_taken_at_any_length(village: Village) -> None:
    known = village["fay"]
    with pytest.raises(PeerMisbehaved, match="too much"):
        for _ in range(BY_MEMBER_MAX + 1):
            known.take(signed(twin("dan"), known.next_operation(twin("dan"), "admit", twin("x"), "", at=0, chain=())))

    assert len([one for one in known.log() if one.author == twin("dan")]) == BY_MEMBER_MAX


def test_two_acts_under_one_number_are_kept_as_proof_and_neither_counts(village: Village) -> None:
    village.act("ann", "role", "cat", "admin")
    village.act("ann", "remove", "dan", sequence=0, parents=village["fay"].heads(1))
    village.act("ann", "admit", "eve")
    village.everybody_meets()

    known = village["bob"]
    assert roles(known, "ann", "cat", "dan", "eve") == ["member", "member", "member", ""]
    assert {one.why_not for one in known.log() if one.author == twin("ann")} == {TWO_TONGUES}

    village.act("fay", "role", "ann", "admin")
    village.meet("fay", "ann")
    village.act("ann", "role", "cat", "admin")
    assert roles(village["ann"], "ann", "cat") == ["admin", "admin"]


def test_whoever_acts_apart_has_to_number_it_alike(village: Village) -> None:
    first = village.act("ann", "admit", "eve")
    apart = Operation(VILLAGE, 1, village["fay"].heads(1), "admit", twin("kim"), "", 0.0)

    with pytest.raises(PeerMisbehaved, match="does not follow"):
        village["ann"].take(signed(twin("ann"), apart))
    village["ann"].take(signed(twin("ann"), replace(apart, parents=[first.id])))

    assert roles(village["ann"], "kim") == ["member"]


def test_ones_own_acts_follow_one_another_however_many_heads_there_are(village: Village) -> None:
    known, root = village["fay"], village["fay"].heads(1)
    village.act("cat", "admit", "eve")
    village.meet("cat", "fay")
    for number in range(2 * PARENTS_MAX):
        author = twin(f"m{number}")
        known.take(signed(author, Operation(VILLAGE, 0, root, "admit", twin("x"), "", 0.0), (FOUNDER, author)))
    assert len(known.heads(1024)) > PARENTS_MAX

    again = known.next_operation(twin("cat"), "admit", twin("lea"), "", at=0.0, chain=())
    assert len(again.parents) == PARENTS_MAX
    known.take(signed(twin("cat"), again))


def test_a_third_head_under_one_number_is_taken_only_if_others_build_on_it(village: Village) -> None:
    known, heads = village["fay"], village["fay"].heads(1)
    forks = [
        signed(twin("ann"), Operation(VILLAGE, 0, heads, "admit", twin(f"sock{number}"), "", 0.0))
        for number in range(4)
    ]
    known.take(forks[0])
    known.take(forks[1])
    with pytest.raises(PeerMisbehaved, match="which is known"):
        known.take(forks[2])

    known.take(forks[3], is_needed=True)

    assert forks[3].id in known


@pytest.mark.parametrize(("act", "value"), [("leave", ""), ("role", "member"), ("admit", "")])
def test_a_removed_admin_cannot_undo_what_they_did_by_signing_something_older(
    village: Village, act: str, value: str
) -> None:
    village.act("ann", "admit", "eve")
    village.meet("ann", "fay")
    village.act("fay", "remove", "ann")
    village.everybody_meets()
    assert roles(village["dan"], "eve") == ["member"]

    parents = [one.id for one in village["dan"].log() if one.act == "role" and one.subject == twin("ann")]
    about = twin("kim") if act == "admit" else twin("ann")
    for sequence in (0, 1):
        older = signed(twin("ann"), Operation(VILLAGE, sequence, parents, act, about, value, 0.0))
        village["dan"].take(older)
        parents = [older.id]

    assert roles(village["dan"], "ann", "eve", "kim") == ["", "member", ""]


def test_creation_is_for_the_communitys_key_alone(village: Village) -> None:
    forged = Operation(VILLAGE, 0, [], "create", twin("ann"), "Annville", 0.0)
    for author, operation in ((twin("ann"), forged), (TwinId(VILLAGE), forged)):
        with pytest.raises(PeerMisbehaved, match="only the community's key"):
            village["fay"].take(signed(author, operation))

    village["fay"].take(signed(TwinId(VILLAGE), replace(forged, subject=FOUNDER, value="Fayville")))

    assert village["fay"].name == "Fayville"


# --- signed bytes ----------------------------------------------------------------------------------------------------


def record(key: SecretKey = FAY, **changes: object) -> bytes:
    operation = Operation(PLACE, 0, [], "admit", ANN.public, "Ann", 0.0)
    return write_operation(key, replace(operation, **changes))


def test_an_operation_is_what_was_signed_or_nothing() -> None:
    good = record()
    opened = open_operation(good, PLACE)
    assert (opened.author, opened.operation.subject) == (FAY.public, ANN.public)
    assert reopen_operation(good, PLACE) == opened

    flipped = 0
    for place in range(len(good)):
        bad = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        try:
            flipped += open_operation(bad, PLACE) == opened
        except PeerMisbehaved:
            continue

    assert flipped == 0


def test_another_wrapping_of_the_same_act_is_the_same_operation() -> None:
    good = decode(record(), SignedRecord, step="test")
    again = encode((good.signer, good.kind, good.payload, good.signature, "a field of a later version"))

    assert open_operation(again, PLACE).id == open_operation(record(), PLACE).id


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"community": "aa" * 32}, "another community"),
        ({"parents": [bytes(32)] * 2}, "not in order"),
        ({"parents": [bytes([n]) * 32 for n in range(PARENTS_MAX + 1)]}, "17 parents"),
        ({"parents": [b"short"]}, "no id"),
        ({"sequence": -1}, "impossible"),
        ({"at": float("nan")}, "impossible"),
        ({"subject": "nobody"}, "of nobody"),
        ({"act": "role", "value": "king"}, "a role `king`"),
        ({"value": "x" * 513}, "too long"),
        ({"value": "\x1b[2J"}, "unprintable"),
        ({"chain": [b"x" * OPERATION_BYTES_MAX]}, "the limit is"),
        ({"chain": [b"forged"]}, "damaged or forged"),
    ],
)
def test_an_operation_beyond_its_bounds_is_refused(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(PeerMisbehaved, match=complaint):
        open_operation(record(**changes), PLACE)


def test_a_member_of_before_there_were_operations_shows_the_grant_along() -> None:
    chain = admit(FAY, found(ROOT, TwinId(FAY.public)), PLACE, TwinId(ANN.public))
    known = Community(PLACE, TwinId(FAY.public))
    bare = known.next_operation(TwinId(ANN.public), "admit", twin("eve"), "Eve", at=1e9, chain=chain)

    with pytest.raises(PeerMisbehaved, match="no member"):
        known.take(open_operation(write_operation(ANN, replace(bare, chain=[])), PLACE))
    known.take(open_operation(write_operation(ANN, bare), PLACE))

    assert known.role(twin("eve")) == "member"
