"""A world: whole peers, as `assemble` makes them, in one process on virtual time, and all from one seed.

A story is a coroutine that is given a `World`; `simulate` runs it. A run fails by the story's own assertions, and
also if any peer logs an error, if a service ends by a bug, or if a task outlives its peer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import TypeVar

from croft.compute.environment import Environment
from croft.compute.owners_rules import Rules
from croft.identity import grants
from croft.identity.certificates import certify, open_certificate
from croft.identity.keys import SecretKey, community_key, twin_key
from croft.ledger.own_offers import MEMBERS, SETTINGS, OwnOffer
from croft.model.amounts import CPU, DISK, MEMORY, Amounts
from croft.model.hours import MINUTES_PER_WEEK
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.node.assemble import Parts, Plan, Ports, assemble
from croft.overlay.contacts import ContactBook
from croft.overlay.join_messages import JOIN_PROTOCOL
from croft.overlay.messages import PROTOCOL
from croft.overlay.neighbours import NEIGHBOURS_MAX, NEIGHBOURS_WANTED
from croft.overlay.passport import Membership, Own
from croft.sim import virtual_time
from croft.sim.chunk_store import SimulatedChunkStore
from croft.sim.discovery import SimulatedDiscovery, SimulatedLan
from croft.sim.environment_cache import SimulatedCache
from croft.sim.jobs import SimulatedJob
from croft.sim.local_services import SimulatedServices
from croft.sim.machine import InlineOffload, SimulatedClock, SimulatedDisk, SimulatedEntropy, SimulatedOwner
from croft.sim.network import SimulatedNetwork, SimulatedTransport
from croft.sim.owners_programs import SimulatedPrograms
from croft.sim.policy import SimulatedPolicy
from croft.sim.relays import SimulatedRelayHost
from croft.sim.sandbox import SimulatedSandbox

T = TypeVar("T")

MEMORY_BYTES = 4 << 30
DISK_BYTES = 10 << 30
POLL_S = 0.1
COMMUNITY_NAME = "the village"
LOGS = "croft", "asyncio"


@dataclass
class Run:
    """What a machine has while its peer runs."""

    parts: Parts
    transport: SimulatedTransport
    serving: asyncio.Task[None]
    jobs: list[SimulatedJob] = field(default_factory=list)


@dataclass
class Machine:
    """A computer of the world: what outlives its peer. `run` is None while the peer is down.

    `lan`: which local network it is on; empty for one of its own.
    """

    name: str
    host: str
    root: bytes
    device: SecretKey
    slots: int
    clock: SimulatedClock
    policy: SimulatedPolicy
    rules: Rules = field(default_factory=Rules)
    owner: SimulatedOwner = field(default_factory=SimulatedOwner)
    environments: SimulatedCache = field(default_factory=SimulatedCache)
    disk: SimulatedDisk = field(default_factory=SimulatedDisk)
    sandbox: SimulatedSandbox = field(default_factory=SimulatedSandbox)
    chunks: SimulatedChunkStore = field(default_factory=SimulatedChunkStore)
    programs: SimulatedPrograms = field(default_factory=SimulatedPrograms)
    local: SimulatedServices = field(default_factory=SimulatedServices)
    relays: SimulatedRelayHost | None = None
    chain: tuple[bytes, ...] = ()
    certificate: bytes | None = None
    lan: str = ""
    starts: int = 0
    run: Run | None = None

    @cached_property
    def twin_key(self) -> SecretKey:
        return twin_key(self.root)

    @property
    def twin(self) -> TwinId:
        if self.certificate is not None:
            return open_certificate(self.certificate, step="own certificate").twin
        return TwinId(self.twin_key.public)

    def minute_of_week(self) -> int:
        """By its own clock."""
        return int(self.clock.now() // 60) % MINUTES_PER_WEEK

    def adopt(self, certificate: bytes) -> None:
        """From the next start on, this is a device of the twin that signed."""
        self.certificate = certificate

    @cached_property
    def peer(self) -> PeerId:
        return PeerId(self.device.public)

    def relays_of(self, network: SimulatedNetwork) -> SimulatedRelayHost:
        """Runs relays where this machine is now."""
        self.relays = SimulatedRelayHost(network, self.host)
        return self.relays

    @property
    def parts(self) -> Parts:
        """Its peer, which must be running."""
        assert self.run is not None, f"{self.name} is down"
        return self.run.parts


class World:
    """N machines on one network, whose `network`, `disk`, `sandbox` and `policy` take orders for faults."""

    def __init__(self, seed: int, network: SimulatedNetwork) -> None:
        self.seed = seed
        self.network = network
        self.machines: dict[str, Machine] = {}
        self.community = CommunityId("")
        self.errors: list[str] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lans: dict[str, SimulatedLan] = {}
        self.view_max: int | None = None
        self._board = SimulatedLan()

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def machine_of(self, peer: PeerId) -> Machine:
        """The machine that a peer is on."""
        return next(machine for machine in self.machines.values() if machine.peer == peer)

    @property
    def now(self) -> float:
        """Seconds since the world began."""
        return asyncio.get_running_loop().time()

    # --- machines -----------------------------------------------------------------------------------------------------

    def add(self, name: str, *, slots: int = 2, same_as: str = "", skew_s: float = 0.0) -> Machine:
        """A machine that is off. `same_as` gives it the keys of another one, as if its disk had been copied."""
        assert name not in self.machines
        keys = Random(f"{self.seed}/keys/{same_as or name}")
        machine = Machine(
            name=name,
            host=name,
            root=keys.randbytes(32),
            device=SecretKey(keys.randbytes(32)),
            slots=slots,
            clock=SimulatedClock(skew_s),
            policy=SimulatedPolicy(),
        )
        self.machines[name] = machine
        return machine

    async def start(self, name: str, *, port: int = 0) -> Parts:
        """Starts a machine's peer from what is on its disk."""
        machine = self[name]
        assert machine.run is None, f"{name} is up already"
        machine.starts += 1
        entropy = SimulatedEntropy(f"{self.seed}/{name}/{machine.starts}")
        transport = self.network.open(machine.host, machine.device.raw, [PROTOCOL, JOIN_PROTOCOL], port)
        certificate = machine.certificate or certify(machine.twin_key, machine.peer, name, machine.clock.now())
        own = Own(machine.device, machine.peer, machine.twin, name, certificate, entropy.token(8))
        plan = Plan(
            own=own,
            root=None if machine.certificate else machine.root,
            twin_key=None if machine.certificate else machine.twin_key,
            policy=machine.policy,
            contacts=ContactBook(machine.twin),
            rules=machine.rules,
            offer=OwnOffer(SETTINGS, _lent(machine.slots), (MEMBERS,)),
            machine_load=lambda: (0.0, 0.0),
            adopt=machine.adopt,
            minute_of_week=machine.minute_of_week,
        )
        ports = Ports(
            transport,
            machine.clock,
            entropy,
            machine.disk.open_database(),
            machine.sandbox,
            SimulatedDiscovery(self._board, self.lans.setdefault(machine.lan or machine.name, SimulatedLan())),
            machine.local,
            machine.relays_of(self.network),
            machine.owner,
            machine.chunks,
            InlineOffload(),
            machine.environments,
            machine.programs,
        )
        parts = assemble(plan, ports)
        if self.view_max is not None:
            # A small world whose peers behave as if it were a large one.
            parts.overlay.view_max = self.view_max
            parts.overlay.finder.bucket_max = self.view_max // 4
        await parts.load()
        serving = asyncio.create_task(parts.serve(), name=f"{name}.serve")
        serving.add_done_callback(self._served)
        machine.run = Run(parts, transport, serving)
        return parts

    async def crash(self, name: str, *, is_loud: bool = False) -> None:
        """Ends a peer as SIGKILL does. Loudly, the others are told within a moment; silently, nobody is."""
        machine = self[name]
        run = machine.run
        assert run is not None, f"{name} is down already"
        machine.run = None
        # The network first: nothing that the dying tasks say may reach anybody.
        run.transport.crash(is_loud=is_loud)
        machine.sandbox.crash("its machine crashed")
        if machine.relays is not None and machine.relays.running is not None:
            machine.relays.running.crash("its machine crashed")
        doomed = [run.serving, *(job.running for job in run.jobs)]
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)

    async def restart(self, name: str, *, port: int = 0, host: str = "") -> Parts:
        """Crashes a peer if it is up, and starts it from its disk; `host` moves the machine to another address."""
        if self[name].run is not None:
            await self.crash(name)
        self[name].host = host or self[name].host
        return await self.start(name, port=port)

    def up(self) -> list[Machine]:
        """The machines whose peer runs."""
        return [machine for machine in self.machines.values() if machine.run is not None]

    # --- the community ------------------------------------------------------------------------------------------------

    async def found(self, name: str) -> CommunityId:
        """Makes a machine's twin the founder of the one community."""
        machine = self[name]
        root = community_key(machine.root, b"")
        self.community = CommunityId(root.public)
        machine.chain = tuple(grants.found(root, machine.twin))
        await machine.parts.overlay.enter(Membership(self.community, COMMUNITY_NAME, machine.chain))
        return self.community

    async def admit(self, name: str, *, by: str) -> None:
        """Lets a running machine in by a member, whose list of members it is given as an invitation gives it."""
        machine, inviter = self[name], self[by]
        chain = grants.admit(inviter.twin_key, inviter.chain, self.community, machine.twin)
        machine.chain = tuple(chain)
        records = [m.record for m in inviter.parts.overlay.community_members(self.community)]
        membership = Membership(self.community, COMMUNITY_NAME, machine.chain)
        await machine.parts.overlay.enter(membership, records, clock=inviter.clock.now())

    async def unite(self, count: int, *, slots: int = 2) -> list[str]:
        """Adds and starts `count` machines, `peer1` their founder, all let in by it; waits until all are linked."""
        names = [f"peer{number}" for number in range(1, count + 1)]
        for name in names:
            self.add(name, slots=slots)
            await self.start(name)
        await self.found(names[0])
        for name in names[1:]:
            await self.admit(name, by=names[0])
        await self.until(self.disunity, within_s=30)
        return names

    # --- faults -------------------------------------------------------------------------------------------------------

    def partition(self, *groups: Iterable[str]) -> None:
        """Only machines of one group reach each other."""
        self.network.partition(*([self[name].host for name in group] for group in groups))

    def heal(self) -> None:
        """Every machine reaches every other."""
        self.network.heal()

    # --- work ---------------------------------------------------------------------------------------------------------

    def submit(
        self,
        name: str,
        function: Callable[..., object],
        arguments: Sequence[object],
        *,
        only: Iterable[str] = (),
        never: Iterable[str] = (),
        task_s_max: float = 0.0,
        verify: str = "",
        environment: Environment | None = None,
    ) -> SimulatedJob:
        """Starts a job of one task per argument on a machine."""
        run = self[name].run
        assert run is not None, f"{name} is down"
        job = SimulatedJob(
            run.parts.jobs,
            function,
            arguments,
            only=[self[other].peer for other in only],
            never=[self[other].peer for other in never],
            task_s_max=task_s_max,
            verify=verify,
            environment=environment,
        )
        run.jobs.append(job)
        return job

    # --- checkers: each returns what is wrong, or nothing -------------------------------------------------------------

    def disagreement(self, names: Iterable[str] = (), *, members: Iterable[str] = ()) -> str:
        """Whose list of members differs from `members` (by default all machines with a grant) or from the truth."""
        expected = sorted(members or (m.name for m in self.machines.values() if m.chain))
        for machine in [self[name] for name in names] or self.up():
            known = {m.name: m for m in machine.parts.overlay.community_members(self.community)}
            if sorted(known) != expected:
                return f"{machine.name} knows {sorted(known)}, not {expected}"
            for other in self.up():
                if other.name not in known:
                    continue
                (own,) = [
                    m.record for m in other.parts.overlay.community_members(self.community) if m.peer == other.peer
                ]
                if known[other.name].record != own:
                    return f"{machine.name} has an old record of {other.name}"
        return ""

    def dead_to(self, name: str) -> list[str]:
        """Whom a machine's peer holds for dead, by name."""
        overlay = self[name].parts.overlay
        return sorted(overlay.name_of(peer) for peer in overlay.liveness.dead())

    def misjudged(self, dead: Iterable[str] = ()) -> str:
        """Who holds others for dead than exactly these."""
        expected = sorted(dead)
        for machine in self.up():
            if (held := self.dead_to(machine.name)) != expected:
                return f"{machine.name} holds {held} for dead, not {expected}"
        return ""

    def missing_link(self, names: Iterable[str] = ()) -> str:
        """Which two running machines are not joined by one and the same connection; among many, who has too few."""
        machines = [self[name] for name in names] or self.up()
        if len(machines) > NEIGHBOURS_MAX + 1:
            for machine in machines:
                count = len(machine.parts.overlay.neighbourhood.neighbours())
                if not NEIGHBOURS_WANTED <= count <= NEIGHBOURS_MAX:
                    return f"{machine.name} has {count} neighbours"
            return ""
        for one in machines:
            for other in machines:
                if one is other:
                    continue
                here, there = one.parts.overlay.links.get(other.peer), other.parts.overlay.links.get(one.peer)
                if here is None or there is None:
                    return f"{one.name} and {other.name} are not linked"
                if getattr(here.connection, "far", None) is not there.connection:
                    return f"{one.name} and {other.name} use two connections"
        return ""

    def disunity(self, names: Iterable[str] = ()) -> str:
        """Whatever keeps the running machines from being one community: a list that differs, a link that is missing."""
        names = list(names)
        return self.disagreement(names) or self.missing_link(names)

    async def until(self, complaint: Callable[[], str], *, within_s: float) -> float:
        """Waits until `complaint` has none left, and returns how long that took."""
        started = self.now
        while problem := complaint():
            assert self.now - started < within_s, f"after {within_s:g} s, at {self.now:.1f} s: {problem}"
            await asyncio.sleep(POLL_S)
        return self.now - started

    def _served(self, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled() and not self.failed.done():
            error = serving.exception() or AssertionError(f"{serving.get_name()} ended by itself")
            self.failed.set_exception(error)


def _lent(slots: int) -> Amounts:
    return Amounts.of({CPU: slots, MEMORY: MEMORY_BYTES, DISK: DISK_BYTES}) if slots else Amounts()


class _Errors(logging.Handler):
    """Keeps what is logged as an error: no fault of a network or of a peer is one."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(logging.Formatter("%(name)s: %(message)s").format(record))


def simulate(
    story: Callable[[World], Awaitable[T]],
    *,
    seed: int,
    repeat: str,
    latency_s: tuple[float, float] = (0.005, 0.02),
    loss: float = 0.0,
    bandwidth: float | None = None,
    limit_virtual_s: float = 7_200.0,
) -> T:
    """Runs a story to its end. Whatever it raises carries the command `repeat`, which runs the same story again."""

    async def main(random: Random) -> T:
        network = SimulatedNetwork(random, latency_s=latency_s, loss=loss, bandwidth=bandwidth)
        world = World(seed, network)
        errors = _Errors(world.errors)
        for name in LOGS:
            logging.getLogger(name).addHandler(errors)
        try:
            return await _tell(world, story)
        finally:
            for name in LOGS:
                logging.getLogger(name).removeHandler(errors)

    try:
        return virtual_time.run(main, seed=seed, limit_virtual_s=limit_virtual_s)
    except BaseException as error:
        error.add_note(f"To repeat it: {repeat}")
        raise


async def _tell(world: World, story: Callable[[World], Awaitable[T]]) -> T:
    async def told() -> T:
        return await story(world)

    telling = asyncio.create_task(told(), name="story")
    first: set[asyncio.Future[T] | asyncio.Future[None]] = {telling, world.failed}
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if world.failed.done():
            world.failed.result()
        result = telling.result()
    finally:
        telling.cancel()
        await asyncio.wait({telling})
        for machine in world.up():
            await world.crash(machine.name)
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"tasks that outlive their peers: {sorted(left)}"
    assert not world.errors, "errors in the log:\n" + "\n".join(world.errors)
    return result
