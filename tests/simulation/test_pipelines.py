"""Pipelines and calls that are left, between whole simulated peers that die, come back and are cut off."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence

import pytest

from croft.errors import CallLost
from croft.sim.world import World
from croft.twins.capability import Terms
from croft.twins.kept_values import LIFETIME_S, TEND_EVERY_S
from croft.twins.left_calls import OUTCOME, LeftCall, Outcome
from croft.twins.letters import Body, Box
from croft.twins.pipeline_store import PipelineSpec, StageSpec
from croft.twins.pipelines import DONE
from croft.wire.codec import encode
from support.capabilities import ITEM, SIGNATURE, Maker, offer_maker
from support.worlds import Play

DIGEST = Terms("x", SIGNATURE).digest
PATIENCE_S = 600.0


def spec(*stages: str, retries: int = 0) -> PipelineSpec:
    return PipelineSpec("", [StageSpec(name, "", b"\x80", ITEM, DIGEST) for name in stages], retries)


async def begin(world: World, at: str, pipeline: PipelineSpec, items: Sequence[bytes]) -> str:
    """A pipeline that has all its items."""
    pipelines = world[at].parts.calling.pipelines
    await world.until(lambda: _unknown(world, at, pipeline), within_s=60)
    id_ = await pipelines.open(pipeline)
    for item in items:
        await pipelines.add(id_, [item])
    await pipelines.close_input(id_)
    return id_


def _unknown(world: World, at: str, pipeline: PipelineSpec) -> str:
    known = {one.terms.name for one in world[at].parts.calling.capabilities.known()}
    missing = [stage.name for stage in pipeline.stages if stage.name not in known]
    return f"{missing} are not known at {at}" if missing else ""


async def results(world: World, at: str, id_: str) -> dict[int, bytes | str]:
    """What became of each item, once the pipeline is over."""
    found: dict[int, bytes | str] = {}
    pipelines = world[at].parts.calling.pipelines
    async with asyncio.timeout(PATIENCE_S):
        async for number, item in pipelines.outcomes(id_, is_in_order=False):
            value = item.held[-1] if item.held else None
            if item.error or value is None:
                found[number] = item.error
            else:
                found[number] = b"".join([part async for part in pipelines.read(value)])
    assert pipelines.get(id_).kept.state == DONE
    return found


async def leftovers(world: World) -> dict[str, int]:
    return {one.name: one.parts.calling.values.kept_bytes for one in world.up() if one.parts.calling.values.kept_bytes}


ITEMS = [f"item {number} ".encode() for number in range(12)]


def test_items_go_through_all_stages_and_nothing_is_left_behind(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        makers = [await offer_maker(world, f"peer{at}", f"stage{at}", takes_s=0.2) for at in (2, 3, 4)]
        id_ = await begin(world, "peer1", spec("stage2", "stage3", "stage4"), ITEMS)
        found = await results(world, "peer1", id_)
        assert found == {number: item + b"stage2stage3stage4" for number, item in enumerate(ITEMS)}
        assert all(set(maker.ran.values()) == {1} for maker in makers)
        await asyncio.sleep(5)
        assert set(await leftovers(world)) == {"peer1"}
        await world["peer1"].parts.calling.pipelines.forget(id_)
        assert await leftovers(world) == {}

    play(story)


def test_an_item_that_a_stage_refuses_ends_alone(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        maker = await offer_maker(world, "peer2", "stage")
        id_ = await begin(world, "peer1", spec("stage", retries=2), [b"good", b"?bad", b"fine"])
        found = await results(world, "peer1", id_)
        assert found == {0: b"goodstage", 1: "ValueError: not this one", 2: b"finestage"}
        assert maker.ran[b"?bad"] == 3

    play(story)


def test_what_dies_is_replaced_and_only_its_own_work_is_done_again(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        first = await offer_maker(world, "peer2", "first", takes_s=0.5)
        for name in ("peer3", "peer4"):
            await offer_maker(world, name, "second", takes_s=1.0)
        last = await offer_maker(world, "peer5", "last", takes_s=0.1)
        id_ = await begin(world, "peer1", spec("first", "second", "last"), ITEMS)
        await asyncio.sleep(3)
        await world.crash("peer3")
        found = await results(world, "peer1", id_)
        assert found == {number: item + b"firstsecondlast" for number, item in enumerate(ITEMS)}
        assert set(first.ran.values()) == {1} and set(last.ran.values()) == {1}

    play(story)


def test_a_pipeline_goes_on_after_each_of_its_peers_was_killed_and_came_back(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        makers: dict[str, list[Maker]] = {"peer2": [], "peer3": []}
        for name in makers:
            makers[name].append(await offer_maker(world, name, f"at-{name}", takes_s=0.5))
        id_ = await begin(world, "peer1", spec("at-peer2", "at-peer3"), ITEMS)
        for name in ("peer2", "peer1", "peer3", "peer1"):
            await asyncio.sleep(2)
            await world.restart(name)
        found = await results(world, "peer1", id_)
        assert found == {number: item + b"at-peer2at-peer3" for number, item in enumerate(ITEMS)}
        await world["peer1"].parts.calling.pipelines.forget(id_)
        # Of what was under way when the submitter died, nobody knows any more: it goes by itself.
        assert set(await leftovers(world)) <= {"peer2", "peer3"}
        for machine in world.up():
            machine.clock.skew_s += LIFETIME_S
        await asyncio.sleep(2 * TEND_EVERY_S)
        assert await leftovers(world) == {}

    play(story)


def test_a_cut_between_submitter_and_stages_costs_time_alone(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        for name in ("peer2", "peer3"):
            await offer_maker(world, name, f"at-{name}", takes_s=0.5)
        id_ = await begin(world, "peer1", spec("at-peer2", "at-peer3"), ITEMS)
        await asyncio.sleep(2)
        world.partition(["peer1"], ["peer2", "peer3"])
        await asyncio.sleep(40)
        world.heal()
        found = await results(world, "peer1", id_)
        assert found == {number: item + b"at-peer2at-peer3" for number, item in enumerate(ITEMS)}

    play(story)


# --- calls that are left ---------------------------------------------------------------------------------------------


async def leave(world: World, device: str, *, is_idempotent: bool) -> str:
    box = Box(world.community, world[device].twin)
    call = LeftCall(world[device].peer, "able", b"\x80", DIGEST, is_idempotent)
    return (await world["peer1"].parts.left_calls.leave(box, call)).id


async def outcome_of(world: World, id_: str) -> Outcome:
    calls = world["peer1"].parts.left_calls
    async with asyncio.timeout(PATIENCE_S):
        while (left := await calls.get(id_)).outcome is None:
            await asyncio.sleep(0.5)
    return left.outcome


@pytest.mark.parametrize("is_idempotent", [True, False])
@pytest.mark.parametrize("dies_after_s", [0.0, 0.05, 0.5, 2.0, 4.0])
def test_a_call_that_was_left_runs_once_at_most_unless_it_may_be_made_twice(
    play: Play, is_idempotent: bool, dies_after_s: float
) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        maker = await offer_maker(world, "peer2", "able", takes_s=3.0, is_idempotent=is_idempotent)
        await world.until(lambda: _unknown(world, "peer1", spec("able")), within_s=60)
        await asyncio.sleep(10)  # all of it is on the disks
        await world.crash("peer2", is_loud=True)
        id_ = await leave(world, "peer2", is_idempotent=is_idempotent)
        await asyncio.sleep(5)
        await world.start("peer2")
        started = world.now
        while not maker.ran and dies_after_s and world.now - started < 30:
            await asyncio.sleep(0.01)
        await asyncio.sleep(dies_after_s)
        await world.restart("peer2")
        outcome = await outcome_of(world, id_)
        runs = sum(maker.ran.values())
        if outcome.code:
            assert not is_idempotent and outcome.code == CallLost.code and runs == 1
        else:
            assert outcome.value == b"\x80able" and (runs == 1 or is_idempotent)

    play(story)


def test_only_whom_it_was_left_for_answers_a_call(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        await offer_maker(world, "peer2", "able")
        await world.until(lambda: _unknown(world, "peer1", spec("able")), within_s=60)
        await world.crash("peer2", is_loud=True)
        id_ = await leave(world, "peer2", is_idempotent=True)
        forged = base64.b64encode(encode(Outcome(b"forged"))).decode()
        box = Box(world.community, world["peer1"].twin)
        await world["peer3"].parts.post.send(box, Body(OUTCOME, forged, id_))
        await asyncio.sleep(20)
        assert (await world["peer1"].parts.left_calls.get(id_)).outcome is None
        await world.start("peer2")
        assert (await outcome_of(world, id_)).value == b"\x80able"

    play(story)
