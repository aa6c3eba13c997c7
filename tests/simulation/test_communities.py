"""Communities of whole simulated peers: who is removed is out everywhere, and after any split all agree."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from msgspec.structs import replace

from croft.errors import Busy, CroftError, Refused
from croft.model.ids import CommunityId
from croft.overlay.passport import Membership
from croft.overlay.service import Overlay
from croft.sim.machine import SimulatedDisk
from croft.sim.world import COMMUNITY_NAME, World
from croft.twins.community import REFUSED_KEPT_MAX
from croft.twins.community_messages import NOTICE_HEADS, PAGE_OPERATIONS_MAX, Heads
from croft.twins.community_operation import (
    ADMIN,
    GUEST,
    LEAVE,
    MEMBER,
    REMOVE,
    ROLE,
    RULE,
    open_operation,
    write_operation,
)
from croft.twins.community_reducer import TWO_TONGUES
from croft.wire.codec import encode
from support.worlds import Play, add_device, double, lasting

SECONDS = 5.0


def differing(world: World, *names: str) -> str:
    """Which of these peers know something else than the first of them."""
    first, *others = [world[name].parts.communities.of(world.community) for name in names]
    told = [name for name, known in zip(names[1:], others, strict=True) if known.digest() != first.digest()]
    return f"{told} differ from {names[0]}" if told else ""


async def united(world: World, count: int) -> list[str]:
    """So many peers in one community, each of whom knows from operations who is in it, and has it on disk."""
    names = await world.unite(count)

    def unknown() -> str:
        known = [len(world[name].parts.communities.of(world.community).members()) for name in names]
        return "" if set(known) == {count} else f"they know {known}"

    await world.until(unknown, within_s=60)
    await asyncio.sleep(3)
    return names


def enter_as(overlay: Overlay, name: str) -> Callable[[CommunityId, Sequence[bytes]], Awaitable[None]]:
    """Makes a peer a member of what it founds."""
    return lambda community, chain: overlay.enter(Membership(community, name, tuple(chain)))


async def act(world: World, who: str, what: str, whom: str, value: str = "") -> None:
    subject = world[whom].twin if whom in world.machines else whom
    await world[who].parts.communities.act(world.community, what, subject, value)


def test_everybody_who_was_let_in_is_in_the_log_of_all(play: Play) -> None:
    async def story(world: World) -> None:
        names = await united(world, 4)

        communities = world["peer3"].parts.communities
        assert communities.members_of(world.community) == {world[name].twin for name in names}
        assert communities.role_of(world.community, world["peer1"].twin) == "founder"
        assert communities.role_of(world.community, world["peer2"].twin) == "member"

    play(story)


def test_whoever_is_removed_is_cut_off_everywhere_and_refused_with_the_reason(play: Play) -> None:
    async def story(world: World) -> None:
        names = await united(world, 4)
        gone = world["peer4"]
        await world.until(lambda: differing(world, *names), within_s=30)
        await asyncio.sleep(30)
        job = world.submit("peer4", lasting(30.0, double), [1, 2], only=["peer2"])
        await asyncio.sleep(2)
        assert world["peer2"].parts.lender.slots_busy > 0

        await act(world, "peer1", REMOVE, "peer4")

        await world.until(
            lambda: "".join(
                f"{name} is linked to it" for name in names[:3] if world[name].parts.overlay.links.get(gone.peer)
            ),
            within_s=SECONDS,
        )
        await world.until(
            lambda: "its work goes on" if world["peer2"].parts.lender.slots_busy else "", within_s=SECONDS
        )
        stay = {world[other].twin for other in names[:3]}

        def listed() -> str:
            members = {n: world[n].parts.overlay.community_members(world.community) for n in names[:3]}
            return "".join(f"{name} lists it" for name, known in members.items() if {m.twin for m in known} != stay)

        await world.until(listed, within_s=SECONDS)
        # It was told, and is in the community no more.
        await world.until(lambda: COMMUNITY_NAME if gone.parts.overlay.communities() else "", within_s=60)
        (warning,) = gone.parts.health.warnings()
        assert warning.title == "You were removed from the village by its founder."
        job.running.cancel()
        await asyncio.gather(job.running, return_exceptions=True)

    play(story)


def test_whoever_becomes_a_guest_ends_what_is_for_members_and_begins_it_no_more(play: Play) -> None:
    async def story(world: World) -> None:
        names = await united(world, 3)
        lender = world["peer2"].parts.lender
        job = world.submit("peer3", lasting(30.0, double), [1, 2], only=["peer2"])
        await world.until(lambda: "" if lender.slots_busy else "nothing runs", within_s=10)

        await act(world, "peer1", ROLE, "peer3", GUEST)

        await world.until(lambda: "its work goes on" if lender.slots_busy else "", within_s=SECONDS)
        await world.until(lambda: world.disunity(names), within_s=30)
        with pytest.raises(Refused, match="offers nothing to you"):
            await job.running
        await act(world, "peer1", ROLE, "peer3", MEMBER)
        await asyncio.sleep(3)
        await world.submit("peer3", double, [1, 2], only=["peer2"]).running

    play(story)


def test_whoever_was_off_when_removed_is_refused_by_all_with_the_reason(play: Play) -> None:
    async def story(world: World) -> None:
        names = await united(world, 4)
        await world.crash("peer4")
        await act(world, "peer1", REMOVE, "peer4")
        await world.until(lambda: differing(world, *names[:3]), within_s=SECONDS)
        await world.restart("peer2")

        await world.start("peer4")
        await asyncio.sleep(1)

        for name in names[:3]:
            with pytest.raises(Refused, match="you were removed from the village by its founder"):
                await world["peer4"].parts.overlay.link_to(world[name].peer)

    play(story)


def test_a_member_who_comes_back_by_a_new_invitation_is_in_again(play: Play) -> None:
    async def story(world: World) -> None:
        names = await united(world, 3)
        await asyncio.sleep(30)
        await act(world, "peer1", REMOVE, "peer3")
        gone = world["peer3"]
        await world.until(lambda: COMMUNITY_NAME if gone.parts.overlay.communities() else "", within_s=60)
        line = (await world["peer2"].parts.admissions.invite(600.0, is_spoken=False)).line

        with pytest.raises(CroftError, match="let in again by admins only"):
            await gone.parts.admissions.join(line)
        line = (await world["peer1"].parts.admissions.invite(600.0, is_spoken=False)).line
        await gone.parts.admissions.join(line)

        await world.until(lambda: world.disunity(names), within_s=30)
        await world.until(lambda: differing(world, *names), within_s=30)
        await asyncio.sleep(60)
        assert world.disunity(names) == ""

    play(story)


def test_three_partitions_with_conflicting_acts_agree_once_they_meet(play: Play) -> None:
    """F7, on virtual time."""

    async def story(world: World) -> None:
        names = await united(world, 6)
        for admin in ("peer2", "peer3", "peer4"):
            await act(world, "peer1", ROLE, admin, ADMIN)
        await world.until(lambda: differing(world, *names), within_s=30)
        world.partition(["peer1", "peer2"], ["peer3", "peer5"], ["peer4", "peer6"])
        await asyncio.sleep(20)

        await act(world, "peer1", REMOVE, "peer4")
        await act(world, "peer2", RULE, "text", "be kind")
        await act(world, "peer3", ROLE, "peer5", ADMIN)
        await act(world, "peer3", RULE, "invite", "admins")
        await act(world, "peer4", RULE, "invite", "founders")
        with pytest.raises(Refused, match="only the founder and admins may"):
            await act(world, "peer6", REMOVE, "peer2")
        await act(world, "peer4", ROLE, "peer6", ADMIN)
        with pytest.raises(Refused, match="an admin who became one earlier"):
            await act(world, "peer4", REMOVE, "peer3")
        await asyncio.sleep(20)
        world.heal()

        stay = [name for name in names if name != "peer4"]
        await world.until(lambda: differing(world, *stay), within_s=60)
        known = world["peer5"].parts.communities
        assert known.of(world.community).rules() == {"invite": "admins", "text": "be kind"}
        assert known.role_of(world.community, world["peer6"].twin) == "member"
        assert known.role_of(world.community, world["peer5"].twin) == "admin"
        assert world["peer4"].twin not in known.members_of(world.community)

    play(story)


def test_a_long_history_is_fetched_page_by_page_and_only_once(play: Play) -> None:
    async def story(world: World) -> None:
        names = await united(world, 3)
        world.partition(["peer1", "peer3"], ["peer2"])
        for number in range(2 * PAGE_OPERATIONS_MAX + 10):
            await act(world, "peer1", RULE, "text", f"word {number}")
        await world.until(lambda: differing(world, "peer1", "peer3"), within_s=30)
        await asyncio.sleep(3)
        await world.crash("peer1")
        await world.crash("peer3")
        world.heal()
        await world.start("peer3")

        await world.until(lambda: differing(world, "peer3", "peer2"), within_s=60)

        assert world["peer2"].parts.communities.of(world.community).rules()["text"] == f"word {number}"
        await world.restart("peer2")
        assert world["peer2"].parts.communities.of(world.community).rules()["text"] == f"word {number}"
        await world.start(names[0])
        await world.until(lambda: differing(world, *names), within_s=60)

    play(story)


# --- hostile members -------------------------------------------------------------------------------------------------


def forge(world: World, who: str, act: str, whom: str, value: str = "", **changes: object) -> bytes:
    """An act that somebody signs whatever their own peer thinks of it; their replica stays as it is."""
    machine = world[who]
    known = machine.parts.communities.of(world.community)
    subject = world[whom].twin if whom in world.machines else whom
    operation = known.next_operation(machine.twin, act, subject, value, at=0.0, chain=machine.chain)
    return write_operation(machine.twin_key, replace(operation, **changes))


def tell(world: World, who: str, whom: str, records: list[bytes], heads: list[bytes] | None = None) -> None:
    """Sends operations to a neighbour, as if just signed."""
    link = world[who].parts.overlay.links.get(world[whom].peer)
    assert link is not None, f"{who} is linked to {whom}"
    named = [open_operation(record, world.community).id for record in records] if heads is None else heads
    link.notify(NOTICE_HEADS, encode(Heads(world.community, named, records)))


def test_what_somebody_without_rights_signs_is_ignored_by_all(play: Play) -> None:
    """F7: a non-admin's write is ignored by all; so is a forged one, and a flood of them is not even kept."""

    async def story(world: World) -> None:
        names = await united(world, 4)
        before = {name: world[name].parts.communities.of(world.community).digest() for name in names}
        count = len(world["peer1"].parts.communities.of(world.community))
        forged = bytearray(forge(world, "peer4", RULE, "text", "mine"))
        forged[-1] ^= 1
        for name in names[:3]:
            tell(world, "peer4", name, [forge(world, "peer4", REMOVE, "peer2")])
            tell(world, "peer4", name, [bytes(forged)], heads=[b"x" * 32])
            for number in range(300):
                flood = [forge(world, "peer4", RULE, "text", f"{number}/{n}", sequence=number) for n in range(2)]
                tell(world, "peer4", name, flood)
        await asyncio.sleep(30)

        for name in names:
            known = world[name].parts.communities.of(world.community)
            assert (known.digest(), len(known)) == (before[name], count)
        refused = world["peer1"].parts.communities.of(world.community).refused
        assert len(refused) == REFUSED_KEPT_MAX and {one.author for one in refused} == {world["peer4"].twin}
        assert world.disunity(names) == ""

    play(story)


