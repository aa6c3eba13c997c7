"""What somebody who breaks the rules gets by writing to links: nothing, at holders, at other readers, at the owner."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from msgspec.structs import replace

from croft.errors import Busy, ConnectionLost, CroftError, NotFound, Refused, TooLarge
from croft.identity.certificates import certify
from croft.sim.world import Machine, World
from croft.storage.contents import BytesSource
from croft.storage.formats import FORMAT, Content, Part, Stripe, Version
from croft.storage.links import Link, LinkedFile, LinkedFiles, read_link, seal_target
from croft.storage.messages import Done, PutProposal
from croft.storage.permits import Permit, sign_permit
from croft.storage.placement import Rule
from croft.storage.proposals import (
    PROPOSAL_BYTES_MAX,
    PROPOSALS_MAX,
    PURPOSE,
    Proposal,
    open_proposal,
    sign_proposal,
)
from croft.storage.sealing import SEGMENT_BYTES, TAG_BYTES
from croft.storage.share_client import Holders
from croft.wire.codec import encode
from support.linked import line_of, make, read_by_link, write_by_link
from support.stored import get, names, put
from support.worlds import Play

SETTLE_S = 8.0
FOREVER = 4e9


def certificate_of(machine: Machine) -> bytes:
    return certify(machine.twin_key, machine.peer, machine.name, 1.0)


async def proposal_of(
    machine: Machine, link: Link, files: dict[str, bytes], sequence: int, number: int = 2
) -> Proposal:
    """What a machine would say if nothing held it back."""
    device, listed = bytes.fromhex(machine.peer), list[LinkedFile]()
    async with machine.parts.storage.putting(Rule()) as putting:
        for name, data in files.items():
            pending = await putting.add(BytesSource(data))
            await putting.finish()
            version = Version(number, device, sequence / 1000, len(data), pending.content)
            listed.append(LinkedFile(name.encode(), version))
        whole = await putting.add(BytesSource(encode(LinkedFiles(FORMAT, listed))))
        await putting.finish()
    return proposal_with(machine, link, whole.content, sequence)


def proposal_with(machine: Machine, link: Link, content: Content, sequence: int) -> Proposal:
    twin, device = bytes.fromhex(machine.twin), bytes.fromhex(machine.peer)
    permit = Permit(twin, device, [], [link.owner], [bytes.fromhex(community_of(machine))], False, FOREVER)
    sealed = seal_target(link.key, content, bytes(12), PURPOSE)
    signed = sign_permit(machine.device, certificate_of(machine), permit)
    return Proposal(twin, device, link.owner, link.id, sequence, signed, sealed)


def community_of(machine: Machine) -> str:
    return machine.parts.overlay.communities()[0].community


def signed(machine: Machine, proposal: Proposal) -> bytes:
    return sign_proposal(machine.device, certificate_of(machine), proposal)


async def say(machine: Machine, to: Machine, record: bytes) -> None:
    """Sends a proposal as it is, past every check of one's own."""
    overlay = machine.parts.overlay
    holders = Holders(overlay.name_of, overlay.open_stream)
    try:
        await holders[to.peer].ask(PutProposal(record), Done)
    finally:
        holders.close()


async def plant(holder: Machine, proposal: Proposal, record: bytes) -> None:
    """A holder that colludes keeps whatever it likes."""
    row = (proposal.link_owner, proposal.link, proposal.device, proposal.sequence, record)

    def write(db: sqlite3.Connection) -> None:
        db.execute("INSERT OR REPLACE INTO held_proposal VALUES (?, ?, ?, ?, ?)", row)

    await holder.parts.ports.database.run(write)


def keeps(world: World, link: Link) -> list[Machine]:
    """Machines that hold the state of a link, its owner's aside."""
    return [
        one for one in world.up() if bytes.fromhex(one.peer) in link.peers and bytes.fromhex(one.twin) != link.owner
    ]


async def look(owner: Machine, writer: Machine) -> None:
    """Until the owner has taken in what there is, has said so, and the writer knows it."""
    await owner.parts.links.taking.round()
    await asyncio.sleep(SETTLE_S)
    await writer.parts.links.writer.round()


async def story_of(world: World) -> tuple[Machine, Machine, Machine, Machine, Link, str]:
    await world.unite(6)
    owner, writer, reader, other = (world[f"peer{number}"] for number in range(1, 5))
    await put(owner, "site/page", b"first")
    line = line_of(owner, await make(owner, "site", reader, write=[writer]))
    return owner, writer, reader, other, read_link(line), line


def test_holders_and_the_owner_take_no_proposal_from_whom_the_link_lets_not_write(play: Play) -> None:
    async def story(world: World) -> None:
        owner, writer, reader, other, link, line = await story_of(world)
        doors = [*keeps(world, link), owner]
        for machine in (reader, other):
            record = signed(machine, await proposal_of(machine, link, {"page": b"stolen"}, 1 << 41))
            for door in doors:
                if door is not machine:
                    with pytest.raises(Refused, match=r"not write|does not let you"):
                        await say(machine, door, record)
        honest = signed(writer, await proposal_of(writer, link, {"page": b"second"}, 1 << 41))
        for door in doors:
            if door is not reader:
                with pytest.raises(Refused, match="put by a device of whoever wrote it"):
                    await say(reader, door, honest)
        with pytest.raises(NotFound):
            unknown = replace(await proposal_of(writer, link, {"page": b"x"}, 1 << 41), link=bytes(16))
            await say(writer, doors[0] if doors[0] is not writer else doors[1], signed(writer, unknown))

        await look(owner, writer)
        assert await read_by_link(writer, line) == {"page": b"first"} and await names(owner) == ["site/page"]

    play(story)


