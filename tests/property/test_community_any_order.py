"""The community's state for any order of arrival, any duplication and any partition."""

from __future__ import annotations

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from croft.errors import PeerMisbehaved
from croft.twins.community import Community
from support.communities import FOUNDER, Village, replica, take_all, twin

PEOPLE = ("fay", "ann", "bob", "cat", "dan")
ACTS = st.one_of(
    st.tuples(st.just("admit"), st.sampled_from(PEOPLE), st.just("")),
    st.tuples(st.just("role"), st.sampled_from(PEOPLE), st.sampled_from(("admin", "admin", "member", "guest"))),
    st.tuples(st.just("remove"), st.sampled_from(PEOPLE), st.just("")),
    st.tuples(st.just("leave"), st.just(""), st.just("")),
    st.tuples(st.just("rule"), st.just("invite"), st.sampled_from(("founders", "admins", "members"))),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("act"), st.sampled_from(PEOPLE), ACTS),
        st.tuples(st.just("fork"), st.sampled_from(PEOPLE), ACTS),
        st.tuples(st.just("meet"), st.sampled_from(PEOPLE), st.sampled_from(PEOPLE)),
    ),
    max_size=40,
)


def played(steps: list[tuple[str, str, object]]) -> Village:
    village = Village()
    for name in PEOPLE[1:]:
        village.act("fay", "admit", name)
    village.act("fay", "role", "ann", "admin")
    village.act("fay", "role", "bob", "admin")
    for name in PEOPLE:
        village.meet("fay", name)
    for what, who, detail in steps:
        if what == "meet":
            village.meet(who, str(detail))
            continue
        assert isinstance(detail, tuple)
        act, subject, value = detail
        changes = {"sequence": 1} if what == "fork" else {}
        try:
            village.act(who, act, subject, value, **changes)
        except PeerMisbehaved:
            continue  # somebody had no right to that: it is in nobody's replica
    return village


def told(community: Community) -> object:
    log = [(one.id, one.why_not) for one in community.log()]
    roles = {name: community.role(twin(name)) for name in PEOPLE}
    return log, roles, community.rules(), community.digest()


@settings(deadline=None, max_examples=300)
@given(STEPS, st.randoms(use_true_random=False))
def test_the_same_operations_in_any_order_and_often_give_the_same_state(steps, random) -> None:  # type: ignore[no-untyped-def]
    village = played(steps)
    operations = list(village.all.values())
    states = []
    for _ in range(3):
        random.shuffle(operations)
        known = replica()
        known.members()  # from now on what comes is judged one by one
        for one in [*operations, *operations[: len(operations) // 2]]:
            take_all(known, [one])
            if random.random() < 0.2:
                known.members()
        states.append(told(known))
        assert len(known) == len(operations)

    at_once = replica()
    take_all(at_once, operations)

    assert all(state == told(at_once) for state in states)


@settings(deadline=None, max_examples=200)
@given(STEPS)
def test_after_any_partitions_all_agree_once_they_have_met(steps) -> None:  # type: ignore[no-untyped-def]
    village = played(steps)

    village.everybody_meets()

    digests = {community.digest() for community in village.replicas.values()}
    assert len(digests) == 1
    assert village["fay"].role(FOUNDER) in ("founder", "")


@settings(deadline=None, max_examples=200)
@given(STEPS, st.sampled_from(PEOPLE[1:]), STEPS)
def test_nothing_that_a_removed_one_signs_afterwards_changes_anything(steps, who, later) -> None:  # type: ignore[no-untyped-def]
    village = played(steps)
    village.everybody_meets()
    village.act("fay", "remove", who)
    fay = village["fay"]
    before = {name: fay.role(twin(name)) for name in PEOPLE}, fay.rules()

    for what, _, detail in later:
        if what in ("act", "fork"):
            act, subject, value = detail
            # As if it had been done before anything else that they did.
            old = village[who].lacking((), village[who].heads(64))
            changes = {"sequence": 0, "parents": [one.id for one in old][5:6]} if what == "fork" else {}
            with contextlib.suppress(PeerMisbehaved):
                village.act(who, act, subject, value, **changes)
    village.everybody_meets()

    assert ({name: fay.role(twin(name)) for name in PEOPLE}, fay.rules()) == before
