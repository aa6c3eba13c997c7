"""Communities of more members than anybody keeps links to: who lives, who is told, and what it costs."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from croft.errors import Refused
from croft.identity.grants import CHAIN_LENGTH_MAX
from croft.overlay.liveness import NOTICE_SUSPICION
from croft.overlay.messages import Suspicion
from croft.overlay.neighbourhood import REST_AFTER_S, REST_SAID_EVERY_S
from croft.overlay.neighbours import NEIGHBOURS_MAX, NEIGHBOURS_WANTED
from croft.sim.world import World, simulate
from croft.wire.codec import encode
from support.worlds import IS_CAMPAIGN, Play, Story, double, lasting, repeat, seeds

SEEDS = seeds() if IS_CAMPAIGN else seeds()[:1]
"""Worlds of many peers take seconds each."""
MANY = 20 if IS_CAMPAIGN else 16
DEATH_KNOWN_S_MAX = 15.0
HOUR_S = 3_600.0 if IS_CAMPAIGN else 300.0


@pytest.fixture(params=SEEDS, ids=lambda seed: f"seed{seed}")
def play(request: pytest.FixtureRequest) -> Play:
    """Like that of the other worlds, for fewer seeds."""

    def run(story: Story, **network: Any) -> Any:
        return simulate(story, seed=request.param, repeat=repeat(request.node.nodeid, request.param), **network)

    return run


def test_many_members_keep_a_bounded_number_of_links(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(MANY)
        await asyncio.sleep(2 * (REST_AFTER_S + REST_SAID_EVERY_S))
        for name in names:
            overlay = world[name].parts.overlay
            assert NEIGHBOURS_WANTED <= len(overlay.neighbourhood.neighbours()) <= NEIGHBOURS_MAX
            assert len(overlay.links.all()) <= NEIGHBOURS_MAX
        assert world.disagreement() == ""

    play(story)


def test_a_dead_peer_is_known_to_all_in_time_and_nobody_else_is_held_for_dead(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(MANY)
        await asyncio.sleep(30)
        await world.crash(names[7])
        took_s = await world.until(lambda: world.misjudged([names[7]]), within_s=DEATH_KNOWN_S_MAX)
        await asyncio.sleep(60)
        assert world.misjudged([names[7]]) == "", took_s
        await world.start(names[7])
        await world.until(world.misjudged, within_s=10)

    play(story)


def test_a_third_that_dies_at_once_is_known_to_the_others(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(MANY)
        await asyncio.sleep(30)
        doomed = names[5:11]
        for name in doomed:
            await world.crash(name)
        await world.until(lambda: world.misjudged(doomed), within_s=30)
        for name in doomed:
            await world.start(name)
        await world.until(lambda: world.misjudged() or world.disunity(), within_s=60)

    play(story)


def test_nobody_is_held_for_dead_while_packets_are_lost(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(MANY if IS_CAMPAIGN else 14)
        for _ in range(int(HOUR_S / 10)):
            await asyncio.sleep(10)
            assert world.misjudged() == ""

    play(story, loss=0.05)


def test_whom_one_peer_cannot_reach_is_not_dead_to_it_or_anybody(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        world.network.cut(["peer2"], ["peer1"])
        for _ in range(60):
            await asyncio.sleep(1)
            assert world.misjudged() == ""
        assert world["peer1"].parts.overlay.links.get(world["peer2"].peer) is None
        world.heal()
        await world.until(world.disunity, within_s=60)

    play(story)


def test_a_member_that_slanders_everybody_convinces_nobody(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(6)
        overlay = world[names[0]].parts.overlay
        for _ in range(60):
            for other in overlay.members()[1:]:
                for link in overlay.links.all():
                    for ahead in (0, 1, 100_000):
                        said = Suspicion(other.peer, int(world[names[0]].clock.now() * 1000) + ahead)
                        link.notify(NOTICE_SUSPICION, encode(said))
            await asyncio.sleep(1)
            assert all(world.dead_to(name) == [] for name in names[1:])

    play(story)


def test_both_halves_of_many_heal_to_one_list_in_which_all_are_alive(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(MANY)
        await asyncio.sleep(10)
        world.add("left")
        world.add("right")
        world.partition([*names[:10], "left"], [*names[10:], "right"])
        for name, inviter in (("left", names[3]), ("right", names[13])):
            await world.start(name)
            await world.admit(name, by=inviter)
        await asyncio.sleep(60)
        assert world.dead_to(names[0]) == sorted(names[10:])
        world.heal()
        await world.until(lambda: world.misjudged() or world.disunity(), within_s=60)

    play(story)


def test_work_goes_to_peers_without_a_link_and_the_link_is_closed_afterwards(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(MANY, slots=1)
        await asyncio.sleep(100)
        overlay = world[names[0]].parts.overlay
        far = [name for name in names[1:] if overlay.links.get(world[name].peer) is None]
        assert far, "there are more members than links"
        job = world.submit(names[0], lasting(60.0, double), range(4 * len(far)), only=far)
        assert await job.values() == [2 * n for n in range(4 * len(far))]
        assert {name for name in far if job.done_by(world[name].peer)} == set(far)
        await asyncio.sleep(3 * (REST_AFTER_S + REST_SAID_EVERY_S))
        assert len(overlay.links.all()) <= NEIGHBOURS_MAX

    play(story)


def test_a_flapping_peer_is_in_the_end_what_it_is(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(MANY)
        others = [name for name in names if name != "peer9"]
        for turn in range(10):
            world.partition(others, ["peer9"])
            await asyncio.sleep(3 + turn * 2)
            world.heal()
            await asyncio.sleep(2 + turn % 4)
        await world.until(lambda: world.misjudged() or world.disunity(), within_s=60)

    play(story)


@pytest.mark.parametrize("skew_s", [-500.0, 500.0])
def test_a_peer_whose_clock_is_minutes_off_is_a_member_like_others(play: Play, skew_s: float) -> None:
    async def story(world: World) -> None:
        await skewed(world, skew_s)
        await world.until(lambda: world.disunity() or world.misjudged(), within_s=30)
        await asyncio.sleep(60)
        assert world.misjudged() == ""
        assert [machine.parts.health.warnings() for machine in world.up()] == [[], [], [], []]

    play(story)


@pytest.mark.parametrize("skew_s", [-3 * 3_600.0, 3 * 3_600.0])
def test_a_peer_whose_clock_is_hours_off_is_warned_alone_and_is_a_member_once_it_is_set(
    play: Play, skew_s: float
) -> None:
    async def story(world: World) -> None:
        await skewed(world, skew_s)
        await asyncio.sleep(60)
        warned = {machine.name: [w.code for w in machine.parts.health.warnings()] for machine in world.up()}
        assert warned == {"peer1": [], "peer2": ["clock.wrong"], "peer3": [], "peer4": []}
        assert world.misjudged() == ""
        world["peer2"].clock.skew_s = 0
        await world.crash("peer2")
        await world.start("peer2")
        await world.admit("peer2", by="peer1")
        await world.until(lambda: world.disunity() or world.misjudged(), within_s=60)
        assert world["peer2"].parts.health.warnings() == []

    play(story)


async def skewed(world: World, skew_s: float) -> None:
    """Four members, of whom `peer2` has a clock that is wrong by so much."""
    for name in ("peer1", "peer2", "peer3", "peer4"):
        world.add(name, skew_s=skew_s if name == "peer2" else 0.0)
        await world.start(name)
    await world.found("peer1")
    for name in ("peer2", "peer3", "peer4"):
        await world.admit(name, by="peer1")


def test_a_member_too_far_from_the_founder_is_told_so_when_it_invites(play: Play) -> None:
    async def story(world: World) -> None:
        names = [f"peer{number}" for number in range(1, CHAIN_LENGTH_MAX + 1)]
        for name in names:
            world.add(name)
            await world.start(name)
        await world.found(names[0])
        for inviter, newcomer in itertools.pairwise(names):
            await world.admit(newcomer, by=inviter)
        await world[names[-2]].parts.admissions.invite(60.0, is_spoken=False)
        with pytest.raises(Refused, match="7 invitations from the founder") as caught:
            await world[names[-1]].parts.admissions.invite(60.0, is_spoken=False)
        assert caught.value.remedy

    play(story)


# --- finding ---------------------------------------------------------------------------------------------------------


def test_what_one_provides_is_found_from_anywhere_also_after_a_third_has_died(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(MANY)
        provider, seeker = world[names[3]].parts.overlay, world[names[15]].parts.overlay
        await provider.finder.provide("blob:x")
        doomed = [name for name in names if name not in (names[3], names[15])][:5]
        for name in doomed:
            await world.crash(name)
        started = world.now
        assert (await seeker.finder.locate("blob:x")).providers == [world[names[3]].peer]
        assert world.now - started < 2.0
        assert (await seeker.finder.locate("blob:y")).providers == []

    play(story)


def test_keys_find_new_keepers_when_old_ones_die_and_are_gone_with_their_provider(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(MANY)
        provider, seeker = world[names[0]].parts.overlay, world[names[15]].parts.overlay
        await provider.finder.provide("blob:x")
        keepers = provider.finder._keepers(world.community, "blob:x")
        doomed = [name for name in names[1:15] if world[name].peer in keepers]
        for name in doomed:
            await world.crash(name)
            await asyncio.sleep(40)
        assert (await seeker.finder.locate("blob:x")).providers == [world[names[0]].peer]
        await world.crash(names[0])
        await world.until(lambda: world.misjudged([*doomed, names[0]]), within_s=20)
        assert (await seeker.finder.locate("blob:x")).providers == []
        await world.start(names[0])
        await asyncio.sleep(20)
        assert (await seeker.finder.locate("blob:x")).providers == [world[names[0]].peer], "told again after a restart"

    play(story)


def test_where_nobody_knows_everybody_views_stay_bounded_and_keys_are_found_all_the_same(play: Play) -> None:
    async def story(world: World) -> None:
        world.view_max = 12
        names = [f"peer{number}" for number in range(1, 41)]
        for name in names:
            world.add(name)
            await world.start(name)
        await world.found(names[0])
        for number, name in enumerate(names[1:]):
            await world.admit(name, by=names[number // 2])
            await asyncio.sleep(1)
        await asyncio.sleep(700)
        sizes = [len(world[name].parts.overlay.community_members(world.community)) for name in names]
        assert max(sizes) < 30, sizes
        provider, others = world[names[30]], [world[name].parts.overlay for name in names[:30:3]]
        await provider.parts.overlay.finder.provide("blob:x")
        found = [await overlay.finder.locate("blob:x") for overlay in others]
        knows = [provider.peer in [m.peer for m in overlay.members()] for overlay in others]
        assert not all(knows), "some have to be told of the provider itself"
        assert [result.providers for result in found] == [[provider.peer]] * len(others)

    play(story)
