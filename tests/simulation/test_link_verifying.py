"""Verifying what a link leads to: whoever may, sees what is lost and mends it, and can read nothing."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from msgspec.structs import replace

from croft.errors import CroftError, Refused, Usage
from croft.sim.world import Machine, World
from croft.storage.links import VERIFY_PREFIX, Link, OwnLink, read_link, write_link
from croft.storage.sharing import Named
from croft.storage.tending import Report
from support.linked import DAY_S, line_of
from support.stored import get, held, put, rule
from support.worlds import Play

SIZE = 900_000


def content(seed: int) -> bytes:
    return Random(seed).randbytes(SIZE)


async def make(owner: Machine, name: str, *who: Machine, repairs: bool = False) -> OwnLink:
    twins = Named([bytes.fromhex(one.twin) for one in who])
    repairers = [bytes.fromhex(one.peer) for one in who] if repairs else []
    expires_at = owner.clock.now() + DAY_S
    return await owner.parts.links.sharing.make(
        name.encode(), twins, Named(), expires_at, verifies=True, repairers=repairers
    )


def link_of(owner: Machine, link: OwnLink) -> Link:
    return read_link(line_of(owner, link), VERIFY_PREFIX)


async def verify(machine: Machine, link: Link, **how: bool) -> Report:
    return await machine.parts.links.verifier.verify(link, **how)


def holders_of(world: World, owner: Machine) -> list[Machine]:
    """Those with shares of what is large."""
    return [one for one in world.up() if any(len(share) > SIZE // 4 for share in held(one, owner).values())]


def test_whoever_may_verify_is_told_what_is_there_and_can_read_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(7)
        owner, verifier, other = world["peer1"], world["peer2"], world["peer3"]
        await put(owner, "film/one", content(1), rule(world, keep="2of4"))
        await put(owner, "film/two", content(2), rule(world, keep="2of4"))
        await put(owner, "diary", content(3), rule(world, keep="2of4"))
        made = await make(owner, "film", verifier)
        link, line = link_of(owner, made), line_of(owner, made)

        report = await verify(verifier, link)
        assert (report.stripes, dict(report.short), report.unreadable, report.caught) == (2, {}, 0, [])
        assert (await verify(verifier, link, is_deep=True)).stripes == 2
        with pytest.raises(Usage, match="lets you verify"):
            read_link(line)
        with pytest.raises(Usage, match="damaged"):
            await verifier.parts.links.reader.open(link)
        with pytest.raises(Refused, match="does not let you"):
            await verify(other, link)
        with pytest.raises(Refused, match="not repair"):
            await verify(verifier, link, mends=True)
        with pytest.raises(Usage, match="damaged"):
            await verify(verifier, replace(link, key=bytes(32)))

        await put(owner, "film/three", content(4), rule(world, keep="2of4"))
        await asyncio.sleep(10)
        assert (await verify(verifier, link)).stripes == 3, "it follows the files"
        await owner.parts.links.sharing.revoke(made.made.id.hex())
        with pytest.raises(Refused, match="revoked"):
            await verify(verifier, link)

    play(story)


def test_what_is_lost_or_rotten_is_found_by_whoever_verifies(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(7)
        owner, verifier = world["peer1"], world["peer2"]
        await put(owner, "film", content(1), rule(world, keep="2of4", never=["peer2"]))
        link = link_of(owner, await make(owner, "film", verifier))
        first, second, third, _ = holders_of(world, owner)
        for share, data in held(first, owner).items():
            if len(data) > SIZE // 4:
                held(first, owner)[share] = data[:-1] + bytes([data[-1] ^ 1])  # the last leaf alone

        report = await verify(verifier, link, is_deep=True)
        assert list(report.short.values()) == [3] and report.unreadable == 0
        assert report.caught == [f"{first.name}: does not have what it says that it holds"]
        held(second, owner).clear()
        held(third, owner).clear()
        report = await verify(verifier, link, is_deep=True)
        assert list(report.short.values()) == [1] and report.unreadable == 1
        with pytest.raises(CroftError):
            await get(owner, "film")

    play(story)


def test_whoever_may_repair_makes_lost_shares_again_while_the_owner_is_off(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(8)
        owner, verifier = world["peer1"], world["peer2"]
        allowed = ["peer2", "peer3", "peer4", "peer5", "peer6", "peer7"]
        await put(owner, "film", content(1), rule(world, on=allowed, keep="2of4"))
        link = link_of(owner, await make(owner, "film", verifier, repairs=True))
        await world.crash("peer1")
        lost = [one for one in holders_of(world, owner) if one is not verifier][:2]
        for one in lost:
            held(one, owner).clear()

        before = await verify(verifier, link)
        assert list(before.short.values()) == [2] and before.rebuilt == 0
        after = await verify(verifier, link, mends=True)
        assert after.rebuilt == 2 and not after.short
        assert {one.name for one in holders_of(world, owner)} <= set(allowed)
        await world.restart("peer1")
        await world.until(world.missing_link, within_s=60)
        assert await get(owner, "film") == content(1)

    play(story)


def test_a_line_to_verify_is_a_name_for_nothing_else(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, verifier = world["peer1"], world["peer2"]
        await put(owner, "film", content(1))
        link = link_of(owner, await make(owner, "film", verifier))
        as_if_to_read = write_link(link)

        with pytest.raises(Usage, match="damaged"):
            await verifier.parts.links.reader.open(read_link(as_if_to_read))
        with pytest.raises(Usage, match="damaged"):
            read_link(write_link(link, VERIFY_PREFIX)[:-9], VERIFY_PREFIX)

    play(story)
