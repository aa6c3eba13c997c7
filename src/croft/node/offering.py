"""Tells communities what this peer offers, and knows what others offer to this one: signed records, renewed while they
stand.

What is for every member at any time, and of nothing special, a peer's descriptor says already, which is signed and
expires too; a record is made only of what else is offered, so that a plain peer costs the community nothing more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from croft.identity.by_member import Signatory
from croft.ledger.offer import (
    LENDING_RENEW_EVERY_S,
    OFFER_KIND,
    TWINS_MAX,
    Lent,
    Offer,
    What,
    make_lending_offer,
)
from croft.ledger.own_offers import FRIENDS, MEMBERS, SETTINGS, OwnOffer
from croft.model.amounts import CPU, DISK, MEMORY, Amounts
from croft.model.hours import show_when
from croft.model.ids import CommunityId, PeerId, TwinId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from croft.node.lending import Lending
    from croft.overlay.membership import Member
    from croft.overlay.service import Overlay
    from croft.ports import Clock

LOOK_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class OfferedHere:
    """What one peer offers to this one now. `reason` says when, if it offers no processors now."""

    amounts: Amounts = field(default_factory=Amounts)
    reason: str = ""

    @property
    def devices(self) -> frozenset[str]:
        """What there is besides processors, memory and disk."""
        return frozenset(name for name in self.amounts if name not in (CPU, MEMORY, DISK))


class Offering:
    """The board of offers of this peer's communities."""

    def __init__(
        self, overlay: Overlay, lending: Lending, clock: Clock, friends: Callable[[], Iterable[TwinId]]
    ) -> None:
        self._overlay = overlay
        self._lending = lending
        self._clock = clock
        self._friends = friends
        self._published: dict[tuple[CommunityId, int], tuple[Lent, float]] = {}

    # --- what others offer -------------------------------------------------------------------------------------------

    def offers(self) -> list[Offer]:
        """What others offer to the owner of this peer by records."""
        own = self._overlay.own
        found = [entry.claim.value for entry in self._overlay.records.entries(OFFER_KIND)]
        return [
            offer
            for offer in found
            if isinstance(offer, Offer)
            and offer.what == What.LEND
            and offer.amount > 0
            and offer.is_for(own.twin)
            and offer.peer != own.peer
        ]

    def offered_here(self) -> Mapping[PeerId, OfferedHere]:
        """What each peer that made a record offers to this one, besides what its descriptor says; own ones too."""
        here: dict[PeerId, OfferedHere] = {self._overlay.own.peer: OfferedHere(self._lending.now)}
        for offer in self.offers():
            known = here.get(offer.peer, OfferedHere())
            if offer.is_standing:
                here[offer.peer] = OfferedHere(known.amounts.most(offer.lent), known.reason)
            elif offer.when:
                here[offer.peer] = OfferedHere(known.amounts, f"it lends to you at {offer.when}")
        return here

    # --- what this peer offers ---------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Publishes what changes or grows old; until cancelled."""
        while True:
            self.publish()
            await asyncio.sleep(LOOK_EVERY_S)

    def publish(self) -> None:
        """Tells each community what is offered there, and takes back what no longer is."""
        now = self._clock.now()
        wanted = {
            (membership.community, lent.number): lent
            for membership in self._overlay.communities()
            for lent in self._told_in(membership.community)
        }
        for key, lent in wanted.items():
            told = self._published.get(key)
            if told is None or told[0] != lent or not 0 <= now - told[1] < LENDING_RENEW_EVERY_S:
                self._tell(key[0], lent, is_withdrawn=False)
                self._published[key] = (lent, now)
        for key in [key for key in self._published if key not in wanted]:
            lent, _ = self._published.pop(key)
            self._tell(key[0], lent, is_withdrawn=True)

    def _told_in(self, community: CommunityId) -> list[Lent]:
        offers = [offer for offer in self._lending.offers.all() if offer.lent.pairs and not offer.is_plain]
        if not offers:
            return []
        members = self._overlay.community_members(community)
        told: list[Lent] = []
        for offer in offers:
            to = self._meant(offer, community, members)
            if to is not None:
                told.append(
                    Lent(
                        0 if offer.name == SETTINGS else int(offer.name),
                        offer.lent,
                        to,
                        "" if offer.when is None else show_when(offer.when),
                        offer.name in self._lending.standing,
                    )
                )
        return told

    def _meant(self, offer: OwnOffer, community: CommunityId, members: list[Member]) -> tuple[str, ...] | None:
        """For whom of a community an offer is: empty for everybody, None for nobody."""
        if MEMBERS in offer.to or community in offer.to:
            return ()
        own = self._overlay.own
        friends = frozenset(self._friends()) if FRIENDS in offer.to else frozenset()
        meant = sorted({m.twin for m in members if m.twin in offer.to or m.twin in friends})
        if any(member.twin == own.twin and member.peer != own.peer for member in members):
            meant = [own.twin, *(twin for twin in meant if twin != own.twin)]
        return tuple(meant[:TWINS_MAX]) or None

    def _tell(self, community: CommunityId, lent: Lent, *, is_withdrawn: bool) -> None:
        membership = self._overlay.passport.memberships.get(community)
        if membership is None:
            return
        own, records = self._overlay.own, self._overlay.records
        offerer = Signatory(own.device, own.certificate, community, membership.chain)
        now, sequence = self._clock.now(), records.next_sequence()
        record = make_lending_offer(offerer, lent, is_withdrawn=is_withdrawn, now=now, sequence=sequence)
        records.publish(OFFER_KIND, community, record)