def test_an_admin_who_tells_two_peers_different_things_is_found_out_by_all(play: Play) -> None:
    async def story(world: World) -> None:
        names = await united(world, 4)
        await act(world, "peer1", ROLE, "peer4", ADMIN)
        await world.until(lambda: differing(world, *names), within_s=30)
        await asyncio.sleep(3)

        tell(world, "peer4", "peer1", [forge(world, "peer4", REMOVE, "peer2")])
        tell(world, "peer4", "peer2", [forge(world, "peer4", REMOVE, "peer3")])
        await asyncio.sleep(60)

        assert differing(world, *names) == ""
        for name in names:
            communities = world[name].parts.communities
            log = communities.of(world.community).log()
            assert [one.why_not for one in log if one.act == REMOVE] == [TWO_TONGUES] * 2
            assert communities.role_of(world.community, world["peer4"].twin) == "member"
        await world.until(lambda: world.disunity(names), within_s=60)

    play(story)


def test_a_member_who_names_operations_that_it_does_not_send_costs_little(play: Play) -> None:
    async def story(world: World) -> None:
        names = await united(world, 3)
        for number in range(50):
            invented = [bytes([number, n]) * 16 for n in range(64)]
            tell(world, "peer3", "peer1", [], heads=invented)
            await asyncio.sleep(0.1)

        await act(world, "peer1", ROLE, "peer2", ADMIN)
        await world.until(lambda: differing(world, *names), within_s=30)
        assert world.disunity(names) == ""
        link = world["peer1"].parts.overlay.links.get(world["peer3"].peer)
        assert link is not None
        tell(world, "peer3", "peer1", [], heads=[bytes(32)] * 65)
        await world.until(lambda: "" if "broke the protocol" in link.end_reason else "it goes on", within_s=5)

    play(story)


