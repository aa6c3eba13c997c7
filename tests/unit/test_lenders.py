"""Whom a job asks, in which order, and when again."""

from __future__ import annotations

import dataclasses
from math import inf

from croft.compute.lenders import (
    DECLINED_S_MAX,
    NOBODY_S_MAX,
    RETRY_FIRST_S,
    RETRY_FULL_MAX_S,
    RETRY_MAX_S,
    Candidate,
    Lenders,
    Wish,
)
from croft.model.ids import PeerId

ANNA, BO, CLEO, SELF = (PeerId(name) for name in ("anna", "bo", "cleo", "self"))


def candidate(peer: PeerId, *, slots: int = 4, busy: int = 0, rtt: float = 0.01, python: str = "3.11") -> Candidate:
    return Candidate(peer, str(peer), peer == SELF, slots, busy, rtt, python, "A")


def order(lenders: Lenders, *candidates: Candidate, taken: tuple[PeerId, ...] = (), now: float = 0.0) -> list[PeerId]:
    return [found.peer for found in lenders.ranked(candidates, taken, now)]


def test_others_come_before_oneself_idle_ones_first_and_then_near_ones() -> None:
    found = order(
        Lenders(Wish()),
        candidate(SELF),
        candidate(ANNA, busy=2),
        candidate(BO, rtt=0.2),
        candidate(CLEO, rtt=0.1),
    )

    assert found == [CLEO, BO, ANNA, SELF]


def test_the_order_does_not_depend_on_the_order_of_asking() -> None:
    three = [candidate(ANNA), candidate(BO), candidate(CLEO)]

    assert order(Lenders(Wish()), *three) == order(Lenders(Wish()), *reversed(three))


def test_who_lends_nothing_or_works_already_is_not_asked() -> None:
    assert order(Lenders(Wish()), candidate(ANNA, slots=0), candidate(BO), candidate(CLEO), taken=(BO,)) == [CLEO]


def test_only_and_never_are_kept() -> None:
    three = [candidate(ANNA), candidate(BO), candidate(CLEO)]

    assert order(Lenders(Wish(only=frozenset([BO]))), *three) == [BO]
    assert sorted(order(Lenders(Wish(never=frozenset([BO]))), *three)) == [ANNA, CLEO]
    assert order(Lenders(Wish(only=frozenset([BO]), never=frozenset([BO]))), *three) == []


def test_another_python_is_not_asked_and_named_as_a_reason() -> None:
    lenders = Lenders(Wish(python="3.12"))

    assert order(lenders, candidate(ANNA)) == []
    assert lenders.reasons() == ["anna: runs Python 3.11, the job is made by Python 3.12"]


def test_a_refusal_is_followed_by_pauses_that_double_up_to_a_limit() -> None:
    lenders, now, pauses = Lenders(Wish()), 0.0, []
    for _ in range(10):
        lenders.refused(candidate(ANNA), "no", now)
        start = now
        while not order(lenders, candidate(ANNA), now=now):
            now += RETRY_FIRST_S / 2
        pauses.append(now - start)

    assert pauses[:3] == [RETRY_FIRST_S, 2 * RETRY_FIRST_S, 4 * RETRY_FIRST_S]
    assert pauses[-1] == RETRY_MAX_S


def test_a_peer_that_accepts_is_forgiven() -> None:
    lenders = Lenders(Wish())
    lenders.refused(candidate(ANNA), "no", 0.0)
    lenders.refused(candidate(BO), "full", 0.0)
    lenders.accepted(ANNA)

    assert order(lenders, candidate(ANNA), candidate(BO)) == [ANNA]
    assert lenders.reasons() == ["bo: full"]


def test_where_all_have_declined_a_job_does_not_wait_as_long_as_where_some_may_yet_come() -> None:
    lenders = Lenders(Wish())
    both = [candidate(ANNA), candidate(BO)]
    assert lenders.patience_s(both) == NOBODY_S_MAX

    lenders.refused(both[0], "never", 0.0, is_declined=True)
    lenders.refused(both[1], "no room", 0.0)
    assert lenders.patience_s(both) == NOBODY_S_MAX

    lenders.refused(both[1], "never", 1.0, is_declined=True)
    assert lenders.patience_s(both) == DECLINED_S_MAX < NOBODY_S_MAX
    assert lenders.patience_s([*both, candidate(CLEO)]) == NOBODY_S_MAX, "who was not asked yet may say yes"
    assert lenders.patience_s([]) == NOBODY_S_MAX


def test_a_peer_that_was_named_and_lends_nothing_has_said_no() -> None:
    idle = candidate(BO, slots=0)

    assert Lenders(Wish()).patience_s([idle]) == NOBODY_S_MAX, "others may come"
    lenders = Lenders(Wish(only=frozenset([BO])))
    assert lenders.patience_s([idle]) == DECLINED_S_MAX
    assert lenders.reasons() == ["bo: lends no processors now"]
    assert order(lenders, candidate(BO)) == [BO] and lenders.reasons() == []


def test_jobs_do_not_all_prefer_the_same_of_equal_peers() -> None:
    three = [candidate(ANNA), candidate(BO), candidate(CLEO)]
    firsts = {order(Lenders(Wish(), f"job{number}"), *three)[0] for number in range(20)}

    assert firsts == {ANNA, BO, CLEO}


def test_while_a_peer_is_only_full_a_job_waits_for_it_and_asks_often() -> None:
    lenders = Lenders(Wish())
    for now in range(20):
        lenders.refused(candidate(ANNA), "full", float(now * 10), is_full=True)
    lenders.refused(candidate(BO), "no", 200.0, is_declined=True)

    assert lenders.patience_s([candidate(ANNA), candidate(BO)]) == inf
    assert order(lenders, candidate(ANNA), now=190 + RETRY_FULL_MAX_S) == [ANNA]
    lenders.accepted(ANNA)
    assert lenders.patience_s([candidate(BO)]) == DECLINED_S_MAX


def test_who_lacks_what_the_job_needs_is_not_asked_and_named_as_a_reason() -> None:
    lenders = Lenders(Wish(needs=("camera",)))
    with_camera = dataclasses.replace(candidate(BO), devices=frozenset(["camera", "gpu"]))

    assert order(lenders, candidate(ANNA), with_camera) == [BO]
    assert lenders.reasons() == ["anna: lends us no camera"]


def test_who_lends_only_at_other_hours_is_named_with_them() -> None:
    lenders = Lenders(Wish(only=frozenset([ANNA])))
    asleep = dataclasses.replace(candidate(ANNA, slots=0), reason="it lends to you at 20:00-08:00")

    assert order(lenders, asleep) == []
    assert lenders.reasons() == ["anna: lends no processors now: it lends to you at 20:00-08:00"]


def test_who_lacks_a_label_is_not_asked_and_named_as_a_reason() -> None:
    lenders = Lenders(Wish(labels=frozenset(["quiet"])))
    quiet = dataclasses.replace(candidate(BO), labels=frozenset(["quiet", "gpu"]))

    assert order(lenders, candidate(ANNA), quiet) == [BO]
    assert lenders.reasons() == ["anna: has no label quiet"]


def test_a_peer_that_lends_too_few_processors_for_one_task_is_not_asked() -> None:
    lenders = Lenders(Wish(cpus=4))

    assert order(lenders, candidate(ANNA, slots=3), candidate(BO, slots=4)) == [BO]
    assert lenders.reasons() == ["anna: lends 3 processors, one task wants 4"]
