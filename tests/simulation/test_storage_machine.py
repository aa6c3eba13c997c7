"""Storage as a state machine: whatever is done to files and peers in any order, what was acknowledged is there.

A model remembers which bytes were acknowledged under each name. What failed, or was cut off, may be there or not, but
it is never half there. An example that fails is printed as the steps that lead there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from croft.errors import CroftError, NotFound
from croft.sim.machine import SimulatedDisk
from croft.sim.world import Machine, World
from croft.storage.formats import Entry, Version
from support.staged import StagedWorld
from support.stored import get, held, names, put
from support.stored import rule as where
from support.worlds import IS_CAMPAIGN, add_device

DESK, HOLDERS = "peer1", [f"peer{number}" for number in range(2, 8)]
LAYOUTS = ["copies=2", "2of4"]
LOSSES = 1
"""Of these layouts, what a file bears from the moment that it counts: so many holders may be off or wiped at once."""
SIDES = [[DESK, *HOLDERS[:3]], ["laptop", *HOLDERS[3:]]]
NAMES = ["a", "b", "folder/c"]
FILES = st.sampled_from(NAMES)
WRITERS = st.sampled_from([DESK, "laptop"])
SIZES = [0, 11, 70_000, 200_000]
SETTLE_S_MAX = 240.0
START_S = 3.0
"""So long after a start a peer knows the others again."""
EXAMPLES, STEPS = (300, 40) if IS_CAMPAIGN else (20, 20)

Step = Callable[[World], Awaitable[Any]]


@dataclass
class File:
    """What a name must have among its versions, what it may have, and the newest where that is certain."""

    kept: dict[bytes, set[str]] = field(default_factory=dict)
    """Acknowledged bytes, and the devices that cannot have heard of them."""
    maybe: set[bytes] = field(default_factory=set)
    newest: bytes | None = None
    is_certain: bool = True

    def attempted(self, data: bytes | None) -> None:
        """Something is begun of which nothing is certain until it is acknowledged."""
        self.is_certain = False
        if data is not None:
            self.maybe.add(data)

    def acknowledged(self, data: bytes | None, unheard: set[str]) -> None:
        """It counts."""
        if data is not None:
            self.maybe.discard(data)
            self.kept[data] = unheard
        self.newest, self.is_certain = data, True

    def given_up(self, by: str) -> None:
        """All that a device can know of may go."""
        gone = [data for data, unheard in self.kept.items() if by not in unheard]
        self.maybe.update(gone)
        for data in gone:
            del self.kept[data]
        self.newest = None


async def contents(machine: Machine, entry: Entry) -> dict[bytes, Version]:
    """The bytes of every version that has any."""
    found: dict[bytes, Version] = {}
    for version in entry.versions:
        if version.content is not None:
            pieces = machine.parts.storage.read(version.content)
            found[b"".join([bytes(piece) async for piece in pieces])] = version
    return found


async def everything(machine: Machine, snapshot: str = "") -> dict[str, Entry]:
    """Every file by name, also removed ones."""
    return {entry.name.decode(): entry async for entry in machine.parts.storage.entries(snapshot=snapshot)}


def wipe(machine: Machine) -> None:
    """Its disk has lost all that it held for others."""
    machine.chunks.__init__()  # type: ignore[misc]  # the same store, as good as new
    for table in ("held_head", "held_link", "watched"):
        machine.disk.connection.execute(f"DELETE FROM {table}")


class StoredFiles(RuleBasedStateMachine):
    """One owner with one device or two, six others who hold the files."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, File] = {}
        self.snapshots: dict[str, dict[str, bytes | None]] = {}
        self.lost: set[str] = set()
        self.is_apart = False
        self.count = 0
        self.devices = [DESK]
        self.stage: StagedWorld | None = None

    @initialize(seed=st.integers(1, 1 << 20), has_laptop=st.booleans())
    def begin(self, seed: int, has_laptop: bool) -> None:
        """Eight peers at most, all linked."""
        self.stage = StagedWorld(seed, "the steps above")

        async def gather(world: World) -> None:
            await world.unite(7)
            for name in NAMES:
                await put(world[DESK], name, name.encode(), where(world, keep="copies=2"))
            if has_laptop:
                await add_device(world, "laptop", DESK)
                await world.until(world.missing_link, within_s=60)
                await world["laptop"].parts.storage.sync()

        self.do(gather)
        if has_laptop:
            self.devices.append("laptop")
        self.files = {name: File({name.encode(): set()}, set(), name.encode()) for name in NAMES}

    def teardown(self) -> None:
        """Once all is mended: what counts is there, nothing else takes room, and the words alone bring it back."""
        if self.stage is None:
            return
        stage, self.stage = self.stage, None
        try:
            stage.do(self._settled)
            stage.do(self._cleaned)
            stage.do(self._recovered)
        finally:
            stage.end()

    # --- what an owner does ------------------------------------------------------------------------------------------

    @rule(
        device=WRITERS,
        files=st.lists(FILES, min_size=1, max_size=3),
        size=st.sampled_from(SIZES),
        keep=st.sampled_from(LAYOUTS),
    )
    def put(self, device: str, files: list[str], size: int, keep: str) -> None:
        """Other versions, or the first ones, one after the other."""
        for name in files if device in self.devices else ():
            data = self._fresh(size)

            async def step(world: World, name: str = name, data: bytes = data) -> None:
                await put(world[device], name, data, where(world, keep=keep))

            self._file(name).attempted(data)
            if self.tried(step):
                self._file(name).acknowledged(data, self._unheard(device))

    @rule(device=WRITERS, name=FILES, is_final=st.booleans())
    def remove(self, device: str, name: str, is_final: bool) -> None:
        """`croft rm`, or `croft rm --final`."""
        if device not in self.devices:
            return
        file = self._file(name)
        file.attempted(None)
        if is_final:
            file.given_up(device)

        async def step(world: World) -> None:
            storage = world[device].parts.storage
            await storage.entry(name.encode())
            async with storage.putting(await storage.last_rule()) as putting:
                change = None if is_final else Version(0, b"", 0.0, 0, None)
                await storage.commit({name.encode(): change}, putting)

        if self.tried(step):
            file.acknowledged(None, set())
            if is_final and len(self.devices) == 1:
                self.files[name] = File()
            if is_final:
                self.look_after(device, True)

    @rule(device=WRITERS, name=FILES, which=st.integers(0, 9))
    def roll_back(self, device: str, name: str, which: int) -> None:
        """`croft rollback`: the newest version is an earlier one again."""
        if device not in self.devices:
            return
        file, back = self._file(name), list[bytes]()

        async def step(world: World) -> None:
            storage = world[device].parts.storage
            versions = await contents(world[device], await storage.entry(name.encode()))
            if not versions:
                return
            back.append(list(versions)[which % len(versions)])
            file.attempted(None)
            async with storage.putting(await storage.last_rule()) as putting:
                await storage.commit({name.encode(): versions[back[0]]}, putting)

        if self.tried(step) and back:
            file.acknowledged(back[0], self._unheard(device))

    @rule(device=WRITERS)
    def take_snapshot(self, device: str) -> None:
        """All files as this device sees them are to stay so, whatever comes."""
        if device not in self.devices:
            return
        name = f"s{self.count}"
        self.count += 1

        async def step(world: World) -> dict[str, bytes | None]:
            await world[device].parts.storage.take_snapshot(name)
            return await self._as_of(world[device], name)

        with contextlib.suppress(CroftError):
            self.snapshots[name] = self.do(step)

    @precondition(lambda self: self.snapshots)
    @rule(device=WRITERS, which=st.integers(0, 9))
    def drop_snapshot(self, device: str, which: int) -> None:
        """`croft snapshot rm`."""
        if device in self.devices and self.snapshots:
            name = sorted(self.snapshots)[which % len(self.snapshots)]
            del self.snapshots[name]

            async def step(world: World) -> None:
                await world[device].parts.storage.drop_snapshot(name)

            self.tried(step)

    @rule(device=WRITERS, collects=st.booleans())
    def look_after(self, device: str, collects: bool) -> None:
        """`croft storage --collect`, or `--check`."""
        if device in self.devices:

            async def step(world: World) -> None:
                upkeep = world[device].parts.upkeep
                await (upkeep.collect() if collects else upkeep.tend())

            self.tried(step)

    @rule(device=WRITERS, name=FILES)
    def read(self, device: str, name: str) -> None:
        """Never other bytes than some that were put; with enough holders up, the newest."""
        if device not in self.devices:
            return
        file = self._file(name)

        async def step(world: World) -> dict[bytes, Version]:
            return await contents(world[device], await world[device].parts.storage.entry(name.encode()))

        try:
            found = self.do(step)
        except NotFound:
            assert len(self.devices) > 1 or not file.is_certain or file.newest is None, "a file that counts is gone"
        except CroftError:
            assert self.is_apart, "it is to be had: no more holders are off than the layout bears"
        else:
            assert found.keys() <= file.kept.keys() | file.maybe
            if len(self.devices) == 1 and file.is_certain:
                assert file.kept.keys() <= found.keys()

    # --- what happens to peers ---------------------------------------------------------------------------------------

    @rule(device=WRITERS, name=FILES, size=st.sampled_from(SIZES), keep=st.sampled_from(LAYOUTS), after=st.floats(0, 1))
    def die_putting(self, device: str, name: str, size: int, keep: str, after: float) -> None:
        """SIGKILL in the middle of a put, and up again."""
        if device not in self.devices:
            return
        data = self._fresh(size)
        self._file(name).attempted(data)

        async def step(world: World) -> bool:
            putting = asyncio.create_task(put(world[device], name, data, where(world, keep=keep)), name="put")
            await asyncio.wait({putting}, timeout=0.2 * after * after)
            is_put = putting.done() and putting.exception() is None
            putting.cancel()
            await asyncio.wait({putting})
            await world.restart(device)
            await asyncio.sleep(START_S)
            return is_put

        if self.do(step):
            self._file(name).acknowledged(data, self._unheard(device))

    @rule(name=st.sampled_from(HOLDERS), how=st.sampled_from(["silently", "loudly", "wiped"]))
    def lose(self, name: str, how: str) -> None:
        """A holder dies, or its disk is replaced by an empty one."""
        if name in self.lost or len(self.lost) >= LOSSES or self.is_apart:
            return

        async def step(world: World) -> None:
            await world.crash(name, is_loud=how == "loudly")
            if how == "wiped":
                wipe(world[name])
                await world.start(name)

        self.do(step)
        self.lost.add(name)

    @precondition(lambda self: self.lost)
    @rule()
    def come_back(self) -> None:
        """Whoever is off is up again, with what they had."""

        async def step(world: World) -> list[str]:
            off = [machine.name for machine in world.machines.values() if machine.run is None]
            for name in off:
                await world.start(name)
            return off

        self.lost -= set(self.do(step))

    @precondition(lambda self: len(self.devices) > 1)
    @rule()
    def part_or_meet(self) -> None:
        """The two devices see each other no more, and each some of the holders; or the network is whole again."""
        self.is_apart = not self.is_apart

        async def step(world: World) -> None:
            if self.is_apart:
                world.partition(*SIDES)
                await asyncio.sleep(40)
            else:
                world.heal()

        self.do(step)

    @rule(seconds=st.sampled_from([3.0, 30.0, 90.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""

        async def step(_: World) -> None:
            await asyncio.sleep(seconds)

        self.do(step)

    @rule()
    def settle(self) -> None:
        """All are up and see each other, and all is mended."""
        self.do(self._settled)

    # --- the model's side --------------------------------------------------------------------------------------------

    def do(self, step: Step) -> Any:
        assert self.stage is not None, "the world has begun"
        return self.stage.do(step)

    def tried(self, step: Step) -> bool:
        """Whether a step went through; what Croft refuses is no fault."""
        try:
            self.do(step)
        except CroftError:
            return False
        return True

    def _file(self, name: str) -> File:
        return self.files.setdefault(name, File())

    def _fresh(self, size: int) -> bytes:
        self.count += 1
        return f"{self.count} ".encode() + Random(self.count).randbytes(size)

    def _unheard(self, device: str) -> set[str]:
        return set(self.devices) - {device} if self.is_apart else set()

    async def _as_of(self, machine: Machine, snapshot: str) -> dict[str, bytes | None]:
        seen: dict[str, bytes | None] = {}
        for name, entry in (await everything(machine, snapshot)).items():
            newest = entry.versions[-1].content
            seen[name] = None if newest is None else await machine.parts.storage._reading.whole(newest)
        return seen

    async def _settled(self, world: World) -> None:
        world.heal()
        for machine in world.machines.values():
            if machine.run is None:
                await world.start(machine.name)
        await world.until(lambda: world.disunity(), within_s=SETTLE_S_MAX)
        for name in [*self.devices, *self.devices]:
            await world[name].parts.storage.sync()
        for name in self.devices:
            report = await world[name].parts.upkeep.tend()
            assert not report.short and not report.unreadable and not report.caught, report
        self.lost.clear()
        self.is_apart = False
        for file in self.files.values():
            file.kept = {data: set() for data in file.kept}
        for name in self.devices:
            await self._check(world[name])
        seen = [await everything(world[name]) for name in self.devices]
        assert all(one == seen[0] for one in seen), "all devices see the same"

    async def _check(self, machine: Machine) -> None:
        """All that was acknowledged is there, and nothing that nobody ever put."""
        there = await everything(machine)
        for name, file in self.files.items():
            found = await contents(machine, there.pop(name, Entry(b"", [])))
            missing = [data[:20] for data in file.kept if data not in found]
            assert not missing, f"of {name}, on {machine.name}: {missing} was acknowledged"
            assert found.keys() <= file.kept.keys() | file.maybe, f"{name} has what nobody put, or gave up"
            if len(self.devices) == 1 and file.is_certain:
                listed = name in await names(machine)
                assert listed == (file.newest is not None), f"{name}: listed {listed}"
                assert not listed or await get(machine, name) == file.newest
        assert not there, "files that nobody put"
        for snapshot, seen in self.snapshots.items():
            assert await self._as_of(machine, snapshot) == seen, f"the snapshot {snapshot} is what it was"

    async def _cleaned(self, world: World) -> None:
        """Where nobody else writes, what no file needs is gone at once after a collection."""
        if len(self.devices) > 1:
            return
        desk = world[DESK]
        await asyncio.sleep(10)  # delegates are told of the last change
        await desk.parts.upkeep.collect()
        upkeep = desk.parts.upkeep
        live = {share for stripe in (await desk.parts.storage.stripes()).values() for share in stripe.shares}
        kept = await upkeep._known_list()
        if kept is not None:
            listed = [*kept.parts, *await desk.parts.storage.parts(kept)]
            live |= {share for part in listed for share in part.stripe.shares}
        for machine in world.up():
            orphans = held(machine, desk).keys() - live
            assert not orphans, f"{len(orphans)} shares at {machine.name} are of no use"
        await self._check(desk)

    async def _recovered(self, world: World) -> None:
        """The owner's machines burn; one who knows the words, and one contact, has all files."""
        root = world[DESK].root
        for name in self.devices:
            await world.crash(name)
            world[name].disk = SimulatedDisk()
        world.add("phoenix").root = root
        await world.start("phoenix")
        await world.admit("phoenix", by="peer2")
        await world.until(lambda: world.missing_link(), within_s=60)
        await world["phoenix"].parts.storage.sync()
        await self._check(world["phoenix"])


TestStoredFiles = StoredFiles.TestCase
TestStoredFiles.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    derandomize=not IS_CAMPAIGN,
    deadline=None,
    report_multiple_bugs=False,
    phases=set(Phase) - {Phase.explain},
    print_blob=True,
)