def test_what_colluding_holders_show_is_believed_by_nobody_unless_a_writer_signed_it(play: Play) -> None:
    async def story(world: World) -> None:
        owner, writer, reader, other, link, line = await story_of(world)
        stolen = await proposal_of(other, link, {"page": b"stolen"}, 1 << 41)
        in_writers_name = replace(stolen, owner=bytes.fromhex(writer.twin), device=bytes.fromhex(writer.peer))
        for holder in keeps(world, link):
            await plant(holder, stolen, signed(other, stolen))
            await plant(holder, in_writers_name, sign_proposal(other.device, certificate_of(writer), in_writers_name))

        await look(owner, writer)
        for machine in (reader, writer):
            assert await read_by_link(machine, line) == {"page": b"first"}
        assert await get(owner, "site/page") == b"first"

    play(story)


def test_an_old_proposal_that_is_shown_again_changes_nothing(play: Play) -> None:
    async def story(world: World) -> None:
        owner, writer, reader, _, link, line = await story_of(world)
        await write_by_link(writer, line, {"page": b"second", "more": b"more"})
        keepers = keeps(world, link)
        old = [record for one in keepers for record in await one.parts.holder.links.proposals(link.owner, link.id)]
        assert old
        await look(owner, writer)
        await write_by_link(writer, line, {"page": b"third"})
        await look(owner, writer)
        storage = owner.parts.storage
        async with await storage.listing() as putting:
            await storage.commit({b"site/more": None}, putting)
        await asyncio.sleep(SETTLE_S)
        assert await get(owner, "site/page") == b"third"

        for holder in keepers:
            if holder is not writer:
                await say(writer, holder, old[0])
            assert await holder.parts.holder.links.proposals(link.owner, link.id) == [], "its owner has it"
            await plant(holder, open_proposal(old[0]), old[0])
        await look(owner, writer)
        assert await get(owner, "site/page") == b"third" and await names(owner) == ["site/page"]
        assert await read_by_link(reader, line) == {"page": b"third"}
        assert len((await owner.parts.storage.entry(b"site/page")).versions) == 3

    play(story)


def test_huge_and_senseless_proposals_are_refused_unread(play: Play) -> None:
    async def story(world: World) -> None:
        owner, writer, reader, _, link, line = await story_of(world)
        door = next(one for one in keeps(world, link) if one is not writer)
        sound = await proposal_of(writer, link, {"page": b"second"}, 1 << 41)
        for bad in (
            replace(sound, sealed=bytes(PROPOSAL_BYTES_MAX)),
            replace(sound, sequence=0),
            replace(sound, sequence=1 << 60),
            replace(sound, sealed=b""),
        ):
            with pytest.raises((CroftError, ConnectionLost)):
                await say(writer, door, signed(writer, bad))
        stripe = Stripe(1, SEGMENT_BYTES + TAG_BYTES, [bytes(32)], [bytes.fromhex(door.peer)])
        part = Part(stripe, 0, SEGMENT_BYTES + TAG_BYTES, SEGMENT_BYTES, 0)
        endless = Content(FORMAT, SEGMENT_BYTES * 5, bytes(32), 0, [part] * 5)
        long = proposal_with(writer, link, endless, 1 << 41)
        with pytest.raises(TooLarge):
            await reader.parts.links.reader.proposed(link.key, long, is_folder=True)
        await say(writer, door, signed(writer, long))
        await look(owner, writer)
        assert await read_by_link(reader, line) == {"page": b"first"}
        evil = await proposal_of(writer, link, {"../page": b"out", "page": b"second"}, (1 << 41) + 1)
        await say(writer, door, signed(writer, evil))
        await look(owner, writer)
        assert await read_by_link(reader, line) == {"page": b"first"} and await names(owner) == ["site/page"]

        good = await proposal_of(writer, link, {"page": b"second"}, (1 << 41) + 2)
        await say(writer, door, signed(writer, good))
        await look(owner, writer)
        assert await get(owner, "site/page") == b"second", "what was refused is no hindrance for what is sound"

    play(story)


def test_a_holder_keeps_a_bounded_number_of_proposals_for_one_link(play: Play) -> None:
    async def story(world: World) -> None:
        _, writer, _, _, link, _ = await story_of(world)
        door = next(one for one in keeps(world, link) if one is not writer)
        links = door.parts.holder.links
        sound = await proposal_of(writer, link, {"page": b"second"}, 1 << 41)
        for number in range(PROPOSALS_MAX):
            other = replace(sound, device=number.to_bytes(32, "big"))
            await plant(door, other, b"")

        with pytest.raises(Busy, match="waits for the owner"):
            await say(writer, door, signed(writer, sound))
        assert len(await links.proposals(link.owner, link.id)) == PROPOSALS_MAX

    play(story)
