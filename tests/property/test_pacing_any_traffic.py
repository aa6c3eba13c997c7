"""Whatever peers, purposes, sizes and limits: no limit is exceeded, nothing is lost, and nobody waits for ever."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from croft.model.ids import PeerId
from croft.overlay.pacing import (
    BURST_S,
    OVERHEAD,
    PIECE_BYTES_MAX,
    RATE_MIN,
    Direction,
    Effect,
    Flow,
    Limit,
    Pacer,
    Pass,
    TimePassed,
    Wake,
    Wanted,
    Withdrawn,
)

PEERS = [PeerId(name) for name in ("ada", "bob", "cyd")]
PURPOSES = ["tasks", "tunnel", "other"]
FLOWS = st.builds(Flow, st.sampled_from(PEERS), st.sampled_from(PURPOSES), st.sampled_from(Direction), st.booleans())
LIMITS = st.lists(
    st.builds(
        Limit,
        number=st.just(0),
        rate=st.floats(RATE_MIN, 1e7),
        peer=st.none() | st.sampled_from(PEERS),
        purpose=st.none() | st.sampled_from(PURPOSES),
        direction=st.none() | st.sampled_from(Direction),
    ),
    max_size=4,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(FLOWS, st.integers(1, PIECE_BYTES_MAX)),
        st.floats(0.001, 2.0),
        st.integers(0, 30),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(LIMITS, STEPS)
def test_limits_hold_over_every_stretch_of_time(limits: list[Limit], steps: list[object]) -> None:
    core = Pacer()
    numbered = [
        Limit(number, limit.rate, limit.peer, limit.purpose, limit.direction) for number, limit in enumerate(limits, 1)
    ]
    for limit in numbered:
        core.add(limit, 0.0)
    now, number = 0.0, 0
    waiting: dict[int, tuple[Flow, int]] = {}
    passed: dict[tuple[int, Direction], list[tuple[float, int]]] = defaultdict(list)

    def perform(effects: list[Effect]) -> float | None:
        wake = None
        for effect in effects:
            match effect:
                case Pass(request):
                    flow, size = waiting.pop(request)
                    for limit in numbered:
                        if (
                            limit.peer in (None, flow.peer)
                            and limit.purpose in (None, flow.purpose)
                            and limit.direction in (None, flow.direction)
                        ):
                            passed[limit.number, flow.direction].append((now, size))
                case Wake(at):
                    assert at > now
                    wake = at
        assert (wake is None) == (not waiting), "who waits is woken, and nobody else"
        return wake

    for step in steps:
        match step:
            case (Flow() as flow, int(size)):
                number += 1
                waiting[number] = (flow, size)
                perform(list(core.handle(Wanted(number, flow, size, now))))
            case float():
                now += step
                perform(list(core.handle(TimePassed(now, 0))))
            case int():
                if waiting.pop(step, None):
                    perform(list(core.handle(Withdrawn(step, now))))
    for _ in range(2_000):
        if not waiting:
            break
        wake = perform(list(core.handle(TimePassed(now, 0))))
        now = wake if wake is not None else now

    assert not waiting
    for limit in numbered:
        for direction in Direction:
            sent = passed[limit.number, direction]
            for first, (began, _) in enumerate(sent):
                # The last piece is a debt, to be paid before the next; the bucket may have been full before the first.
                for last in range(first + 1, len(sent)):
                    size = sum(size for _, size in sent[first:last]) * OVERHEAD
                    assert size <= limit.rate * (sent[last][0] - began + BURST_S) + 2 * PIECE_BYTES_MAX * OVERHEAD
