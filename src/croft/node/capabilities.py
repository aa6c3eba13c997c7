"""Tells others what this peer lets them call, and knows what others let this one call.

What every member of a community may call is a record that spreads like any other. What is for some people only never
spreads: it is handed to their devices, over links to them and to nobody else, and handed on by none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from croft.errors import CroftError, NotFound, PeerMisbehaved
from croft.identity.by_member import Signatory
from croft.model.ids import CommunityId, PeerId, TwinId
from croft.overlay.contacts import Trust
from croft.overlay.gossip import Kind
from croft.overlay.records import Claim, Limits
from croft.twins.call import Candidate, ranked, stand_ins
from croft.twins.capability import (
    CAPABILITY_KIND,
    RENEW_EVERY_S,
    Capability,
    Terms,
    make_capability,
    open_capability,
)
from croft.twins.capability_book import CAPABILITIES_MAX, CapabilityBook, OwnCapability
from croft.twins.consent import FRIENDS, MEMBERS
from croft.wire.codec import Message, decode, encode

if TYPE_CHECKING:
    from croft.overlay.contacts import ContactBook
    from croft.overlay.link import Link
    from croft.overlay.service import Overlay
    from croft.ports import Clock

log = logging.getLogger(__name__)

CALL_TELL: Final = "capability.tell"
LOOK_EVERY_S: Final = 1.0
TELL_AGAIN_S: Final = 60.0
TELL_DEADLINE_S: Final = 5.0
TOLD_MAX: Final = 64
"""Records that one peer may hand to this one."""
LIMITS: Final = Limits(records_max=4_096, per_origin_max=CAPABILITIES_MAX)
TRUST_RANK: Final = {Trust.HIGH: 1, Trust.NORMAL: 2, Trust.LOW: 4, Trust.NONE: 5}
NOTED_RANK: Final = 1
"""How much less somebody counts whom the owner has not noted at all."""
STEP: Final = "capabilities"


class Told(Message, frozen=True):
    """Records of capabilities that are for the receiver alone, or for few besides: all that the sender has for it."""

    records: list[tuple[str, bytes]]


class Capabilities:
    """The board of capabilities of this peer's communities."""

    def __init__(self, overlay: Overlay, book: CapabilityBook, contacts: ContactBook, clock: Clock) -> None:
        self._overlay = overlay
        self._book = book
        self._contacts = contacts
        self._clock = clock
        self._published: dict[tuple[CommunityId, str], tuple[Terms, float]] = {}
        self._private: dict[tuple[CommunityId, str, TwinId], tuple[Terms, float, bytes]] = {}
        self._handed: dict[PeerId, tuple[Link, frozenset[bytes]]] = {}
        self._not_before: dict[PeerId, float] = {}
        self._told: dict[PeerId, list[Capability]] = {}
        self._telling: set[PeerId] = set()
        overlay.records.register(Kind(CAPABILITY_KIND, verify=_verify, is_kept=False, limits=LIMITS))
        overlay.links.on_call(CALL_TELL, self._hear)

    # --- what others offer -------------------------------------------------------------------------------------------

    def known(self) -> list[Capability]:
        """What others let the owner of this peer call, and what this peer offers itself; one per device and name."""
        now, own = self._clock.now(), self._overlay.own
        spread = [entry.claim.value for entry in self._overlay.records.entries(CAPABILITY_KIND)]
        handed = [one for told in self._told.values() for one in told if one.expires_at > now]
        found: dict[str, Capability] = {}
        for one in (*self._own(), *handed, *spread):
            if not isinstance(one, Capability) or one.is_withdrawn or not one.is_for(own.twin):
                continue
            if not self._is_kept_out(one):
                found.setdefault(one.key, one)
        return sorted(found.values(), key=lambda one: (one.terms.name, one.peer))

    def _is_kept_out(self, one: Capability) -> bool:
        """Whether whoever offers it was blocked or revoked, or removed from where it is offered."""
        door = self._overlay.door
        if self._contacts.is_blocked(one.twin) or door.is_revoked(one.peer, one.twin):
            return True
        return bool(one.community) and door.standing.is_out(one.community, one.twin)

    def candidate(self, one: Capability) -> Candidate:
        """Somebody who offers it, as calls choose among them."""
        overlay = self._overlay
        contact = self._contacts.get(one.twin)
        is_noted = one.twin in self._contacts.friends()
        rank = TRUST_RANK[contact.trust] + (0 if is_noted else NOTED_RANK)
        link = overlay.links.get(one.peer)
        is_self = one.peer == overlay.own.peer
        seen = overlay.seen(one.peer)
        return Candidate(
            one.peer,
            one.twin,
            overlay.name_of(one.peer),
            one.terms.digest,
            0 if one.twin == overlay.own.twin else rank,
            overlay.is_alive(one.peer),
            0.0 if is_self else link.round_trip_s if link else None,
            None if seen.load is None else seen.load.cpu,
            one.terms.slots,
        )

    def candidates(self, name: str, signature: bytes, of: str) -> tuple[Sequence[Candidate], bool]:
        """See `croft.twins.call_client.Directory`. `of`: the id of a twin or a peer."""
        offered = [one for one in self.known() if one.terms.name == name and of in ("", one.peer, one.twin)]
        fitting = [one for one in offered if not signature or one.terms.digest == signature]
        chosen = stand_ins(ranked([self.candidate(one) for one in fitting]))
        if not chosen:
            why = "no longer offered as it was" if offered else "offered by nobody here"
            raise NotFound(f"`{name}` is {why}", remedy="See what there is: `croft capabilities`.")
        peers = {one.peer for one in chosen}
        return chosen, all(one.terms.is_idempotent for one in fitting if one.peer in peers)

    def _own(self) -> Iterable[Capability]:
        """This peer's own, also while it is in no community."""
        own = self._overlay.own
        for row in self._book.all():
            yield Capability(CommunityId(""), own.peer, own.twin, row.terms, 0, 0.0, signature=row.signature)

    # --- what this peer offers ---------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Publishes what changes or grows old; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self.publish()
                for peer in self._to_be_told():
                    self._telling.add(peer)
                    tasks.create_task(self._tell(peer), name="capabilities.tell")
                await asyncio.sleep(LOOK_EVERY_S)

    def publish(self) -> None:
        """Tells each community what is for all of it, and takes back what no longer is."""
        now = self._clock.now()
        communities = [membership.community for membership in self._overlay.communities()]
        rows = self._book.all()
        wanted = {
            (community, row.name): row for community in communities for row in rows if _is_for_all(row, community)
        }
        for (community, name), row in wanted.items():
            told = self._published.get((community, name))
            if told is None or told[0] != row.terms or not 0 <= now - told[1] < RENEW_EVERY_S:
                self._spread(community, row.terms, is_withdrawn=False)
                self._published[community, name] = (row.terms, now)
        names = {row.name for row in rows}
        self._private = {key: made for key, made in self._private.items() if key[1] in names}
        for key in [key for key in self._published if key not in wanted]:
            terms, _ = self._published.pop(key)
            self._spread(key[0], terms, is_withdrawn=True)

    def _spread(self, community: CommunityId, terms: Terms, *, is_withdrawn: bool) -> None:
        record = self._record(community, terms, (), is_withdrawn=is_withdrawn)
        if record is not None:
            self._overlay.records.publish(CAPABILITY_KIND, community, record)

    def _record(
        self, community: CommunityId, terms: Terms, to: Sequence[str], *, is_withdrawn: bool = False
    ) -> bytes | None:
        own, membership = self._overlay.own, self._overlay.passport.memberships.get(community)
        if membership is None:
            return None
        publisher = Signatory(own.device, own.certificate, community, membership.chain)
        now, sequence = self._clock.now(), self._overlay.records.next_sequence()
        return make_capability(publisher, terms, to, is_withdrawn=is_withdrawn, now=now, sequence=sequence)

    # --- what is for some people only --------------------------------------------------------------------------------

    def _for(self, community: CommunityId, twin: TwinId, friends: frozenset[TwinId]) -> list[bytes]:
        """The records that a member of a community is to be handed."""
        found = []
        if self._contacts.get(twin).is_blocked:
            return []
        for row in self._book.all():
            is_meant = twin in row.to or (FRIENDS in row.to and twin in friends) or twin == self._overlay.own.twin
            if is_meant and not _is_for_all(row, community):
                found.append(self._private_record(community, row, twin))
        return [record for record in found if record is not None]

    def _private_record(self, community: CommunityId, row: OwnCapability, twin: TwinId) -> bytes | None:
        """One for a single person: it names nobody else."""
        key = community, row.name, twin
        made = self._private.get(key)
        now = self._clock.now()
        if made is not None and made[0] == row.terms and 0 <= now - made[1] < RENEW_EVERY_S:
            return made[2]
        record = self._record(community, row.terms, (twin,))
        if record is not None:
            self._private[key] = (row.terms, now, record)
        return record

    def _to_be_told(self) -> list[PeerId]:
        now, own = asyncio.get_running_loop().time(), self._overlay.own
        due = []
        for peer, records in self._wanted().items():
            link, told = self._handed.get(peer, (None, frozenset()))
            current = self._overlay.links.get(peer)
            is_due = told != records or (bool(records) and current is not None and current is not link)
            may_try = now >= self._not_before.get(peer, 0.0) and (current is not None or self._overlay.is_alive(peer))
            if is_due and may_try and peer not in self._telling and peer != own.peer:
                due.append(peer)
        return due

    def _wanted(self) -> dict[PeerId, frozenset[bytes]]:
        """What each device is to have been handed; those from which something was withdrawn too."""
        friends = frozenset(self._contacts.friends())
        wanted: dict[PeerId, frozenset[bytes]] = dict.fromkeys(self._handed, frozenset())
        if all(MEMBERS in row.to for row in self._book.all()):
            return wanted
        meant = {who for row in self._book.all() for who in row.to} | friends | {self._overlay.own.twin}
        for membership in self._overlay.communities():
            for member in self._overlay.community_members(membership.community):
                if member.twin not in meant:
                    continue
                records = self._for(membership.community, member.twin, friends)
                if records:
                    wanted[member.peer] = wanted.get(member.peer, frozenset()) | frozenset(records)
        return wanted

    async def _tell(self, peer: PeerId) -> None:
        """Hands a device what is for its owner."""
        loop = asyncio.get_running_loop()
        try:
            link = await self._overlay.link_to(peer)
            records = self._wanted().get(peer, frozenset())
            community_of = {made[2]: key[0] for key, made in self._private.items()}
            told = Told([(community_of[record], record) for record in sorted(records)])
            await link.call(CALL_TELL, encode(told), deadline_s=TELL_DEADLINE_S)
            if records:
                self._handed[peer] = (link, records)
            else:
                self._handed.pop(peer, None)
        except CroftError as error:
            log.debug("%s was not told of capabilities: %s", self._overlay.name_of(peer), error.message)
            self._not_before[peer] = loop.time() + TELL_AGAIN_S
        finally:
            self._telling.discard(peer)

    def handed_to(self, peer: PeerId) -> frozenset[bytes]:
        """The records that a device was handed."""
        return self._handed[peer][1] if peer in self._handed else frozenset()

    async def _hear(self, link: Link, body: bytes) -> bytes:
        told = decode(body, Told, step=STEP)
        if len(told.records) > TOLD_MAX:
            raise PeerMisbehaved(f"{len(told.records)} capabilities at once", step=STEP)
        now = self._clock.now()
        opened = []
        for community, record in told.records:
            one = open_capability(CommunityId(community), record, now)
            if one.peer != link.peer or community not in link.greeted.communities:
                raise PeerMisbehaved("a capability of somebody else", step=STEP)
            opened.append(one)
        if opened:
            self._told[link.peer] = opened
        else:
            self._told.pop(link.peer, None)
        return b""


def _is_for_all(row: OwnCapability, community: CommunityId) -> bool:
    return MEMBERS in row.to or community in row.to


def _verify(community: CommunityId, record: bytes, now: float) -> Claim:
    capability = open_capability(community, record, now)
    return Claim(capability.key, capability.peer, capability.sequence, capability.expires_at, capability)
