"""Stored files through crashes, partitions, full disks and liars: what was acknowledged is read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

import pytest

from croft.errors import CroftError, Refused, Unreachable
from croft.sim.world import Machine, World
from croft.storage.contents import HEAD_BYTES, BytesSource
from croft.storage.formats import Version
from croft.storage.holder import LUMP_BYTES
from croft.storage.merging import conflicting
from croft.storage.merkle import LEAF_BYTES
from croft.storage.sealing import SEGMENT_BYTES
from croft.storage.service import HIDDEN
from support.stored import get, held, names, put, rule
from support.worlds import Play, add_device

PATIENCE_S = 120.0


def content(seed: int, size: int) -> bytes:
    return Random(seed).randbytes(size)


def test_files_of_every_size_come_back_as_they_were(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(6)
        owner = world["peer1"]
        files = {f"f{size}": content(size, size) for size in (0, 1, 70_000, 300_000, 5_000_000)} | {
            "zeros": bytes(1 << 22)
        }
        for name, data in files.items():
            await put(owner, name, data)

        assert await names(owner) == sorted(files)
        for name, data in files.items():
            assert await get(owner, name) == data

    play(story)


def test_the_first_bytes_of_a_long_file_are_a_small_segment_of_their_own(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner, data = world["peer1"], content(7, 2 * SEGMENT_BYTES + 100_000)
        for name, size in (("long", len(data)), ("short", SEGMENT_BYTES - 1)):
            await put(owner, name, data[:size])
        parts = {name: await parts_of(owner, name) for name in ("long", "short")}
        assert parts["long"] == [HEAD_BYTES, SEGMENT_BYTES - HEAD_BYTES, SEGMENT_BYTES, 100_000]
        assert parts["short"] == [SEGMENT_BYTES - 1]
        content_of = (await owner.parts.storage.entry(b"long")).versions[-1].content
        assert content_of is not None and await get(owner, "long") == data
        for at in (0, HEAD_BYTES - 1, HEAD_BYTES, SEGMENT_BYTES - 1, SEGMENT_BYTES):
            read = [bytes(piece) async for piece in owner.parts.storage.read(content_of, at, 1_000)]
            assert b"".join(read) == data[at : at + 1_000]

    async def parts_of(owner: Machine, name: str) -> list[int]:
        stored = (await owner.parts.storage.entry(name.encode())).versions[-1].content
        assert stored is not None
        return [part.size for part in stored.parts or await owner.parts.storage.parts(stored)]

    play(story)


def test_a_file_for_some_time_goes_by_itself_with_its_shares_and_no_other_does(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner, data = world["peer1"], content(3, 600_000)
        now = owner.clock.now()
        await put(owner, "for ever", data)
        await put(owner, "for an hour", content(4, 600_000), until=int(now) + 3_600)
        await put(owner, "for a year", content(5, 600_000), until=int(now) + 365 * 86_400)
        full = len(held(world["peer2"], owner))

        await asyncio.sleep(3_000)
        assert await names(owner) == ["for a year", "for an hour", "for ever"]
        await asyncio.sleep(600 + 1_200)
        assert await names(owner) == ["for a year", "for ever"]
        assert len(held(world["peer2"], owner)) < full
        assert await get(owner, "for ever") == data

    play(story)


def test_reads_go_on_when_as_many_holders_die_as_the_layout_bears_and_no_more(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(7)
        owner, data = world["peer1"], content(1, 600_000)
        took = await put(owner, "film", data, rule(world, keep="3of6"))
        assert sorted(took) == sorted(world[f"peer{number}"].peer for number in range(2, 8))
        for number in (2, 3, 4):
            await world.crash(f"peer{number}")

        assert await get(owner, "film") == data

        await world.crash("peer5")
        with pytest.raises(Unreachable, match="only 2 of the 3 shares"):
            await get(owner, "film")
        await world.restart("peer2")
        await world.until(lambda: "" if owner.parts.overlay.links.get(world["peer2"].peer) else "no link", within_s=60)
        assert await get(owner, "film") == data

    play(story)


def test_a_holder_whose_shares_are_not_what_they_were_is_named_and_not_believed(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner, data = world["peer1"], content(2, 900_000)
        await put(owner, "film", data, rule(world, keep="2of4"))
        for name, is_noticed in (("peer2", False), ("peer3", True)):
            shares = held(world[name], owner)
            for share, kept in list(shares.items()):
                if is_noticed:
                    world[name].chunks.rot(bytes.fromhex(owner.twin), share)
                else:
                    shares[share] = bytes([kept[0] ^ 1]) + kept[1:]

        assert await get(owner, "film") == data
        faults = owner.parts.storage.faults()
        assert {fault.split(":")[0] for fault in faults} <= {"peer2", "peer3"} and faults

    play(story)


def test_a_full_holder_says_so_and_another_one_takes_the_share(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner, data = world["peer1"], content(3, 400_000)
        world["peer2"].chunks.capacity_bytes = 0

        took = await put(owner, "film", data, rule(world, keep="2of3"))
        assert world["peer2"].peer not in took and len(took) == 3
        assert await get(owner, "film") == data
        with pytest.raises(CroftError, match="peer2: the simulated disk is full"):
            await put(owner, "more", data, rule(world, on=["peer2"], keep="copies=1"))
        assert await names(owner) == ["film"], "what could not be stored is not there"

    play(story)


def test_what_is_held_counts_against_the_offer_across_restarts_and_is_freed(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner, holder = world["peer1"], world["peer2"]
        only = rule(world, on=["peer2"], keep="copies=1")
        await put(owner, "one", content(4, LUMP_BYTES + 1), only)
        await put(owner, "two", b"lives", only)

        def leased() -> list[int]:
            return [lease.amounts["disk"] for lease, _ in holder.parts.leases.shown()]

        assert leased() == [2 * LUMP_BYTES]
        await world.restart("peer2")
        await asyncio.sleep(PATIENCE_S)
        (size,) = leased()
        assert LUMP_BYTES < size <= 2 * LUMP_BYTES, "the lease outlives the restart and its grace"
        assert await get(owner, "one") == content(4, LUMP_BYTES + 1)

        storage = owner.parts.storage
        async with storage.putting(only) as putting:
            await storage.commit({b"one": None}, putting)
        assert await owner.parts.upkeep.collect() >= LUMP_BYTES
        assert leased() == [LUMP_BYTES] and await get(owner, "two") == b"lives"

    play(story)


def test_what_is_being_put_is_never_collected(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner = world["peer1"]
        files = {f"f{number}": content(number, 40_000 * number) for number in range(1, 9)}

        async def collect() -> None:
            while True:
                await owner.parts.upkeep.collect()

        collecting = asyncio.create_task(collect(), name="collect")
        await asyncio.gather(*(put(owner, name, data) for name, data in files.items()))
        collecting.cancel()
        await asyncio.wait({collecting})

        assert await names(owner) == sorted(files)
        for name, data in files.items():
            assert await get(owner, name) == data

    play(story)


def test_nothing_acknowledged_is_lost_whatever_crashes_and_when(play: Play) -> None:
    async def story(world: World) -> None:
        everybody = await world.unite(6)
        chance = Random(world.seed)
        acknowledged: dict[str, bytes] = {}

        async def write() -> None:
            for number in range(12):
                data = content(number, chance.choice([10, 50_000, 400_000]))
                try:
                    await put(world["peer1"], f"f{number}", data)
                except (CroftError, AssertionError):
                    continue
                acknowledged[f"f{number}"] = data

        async def hurt() -> None:
            for _ in range(6):
                await asyncio.sleep(chance.uniform(0.0, 3.0))
                name = chance.choice(everybody)
                await world.crash(name, is_loud=chance.random() < 0.5)
                await asyncio.sleep(chance.uniform(0.0, 5.0))
                await world.start(name)

        for _ in range(2):
            writing = asyncio.create_task(write(), name="write")
            await hurt()
            writing.cancel()
            await asyncio.wait({writing})
        await world.until(lambda: world.disunity(), within_s=PATIENCE_S)

        assert acknowledged
        assert set(acknowledged) <= set(await names(world["peer1"]))
        for name, data in acknowledged.items():
            assert await get(world["peer1"], name) == data

    play(story)


def test_a_put_across_a_partition_counts_or_leaves_nothing_behind(play: Play) -> None:
    async def story(world: World) -> None:
        everybody = await world.unite(6)
        owner = world["peer1"]
        await put(owner, "before", b"before")
        putting = asyncio.create_task(put(owner, "film", content(5, 3_000_000)), name="put")
        await asyncio.sleep(0.05)
        world.partition(everybody[:2], everybody[2:])
        await asyncio.wait({putting})
        counts = putting.exception() is None
        world.heal()
        await world.until(lambda: world.disunity(), within_s=PATIENCE_S)

        assert await names(owner) == (["before", "film"] if counts else ["before"])
        assert await get(owner, "before") == b"before"
        if counts:
            assert await get(owner, "film") == content(5, 3_000_000)

    play(story)


def test_only_whom_the_owner_lets_is_asked_for_anything(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner = world["peer1"]
        await put(
            owner, "film", content(6, 300_000), rule(world, on=["peer2", "peer3"], never=["peer4"], keep="copies=2")
        )

        assert [bool(held(world[f"peer{number}"], owner)) for number in (2, 3, 4, 5)] == [True, True, False, False]
        with pytest.raises(Refused, match="needs 4 owners who lend disk, and 3 do now"):
            await put(owner, "film", b"x", rule(world, never=["peer4"], keep="2of4"))

    play(story)


def test_delegates_without_a_key_make_lost_shares_again_while_the_owner_is_off(play: Play) -> None:
    async def story(world: World) -> None:
        names = await world.unite(11)
        owner, data = world["peer1"], content(7, 700_000)
        took = await put(owner, "film", data, rule(world, keep="3of6"))
        holders = [world.machine_of(peer).name for peer in took]
        spare = [name for name in names[1:] if name not in holders]
        version = (await owner.parts.storage.entry(b"film")).versions[-1]
        assert version.content is not None
        shares = [share for part in version.content.parts for share in part.stripe.shares]
        await asyncio.sleep(10)
        await world.crash("peer1")
        for name in holders[:3]:
            await world.crash(name)

        def unmended() -> str:
            left = [held(world[name], owner) for name in [*holders[3:], *spare]]
            missing = [share for share in shares if not any(share in kept for kept in left)]
            return f"{len(missing)} of {len(shares)} shares are nowhere" if missing else ""

        await world.until(unmended, within_s=PATIENCE_S)
        for name in holders[3:]:
            await world.crash(name)
        await world.start("peer1")
        await world.until(lambda: world.missing_link(), within_s=PATIENCE_S)

        assert await get(owner, "film") == data

    play(story)


@pytest.mark.parametrize("is_owner_away", [True, False])
def test_lost_shares_are_made_again_only_where_each_file_may_be(play: Play, is_owner_away: bool) -> None:
    async def story(world: World) -> None:
        await world.unite(8)
        owner = world["peer1"]
        chosen = ["peer2", "peer3", "peer4"]
        await put(owner, "here alone", content(10, 300_000), rule(world, on=chosen, keep="1of2"))
        await put(owner, "anywhere", content(11, 300_000), rule(world, keep="1of2"))
        await put(owner, "not there", content(12, 300_000), rule(world, never=["peer8"], keep="2of5"))
        places: dict[str, set[bytes]] = {}
        for name in ("here alone", "anywhere", "not there"):
            version = (await owner.parts.storage.entry(name.encode())).versions[-1]
            assert version.content is not None
            places[name] = {share for part in version.content.parts for share in part.stripe.shares}

        def at(name: str) -> set[str]:
            return {one.name for one in world.up() if places[name] & set(held(one, owner))}

        await asyncio.sleep(15)
        if is_owner_away:
            await world.crash("peer1")
        lost = sorted(at("here alone"))[0]
        await world.crash(lost)
        started = world.now
        while len(at("here alone")) < 2:
            assert world.now - started < PATIENCE_S, f"only {at('here alone')} hold it"
            await asyncio.sleep(2.0)
        assert at("here alone") == set(chosen) - {lost}
        assert "peer8" not in at("not there")

    play(story)


def test_those_whom_the_owner_named_look_after_the_files_before_others_do(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(8)
        owner = world["peer1"]
        named = [world["peer5"].peer, world["peer8"].peer]
        await owner.parts.cards.say("", named)
        await put(owner, "film", content(9, 100_000))

        async def told() -> list[str]:
            sql = "SELECT count(*) FROM watched"
            rows = [
                (await one.parts.ports.database.run(lambda db: db.execute(sql).fetchone()))[0] for one in world.up()
            ]
            return [one.name for one, count in zip(world.up(), rows, strict=True) if count]

        await asyncio.sleep(30)
        watching = await told()
        assert len(watching) == 3 and {"peer5", "peer8"} < set(watching)

    play(story)


def test_a_holder_that_deletes_and_claims_to_hold_is_caught_in_one_round_and_made_up_for(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(7)
        owner, liar, data = world["peer1"], world["peer2"], content(8, 900_000)
        put_on = rule(world, keep="2of4")
        while world["peer2"].peer not in await put(owner, "film", data, put_on):
            pass
        kept = held(liar, owner)
        sizes = {share: len(chunk) for share, chunk in kept.items()}
        kept.clear()
        claim_to_hold(liar, sizes)

        report = await owner.parts.upkeep.tend()
        assert report.caught == ["peer2: does not have what it says that it holds"]
        assert report.rebuilt and not report.short and not report.unreadable
        assert owner.parts.storage.standing(liar.peer).weight < 0.5
        again = await owner.parts.upkeep.tend()
        assert not again.rebuilt
        for name in ("peer3", "peer4"):
            await world.crash(name)
        assert await get(owner, "film") == data

    play(story)


def claim_to_hold(machine: Machine, sizes: dict[bytes, int]) -> None:
    """Its disk says that it has what it has not."""
    store = machine.parts.ports.chunks

    async def lies(owner: bytes, keys: Sequence[bytes]) -> list[int | None]:
        return [sizes.get(key) for key in keys]

    store.sizes = lies  # type: ignore[method-assign]


def test_a_rotten_share_is_found_and_replaced_and_a_short_absence_is_waited_for(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(8)
        owner, data = world["peer1"], content(9, 500_000)
        took = await put(owner, "film", data, rule(world, keep="2of6"))
        first, second = (world.machine_of(peer) for peer in sorted(took)[:2])
        await world.crash(second.name)
        await asyncio.sleep(60)

        report = await owner.parts.upkeep.tend()
        assert not report.rebuilt and set(report.short.values()) == {5}, "it may come back"
        for share, kept in list(held(first, owner).items()):
            for byte in range(0, len(kept), LEAF_BYTES):
                first.chunks.rot(bytes.fromhex(owner.twin), share, byte)
        again = await owner.parts.upkeep.tend()
        assert again.rebuilt and not again.caught, "a disk that says what it has lost is no liar's"
        assert await get(owner, "film") == data

    play(story)


async def snapshot_names(machine: Machine) -> list[str]:
    return [name async for name, _ in machine.parts.storage.snapshots()]


def test_two_devices_of_one_owner_see_each_others_files_and_conflicts_are_kept(play: Play) -> None:
    async def story(world: World) -> None:
        everybody = await world.unite(5)
        owner = world["peer1"]
        await put(owner, "letter", b"draft")
        await add_device(world, "laptop", "peer1")
        laptop = world["laptop"]
        await world.until(world.missing_link, within_s=60)
        assert await get(laptop, "letter") == b"draft"
        await put(laptop, "list", b"eggs")
        await asyncio.sleep(5)
        assert await names(owner) == ["letter", "list"]

        apart = [["peer1", "peer2", "peer3"], ["laptop", "peer4", "peer5"]]
        world.partition(*apart)
        await asyncio.sleep(40)
        await put(owner, "letter", b"from the desk")
        await put(owner, "only-desk", b"1")
        await put(laptop, "letter", b"from the train")
        await put(laptop, "only-laptop", b"2")
        async with laptop.parts.storage.putting(await laptop.parts.storage.last_rule()) as putting:
            await laptop.parts.storage.commit({b"list": None}, putting)
        world.heal()
        await world.until(lambda: world.disunity(), within_s=PATIENCE_S)
        for machine in (owner, laptop, owner):
            await machine.parts.storage.sync()

        for machine in (owner, laptop):
            assert await names(machine) == ["letter", "only-desk", "only-laptop"]
            entry = await machine.parts.storage.entry(b"letter")
            assert len(conflicting(entry)) == 2
            texts = set()
            for version in conflicting(entry):
                assert version.content is not None
                pieces = machine.parts.storage.read(version.content)
                texts.add(b"".join([bytes(piece) async for piece in pieces]))
            assert texts == {b"from the desk", b"from the train"}
        await put(owner, "letter", b"settled")
        await asyncio.sleep(5)
        entry = await laptop.parts.storage.entry(b"letter")
        assert not conflicting(entry) and await get(laptop, "letter") == b"settled"
        assert set(everybody) < {machine.name for machine in world.up()}

    play(story)


def test_a_snapshot_keeps_what_was_removed_since_and_is_collected_once_it_is_dropped(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner = world["peer1"]
        storage = owner.parts.storage
        files = {f"f{number:03}": content(number, 3_000) for number in range(80)}
        for name, data in files.items():
            await put(owner, name, data)
        await storage.take_snapshot("may")
        async with storage.putting(await storage.last_rule()) as putting:
            await storage.commit({name.encode(): None for name in files}, putting)
        await put(owner, "new", b"new")
        await owner.parts.upkeep.collect()

        assert await names(owner) == ["new"] and await snapshot_names(owner) == ["may"]
        kept = [entry async for entry in storage.entries(snapshot="may")]
        assert [entry.name.decode() for entry in kept] == sorted(files)
        for entry in kept:
            assert entry.versions[-1].content is not None
            pieces = storage.read(entry.versions[-1].content)
            assert b"".join([bytes(piece) async for piece in pieces]) == files[entry.name.decode()]
        await storage.drop_snapshot("may")
        assert await owner.parts.upkeep.collect() > sum(map(len, files.values()))
        assert await get(owner, "new") == b"new"

    play(story)


def test_a_machine_with_the_owners_words_alone_finds_all_files_again(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner = world["peer1"]
        await put(owner, "film", content(10, 400_000))
        await put(owner, "note", b"remember")
        await world.crash("peer1")
        world.add("phoenix")
        world["phoenix"].root = owner.root
        await world.start("phoenix")
        await world.admit("phoenix", by="peer2")
        await world.until(lambda: world.missing_link(), within_s=60)

        assert await names(world["phoenix"]) == ["film", "note"]
        assert await get(world["phoenix"], "film") == content(10, 400_000)
        await put(world["phoenix"], "after", b"1")
        assert await names(world["phoenix"]) == ["after", "film", "note"]

    play(story)


def test_one_device_never_collects_what_another_one_is_putting(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner = world["peer1"]
        await put(owner, "old", content(1, 60_000))
        await add_device(world, "laptop", "peer1")
        laptop = world["laptop"]
        await world.until(world.missing_link, within_s=60)
        storage = laptop.parts.storage
        async with storage.putting(rule(world, on=["peer2", "peer3"], keep="copies=2")) as putting:
            pending = await putting.add(BytesSource(content(2, 300_000)))
            await putting.finish()
            for _ in range(3):
                assert await owner.parts.upkeep.collect() == 0
            version = Version(0, b"", 0.0, pending.size, pending.content)
            await storage.commit({b"new": version}, putting)
        await world.crash("peer4")
        await world.until(lambda: "" if world.dead_to("peer1") else "not noticed", within_s=60)
        with pytest.raises(Refused, match="is away"):
            await owner.parts.upkeep.collect()

        assert await get(owner, "new") == content(2, 300_000)

    play(story)


def test_what_was_removed_is_given_up_after_a_month_and_its_room_is_free(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        await put(owner, "kept", b"kept")
        await put(owner, "old", content(3, 500_000))
        storage = owner.parts.storage
        async with storage.putting(await storage.last_rule()) as putting:
            await storage.commit({b"old": Version(0, b"", 0.0, 0, None)}, putting)
        assert await owner.parts.upkeep.empty_trash() == 0
        before = sum(len(share) for share in held(world["peer2"], owner).values())
        owner.clock.skew_s += 31 * 86_400

        assert await owner.parts.upkeep.empty_trash() == 1
        await owner.parts.upkeep.collect()
        assert sum(len(share) for share in held(world["peer2"], owner).values()) < before - 400_000
        assert await get(owner, "kept") == b"kept"

    play(story)


def test_each_change_of_a_note_beside_the_files_has_a_number_of_its_own(play: Play) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, told = world["peer1"], [b"first"]
        storage = owner.parts.storage
        storage.notes = lambda: {b"profile": told[-1]}
        for number, note in enumerate([b"first", b"second", b"third"]):
            told.append(note)
            await put(owner, f"f{number}", b"data")
            assert await storage.note(b"profile") == note

        entry = await storage.entry(HIDDEN + b"profile")
        assert [version.number for version in entry.versions] == [1, 2, 3], "or an older list would bring one back"
        assert await names(owner) == ["f0", "f1", "f2"]

    play(story)
