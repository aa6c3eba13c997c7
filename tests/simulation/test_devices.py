"""Several devices of one twin, as whole simulated peers: added, used, revoked, and kept out for good."""

from __future__ import annotations

import asyncio

import pytest

from croft.errors import Failed, Refused, Usage
from croft.identity.revocations import revoke
from croft.overlay.address_book import NOTICE_CONTACTS, OwnContacts
from croft.overlay.contacts import Trust
from croft.overlay.devices import NOTICE_MEMBERSHIPS, REVOCATION_KIND, OwnMemberships
from croft.overlay.service import MEMBER_KIND
from croft.sim.world import World
from croft.wire.codec import encode
from support.worlds import Play, add_device, double


async def household(world: World) -> None:
    """peer1, peer2, and `phone`, a second device of peer1's."""
    await world.unite(2)
    await world["peer1"].parts.address_book.name(world["peer2"].twin, "neighbour")
    await world["peer1"].parts.address_book.trust(world["peer2"].twin, Trust.LOW)
    await add_device(world, "phone", by="peer1")
    await world.until(world.disunity, within_s=60)


def test_a_line_makes_a_fresh_machine_a_device_with_memberships_and_contacts_but_without_the_key(play: Play) -> None:
    async def story(world: World) -> None:
        await household(world)
        phone = world["phone"]
        assert phone.parts.overlay.own.twin == world["peer1"].twin
        [contact] = phone.parts.address_book.all()
        assert (contact.petname, contact.trust) == ("neighbour", Trust.LOW)
        job = world.submit("phone", double, [1, 2, 3], only=["peer2"])
        await job.running
        assert phone.parts.plan.twin_key is None and phone.parts.plan.root is None
        for attempt in (
            phone.parts.admissions.invite(60.0, is_spoken=False),
            phone.parts.admissions.add_device(60.0),
            phone.parts.devices.revoke(world["peer1"].peer),
        ):
            with pytest.raises(Refused, match="does not hold your key"):
                await attempt

    play(story)