# --- devices ---------------------------------------------------------------------------------------------------------


def test_a_device_without_the_key_follows_its_owner_and_acts_by_no_role(play: Play) -> None:
    async def story(world: World) -> None:
        names = await united(world, 2)
        world.add("phone")
        await world.start("phone")
        line = (await world["peer2"].parts.admissions.add_device(600.0)).line
        await world["phone"].parts.admissions.join(line)
        await world.restart("phone")
        phone = world["phone"].parts
        await world.until(lambda: "" if len(phone.communities.of(world.community)) else "knows nothing", within_s=60)
        await act(world, "peer1", ROLE, "peer2", ADMIN)
        everybody = [*names, "phone"]
        await world.until(lambda: differing(world, *everybody), within_s=30)

        with pytest.raises(Refused, match="does not hold your key"):
            await phone.communities.act(world.community, RULE, "text", "hello")
        assert phone.communities.role_of(world.community, world["peer2"].twin) == "admin"

        await act(world, "peer1", REMOVE, "peer2")
        await world.until(lambda: COMMUNITY_NAME if phone.overlay.communities() else "", within_s=60)

    play(story)


def test_a_device_that_missed_it_does_not_bring_its_owner_back_into_a_community_that_was_left(play: Play) -> None:
    async def story(world: World) -> None:
        await united(world, 2)
        await add_device(world, "phone", by="peer2")
        laptop = world["peer2"].parts
        await laptop.communities.create("lake", enter_as(laptop.overlay, "lake"))
        laptop.devices.tell()
        phone = world["phone"]
        await world.until(lambda: "" if len(phone.parts.overlay.communities()) == 2 else "in one", within_s=30)
        await asyncio.sleep(5)
        await world.crash("phone")
        membership = laptop.overlay.passport.memberships[world.community]
        await laptop.communities.act(world.community, LEAVE, world["peer2"].twin)
        await asyncio.sleep(1)
        await laptop.community_keeper.leave(membership, "its owner left")

        await world.start("phone")

        def at_the_lake() -> str:
            named = {n: [one.name for one in world[n].parts.overlay.communities()] for n in ("peer2", "phone")}
            return "" if named == {"peer2": ["lake"], "phone": ["lake"]} else str(named)

        await world.until(at_the_lake, within_s=60)
        await asyncio.sleep(60)
        assert at_the_lake() == ""

    play(story)


