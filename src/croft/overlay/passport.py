"""What this peer can prove of itself, and what it accepts as proof from others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from croft.errors import PeerMisbehaved, Refused
from croft.identity.certificates import Certified, open_certificate
from croft.identity.grants import verify_chain
from croft.identity.keys import SecretKey
from croft.model.ids import CommunityId, PeerId, TwinId, is_key_id
from croft.overlay.doorkeeper import Doorkeeper
from croft.overlay.link import Greeted
from croft.overlay.membership import Member
from croft.overlay.messages import VERSION, Descriptor, Hello, Load
from croft.overlay.records import CLOCK_AHEAD_S_MAX
from croft.wire.envelope import open_signed, sign

DESCRIPTOR_KIND = "member descriptor"
DESCRIPTOR_LIFETIME_S = 30 * 86_400.0
ADDRESSES_MAX = 16
ADDRESS_LENGTH_MAX = 64
COMMUNITIES_SHOWN_MAX = 32
SLOTS_MAX = 65_536
SIZE_BYTES_MAX = 1 << 60
SEQUENCE_MAX = 1 << 52
WORD_LENGTH_MAX = 32
LABELS_MAX = 32
LABEL_LENGTH_MAX = 64
RELAYS_MAX = 4
RELAY_LENGTH_MAX = 256
INSTANCE_BYTES_MAX = 32


@dataclass(frozen=True, slots=True)
class Own:
    """This device: its key, its twin's certificate, and what is drawn anew at each start."""

    device: SecretKey
    peer: PeerId
    twin: TwinId
    name: str
    certificate: bytes
    instance: bytes


@dataclass(frozen=True, slots=True)
class Membership:
    """This twin's place in one community."""

    community: CommunityId
    name: str
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Lends:
    """What this device lends, as its descriptors say."""

    slots: int
    memory_bytes: int
    disk_bytes: int
    grade: str
    python: str
    machine: str
    version: str
    labels: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    nat: str = ""


class PeerPassport:
    """See `croft.overlay.links.Passport`.

    `known_in` tells in which communities a peer is known; `door` keeps some out; `name_of` is what a peer is called
    here, given what it calls itself.
    """

    def __init__(
        self,
        own: Own,
        now: Callable[[], float],
        known_in: Callable[[PeerId], frozenset[CommunityId]],
        door: Doorkeeper,
        name_of: Callable[[Certified], str] = lambda certified: certified.name,
    ) -> None:
        self._own = own
        self._now = now
        self._known_in = known_in
        self._door = door
        self._name_of = name_of
        self.memberships: dict[CommunityId, Membership] = {}

    def hello(self, communities: frozenset[CommunityId]) -> Hello:
        """Names no community but the given ones."""
        shown = [self.memberships[c] for c in sorted(communities) if c in self.memberships][:COMMUNITIES_SHOWN_MAX]
        own = self._own
        return Hello(VERSION, own.certificate, [(m.community, list(m.chain)) for m in shown], own.instance, self._now())

    def communities_with(self, peer: PeerId) -> frozenset[CommunityId]:
        """The communities in which `peer` is known."""
        return self._known_in(peer)

    def own(self) -> Greeted:
        """What our own hello proves."""
        own = self._own
        return Greeted(own.peer, own.twin, own.name, frozenset(self.memberships), own.instance)

    def check(self, peer: PeerId, hello: Hello) -> Greeted:
        """Raises Refused: another protocol version, no valid certificate of this device, no grant that holds here."""
        if hello.version != VERSION:
            raise Refused(
                f"it speaks version {hello.version} of the protocol, this peer version {VERSION}",
                remedy="Upgrade the older of the two.",
            )
        try:
            certified = open_certificate(hello.certificate, step="hello")
        except PeerMisbehaved as fault:
            raise Refused(f"its device certificate is not valid: {fault}") from None
        if certified.peer != peer:
            raise Refused("its device certificate is of another device")
        communities = self._shared(certified, hello)
        # Last: whoever is no member is not to hear whom the owner blocks.
        self._door.admit(peer, certified.twin)
        ahead_s = hello.clock - self._now() if hello.clock > 0 and math.isfinite(hello.clock) else None
        return Greeted(peer, certified.twin, self._name_of(certified), communities, hello.instance, ahead_s, hello.lost)

    def _shared(self, certified: Certified, hello: Hello) -> frozenset[CommunityId]:
        shared: set[CommunityId] = set()
        reason = "it shows no grant for a community of this peer"
        remedy = "Join first: `croft invite` on a member's machine, `croft join` on this one."
        code = Refused.code
        for name, chain in hello.memberships[:COMMUNITIES_SHOWN_MAX]:
            community = CommunityId(name)
            if community not in self.memberships:
                continue
            try:
                grant = verify_chain(community, chain, certified.twin, self._now())
            except Refused as refusal:
                reason = refusal.message
                continue
            out = self._door.standing.refusal(community, certified.twin, grant.path)
            if out is None:
                shared.add(community)
            else:
                code, reason, remedy = out.code, out.message, out.remedy
        if not shared:
            refused = Refused(reason, remedy=remedy)
            refused.code = code
            raise refused
        return frozenset(shared)


