"""The core of pipelines: what runs next, at whom, what is kept meanwhile, what runs again when something is lost."""

from __future__ import annotations

from collections.abc import Sequence

from croft.model.ids import PeerId
from croft.model.kept import Held
from croft.twins.pipeline import (
    AHEAD_MIN,
    AHEAD_PER_PEER,
    RETRY_S_MIN,
    TRIES_MAX,
    Added,
    Effect,
    GaveUp,
    InputLost,
    Item,
    Looked,
    Lost,
    Made,
    Pipeline,
    Provider,
    Refused,
    Release,
    Run,
    Through,
    kept_at,
    next_look_s,
)

HOME, ONE, TWO, TWIN, THREE = (PeerId(name * 64) for name in "hatwc")
PROVIDERS = [[Provider(ONE)], [Provider(TWO)], [Provider(THREE)]]
NOW = 100.0


def held(peer: PeerId, name: str) -> Held:
    return Held(peer, name.encode(), 10)


def add(core: Pipeline, count: int) -> None:
    for number in range(count):
        core.handle(Added(held(HOME, f"input {number}")))


def runs(effects: Sequence[Effect]) -> list[tuple[int, int, PeerId]]:
    return [(effect.item, effect.stage, effect.peer) for effect in effects if isinstance(effect, Run)]


def look(core: Pipeline, now: float = NOW, providers: Sequence[Sequence[Provider]] = PROVIDERS) -> Sequence[Effect]:
    return core.handle(Looked(now, providers))


def test_an_item_goes_through_all_stages_and_what_was_kept_for_it_is_released_at_the_end() -> None:
    core = Pipeline(3)
    add(core, 1)
    made = [held(ONE, "one"), held(TWO, "two"), held(THREE, "three")]
    for stage, peer in enumerate((ONE, TWO, THREE)):
        [run] = look(core)
        assert isinstance(run, Run)
        assert (run.item, run.stage, run.peer) == (0, stage, peer)
        assert run.input == (held(HOME, "input 0") if not stage else made[stage - 1])
        effects = core.handle(Made(0, made[stage]))
    assert effects == [Through(0, made[2]), Release(held(HOME, "input 0")), Release(made[0]), Release(made[1])]
    assert core.is_over and kept_at(core.items) == {THREE: 10}


def test_a_peer_has_what_its_slots_run_and_one_more_whose_input_it_fetches() -> None:
    core = Pipeline(1)
    add(core, 10)
    assert len(runs(look(core, providers=[[Provider(ONE, 2)]]))) == 2 + AHEAD_PER_PEER
    assert look(core, providers=[[Provider(ONE, 2)]]) == []


def test_items_are_spread_over_those_who_run_a_stage_and_stay_where_their_input_is() -> None:
    core = Pipeline(1)
    core.handle(Added(held(TWO, "at two")))
    core.handle(Added(held(ONE, "at one")))
    assert runs(look(core, providers=[[Provider(ONE), Provider(TWO)]])) == [(0, 0, TWO), (1, 0, ONE)]


def test_a_stage_waits_for_those_behind_it() -> None:
    core = Pipeline(2)
    add(core, 40)
    providers = [[Provider(ONE, 8)], []]
    begun = 0
    while got := runs(look(core, providers=providers)):
        begun += len(got)
        for item, _, _ in got:
            core.handle(Made(item, held(ONE, f"made {item}")))
    assert begun == AHEAD_MIN
    assert sum(kept_at(core.items).values()) <= (40 + AHEAD_MIN) * 10


def test_what_is_nearly_through_goes_first() -> None:
    core = Pipeline(2)
    add(core, 3)
    [*first] = runs(look(core, providers=[[Provider(ONE)], [Provider(ONE)]]))
    core.handle(Made(0, held(ONE, "made")))
    assert first == [(0, 0, ONE), (1, 0, ONE)]
    assert runs(look(core, providers=[[Provider(ONE)], [Provider(ONE)]])) == [(0, 1, ONE), (2, 0, ONE)]


def test_when_a_stage_is_lost_only_that_runs_again_elsewhere() -> None:
    core = Pipeline(2)
    add(core, 1)
    look(core)
    core.handle(Made(0, held(ONE, "one")))
    assert runs(look(core)) == [(0, 1, TWO)]
    core.handle(Lost(0, NOW, "two was lost"))
    both = [[Provider(ONE)], [Provider(THREE)]]
    assert look(core, providers=both) == []
    assert next_look_s(core.items, NOW) == RETRY_S_MIN
    [run] = look(core, NOW + RETRY_S_MIN, both)
    assert run == Run(0, 1, THREE, held(ONE, "one"))
    assert core.handle(Made(0, held(THREE, "two")))[0] == Through(0, held(THREE, "two"))
    assert core.items[0].error == "" and core.items[0].is_over
    assert core.counts[0].done == {ONE: 1}


def test_when_what_a_stage_made_is_lost_that_stage_runs_again_from_what_it_was_given() -> None:
    core = Pipeline(3)
    add(core, 1)
    for peer in (ONE, TWO):
        look(core)
        core.handle(Made(0, held(peer, "made")))
    look(core)
    core.handle(InputLost(0))
    assert runs(look(core)) == [(0, 1, TWO)]
    core.handle(InputLost(0))
    [run] = look(core)
    assert run == Run(0, 0, ONE, held(HOME, "input 0"))
    assert core.handle(InputLost(0)) == [GaveUp(0, 0, "its input is not there any more")]


def test_a_stage_that_fails_by_itself_ends_the_item_alone() -> None:
    core = Pipeline(1, retries=1)
    add(core, 2)
    look(core)
    assert core.handle(Refused(0, NOW, "ValueError: no")) == []
    look(core, NOW + RETRY_S_MIN)
    effects = core.handle(Refused(0, NOW, "ValueError: no"))
    assert effects == [GaveUp(0, 0, "ValueError: no"), Release(held(HOME, "input 0"))]
    assert not core.is_over and core.counts[0].failed == 1


def test_who_is_lost_again_and_again_ends_the_item_with_the_reason() -> None:
    core = Pipeline(1)
    add(core, 1)
    now = NOW
    for _ in range(TRIES_MAX - 1):
        assert look(core, now)
        assert core.handle(Lost(0, now, "gone")) == []
        now += 1_000
    look(core, now)
    assert core.handle(Lost(0, now, "gone"))[0] == GaveUp(0, 0, "gone")


def test_without_anybody_for_a_stage_items_wait_and_are_not_given_up() -> None:
    core = Pipeline(1)
    add(core, 1)
    assert look(core, providers=[[]]) == [] and not core.is_over
    assert runs(look(core)) == [(0, 0, ONE)]


def test_after_a_restart_items_go_on_from_where_they_were() -> None:
    core = Pipeline(2)
    core.resume(Item(1, [held(HOME, "input"), held(ONE, "made")]))
    core.resume(Item(2, [held(TWO, "result")], is_over=True))
    core.resume(Item(0, [], error="ValueError", is_over=True))
    assert runs(look(core)) == [(0, 1, TWO)]
    assert core.handle(Made(0, held(TWO, "result")))[0] == Through(0, held(TWO, "result"))
    assert core.is_over
