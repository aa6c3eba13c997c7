"""The one composition root: every part of a peer is made here and handed what it needs.

`assemble(plan, ports)` serves the daemon with real ports and the simulator with simulated ones; nothing else asks
which it is.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version

from croft.compute import wasm_runner
from croft.compute.circle_messages import CIRCLE_PURPOSE
from croft.compute.circles import Circles
from croft.compute.environment_messages import WHEELS_PURPOSE
from croft.compute.environments import Cache, Environments
from croft.compute.journal_messages import JOURNAL_PURPOSE
from croft.compute.lender import Lender
from croft.compute.lending_terms import Policy
from croft.compute.live_boxes import LiveBoxes
from croft.compute.messages import COMMAND_PURPOSE, TASKS_PURPOSE
from croft.compute.owners_rules import Rules
from croft.identity.keys import SecretKey
from croft.ledger.leasing import LeaseBook
from croft.ledger.own_offers import OwnOffer
from croft.model.amounts import CPU, DISK, MEMORY
from croft.model.hours import MINUTES_PER_DAY
from croft.model.ids import CommunityId, PeerId
from croft.model.lease import Lease
from croft.node.backups import Backups
from croft.node.capabilities import Capabilities
from croft.node.capability_devices import CAPABILITY_PURPOSE, CapabilityDevices
from croft.node.cards import Cards, LetterNetwork
from croft.node.communities import CommunityKeeper
from croft.node.health import Health
from croft.node.jobs import JobBook
from croft.node.lending import Lending
from croft.node.offering import Offering
from croft.node.relaying import Relaying
from croft.node.storing import KnownMembers, StorageNetwork
from croft.node.supervisor import supervise
from croft.overlay.address_book import AddressBook
from croft.overlay.admissions import Admissions
from croft.overlay.contacts import ContactBook
from croft.overlay.devices import Devices
from croft.overlay.lan import LanPresence
from croft.overlay.loopback import pipe
from croft.overlay.measurement import Measurements
from croft.overlay.messages import Load
from croft.overlay.passport import Lends, Own
from croft.overlay.path_messages import MEASURE_PURPOSE
from croft.overlay.paths import Paths
from croft.overlay.service import Overlay
from croft.overlay.shaping import Shaping
from croft.overlay.tunnel import Tunnels
from croft.overlay.tunnel_host import TunnelHost
from croft.overlay.tunnel_messages import TUNNEL_PURPOSE
from croft.ports import (
    ChunkStore,
    Clock,
    Database,
    Discovery,
    Entropy,
    LocalServices,
    Offload,
    OwnersMachine,
    OwnersPrograms,
    RelayHost,
    Sandbox,
    Transport,
)
from croft.storage.head_book import Owner
from croft.storage.held import HeldFiles
from croft.storage.held_links import HeldLinks
from croft.storage.holder import LEASE_PURPOSE, Holder
from croft.storage.kept_records import KeptRecords
from croft.storage.link_book import LinkBook
from croft.storage.link_rounds import LinkRounds
from croft.storage.link_taking import LinkTaking
from croft.storage.link_verifying import LinkVerifier
from croft.storage.link_writing import LinkWriter
from croft.storage.linked_files import LinkReader
from croft.storage.messages import SHARES_PURPOSE
from croft.storage.moving import Mover
from croft.storage.proposals import Members
from croft.storage.sealing import derive
from croft.storage.service import Storage
from croft.storage.share_client import Holders
from croft.storage.sharing import Sharing
from croft.storage.tending import Tending
from croft.storage.upkeep import DELEGATES, Upkeep
from croft.storage.wards import Wards, places_for
from croft.twins.audit_log import AuditLog
from croft.twins.call_client import CallClient
from croft.twins.call_gate import CallGate
from croft.twins.call_messages import CALLS_PURPOSE
from croft.twins.call_server import CallServer
from croft.twins.capability_book import CapabilityBook
from croft.twins.communities import Communities
from croft.twins.consent_book import ConsentBook
from croft.twins.kept_values import KEPT_BYTES_MAX, VALUES_PURPOSE, KeptValues
from croft.twins.left_calls import LeftCalls
from croft.twins.letters import Author
from croft.twins.pipelines import Pipelines
from croft.twins.post import Post

VERSION = version("croft")


@dataclass(frozen=True, slots=True)
class Ports:
    """The outside of one peer."""

    transport: Transport
    clock: Clock
    entropy: Entropy
    database: Database
    sandbox: Sandbox
    discovery: Discovery
    local: LocalServices
    relays: RelayHost
    machine: OwnersMachine
    chunks: ChunkStore
    offload: Offload
    environments: Cache
    programs: OwnersPrograms


@dataclass(frozen=True, slots=True)
class Plan:
    """What one peer is to be.

    `root` is the twin's entropy, None on an added device; `machine_load` gives shares of processors and disk; `adopt`
    keeps the certificate by which this machine is a device of another twin from the next start on; `minute_of_week`
    counts from Monday, local midnight; `offer` is what the settings lend, `rules` when not, and
    `lent_cpus_max` of how many processors at most. `own_folders`: where the peer itself keeps what it has.
    """

    own: Own
    root: bytes | None
    twin_key: SecretKey | None
    policy: Policy
    contacts: ContactBook
    offer: OwnOffer
    rules: Rules
    machine_load: Callable[[], tuple[float, float]]
    adopt: Callable[[bytes], None]
    minute_of_week: Callable[[], int]
    relay_port: int = 0
    labels: tuple[str, ...] = ()
    delegates_wanted: int = 0
    storage_delegates: int = DELEGATES
    kept_bytes_max: int = KEPT_BYTES_MAX
    lent_cpus_max: float | None = None
    own_folders: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Calling:
    """What lets others call what is here, and the owner what others have, one by one and in pipelines; and the log."""

    audit: AuditLog
    consent: ConsentBook
    book: CapabilityBook
    capabilities: Capabilities
    server: CallServer
    client: CallClient
    values: KeptValues
    pipelines: Pipelines


@dataclass(frozen=True, slots=True)
class FileLinks:
    """Links to stored files: the owner's own, and using those of others."""

    sharing: Sharing
    reader: LinkReader
    writer: LinkWriter
    taking: LinkTaking
    verifier: LinkVerifier
    rounds: LinkRounds