def test_a_machine_with_a_life_of_its_own_is_not_taken_over(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(2)
        line = (await world["peer1"].parts.admissions.add_device(3600.0)).line
        with pytest.raises(Refused, match="somebody already"):
            await world["peer2"].parts.admissions.join(line)
        world.add("fresh")
        await world.start("fresh")
        disguised = line.replace("croft-device:", "croft:")
        with pytest.raises(Failed, match="device of somebody else"):
            await world["fresh"].parts.admissions.join(disguised)
        member_line = (await world["peer1"].parts.admissions.invite(3600.0, is_spoken=False)).line
        with pytest.raises(Failed, match="does not keep to the protocol"):
            await world["fresh"].parts.admissions.join(member_line.replace("croft:", "croft-device:"))
        assert world["fresh"].parts.overlay.communities() == []

    play(story)


def test_a_revoked_device_is_cut_everywhere_and_stays_out(play: Play) -> None:
    async def story(world: World) -> None:
        await household(world)
        phone, neighbour = world["phone"], world["peer2"]
        old = [entry.record for entry in neighbour.parts.overlay.records.entries(MEMBER_KIND)]
        assert neighbour.parts.overlay.links.get(phone.peer) is not None
        with pytest.raises(Usage, match="you are at"):
            await world["peer1"].parts.devices.revoke(world["peer1"].peer)

        await world["peer1"].parts.devices.revoke(phone.peer)
        await asyncio.sleep(2)

        for machine in (world["peer1"], neighbour):
            assert machine.parts.overlay.links.get(phone.peer) is None
            assert phone.peer not in [member.peer for member in machine.parts.overlay.members()]
        # Old words of the device are as worthless as new ones, whoever brings them, and when.
        neighbour.parts.overlay.records.learn(world.community, [(MEMBER_KIND, record) for record in old])
        await world.restart("phone")
        await world.restart("peer2")
        await asyncio.sleep(60)
        assert neighbour.parts.overlay.links.get(phone.peer) is None
        assert phone.peer not in [member.peer for member in neighbour.parts.overlay.members()]
        assert world.missing_link(["peer1", "peer2"]) == ""
        [revoked] = neighbour.parts.devices.revoked(world["peer1"].twin)
        assert revoked.peer == phone.peer

    play(story)


def test_whoever_was_away_hears_of_a_revocation_as_soon_as_anybody_is_reached(play: Play) -> None:
    async def story(world: World) -> None:
        await household(world)
        world.partition(["peer1"], ["peer2", "phone"])
        await asyncio.sleep(30)
        await world["peer1"].parts.devices.revoke(world["phone"].peer)
        await asyncio.sleep(30)
        assert world["peer2"].parts.overlay.links.get(world["phone"].peer) is not None
        world.heal()

        def still_linked() -> str:
            heard = world["peer2"].parts.overlay.records.entries(REVOCATION_KIND)
            linked = world["peer2"].parts.overlay.links.get(world["phone"].peer)
            return "" if heard and linked is None else "the revoked device is linked"

        # The pause before the next dial, and ten seconds from then on.
        await world.until(still_linked, within_s=40)

    play(story)


def test_a_twin_revokes_its_own_devices_only(play: Play) -> None:
    async def story(world: World) -> None:
        await household(world)
        neighbour = world["peer2"]
        record = revoke(neighbour.twin_key, world["phone"].peer, world.community, neighbour.chain, 0.0)
        neighbour.parts.overlay.records.publish(REVOCATION_KIND, world.community, record)
        await asyncio.sleep(30)
        assert world.disunity() == ""

    play(story)


def test_what_one_device_joins_the_others_are_in(play: Play) -> None:
    async def story(world: World) -> None:
        await household(world)
        desk, phone = world["peer1"], world["phone"]
        world.add("host")
        host = await world.start("host")
        line = (await host.admissions.invite(3600.0, is_spoken=False)).line
        arrival = await desk.parts.admissions.join(line)
        desk.parts.devices.tell()
        choir = arrival.membership.community

        def not_in_it() -> str:
            known = [member.peer for member in host.overlay.community_members(choir)]
            return "" if phone.peer in known and host.overlay.links.get(phone.peer) else "the phone is not in the choir"

        await world.until(not_in_it, within_s=30)
        await world.restart("phone")
        assert choir in world["phone"].parts.overlay.passport.memberships

    play(story)


def test_only_a_device_of_the_same_twin_is_believed_about_memberships(play: Play) -> None:
    async def story(world: World) -> None:
        await household(world)
        neighbour, phone = world["peer2"].parts, world["phone"]
        link = neighbour.overlay.links.get(phone.peer)
        assert link is not None
        link.notify(NOTICE_MEMBERSHIPS, encode(OwnMemberships([])))
        await asyncio.sleep(1)
        assert link.is_closed
        assert [one.community for one in phone.parts.overlay.communities()] == [world.community]

    play(story)


# --- contacts of all devices -----------------------------------------------------------------------------------------


def noted(world: World, name: str) -> list[tuple[str, Trust, bool]]:
    return [(one.petname, one.trust, one.is_blocked) for one in world[name].parts.address_book.all()]


async def alike(world: World, expected: list[tuple[str, Trust, bool]]) -> None:
    def differ() -> str:
        found = [noted(world, name) for name in ("peer1", "phone")]
        return "" if found == [expected, expected] else f"{found}, not twice {expected}"

    await world.until(differ, within_s=5)


def test_what_one_device_notes_of_a_person_counts_on_all(play: Play) -> None:
    async def story(world: World) -> None:
        await household(world)
        neighbour = world["peer2"]
        await world["phone"].parts.address_book.name(neighbour.twin, "dear neighbour")
        await alike(world, [("dear neighbour", Trust.LOW, False)])

        await world["peer1"].parts.address_book.block(neighbour.twin)
        await alike(world, [("dear neighbour", Trust.LOW, True)])
        assert world["phone"].parts.overlay.links.get(neighbour.peer) is None, "a block is felt at once, there as here"

        await world["phone"].parts.address_book.remove(neighbour.twin)
        await alike(world, [])

    play(story)


def test_a_device_that_was_off_hears_of_it_when_it_meets_another_one_and_keeps_it(play: Play) -> None:
    async def story(world: World) -> None:
        await household(world)
        neighbour = world["peer2"].twin
        await world.crash("phone")
        await world["peer1"].parts.address_book.trust(neighbour, Trust.HIGH)
        await world.start("phone")
        await alike(world, [("neighbour", Trust.HIGH, False)])

        await world.crash("peer1")
        await world["phone"].parts.address_book.name(neighbour, "friend")
        await world.restart("phone")
        await world.start("peer1")
        await alike(world, [("friend", Trust.HIGH, False)])

    play(story)


def test_only_a_device_of_the_same_twin_is_believed_about_contacts(play: Play) -> None:
    async def story(world: World) -> None:
        await household(world)
        link = world["peer2"].parts.overlay.links.get(world["phone"].peer)
        assert link is not None
        link.notify(NOTICE_CONTACTS, encode(OwnContacts([])))
        await asyncio.sleep(1)
        assert link.is_closed
        assert noted(world, "phone") == [("neighbour", Trust.LOW, False)]

    play(story)
