"""Whatever comes of attempts, a call is answered once, nothing runs twice that must not, and it comes to an end."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from croft.model.ids import PeerId, TwinId
from croft.twins.call import (
    AGAIN_MAX,
    ATTEMPTS_MAX,
    FINAL_CODES,
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

CODES = ["unreachable", "busy", "refused", "not_found", "call_lost", *sorted(FINAL_CODES)]
FAILURES = st.builds(Failure, st.sampled_from(CODES), st.just("why"), has_begun=st.booleans())
CANDIDATES = st.builds(
    Candidate,
    st.integers(0, 99).map(lambda n: PeerId(f"peer{n:02}")),
    st.just(TwinId("twin")),
    st.just("name"),
    st.sampled_from([b"one", b"two"]),
    trust=st.integers(0, 5),
    is_alive=st.booleans(),
    round_trip_s=st.none() | st.floats(0, 2),
    load=st.none() | st.floats(0, 1),
)


@given(st.integers(1, 12), st.booleans(), st.lists(st.none() | FAILURES, max_size=60))
def test_attempts_end_and_repeat_only_what_may_be(count: int, is_idempotent: bool, story: list[Failure | None]) -> None:
    peers = [Candidate(PeerId(f"peer{n}"), TwinId("t"), f"peer{n}", b"one") for n in range(count)]
    core = CallAttempts(peers, is_idempotent=is_idempotent)
    assert core.handle(Begun()) == [Ask(peers[0])]
    asked, may_have_run, is_seen, is_over = 1, False, False, False
    for event in story:
        if event is None:
            assert core.handle(ResultSeen()) == []
            is_seen = True
            continue
        (effect,) = core.handle(AttemptFailed(event))
        may_have_run |= event.has_begun
        if isinstance(effect, GiveUp):
            is_over = True
            assert effect.failure.has_begun == may_have_run
            break
        asked += 1
        assert event.code not in FINAL_CODES and not is_seen
        assert is_idempotent or not may_have_run
    assert asked <= AGAIN_MAX * min(count, ATTEMPTS_MAX)
    assert is_over or asked + len([None for event in story if event is None]) >= len(story)


@given(st.lists(CANDIDATES, max_size=12))
def test_the_order_is_one_whatever_order_they_come_in(candidates: list[Candidate]) -> None:
    distinct = list({one.peer: one for one in candidates}.values())
    order = ranked(distinct)

    assert ranked(distinct[::-1]) == order
    assert {one.signature for one in stand_ins(order)} <= {order[0].signature if order else b""}
    for one, other in itertools.pairwise(order):
        assert (not one.is_alive, one.trust) <= (not other.is_alive, other.trust)
