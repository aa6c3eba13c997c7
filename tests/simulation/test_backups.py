"""Backups through crashes, races, several devices and time: every snapshot that counts is restored as it was."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from croft.control import backup_schema
from croft.control.work_messages import OpenBackupRun
from croft.errors import Busy, ConnectionLost, Failed, NotFound, Refused
from croft.node.backup_desk import BackupDesk
from croft.sim.world import World
from croft.storage.backup_formats import Definition, StoreName
from croft.storage.backup_schedule import RETRY_S
from croft.storage.contents import BytesSource
from croft.storage.formats import FORMAT, Version
from croft.storage.placement import Rule
from croft.storage.service import SYNC_EVERY_S
from croft.wire.codec import encode
from support.backups import add, crash_during, desk, prune, restore, run, verify
from support.stored import held, put, rule
from support.trees import make_tree, state_of
from support.worlds import Play, add_device

MOMENTS = 6
DAY_S = 86_400.0
EVERY_S = 180.0


@pytest.fixture
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many packs, and many commits in one run, of little data."""
    monkeypatch.setattr("croft.storage.backup_packs.PACK_BYTES", 64 << 10)
    monkeypatch.setattr("croft.storage.backup_store.PACK_BYTES", 64 << 10)
    monkeypatch.setattr("croft.storage.backup_packs.BATCH_BYTES", 200 << 10)
    monkeypatch.setattr("croft.node.tree_reading.BATCH_BYTES", 50 << 10)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree", 1, 60, 40_000)
    return tmp_path / "tree"


def rewrite(tree: Path, seed: int, share: float = 1.0) -> None:
    """Other bytes in some of the files."""
    random = Random(seed)
    for path in sorted(tree.glob("folder*/*")):
        if random.random() < share:
            path.write_bytes(random.randbytes(random.randrange(1, 60_000)))


async def held_by_others(world: World) -> int:
    return sum([await machine.chunks.held_bytes() for machine in world.up()])