@dataclass(frozen=True, slots=True)
class Parts:
    """A peer, assembled."""

    plan: Plan
    ports: Ports
    health: Health
    overlay: Overlay
    admissions: Admissions
    leases: LeaseBook
    lender: Lender
    environments: Environments
    lending: Lending
    offering: Offering
    circles: Circles
    jobs: JobBook
    tunnel_host: TunnelHost
    tunnels: Tunnels
    address_book: AddressBook
    devices: Devices
    shaping: Shaping
    paths: Paths
    relaying: Relaying
    measurements: Measurements
    lan: LanPresence
    holder: Holder
    storage: Storage
    upkeep: Upkeep
    links: FileLinks
    wards: Wards
    backups: Backups
    communities: Communities
    community_keeper: CommunityKeeper
    calling: Calling
    cards: Cards
    post: Post
    left_calls: LeftCalls

    async def load(self) -> None:
        """Takes in what the last run left on disk; before `serve`."""
        await self.address_book.load()
        await self.overlay.load()
        await self.community_keeper.load()
        await self.admissions.load()
        await self.tunnel_host.load()
        await self.shaping.load()
        await self.relaying.load()
        await self.leases.load()
        await self.lending.load()
        await self.storage.load()
        await self.upkeep.mover.load()
        await self.calling.audit.load()
        await self.calling.consent.load()
        await self.calling.book.load()
        await self.calling.values.load()
        await self.calling.pipelines.load()
        await self.cards.load()
        await self.post.load()
        await self.left_calls.load()

    async def serve(self) -> None:
        """Runs the peer until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name, service in (
                ("leases", self.leases.serve),
                ("environments", self.environments.serve),
                ("lending", self.lender.serve),
                ("jobs", self.jobs.durable.serve),
                ("delegations", self.jobs.delegations.serve),
                ("lending hours", self.lending.serve),
                ("offers", self.offering.serve),
                ("overlay", self.overlay.serve),
                ("admissions", self.admissions.serve),
                ("tunnels", self.tunnel_host.serve),
                ("limits", self.shaping.serve),
                ("devices", self.devices.serve),
                ("contacts", self.address_book.serve),
                ("paths", self.paths.serve),
                ("relay", self.relaying.serve),
                ("lan", self.lan.serve),
                ("holder", self.holder.serve),
                ("storage", self.storage.serve),
                ("upkeep", self.upkeep.serve),
                ("wards", self.wards.serve),
                ("links", self.links.rounds.serve),
                ("audit", self.calling.audit.serve),
                ("consent", self.calling.consent.serve),
                ("communities", self.communities.serve),
                ("members", self.community_keeper.serve),
                ("backups", self.backups.serve),
                ("capabilities", self.calling.capabilities.serve),
                ("capability processes", self.calling.book.serve),
                ("calls", self.calling.client.serve),
                ("kept values", self.calling.values.serve),
                ("pipelines", self.calling.pipelines.serve),
                ("cards", self.cards.serve),
                ("letters", self.post.serve),
                ("calls that were left", self.left_calls.serve),
            ):
                tasks.create_task(supervise(name, service, self.health), name=f"service.{name}")


def assemble(plan: Plan, ports: Ports) -> Parts:
    """Makes a peer. It does nothing yet."""
    health = Health()
    isolation = ports.sandbox.isolation()

    def lends() -> Lends:
        return Lends(
            slots=lending.told_to_members[CPU],
            memory_bytes=lending.told_to_members[MEMORY],
            disk_bytes=lending.told_to_members[DISK],
            grade=isolation.grade,
            python=plan.policy.python(),
            machine=platform.machine(),
            version=VERSION,
            labels=plan.labels,
            relays=paths.relays(),
            nat=paths.nat(),
        )

    circles = Circles(plan.own.peer)
    leases, lending, lender, holder, environments = _lender(plan, ports, circles)
    overlay = Overlay(
        plan.own,
        *(ports.transport, ports.database, ports.clock, ports.entropy),
        lends,
        lambda: Load(lender.slots_busy, *plan.machine_load()),
        contacts=plan.contacts,
        on_key_used_elsewhere=lambda addresses: health.warn_of_key_used_elsewhere(list(addresses)),
        on_clock_compared=health.compare_clock,
    )
    paths, relaying, admissions = _ways(plan, ports, overlay)
    offering = Offering(overlay, lending, ports.clock, plan.contacts.friends)
    values = KeptValues(
        *(plan.own.peer, plan.own.twin, overlay, ports.chunks, ports.database, ports.clock, ports.entropy),
        plan.kept_bytes_max,
    )
    lender.keeping.values = values
    jobs = JobBook(
        *(overlay, offering.offered_here, ports.database, ports.clock, ports.entropy),
        *(plan.policy.check, plan.delegates_wanted, circles, environments, values),
    )
    communities, keeper = _communities(plan, ports, overlay, health)
    tunnel_host = TunnelHost(ports.database, ports.clock, ports.local, lambda peer: _served(peer, overlay, communities))
    devices = Devices(overlay, plan.twin_key, ports.clock)
    calling = _calling(plan, ports, overlay, health, communities, CapabilityDevices(leases, lending), values)
    parts = Parts(
        plan,
        ports,
        health,
        overlay,
        admissions,
        *(leases, lender, environments, lending, offering, circles, jobs),
        tunnel_host,
        Tunnels(overlay, ports.local),
        AddressBook(plan.contacts, ports.database, ports.clock, overlay),
        devices,
        Shaping(ports.database, lambda: plan.minute_of_week() % MINUTES_PER_DAY),
        paths,
        relaying,
        Measurements(),
        LanPresence(overlay, ports.discovery, ports.entropy, devices.records),
        holder,
        *_storage(plan, ports, overlay, offering, health, holder.links, KnownMembers(overlay, communities)),
        communities,
        keeper,
        calling,
        *_post(plan, ports, overlay, calling),
    )
    _ask_communities(parts)
    _answer_others(parts)
    return parts


def _ways(plan: Plan, ports: Ports, overlay: Overlay) -> tuple[Paths, Relaying, Admissions]:
    """How this peer is reached, by what relays, and who is let in."""
    paths = Paths(plan.own.peer, overlay.links, ports.transport, ports.relays)
    overlay.told_addresses, overlay.relay_access, overlay.doubt_relays = paths.addresses, paths.access, paths.doubt
    relaying = Relaying(overlay, paths, ports.relays, ports.database, ports.clock, port=plan.relay_port)
    admissions = Admissions(
        overlay, ports.database, ports.clock, ports.entropy, ports.discovery, plan.root, plan.twin_key, plan.adopt
    )
    admissions.relay_passes, admissions.trust_relays = relaying.passes, paths.trust
    return paths, relaying, admissions


def _lender(plan: Plan, ports: Ports, circles: Circles) -> tuple[LeaseBook, Lending, Lender, Holder, Environments]:
    """What lends: the book of leases, the owner's offers, and who runs the work of others and holds their data."""
    leases = LeaseBook(ports.database, ports.clock)
    live = LiveBoxes(ports.sandbox, plan.lent_cpus_max)
    lending = Lending(
        leases,
        ports.database,
        ports.clock,
        ports.machine,
        live,
        plan.rules,
        plan.offer,
        plan.own.twin,
        lambda twin: twin in plan.contacts.friends(),
        plan.minute_of_week,
    )
    held, environments = HeldFiles(ports.chunks, ports.offload), Environments(ports.environments, plan.policy, live)
    lender = Lender(live, plan.policy, lending, leases, circles, held, environments)
    lending.lend = lender.lend
    holder = Holder(ports.chunks, leases, lending, ports.database, ports.clock, ports.offload)

    def reclaim(lease: Lease) -> None:
        if lease.request.purpose == CAPABILITY_PURPOSE:
            leases.ended(lease)
        else:
            (holder if lease.request.purpose == LEASE_PURPOSE else lender).reclaim(lease)

    leases.reclaim = reclaim
    return leases, lending, lender, holder, environments


