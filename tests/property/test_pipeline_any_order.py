"""Pipelines whose peers die, refuse and lose what they keep, in any order: every item has one end, and none is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from croft.model.ids import PeerId
from croft.model.kept import Held
from croft.twins.pipeline import (
    AHEAD_PER_PEER,
    Added,
    GaveUp,
    InputLost,
    Looked,
    Lost,
    Made,
    Pipeline,
    Provider,
    Refused,
    Release,
    Run,
    Through,
)

PEERS = [PeerId(name * 64) for name in "abc"]
STEPS = st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["made", "lost", "input", "refused"])), max_size=80)


@given(st.integers(1, 3), st.integers(1, 8), STEPS, st.integers(0, 2))
def test_every_item_ends_once_and_all_that_was_kept_is_released(
    stages: int, items: int, steps: list[tuple[int, str]], retries: int
) -> None:
    core = Pipeline(stages, retries)
    kept: set[Held] = set()
    running: dict[int, Run] = {}
    ended: dict[int, str] = {}
    providers = [[Provider(peer) for peer in PEERS[: 1 + stage]] for stage in range(stages)]
    serial, now = 0, 0.0

    def perform(effects: object) -> None:
        assert isinstance(effects, list | tuple)
        for effect in effects:
            match effect:
                case Run(item):
                    assert item not in running and item not in ended and effect.input in kept
                    running[item] = effect
                case Release(value):
                    kept.remove(value)
                case Through(item, value):
                    assert item not in ended and value in kept
                    ended[item] = "through"
                    kept.remove(value)
                case GaveUp(item):
                    assert item not in ended
                    ended[item] = "gave up"

    def held(peer: PeerId) -> Held:
        nonlocal serial
        serial += 1
        value = Held(peer, str(serial).encode(), 1)
        kept.add(value)
        return value

    def step(item: int, what: str) -> None:
        run = running.pop(item)
        match what:
            case "made":
                perform(core.handle(Made(item, held(run.peer))))
            case "lost":
                perform(core.handle(Lost(item, now, "gone")))
            case "input":
                kept.remove(run.input)
                perform(core.handle(InputLost(item)))
            case _:
                perform(core.handle(Refused(item, now, "no")))

    for _ in range(items):
        core.handle(Added(held(PEERS[0])))
    for which, what in steps:
        now += 60.0
        perform(core.handle(Looked(now, providers)))
        busy: dict[tuple[int, PeerId], int] = {}
        for run in running.values():
            busy[run.stage, run.peer] = busy.get((run.stage, run.peer), 0) + 1
        assert all(count <= 1 + AHEAD_PER_PEER for count in busy.values())
        if running:
            step(sorted(running)[which % len(running)], what)
    for _ in range(1_000):
        now += 60.0
        perform(core.handle(Looked(now, providers)))
        if not running:
            break
        step(min(running), "made")
    assert core.is_over and sorted(ended) == list(range(items)) and not kept