def describe(
    own: Own, membership: Membership, lends: Lends, addresses: list[str], *, now: float, sequence: int
) -> Member:
    """This device's own signed descriptor in one community."""
    descriptor = Descriptor(
        community=membership.community,
        grant_chain=list(membership.chain),
        certificate=own.certificate,
        addresses=addresses[:ADDRESSES_MAX],
        sequence=sequence,
        instance=own.instance,
        expires_at=now + DESCRIPTOR_LIFETIME_S,
        slots=lends.slots,
        memory_bytes=lends.memory_bytes,
        disk_bytes=lends.disk_bytes,
        grade=lends.grade,
        python=lends.python,
        machine=lends.machine,
        version=lends.version,
        labels=list(lends.labels)[:LABELS_MAX],
        relays=list(lends.relays)[:RELAYS_MAX],
        nat=lends.nat,
    )
    record = sign(own.device.signer, DESCRIPTOR_KIND, descriptor)
    certified = Certified(own.peer, own.twin, own.name, 0.0, 1)
    return _member(descriptor, certified, record, ())


def open_descriptor(record: bytes, memberships: Mapping[CommunityId, Membership], now: float) -> Member:
    """The member that a descriptor speaks of. Raises PeerMisbehaved unless every part of it holds."""
    step = "member record"
    signer, descriptor = open_signed(record, DESCRIPTOR_KIND, Descriptor, step=step)
    community = CommunityId(descriptor.community)
    if not is_key_id(community) or community not in memberships:
        raise PeerMisbehaved("a record of a community that this peer is not in", step=step)
    certified = open_certificate(descriptor.certificate, step=step)
    if certified.peer != signer:
        raise PeerMisbehaved("a record that is not signed by the device it speaks of", step=step)
    _check_bounds(descriptor, step)
    if not 0 < descriptor.expires_at <= now + DESCRIPTOR_LIFETIME_S + CLOCK_AHEAD_S_MAX:
        raise PeerMisbehaved("a record that expires too late", step=step)
    try:
        grant = verify_chain(community, descriptor.grant_chain, certified.twin, now)
    except Refused as refusal:
        raise PeerMisbehaved(f"a record with {refusal.message}", step=step) from None
    return _member(descriptor, certified, record, grant.path)


def check_load(load: Load, *, step: str) -> None:
    """Raises PeerMisbehaved unless its values are possible ones."""
    if not 0 <= load.slots_busy <= SLOTS_MAX or not (0 <= load.cpu <= 1 and 0 <= load.disk <= 1):
        raise PeerMisbehaved(
            f"a load of {load.slots_busy} slots, {load.cpu} of the processors, {load.disk} of the disk", step=step
        )


def _check_bounds(descriptor: Descriptor, step: str) -> None:
    if len(descriptor.addresses) > ADDRESSES_MAX or any(len(a) > ADDRESS_LENGTH_MAX for a in descriptor.addresses):
        raise PeerMisbehaved("a record with too many or too long addresses", step=step)
    if not 0 <= descriptor.slots <= SLOTS_MAX:
        raise PeerMisbehaved(f"a record that lends {descriptor.slots} slots", step=step)
    if not (0 <= descriptor.memory_bytes <= SIZE_BYTES_MAX and 0 <= descriptor.disk_bytes <= SIZE_BYTES_MAX):
        raise PeerMisbehaved("a record that lends an impossible amount of memory or disk", step=step)
    if not 0 <= descriptor.sequence <= SEQUENCE_MAX or len(descriptor.instance) > INSTANCE_BYTES_MAX:
        raise PeerMisbehaved("a record with an impossible sequence or instance", step=step)
    words = (descriptor.grade, descriptor.python, descriptor.machine, descriptor.version, descriptor.nat)
    is_long = len(descriptor.labels) > LABELS_MAX or len(descriptor.relays) > RELAYS_MAX
    texts = [(word, WORD_LENGTH_MAX) for word in words]
    texts += [(label, LABEL_LENGTH_MAX) for label in descriptor.labels]
    texts += [(relay, RELAY_LENGTH_MAX) for relay in descriptor.relays]
    if is_long or any(len(text) > limit or (text and not text.isprintable()) for text, limit in texts):
        raise PeerMisbehaved("a record with too many, too long or unprintable words", step=step)


def _member(descriptor: Descriptor, certified: Certified, record: bytes, path: tuple[TwinId, ...]) -> Member:
    return Member(
        community=CommunityId(descriptor.community),
        peer=certified.peer,
        twin=certified.twin,
        name=certified.name,
        addresses=tuple(descriptor.addresses),
        sequence=descriptor.sequence,
        instance=descriptor.instance,
        expires_at=descriptor.expires_at,
        slots=descriptor.slots,
        memory_bytes=descriptor.memory_bytes,
        disk_bytes=descriptor.disk_bytes,
        grade=descriptor.grade,
        python=descriptor.python,
        machine=descriptor.machine,
        version=descriptor.version,
        record=record,
        labels=tuple(descriptor.labels),
        relays=tuple(descriptor.relays),
        nat=descriptor.nat,
        path=path,
    )