def _storage(
    plan: Plan,
    ports: Ports,
    overlay: Overlay,
    offering: Offering,
    health: Health,
    held: HeldLinks,
    members: Members,
) -> tuple[Storage, Upkeep, FileLinks, Wards, Backups]:
    """What the owner of this peer stores at others, and whose data it looks after while they are away."""
    network = StorageNetwork(overlay, offering.offered_here, ports.clock.now)
    holders = Holders(network.name, network.open_stream)
    secret = derive(plan.root, "root") if plan.root is not None else None
    network.tell_secret(secret)
    own = plan.own
    tending = Tending(
        network,
        lambda owner: places_for(owner, own.twin, network),
        holders,
        ports.database,
        ports.clock,
        ports.entropy,
        ports.offload,
    )
    owner = Owner(own.twin, own.peer, own.device, own.certificate, secret)
    storage = Storage(
        owner,
        network,
        holders,
        tending,
        ports.database,
        ports.clock,
        ports.entropy,
        ports.offload,
    )
    mover = Mover(tending, holders, ports.database, ports.offload, storage.found)
    upkeep = Upkeep(
        *(owner, storage, network, holders, tending, ports.database, ports.clock), mover, plan.storage_delegates
    )
    links = _links(owner, storage, network, holders, tending, held, members, ports)
    upkeep.refresh_links = links.sharing.refresh
    wards = Wards(own.peer, network, holders, tending, ports.database, ports.offload)
    backups = Backups(
        *(storage, overlay, plan.contacts.friends, health),
        *(ports.database, ports.clock, ports.entropy, ports.offload),
        never=plan.own_folders,
    )
    upkeep.rules = backups.rules
    return storage, upkeep, links, wards, backups


