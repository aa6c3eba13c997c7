"""Who is asked to run a call, and what becomes of it when that fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from croft.model.ids import PeerId, TwinId
from croft.twins.call import (
    AGAIN_MAX,
    Ask,
    AttemptFailed,
    Begun,
    CallAttempts,
    Candidate,
    Failure,
    GiveUp,
    ResultSeen,
    ranked,
    stand_ins,
)

ADA, BOB, CYD = (Candidate(PeerId(name), TwinId(name), name, b"one") for name in ("ada", "bob", "cyd"))
UNREACHED = Failure("unreachable", "nobody answers")
LOST = Failure("call_lost", "it is gone", has_begun=True)


def attempts(*candidates: Candidate, is_idempotent: bool = False) -> CallAttempts:
    made = CallAttempts(candidates, is_idempotent=is_idempotent)
    assert made.handle(Begun()) == [Ask(candidates[0])]
    return made


def test_what_surely_has_not_begun_goes_to_the_next() -> None:
    core = attempts(ADA, BOB)

    assert core.handle(AttemptFailed(UNREACHED)) == [Ask(BOB)]
    assert core.handle(AttemptFailed(replace(UNREACHED, message="nor here"))) == [GiveUp(UNREACHED)]


def test_what_may_have_run_is_not_made_again() -> None:
    assert attempts(ADA, BOB).handle(AttemptFailed(LOST)) == [GiveUp(LOST)]


def test_what_may_run_twice_goes_to_the_next_and_then_round_again() -> None:
    core = attempts(ADA, BOB, is_idempotent=True)
    asked = [core.handle(AttemptFailed(LOST)) for _ in range(2 * AGAIN_MAX)]

    assert asked == [[Ask(BOB)], [Ask(ADA)], [Ask(BOB)], [GiveUp(LOST)]]


def test_nothing_is_made_again_once_somebody_has_seen_a_part_of_it() -> None:
    core = attempts(ADA, BOB, is_idempotent=True)
    core.handle(ResultSeen())

    assert core.handle(AttemptFailed(LOST)) == [GiveUp(LOST)]


@pytest.mark.parametrize("code", ["bad_argument", "timed_out"])
def test_what_nobody_else_would_answer_differently_ends_the_call(code: str) -> None:
    failure = Failure(code, "no")

    assert attempts(ADA, BOB, is_idempotent=True).handle(AttemptFailed(failure)) == [GiveUp(failure)]


def test_whoever_refuses_is_followed_by_others_and_named_if_all_do() -> None:
    core, refused = attempts(ADA, BOB), Failure("refused", "ada does not want")

    assert core.handle(AttemptFailed(refused)) == [Ask(BOB)]
    assert core.handle(AttemptFailed(UNREACHED)) == [GiveUp(refused)]


def test_the_trusted_come_before_the_near_and_the_near_before_the_idle() -> None:
    own = replace(CYD, trust=0, round_trip_s=0.2)
    near, far = replace(ADA, round_trip_s=0.01, load=0.9), replace(BOB, round_trip_s=0.1, load=0.0)
    dead = replace(ADA, peer=PeerId("dead"), trust=0, is_alive=False)
    stranger = replace(ADA, peer=PeerId("stranger"), trust=3, round_trip_s=0.001)

    assert ranked([dead, stranger, far, near, own]) == [own, near, far, stranger, dead]


def test_who_promises_something_else_under_the_same_name_does_not_stand_in() -> None:
    assert stand_ins([ADA, replace(BOB, signature=b"other"), CYD]) == [ADA, CYD]
    assert stand_ins([]) == []