def test_whoever_is_removed_from_one_community_goes_on_in_another_one(play: Play) -> None:
    """F3, on virtual time: a link serves the communities that both are in, and no others."""

    async def story(world: World) -> None:
        names = await united(world, 3)
        first, second = world["peer1"].parts, world["peer2"].parts
        lake = await first.communities.create("lake", enter_as(first.overlay, "lake"))
        line = (await first.admissions.invite(600.0, is_spoken=False, community=lake)).line
        await second.admissions.join(line)
        both = frozenset([world.community, lake])
        await world.until(
            lambda: "" if first.overlay.shared_with(world["peer2"].peer) == both else "not both", within_s=30
        )
        assert first.overlay.shared_with(world["peer3"].peer) == {world.community}
        await asyncio.sleep(30)

        await act(world, "peer1", REMOVE, "peer2")

        await world.until(
            lambda: "" if first.overlay.shared_with(world["peer2"].peer) == {lake} else "not the lake", within_s=30
        )
        await world.until(lambda: differing(world, "peer1", "peer3"), within_s=30)
        third = world["peer3"].parts.overlay
        await world.until(lambda: "a link" if third.links.get(world["peer2"].peer) else "", within_s=SECONDS)
        await asyncio.sleep(30)
        assert third.links.get(world["peer2"].peer) is None
        job = world.submit("peer2", double, [1, 2, 3], only=["peer1"])
        await job.running
        assert first.communities.members_of(world.community) == {world[name].twin for name in (names[0], names[2])}
        assert first.communities.members_of(lake) == {world[name].twin for name in names[:2]}

    play(story)