def _links(
    owner: Owner,
    storage: Storage,
    network: StorageNetwork,
    holders: Holders,
    tending: Tending,
    held: HeldLinks,
    members: Members,
    ports: Ports,
) -> FileLinks:
    """By which others read files of the owner, and write them; and the owner those of others."""
    records = KeptRecords(storage, ports.database)
    book = LinkBook(storage, records)
    reader = LinkReader(network, holders, ports.clock, ports.offload, members)
    sharing = Sharing(owner, storage, network, holders, reader, held, book, ports.clock, ports.entropy)
    taking = LinkTaking(owner, storage, book, reader, held, network, ports.clock)
    writer = LinkWriter(owner, storage, records, reader, holders, network, members, ports.clock, ports.entropy)
    rounds = LinkRounds(storage, network, sharing, taking, writer)
    held.on_proposal = lambda of: rounds.now() if of.hex() == owner.twin else None
    return FileLinks(sharing, reader, writer, taking, LinkVerifier(owner.peer, reader, tending), rounds)


def _communities(plan: Plan, ports: Ports, overlay: Overlay, health: Health) -> tuple[Communities, CommunityKeeper]:
    """Who belongs together, and who may do what among them."""
    communities = Communities(
        plan.own.twin, plan.root, plan.twin_key, overlay, ports.database, ports.clock, ports.entropy
    )
    return communities, CommunityKeeper(communities, overlay, health, ports.clock)


