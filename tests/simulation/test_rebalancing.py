"""Rebalancing among whole peers: shares go where they belong, each is there twice before it is there once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

from msgspec.structs import replace

from croft.ports import Chunk
from croft.sim.world import Machine, World
from croft.storage.moving import Rebalanced
from croft.storage.rebalancing import Why
from support.stored import get, held, put, rule
from support.worlds import Play, add_device

MANY, MUCH = 1_000, 1 << 40
SMALL = 100_000


def content(seed: int, size: int = 600_000) -> bytes:
    return Random(seed).randbytes(size)


async def rebalance(owner: Machine, moves: int = MANY, size: int = MUCH, *, is_dry: bool = False) -> Rebalanced:
    return await owner.parts.upkeep.rebalance(moves, size, is_dry=is_dry)


def bytes_at(world: World, owner: Machine) -> dict[str, int]:
    return {one.name: sum(len(share) for share in held(one, owner).values()) for one in world.up() if held(one, owner)}


def large(world: World, owner: Machine) -> list[bytes]:
    """Every share of the files, as often as it is held."""
    return sorted(share for one in world.up() for share, data in held(one, owner).items() if len(data) > SMALL)


async def fewest(world: World, owner: Machine, work: asyncio.Task[Rebalanced]) -> int:
    """How few of all shares were ever held while something was done."""
    least = 1 << 40
    while not work.done():
        least = min(least, len({share for one in world.up() for share in held(one, owner)}))
        await asyncio.sleep(0.001)
    return least


def test_whoever_joined_gets_shares_and_at_no_moment_is_one_missing(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner = world["peer1"]
        for number in range(12):
            await put(owner, f"f{number}", content(number), rule(world, keep="2of4"))
        for name in ("new1", "new2"):
            world.add(name)
            await world.start(name)
            await world.admit(name, by="peer2")
        await world.until(world.missing_link, within_s=60)
        everything = len({share for one in world.up() for share in held(one, owner)})

        dry = await rebalance(owner, is_dry=True)
        assert dry.left and not dry.moved and "new1" not in bytes_at(world, owner)
        work = asyncio.create_task(rebalance(owner))
        assert await fewest(world, owner, work) == everything
        done = await work
        assert len(done.moved) == len(dry.left) and not done.left and not done.problems and done.planned.stuck == 0
        there = bytes_at(world, owner)
        assert set(there) == {"peer2", "peer3", "peer4", "peer5", "new1", "new2"}
        assert min(there.values()) > 0.6 * max(there.values())
        for name, size in there.items():
            assert abs(size - done.planned.after[world[name].peer]) < SMALL, "but for lists that were superseded"
        rounds = 0
        while (more := await rebalance(owner)).moved:
            assert all(move.why is Why.ROOM for move in more.moved)
            rounds += 1
        assert rounds <= 3, "what one share left, another one may take"

        await world.restart("peer1")
        await world.until(world.missing_link, within_s=60)
        for number in range(12):
            assert await get(owner, f"f{number}") == content(number)
        assert (await owner.parts.upkeep.tend()).short == {}

    play(story)


def test_shares_leave_whoever_lends_no_more_and_copies_of_one_owner_part(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(6)
        owner = world["peer1"]
        await put(owner, "film", content(1), rule(world, keep="copies=2", on=["peer2", "peer3"]))
        await put(owner, "book", content(2), rule(world, keep="2of4", never=["peer6"]))
        await add_device(world, "second", "peer2")
        await world.until(world.missing_link, within_s=60)
        for source, target, is_wanted in (("peer3", "second", "peer2"), ("peer4", "peer6", "")):
            for share in [one for one in held(world[source], owner) if len(held(world[source], owner)[one]) > SMALL]:
                if not is_wanted or share not in held(world[is_wanted], owner):
                    held(world[target], owner)[share] = held(world[source], owner).pop(share)
        before = large(world, owner)
        done = await rebalance(owner)
        assert {Why.OWNER, Why.RULE} <= {move.why for move in done.moved}
        assert large(world, owner) == before, "none is lost, none is there twice"
        for share in {share for one in world.up() for share in held(one, owner)}:
            twins = [one.twin for one in world.up() if share in held(one, owner)]
            assert len(twins) == len(set(twins)), "one owner has a share once"
        assert not any(len(share) > SMALL for share in held(world["peer6"], owner).values()), "the rule holds"
        assert await get(owner, "film") == content(1) and await get(owner, "book") == content(2)

    play(story)


def test_a_move_that_fails_leaves_the_share_where_it_was(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        for number in range(6):
            await put(owner, f"f{number}", content(number), rule(world, on=["peer2"], keep="copies=1"))
        only = bytes_at(world, owner)
        owner_bytes = bytes.fromhex(owner.twin)
        for share in held(world["peer2"], owner):
            world["peer2"].chunks.rot(owner_bytes, share)
        entry = await owner.parts.storage.entry(b"f0")
        assert entry.versions[-1].bounds is not None
        world["peer3"].chunks.capacity_bytes = 0

        done = await rebalance(owner)
        assert not done.moved and bytes_at(world, owner) == only

    play(story)


def test_moves_are_bounded_and_what_is_left_is_said(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        for number in range(10):
            await put(owner, f"f{number}", content(number), rule(world, keep="copies=1"))
        world["peer2"].chunks.capacity_bytes = 0
        world.add("new")
        await world.start("new")
        await world.admit("new", by="peer2")
        await world.until(world.missing_link, within_s=60)

        some = await rebalance(owner, 2)
        assert len(some.moved) == 2 and some.left
        one = await rebalance(owner, MANY, 1)
        assert len(one.moved) == 1
        rest = await rebalance(owner)
        assert not [move for move in rest.left if world["peer2"].peer != move.target]
        for number in range(10):
            assert await get(owner, f"f{number}") == content(number)

    play(story)


def test_a_new_holder_that_keeps_nothing_is_found_out_before_the_old_one_drops(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        for number in range(4):
            await put(owner, f"f{number}", content(number), rule(world, on=["peer2", "peer3"], keep="copies=2"))
        world.add("liar")
        await world.start("liar")
        await world.admit("liar", by="peer2")
        await world.until(world.missing_link, within_s=60)
        before = large(world, owner)

        async def keep_nothing(chunks: Sequence[Chunk]) -> None:
            assert chunks

        world["liar"].chunks.put = keep_nothing  # type: ignore[method-assign]
        for number in range(4):
            entry = await owner.parts.storage.entry(f"f{number}".encode())
            async with owner.parts.storage.putting(rule(world, keep="copies=2")) as putting:
                version = replace(entry.versions[-1], bounds=None)
                await owner.parts.storage.commit({entry.name: version}, putting)
        done = await rebalance(owner)

        assert not done.moved and any(problem.startswith("peer") for problem in done.problems)
        assert large(world, owner) == before

    play(story)