def test_a_founder_who_begins_anew_from_the_words_does_not_speak_with_two_tongues(play: Play) -> None:
    async def story(world: World) -> None:
        names = await united(world, 3)
        await act(world, "peer1", ROLE, "peer2", ADMIN)
        await world.until(lambda: differing(world, *names), within_s=30)
        await world.crash("peer1")
        founder = world["peer1"]
        founder.disk = SimulatedDisk()
        parts = await world.start("peer1")
        records = [m.record for m in world["peer2"].parts.overlay.community_members(world.community)]
        await parts.overlay.enter(Membership(world.community, COMMUNITY_NAME, founder.chain), records)

        with pytest.raises(Busy, match="has heard from no other member"):
            await act(world, "peer1", RULE, "text", "hello")
        await world.until(lambda: differing(world, *names), within_s=60)
        await act(world, "peer1", RULE, "text", "hello")
        await asyncio.sleep(30)

        assert differing(world, *names) == ""
        log = world["peer3"].parts.communities.of(world.community).log()
        assert [one.why_not for one in log] == [""] * len(log)

    play(story)


def test_whom_a_removed_one_let_in_before_there_were_operations_stays(play: Play) -> None:
    async def story(world: World) -> None:
        await united(world, 2)
        world.add("peer3")
        await world.start("peer3")
        first = world["peer1"].parts.communities
        # Let in by a grant alone, and peer2 does not get to sign an operation that says so.
        await world.admit("peer3", by="peer2")
        await world.crash("peer2")
        await world.until(
            lambda: "" if world["peer3"].twin in first.members_of(world.community) else "unknown", within_s=30
        )
        assert not first.of(world.community).is_admitted(world["peer3"].twin)

        assert first.vouch(world.community, world["peer2"].twin) == 1
        await act(world, "peer1", REMOVE, "peer2")
        await asyncio.sleep(60)

        assert first.members_of(world.community) == {world["peer1"].twin, world["peer3"].twin}
        assert world["peer1"].parts.overlay.links.get(world["peer3"].peer) is not None

    play(story)
