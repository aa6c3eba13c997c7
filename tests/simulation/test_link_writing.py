"""Writing files of somebody by a link, among whole peers: what the owner gets, who sees it when, and who is refused."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from croft.errors import CroftError, Refused, Usage
from croft.model.ids import PeerId
from croft.sim.world import Machine, World
from croft.storage.link_writing import WRITTEN
from croft.storage.merging import conflicting
from croft.storage.sharing import Named
from croft.twins.community_operation import REMOVE
from support.linked import DAY_S, line_of, make, read_by_link, write_by_link
from support.stored import get, held, names, put, rule
from support.worlds import Play, add_device

PATIENCE_S = 180.0


def content(seed: int, size: int) -> bytes:
    return Random(seed).randbytes(size)


async def until_taken(world: World, owner: Machine, *files: str) -> None:
    """Waits until the owner has just these files."""
    began = world.now
    while (found := await names(owner)) != sorted(files):
        assert world.now - began < PATIENCE_S, f"the owner has {found}"
        await asyncio.sleep(1.0)


async def waiting(writer: Machine) -> list[bytes]:
    """What a writer keeps for owners of links."""
    return [name async for name, _ in writer.parts.storage.kept(WRITTEN)]


def test_what_is_written_while_the_owner_is_off_is_read_at_once_and_taken_in_later(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(6)
        owner, writer, reader = world["peer1"], world["peer2"], world["peer3"]
        await put(owner, "site/page", b"first")
        await put(owner, "site/old", b"old")
        line = line_of(owner, await make(owner, "site", reader, write=[writer]))
        await world.crash("peer1")

        await write_by_link(writer, line, {"page": b"second", "sub/new": content(1, 500_000), "old": None})
        await write_by_link(writer, line, {"page": b"third"})
        for machine in (reader, writer):
            assert await read_by_link(machine, line) == {"page": b"third", "sub/new": content(1, 500_000)}
        await world.restart("peer1")
        await until_taken(world, owner, "site/page", "site/sub/new")
        assert await get(owner, "site/page") == b"third" and await get(owner, "site/page", 2) == b"second"
        entry = await owner.parts.storage.entry(b"site/page")
        assert [version.number for version in entry.versions] == [1, 2, 3]
        assert [version.device.hex() for version in entry.versions] == [owner.peer, writer.peer, writer.peer]
        assert await get(owner, "site/old", 1) == b"old", "what was removed is among the versions"

        await asyncio.sleep(90)
        assert await waiting(writer) == [], "the owner has it: the writer need not keep it"
        await writer.parts.upkeep.collect()
        assert not any(len(share) > 50_000 for one in world.up() for share in held(one, writer).values())
        await world.crash("peer2")
        assert await read_by_link(reader, line) == {"page": b"third", "sub/new": content(1, 500_000)}
        assert await get(owner, "site/sub/new") == content(1, 500_000)

    play(story)


def test_what_owner_and_writer_put_apart_stands_side_by_side(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(6)
        owner, writer = world["peer1"], world["peer2"]
        await put(owner, "letter", b"draft")
        line = line_of(owner, await make(owner, "letter", write=[writer]))
        world.partition(["peer1", "peer3", "peer4"], ["peer2", "peer5", "peer6"])
        await asyncio.sleep(40)
        await put(owner, "letter", b"from its owner")
        await put(owner, "letter", b"from its owner again")
        await write_by_link(writer, line, {"": b"from the writer"})
        world.heal()
        await world.until(world.disunity, within_s=PATIENCE_S)

        began = world.now
        while len(both := conflicting(await owner.parts.storage.entry(b"letter"))) < 2:
            assert world.now - began < PATIENCE_S, "no conflict is seen"
            await asyncio.sleep(1.0)
        assert {PeerId(version.device.hex()) for version in both} == {owner.peer, writer.peer}
        await asyncio.sleep(20)
        await write_by_link(writer, line, {"": b"agreed"})
        await asyncio.sleep(20)
        assert await get(owner, "letter") == b"agreed"
        assert not conflicting(await owner.parts.storage.entry(b"letter"))

    play(story)


def test_whoever_only_reads_and_whoever_is_not_named_writes_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner, writer, reader, other = (world[f"peer{number}"] for number in range(1, 5))
        await put(owner, "site/page", b"first")
        line = line_of(owner, await make(owner, "site", reader, write=[writer]))

        with pytest.raises(Refused, match="lets you read, and not write"):
            await write_by_link(reader, line, {"page": b"stolen"})
        with pytest.raises(Refused, match="does not let you"):
            await write_by_link(other, line, {"page": b"stolen"})
        for name in ("", "../page", "a//b"):
            with pytest.raises(Usage):
                await write_by_link(writer, line, {name: b"nowhere"})
        await asyncio.sleep(20)
        assert await read_by_link(reader, line) == {"page": b"first"}
        for machine in (reader, other, writer):
            assert await waiting(machine) == [], "what was refused is not kept"

    play(story)


def test_nothing_is_written_by_a_revoked_link_nor_taken_in(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner, writer = world["peer1"], world["peer2"]
        await put(owner, "site/page", b"first")
        link = await make(owner, "site", write=[writer])
        line = line_of(owner, link)
        world.partition(["peer1", "peer3"], ["peer2", "peer4", "peer5"])
        await asyncio.sleep(40)
        await write_by_link(writer, line, {"page": b"late"})
        await owner.parts.links.sharing.revoke(link.made.id.hex())
        world.heal()
        await world.until(world.disunity, within_s=PATIENCE_S)

        await asyncio.sleep(120)
        assert await get(owner, "site/page") == b"first"
        with pytest.raises(Refused, match="revoked"):
            await write_by_link(writer, line, {"page": b"later still"})
        assert await waiting(writer) == []

    play(story)


def test_devices_of_one_owner_take_in_what_was_written_once(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(6)
        desk, writer = world["peer1"], world["peer2"]
        everywhere = rule(world, keep="copies=5")
        await put(desk, "letter", b"draft", everywhere)
        await add_device(world, "laptop", "peer1")
        laptop = world["laptop"]
        await world.until(world.missing_link, within_s=60)
        assert await get(laptop, "letter") == b"draft"
        line = line_of(desk, await make(desk, "letter", write=[writer]))
        await asyncio.sleep(5)
        assert await names(laptop) == ["letter"]
        for name in ("peer1", "laptop"):
            await world.crash(name)
        await write_by_link(writer, line, {"": b"written"}, rule(world, keep="copies=4"))
        world.partition(["peer1", "peer3", "peer2"], ["laptop", "peer4", "peer5", "peer6"])
        for name in ("peer1", "laptop"):
            await world.restart(name)
        await asyncio.sleep(90)
        for machine in (desk, laptop):
            assert await get(machine, "letter") == b"written", f"{machine.name} has taken it in by itself"
        world.heal()
        await world.until(world.disunity, within_s=PATIENCE_S)
        await asyncio.sleep(90)

        for machine in (desk, laptop):
            assert await get(machine, "letter") == b"written"
            entry = await machine.parts.storage.entry(b"letter")
            assert [version.number for version in entry.versions] == [1, 2]
        await world.crash("peer1")
        await write_by_link(writer, line, {"": b"written again"})
        await asyncio.sleep(90)
        assert await get(laptop, "letter") == b"written again"

    play(story)


def test_what_is_written_lies_where_the_owner_lets_the_file_be(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(7)
        owner, writer = world["peer1"], world["peer2"]
        await put(owner, "site/page", b"first", rule(world, on=["peer3", "peer4"], keep="copies=2"))
        line = line_of(owner, await make(owner, "site", write=[writer]))
        await write_by_link(writer, line, {"new": content(2, 300_000)}, rule(world, on=["peer5"], keep="copies=1"))
        await until_taken(world, owner, "site/new", "site/page")

        big = {one.name for one in world.up() if any(len(share) > 200_000 for share in held(one, owner).values())}
        assert big == {"peer3", "peer4"}

    play(story)


def test_members_of_a_community_write_and_who_was_removed_meanwhile_does_not(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(6)
        owner, writer, removed, reader = (world[f"peer{number}"] for number in range(1, 5))
        await put(owner, "wall/first", b"by its owner")
        village = Named([], [bytes.fromhex(world.community)])
        link = await owner.parts.links.sharing.make(b"wall", Named(), village, owner.clock.now() + DAY_S)
        line = line_of(owner, link)
        await write_by_link(writer, line, {"second": b"by a member"})
        assert sorted(await read_by_link(reader, line)) == ["first", "second"]
        await until_taken(world, owner, "wall/first", "wall/second")

        await asyncio.sleep(10)
        world.partition(["peer1", "peer6"], ["peer2", "peer3", "peer4", "peer5"])
        await asyncio.sleep(40)
        await write_by_link(removed, line, {"third": b"by somebody who is no member any more"})
        await owner.parts.communities.act(world.community, REMOVE, removed.twin)
        world.heal()
        await asyncio.sleep(180)
        assert await names(owner) == ["wall/first", "wall/second"]
        with pytest.raises(CroftError):
            await write_by_link(removed, line, {"fourth": b"too late"})

    play(story)


def test_what_somebody_wrote_who_is_blocked_meanwhile_is_not_taken_in(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(6)
        owner, writer, other = world["peer1"], world["peer2"], world["peer3"]
        await put(owner, "site/page", b"first")
        line = line_of(owner, await make(owner, "site", write=[writer, other]))
        await asyncio.sleep(10)
        world.partition(["peer1", "peer6"], ["peer2", "peer3", "peer4", "peer5"])
        await asyncio.sleep(40)
        await write_by_link(writer, line, {"page": b"unwanted"})
        await write_by_link(other, line, {"other": b"wanted"})
        await owner.parts.address_book.block(writer.twin)
        world.heal()

        await until_taken(world, owner, "site/other", "site/page")
        await asyncio.sleep(120)
        assert await get(owner, "site/page") == b"first"

    play(story)


def test_what_was_acknowledged_reaches_the_owner_though_its_writer_and_a_holder_die_at_once(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(7)
        owner, writer = world["peer1"], world["peer2"]
        await put(owner, "site/page", b"first")
        link = await make(owner, "site", write=[writer])
        line = line_of(owner, link)
        await world.crash("peer1")
        await write_by_link(writer, line, {"page": b"second", "film": content(3, 700_000)})
        await world.crash("peer2")
        keepers = [one.name for one in world.up() if bytes.fromhex(one.peer) in link.peers]
        await world.crash(keepers[0])
        await world.restart("peer1")

        await until_taken(world, owner, "site/film", "site/page")
        assert await get(owner, "site/page") == b"second" and await get(owner, "site/film") == content(3, 700_000)

    play(story)


def test_an_owner_who_dies_again_and_again_while_taking_in_has_everything_once_in_the_end(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(6)
        owner, writer = world["peer1"], world["peer2"]
        await put(owner, "site/page", b"first")
        line = line_of(owner, await make(owner, "site", write=[writer]))
        await world.crash("peer1")
        files: dict[str, bytes | None] = {f"film{number}": content(number, 700_000) for number in range(4)}
        await write_by_link(writer, line, {"page": b"second", **files})
        chance = Random(world.seed)
        for _ in range(5):
            await world.restart("peer1")
            await asyncio.sleep(chance.uniform(3.0, 9.0))
            await world.crash("peer1")
        await world.restart("peer1")

        await until_taken(world, owner, "site/page", *(f"site/{name}" for name in files))
        await asyncio.sleep(90)
        for name, data in files.items():
            assert await get(owner, f"site/{name}") == data
            assert len((await owner.parts.storage.entry(f"site/{name}".encode())).versions) == 1
        assert [one.number for one in (await owner.parts.storage.entry(b"site/page")).versions] == [1, 2]
        assert await waiting(writer) == []

    play(story)