def test_a_tree_comes_back_as_it_was_and_what_is_unchanged_is_not_read(play: Play, tree: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner, here = world["peer1"], tmp_path / f"{world.seed}"
        await add(owner, "tree", tree)
        first = await run(owner, "tree")
        second = await run(owner, "tree")

        assert first.new > 60 and (second.new, second.changed, second.read_bytes) == (0, 0, 0)
        assert second.sent_bytes < first.sent_bytes / 50
        await restore(owner, "tree", here / "back")
        assert state_of(here / "back/tree") == state_of(tree)
        again = await restore(owner, "tree", here / "back")
        assert again.left == again.files and state_of(here / "back/tree") == state_of(tree)

    play(story)


@pytest.mark.usefixtures("small_packs")
def test_a_crash_at_any_moment_of_a_run_loses_no_snapshot(play: Play, tree: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, loop, here = world["peer1"], asyncio.get_running_loop(), tmp_path / f"{world.seed}"
        await add(owner, "tree", tree)
        began_at = loop.time()
        await run(owner, "tree")
        took_s, before = loop.time() - began_at, state_of(tree)
        crashes = 0
        for moment in range(MOMENTS):
            rewrite(tree, moment)
            crashes += await crash_during(world, "peer1", run(owner, "tree"), took_s * moment / MOMENTS)
            await restore(owner, "tree", here / f"old{moment}", 1)
            assert state_of(here / f"old{moment}/tree") == before
        report = await run(owner, "tree")
        await restore(owner, "tree", here / "new", report.snapshot)

        assert crashes >= MOMENTS // 2
        assert state_of(here / "new/tree") == state_of(tree)
        found = await verify(owner, "tree")
        assert (found.missing, found.damaged) == (0, [])

    play(story)


@pytest.mark.usefixtures("small_packs")
def test_a_crash_at_any_moment_of_pruning_loses_nothing_that_is_kept(play: Play, tree: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, loop, here = world["peer1"], asyncio.get_running_loop(), tmp_path / f"{world.seed}"
        await add(owner, "tree", tree)
        crashes, took_s = 0, 1.0
        for moment in range(MOMENTS + 1):
            rewrite(tree, moment, 0.5)
            report = await run(owner, "tree")
            store = await owner.parts.backups.store(StoreName(bytes.fromhex(owner.peer), "tree"))
            await store.forget([number for number in await store.numbers() if number < report.snapshot], Rule())
            began_at = loop.time()
            if not moment:
                pruned = await prune(owner, "tree")
                took_s = loop.time() - began_at
                assert pruned.packs_dropped + pruned.packs_rewritten == 0 or pruned.freed_bytes > 0
            else:
                crashes += await crash_during(world, "peer1", prune(owner, "tree"), took_s * moment / MOMENTS)
            await restore(owner, "tree", here / f"{moment}")
            assert state_of(here / f"{moment}/tree") == state_of(tree)
        await prune(owner, "tree")
        found = await verify(owner, "tree")

        assert crashes >= MOMENTS // 3 and (found.missing, found.damaged) == (0, [])
        await restore(owner, "tree", here / "last")
        assert state_of(here / "last/tree") == state_of(tree)

    play(story)


@pytest.mark.usefixtures("small_packs")
def test_what_was_stored_before_a_crash_is_not_sent_again(play: Play, tree: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, loop = world["peer1"], asyncio.get_running_loop()
        await add(owner, "tree", tree)
        began_at = loop.time()
        await run(owner, "tree")
        took_s = loop.time() - began_at
        rewrite(tree, 1)
        assert await crash_during(world, "peer1", run(owner, "tree"), 0.8 * took_s)
        report = await run(owner, "tree")

        assert report.snapshot == 2 and report.new_bytes < 0.9 * report.read_bytes
        assert (await verify(owner, "tree")).damaged == []

    play(story)


@pytest.mark.usefixtures("small_packs")
def test_an_index_that_is_lost_is_made_anew_from_what_holders_keep(play: Play, tree: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, here = world["peer1"], tmp_path / f"{world.seed}"
        await add(owner, "tree", tree)
        await run(owner, "tree")
        for table in ("backup_chunk", "backup_pack", "backup_seen", "backup_store"):
            owner.disk.connection.execute(f"DELETE FROM {table}")
        await world.restart("peer1")
        await world.until(world.disunity, within_s=60)
        await restore(owner, "tree", here)
        report = await run(owner, "tree")

        assert state_of(here / "tree") == state_of(tree)
        assert report.read_bytes > 0 and report.new_bytes < 1_000, "all is read, and nothing but the snapshot is new"

    play(story)


@pytest.mark.usefixtures("small_packs")
def test_many_small_runs_leave_few_packs_after_pruning(play: Play, tree: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        await add(owner, "tree", tree)
        for number in range(20):
            (tree / "folder1/diary").write_text(f"day {number}")
            await run(owner, "tree")
        before = (await verify(owner, "tree", reads=False)).packs
        pruned = await prune(owner, "tree")
        after = await verify(owner, "tree")

        assert pruned.packs_rewritten > 20 and after.packs < before - 20 and after.damaged == []
        await restore(owner, "tree", tmp_path / f"{world.seed}", 7)
        assert (tmp_path / f"{world.seed}/tree/folder1/diary").read_text() == "day 6"

    play(story)


def test_pruning_frees_what_only_forgotten_snapshots_need(play: Play, tree: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, here = world["peer1"], tmp_path / f"{world.seed}"
        (tree / "large").write_bytes(Random(0).randbytes(6 << 20))
        await add(owner, "tree", tree, last=1)
        await run(owner, "tree")
        held = await held_by_others(world)
        (tree / "large").unlink()
        await run(owner, "tree")
        pruned = await prune(owner, "tree")

        assert await held_by_others(world) < held / 2
        assert pruned.packs_dropped + pruned.packs_rewritten > 0 or pruned.freed_bytes > 0
        await restore(owner, "tree", here)
        assert state_of(here / "tree") == state_of(tree)

    play(story)


@pytest.mark.usefixtures("small_packs")
def test_collecting_and_pruning_while_backups_run_drop_nothing_that_counts(
    play: Play, tree: Path, tmp_path: Path
) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner, here = world["peer1"], tmp_path / f"{world.seed}"
        await add(owner, "tree", tree, last=2)

        async def collect() -> None:
            while True:
                await owner.parts.upkeep.collect()

        async def prune_now_and_then() -> None:
            while True:
                try:
                    await prune(owner, "tree")
                except Busy:
                    await asyncio.sleep(0.01)

        await run(owner, "tree")
        others = [asyncio.create_task(collect()), asyncio.create_task(prune_now_and_then())]
        for number in range(5):
            rewrite(tree, number, 0.4)
            report = await run(owner, "tree")
            reading = restore(owner, "tree", here / f"{number}", report.snapshot)
            await asyncio.gather(reading, prune_if_idle(world))
            assert state_of(here / f"{number}/tree") == state_of(tree)
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        assert (await verify(owner, "tree")).damaged == []

    async def prune_if_idle(world: World) -> None:
        try:
            await prune(world["peer1"], "tree")
        except Busy:
            pass

    play(story)


def test_a_backup_runs_when_it_is_due_and_catches_up_what_was_missed(play: Play, tree: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        await add(owner, "tree", tree, every_s=EVERY_S)
        await asyncio.sleep(2.5 * EVERY_S)
        assert len(await snapshots_of(world)) == 3
        await world.crash("peer1")
        await asyncio.sleep(5 * EVERY_S)
        await world.start("peer1")
        await world.until(world.disunity, within_s=60)
        await asyncio.sleep(0.4 * EVERY_S)
        assert len(await snapshots_of(world)) == 4
        (shown,) = await desk(owner).backups()
        assert shown.trouble == "" and shown.next_at is not None
        assert 0.5 * EVERY_S < shown.next_at - owner.clock.now() <= EVERY_S

    async def snapshots_of(world: World) -> list[int]:
        store = await world["peer1"].parts.backups.store(StoreName(bytes.fromhex(world["peer1"].peer), "tree"))
        return await store.numbers()

    play(story)


def test_one_backup_never_runs_twice_at_once(play: Play, tree: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        owner = world["peer1"]
        await add(owner, "tree", tree)
        first, second = await asyncio.gather(run(owner, "tree"), run(owner, "tree"))

        assert first == second and first.snapshot == 1
        store = await owner.parts.backups.store(StoreName(bytes.fromhex(owner.peer), "tree"))
        assert await store.numbers() == [1]

    play(story)


def test_a_failed_run_is_told_and_tried_again(play: Play, tree: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        away = tmp_path / f"away{world.seed}"
        make_tree(away, 2, 3, 100)
        await add(owner, "away", away, every_s=DAY_S)
        await asyncio.sleep(60.0)
        away.rename(tmp_path / f"unmounted{world.seed}")
        with pytest.raises(Failed, match="cannot back up"):
            await run(owner, "away")
        (shown,) = await desk(owner).backups()
        assert "cannot back up" in shown.trouble and shown.snapshots == 1
        await asyncio.sleep(RETRY_S + 60.0)
        (warning,) = owner.parts.health.warnings()
        assert warning.code == "backup.away" and "cannot back up" in warning.title
        (tmp_path / f"unmounted{world.seed}").rename(away)
        await asyncio.sleep(RETRY_S + 60.0)
        (shown,) = await desk(owner).backups()
        assert (shown.trouble, shown.snapshots) == ("", 2)
        assert owner.parts.health.warnings() == []

    play(story)


def test_two_devices_have_backups_of_one_name_and_each_restores_both(play: Play, tree: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        await add_device(world, "laptop", by="peer1")
        await world.until(world.disunity, within_s=60)
        owner, laptop, here = world["peer1"], world["laptop"], tmp_path / f"{world.seed}"
        other = here / "other" / "tree"
        make_tree(other, 9, 5, 1_000)
        await add(owner, "tree", tree)
        await add(laptop, "tree", other)
        await run(owner, "tree")
        await run(laptop, "tree")
        await asyncio.sleep(SYNC_EVERY_S)

        assert [one.name for one in await desk(owner).backups()] == ["tree", "laptop:tree"]
        assert [one.name for one in await desk(laptop).backups()] == ["tree", "peer1:tree"]
        await restore(laptop, "peer1:tree", here / "one")
        await restore(owner, "laptop:tree", here / "two")
        assert state_of(here / "one/tree") == state_of(tree)
        assert state_of(here / "two/tree") == state_of(other)
        with pytest.raises(Refused, match="up and may be running"):
            await desk(owner).remove(backup_schema.BackupNamed(name="laptop:tree"))
        with pytest.raises(Busy):
            await add(owner, "tree", tree)
        with pytest.raises(NotFound):
            await run(owner, "elsewhere:tree")

    play(story)


def test_the_backup_of_a_device_that_is_gone_is_removed_by_another_one(play: Play, tree: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(4)
        await add_device(world, "laptop", by="peer1")
        await world.until(world.disunity, within_s=60)
        owner, laptop = world["peer1"], world["laptop"]
        await add(laptop, "tree", tree)
        first = await run(laptop, "tree")
        await world.crash("laptop")
        await world.until(lambda: is_up(world), within_s=60)
        await desk(owner).remove(backup_schema.BackupNamed(name="tree"))
        assert await desk(owner).backups() == []
        # Back again, it takes in that its backup is no more.
        await world.start("laptop")
        await world.until(world.disunity, within_s=60)
        await asyncio.sleep(SYNC_EVERY_S)
        assert await desk(laptop).backups() == []
        await add(laptop, "tree", tree)
        report = await run(laptop, "tree")
        assert report.read_bytes == first.read_bytes and (await verify(laptop, "tree")).damaged == []

    play(story)


def is_up(world: World) -> str:
    return "it seems to live" if world["peer1"].parts.overlay.is_alive(world["laptop"].peer) else ""


@pytest.mark.usefixtures("small_packs")
def test_another_device_goes_on_with_the_backup_of_one_that_is_gone(play: Play, tree: Path, tmp_path: Path) -> None:
    """Also if it is killed at any moment of taking it over: it is the one's or the other's, never half of each."""

    async def story(world: World) -> None:
        await world.unite(4)
        await add_device(world, "laptop", by="peer1")
        await world.until(world.disunity, within_s=60)
        owner, laptop, here = world["peer1"], world["laptop"], tmp_path / f"{world.seed}"
        await add(laptop, "tree", tree)
        first, before = await run(laptop, "tree"), state_of(tree)
        await asyncio.sleep(SYNC_EVERY_S)
        with pytest.raises(Refused, match="up and may be running"):
            await desk(owner).adopt(backup_schema.BackupAdoption(name="tree"))
        await world.crash("laptop")
        await world.until(lambda: is_up(world), within_s=60)
        rewrite(tree, 1, 0.1)
        moment, shown = 0, (await desk(owner).backups())[0]
        while not shown.is_own:
            assert (shown.name, shown.device, shown.snapshots) == ("tree", "laptop", 1)
            await world.until(lambda: is_up(world), within_s=60)
            adoption = desk(owner).adopt(backup_schema.BackupAdoption(name="tree"))
            await crash_during(world, "peer1", adoption, 0.01 * moment)
            moment, (shown,) = moment + 1, await desk(owner).backups()
        assert moment > 2 and (shown.name, shown.device, shown.snapshots) == ("tree", "peer1", 1)
        second = await run(owner, "tree")
        assert second.snapshot == 2 and second.sent_bytes < first.sent_bytes / 2
        await restore(owner, "tree", here / "old", 1)
        await restore(owner, "tree", here / "new", 2)
        assert (state_of(here / "old/tree"), state_of(here / "new/tree")) == (before, state_of(tree))
        await prune(owner, "tree")
        assert (await verify(owner, "tree")).damaged == []
        # Back again, the other one takes in that it is its backup no more.
        await world.start("laptop")
        await world.until(world.disunity, within_s=60)
        await asyncio.sleep(SYNC_EVERY_S)
        assert [(one.device, one.is_own) for one in await desk(laptop).backups()] == [("peer1", False)]
        with pytest.raises(Refused, match="another device"):
            await run(laptop, "tree")

    play(story)


@pytest.mark.usefixtures("small_packs")
def test_what_holders_lost_for_good_is_named_and_sent_anew(play: Play, tree: Path, tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner, here = world["peer1"], tmp_path / f"{world.seed}"
        await add(owner, "tree", tree, keep="copies=2", last=5)
        await run(owner, "tree")
        store = await owner.parts.backups.store(StoreName(bytes.fromhex(owner.peer), "tree"))
        (lost, _) = [version async for _, version in store.packs()][:2]
        assert lost.content is not None
        for name in ("peer2", "peer3"):
            shares = held(world[name], owner)
            for part in lost.content.parts:
                for share in part.stripe.shares:
                    shares.pop(share, None)
        found = await verify(owner, "tree")
        assert found.margin == -1 and found.damaged

        report = await run(owner, "tree", is_anew=True)
        await restore(owner, "tree", here, report.snapshot)
        await restore(owner, "tree", here / "earlier", 1)
        assert report.read_bytes > 0
        assert state_of(here / "tree") == state_of(here / "earlier/tree") == state_of(tree)
        await prune(owner, "tree")
        again = await verify(owner, "tree")
        assert (again.damaged, again.missing, again.margin) == ([], 0, 1)

    play(story)


def test_where_the_list_of_files_lies_is_not_for_backups_to_say(play: Play, tree: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner = world["peer1"]
        await put(owner, "letter", b"dear", rule(world, on=["peer2", "peer3"], keep="copies=2"))
        wanted = backup_schema.BackupWanted(name="tree", paths_hex=[os.fsencode(tree).hex()], to=["peer4"])
        peers = [SimpleNamespace(name="peer4", peer=world["peer4"].peer)]
        await BackupDesk(owner.parts, lambda: peers).add(wanted)  # type: ignore[arg-type,return-value]
        await run(owner, "tree")

        store = await owner.parts.backups.store(StoreName(bytes.fromhex(owner.peer), "tree"))
        holders = {
            holder.hex()
            async for _, version in store.packs()
            for part in (version.content.parts if version.content else [])
            for holder in part.stripe.holders
        }
        assert holders == {world["peer4"].peer}
        assert (await owner.parts.storage.last_rule()).on == (world["peer2"].peer, world["peer3"].peer)
        await world.crash("peer2")
        await world.crash("peer3")
        await world.until(lambda: alive(world), within_s=60)
        assert (await run(owner, "tree")).snapshot == 2, "others hold the list while those are off"
        assert (await owner.parts.storage.last_rule()).on == (world["peer2"].peer, world["peer3"].peer)

    def alive(world: World) -> str:
        overlay = world["peer1"].parts.overlay
        return " ".join(name for name in ("peer2", "peer3") if overlay.is_alive(world[name].peer))

    play(story)


@pytest.mark.usefixtures("small_packs")
def test_lost_shares_are_made_again_only_where_the_backup_may_be(play: Play, tree: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(7)
        owner, friends = world["peer1"], ["peer2", "peer3", "peer4"]
        peers = [SimpleNamespace(name=name, peer=world[name].peer) for name in friends]
        wanted = backup_schema.BackupWanted(
            name="tree", paths_hex=[os.fsencode(tree).hex()], to=friends, keep="copies=2"
        )
        await BackupDesk(owner.parts, lambda: peers).add(wanted)  # type: ignore[arg-type,return-value]
        await run(owner, "tree")
        store = await owner.parts.backups.store(StoreName(bytes.fromhex(owner.peer), "tree"))
        contents = [version.content async for _, version in store.packs()]
        shares = {share for one in contents if one for part in one.parts for share in part.stripe.shares}
        lost = max(friends, key=lambda name: len(shares & held(world[name], owner).keys()))
        held(world[lost], owner).clear()
        await owner.parts.upkeep.tend()

        assert (await verify(owner, "tree")).margin == 1
        assert all(shares.isdisjoint(held(world[f"peer{number}"], owner)) for number in (5, 6, 7))

    play(story)


def test_which_backups_there_are_is_told_while_no_holder_is_up(play: Play, tree: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        await add(owner, "tree", tree)
        await run(owner, "tree")
        before = await desk(owner).backups()
        await world.crash("peer2")
        await world.crash("peer3")
        await world.restart("peer1")
        (shown,) = await desk(owner).backups()

        assert (shown.snapshots, shown.size_bytes, shown.last_run) == (1, before[0].size_bytes, before[0].last_run)
        assert len(await desk(owner).snapshots(backup_schema.BackupNamed(name="tree"))) == 1

    play(story)


def test_whoever_only_looks_on_does_not_end_a_run_by_going_away(play: Play, tree: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        await add(owner, "tree", tree)
        began = asyncio.create_task(run(owner, "tree"))
        await asyncio.sleep(0)

        def gone(files: int, done: int, total: int) -> None:
            raise ConnectionLost("the program has ended")

        watching = asyncio.create_task(desk(owner).run(OpenBackupRun("tree"), gone))
        await asyncio.sleep(0.01)
        watching.cancel()
        assert (await began).snapshot == 1

    play(story)


def test_a_run_that_is_stopped_by_hand_says_so_and_waits(play: Play, tree: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        await add(owner, "tree", tree)
        began = asyncio.create_task(run(owner, "tree"))
        await asyncio.sleep(0.02)
        began.cancel()
        await asyncio.wait([began])
        (shown,) = await desk(owner).backups()

        assert "was stopped" in shown.trouble and not shown.is_running and shown.snapshots == 0
        assert (await run(owner, "tree")).snapshot == 1

    play(story)


def test_a_large_file_with_a_long_list_of_chunks_comes_back(play: Play, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(Random(3).randbytes(50 << 20))

    async def story(world: World) -> None:
        await world.unite(3)
        owner, here = world["peer1"], tmp_path / f"{world.seed}"
        await add(owner, "large", tmp_path / "large", last=1)
        await run(owner, "large")
        await run(owner, "large")
        await prune(owner, "large")
        await restore(owner, "large", here)
        assert (here / "large").read_bytes() == (tmp_path / "large").read_bytes()

    play(story)


def test_a_restore_goes_on_when_holders_die_and_says_so_when_too_many_do(
    play: Play, tree: Path, tmp_path: Path
) -> None:
    async def story(world: World) -> None:
        await world.unite(5)
        owner, here = world["peer1"], tmp_path / f"{world.seed}"
        await add(owner, "tree", tree, keep="2of4")
        await run(owner, "tree")
        assert (await verify(owner, "tree", reads=False)).margin == 2
        await world.crash("peer2")
        await world.crash("peer3")
        await restore(owner, "tree", here / "back")
        assert state_of(here / "back/tree") == state_of(tree)

    play(story)


def test_a_backup_of_a_newer_format_is_refused_and_left_as_it_is(play: Play, tree: Path) -> None:
    async def story(world: World) -> None:
        await world.unite(3)
        owner = world["peer1"]
        await add(owner, "tree", tree)
        name = StoreName(bytes.fromhex(owner.peer), "newer")
        newer = encode(Definition(FORMAT + 1, "peer1", [os.fsencode(tree)]))
        storage = owner.parts.storage
        async with storage.putting(Rule()) as putting:
            pending = await putting.add(BytesSource(newer))
            await putting.finish()
            await storage.keep({name.definition: Version(0, b"", 0.0, len(newer), pending.content)}, putting)
        with pytest.raises(Failed, match="newer version of Croft"):
            await run(owner, "newer")
        with pytest.raises(Busy):
            await add(owner, "newer", tree)
        assert await storage.note(name.definition[1:]) == newer
        assert [one.name for one in await desk(owner).backups()] == ["tree"]
        assert (await owner.parts.upkeep.tend()).stripes > 0

    play(story)