def _served(peer: PeerId, overlay: Overlay, communities: Communities) -> frozenset[CommunityId]:
    """In which communities a peer may use what is for members."""
    twin = overlay.twin_of(peer)
    return communities.serves(twin, overlay.communities_of(peer)) if twin is not None else frozenset()


def _ask_communities(parts: Parts) -> None:
    """Whatever lets somebody in, or serves them, asks whether their community has them as a member."""
    overlay, communities, admissions = parts.overlay, parts.communities, parts.admissions
    overlay.door.standing = communities
    overlay.links.consumer = lambda greeted: replace(
        greeted, communities=communities.serves(greeted.twin, greeted.communities)
    )
    admissions.check_invites, admissions.check_admits = communities.check_invites, communities.check_admits
    admissions.admitted = communities.admitted
    parts.devices.on_left = parts.community_keeper.left_elsewhere


def _calling(
    plan: Plan,
    ports: Ports,
    overlay: Overlay,
    health: Health,
    communities: Communities,
    devices: CapabilityDevices,
    values: KeptValues,
) -> Calling:
    """What the owner lets others call, under which rules, and what others let the owner call."""
    contacts, own = plan.contacts, plan.own
    audit = AuditLog(ports.database, ports.clock, own.device, own.peer, overlay.name_of)
    audit.on_broken = health.warn_of_broken_audit
    book = CapabilityBook(ports.database, ports.clock, ports.programs, wasm_runner.__file__)
    consent = ConsentBook(ports.database, ports.clock)
    gate = CallGate(
        *(book, consent, audit, communities, devices, own.twin),
        lambda twin: twin in contacts.friends(),
        lambda peer: _served(peer, overlay, communities),
        overlay.communities_of,
    )
    capabilities = Capabilities(overlay, book, contacts, ports.clock)
    calls = CallClient(capabilities, overlay)
    pipelines = Pipelines(own.peer, own.twin, calls, capabilities, values, ports.database, ports.clock, ports.entropy)
    return Calling(audit, consent, book, capabilities, CallServer(gate, values), calls, values, pipelines)


def _post(plan: Plan, ports: Ports, overlay: Overlay, calling: Calling) -> tuple[Cards, Post, LeftCalls]:
    """What the twin says of itself, the letters of its owner, and calls that come and go as letters."""
    own = plan.own
    cards = Cards(overlay, ports.database, ports.clock)
    author = Author(own.device, own.certificate, bytes.fromhex(own.twin))
    post = Post(author, LetterNetwork(overlay, cards), ports.database, ports.clock, ports.entropy)
    left = LeftCalls(
        *(own.peer, post, calling.server, calling.values, pipe, overlay.name_of), ports.database, ports.clock
    )
    return cards, post, left


def _answer_others(parts: Parts) -> None:
    """Says who serves what other peers ask for."""
    links = parts.overlay.links
    parts.environments.neighbours = parts.overlay
    links.accept_other = parts.admissions.accept
    links.shape = parts.shaping.shape
    links.on_stream(TASKS_PURPOSE, parts.lender.serve_tasks)
    links.on_stream(WHEELS_PURPOSE, parts.environments.serve_wheels)
    links.on_stream(COMMAND_PURPOSE, parts.lender.serve_command, lasts=True)
    parts.circles.links = parts.overlay
    links.on_stream(CIRCLE_PURPOSE, parts.circles.serve_stream, lasts=True)
    links.on_stream(JOURNAL_PURPOSE, parts.jobs.delegations.serve_journal)
    links.on_stream(TUNNEL_PURPOSE, parts.tunnel_host.serve_tunnel, lasts=True)
    links.on_stream(MEASURE_PURPOSE, parts.measurements.serve)
    links.on_stream(SHARES_PURPOSE, parts.holder.serve_shares)
    audit = parts.calling.audit
    parts.leases.granted = lambda request: (
        None if request.purpose == CAPABILITY_PURPOSE else audit.record(request.purpose, request, request.job)
    )
    parts.tunnel_host.opened = lambda consumer, service: audit.record("tunnel", consumer, service)
    links.on_stream(CALLS_PURPOSE, parts.calling.server.serve_stream)
    links.on_stream(VALUES_PURPOSE, parts.calling.values.serve_stream)
    parts.holder.on_watch = parts.wards.told
    parts.upkeep.named_delegates = lambda: parts.cards.said(parts.plan.own.twin).delegates
