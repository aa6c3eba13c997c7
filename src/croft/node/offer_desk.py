"""Offers as the local API shows and makes them: of processors, memory, disk and devices, and of a relay."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from croft.control import schema
from croft.control.naming import find_person
from croft.control.quantities import part_of_week
from croft.errors import NotFound, Refused, Usage
from croft.ledger.offer import AMOUNT_MAX, AMOUNT_MAX_WHOLE, RESOURCES_MAX, What
from croft.ledger.own_offers import FRIENDS, MEMBERS, MINE, SETTINGS, OwnOffer
from croft.model.amounts import Amounts
from croft.model.hours import show_when
from croft.model.ids import CommunityId, TwinId
from croft.overlay.address_observation import Nat

if TYPE_CHECKING:
    from croft.node.assemble import Parts
    from croft.node.relaying import OwnOffer as RelayOffer

RATE_BYTES_PER_S_MIN: Final = 8_000.0
RECIPIENTS_MAX: Final = 32


class OfferDesk:
    """Fulfils `croft.control.offers_app.Offers`."""

    def __init__(
        self,
        parts: Parts,
        peers: Callable[[], list[schema.Peer]],
        contacts: Callable[[], list[schema.Contact]],
    ) -> None:
        self._parts = parts
        self._peers = peers
        self._contacts = contacts

    def offers(self) -> list[schema.Offer]:
        """This peer's own, then what others offer to it."""
        parts = self._parts
        own = [self._lent(offer) for offer in parts.lending.offers.all() if offer.lent.pairs]
        if parts.relaying.own is not None:
            own.append(self._relay(parts.relaying.own))
        return [*own, *self._of_others()]

    async def lend(self, wanted: schema.LendWanted) -> schema.Offer:
        """One more offer. Raises Usage, NotFound, Busy."""
        if not wanted.lent or len(wanted.lent) > RESOURCES_MAX:
            raise Usage("an offer is of something", remedy="Write it like `croft offer cpu=4 mem=8G --to friends`.")
        if not all(0 < amount <= AMOUNT_MAX_WHOLE for amount in wanted.lent.values()):
            raise Usage("an offer of an impossible amount", remedy="Write it like `cpu=4` or `mem=8G`.")
        for name, place in wanted.places.items():
            check_device(name, place)
            if self._parts.lending.offers.places().get(name, place) != place:
                raise Usage(f"`{name}` is another device in an offer that stands", remedy="Give it another name.")
        if len(wanted.to) > RECIPIENTS_MAX:
            raise Usage("an offer to too many", remedy="Found a community for them, or make them friends.")
        offer = OwnOffer(
            name="",
            lent=Amounts.of(wanted.lent),
            to=tuple(dict.fromkeys(self._recipient(who) for who in wanted.to)) or (MEMBERS,),
            when=part_of_week(wanted.when) if wanted.when else None,
            places=tuple(wanted.places.items()),
        )
        made = await self._parts.lending.offer(offer)
        self._parts.offering.publish()
        return self._lent(made)

    async def offer_relay(self, wanted: schema.OfferWanted) -> schema.Offer:
        """Offers this peer as a relay. Raises Usage, NotFound, Refused."""
        for rate in (wanted.amount, wanted.per_client):
            if rate is not None and not RATE_BYTES_PER_S_MIN <= rate <= AMOUNT_MAX:
                raise Usage(
                    "a relay of less than 64 kbit/s is of use to nobody", remedy="Write the rate like `20Mbit`."
                )
        if self._parts.paths.nat() not in (Nat.UNKNOWN, Nat.NONE, Nat.FULL_CONE):
            raise Refused(
                f"this peer sits behind a NAT ({self._parts.paths.nat()}): others cannot reach a relay here",
                remedy="Offer one on a machine that can be reached.",
            )
        joined = self._parts.overlay.communities()
        if not joined:
            raise NotFound("this peer is in no community yet", remedy="Found one: `croft invite`.")
        communities = [self._community(name) for name in wanted.to] or [one.community for one in joined]
        return self._relay(await self._parts.relaying.offer(wanted.amount, wanted.per_client, communities))

    async def withdraw_offer(self, what: str) -> schema.Offer:
        """Takes an offer back. Raises NotFound, Refused for that of the settings."""
        if what == What.RELAY:
            return self._relay(await self._parts.relaying.withdraw())
        withdrawn = await self._parts.lending.withdraw(what)
        self._parts.offering.publish()
        return self._lent(withdrawn)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _lent(self, offer: OwnOffer) -> schema.Offer:
        own, lending = self._parts.overlay.own, self._parts.lending
        return schema.Offer(
            what=What.LEND,
            number=0 if offer.name == SETTINGS else int(offer.name),
            peer=own.peer,
            name=own.name,
            is_own=True,
            to=[self._name_of(who) for who in offer.to],
            amount=1.0,
            lent=dict(offer.lent.pairs),
            when="" if offer.when is None else show_when(offer.when),
            is_standing=offer.name in lending.standing,
            places=[f"{name}={place}" for name, place in offer.places],
        )

    def _relay(self, offer: RelayOffer) -> schema.Offer:
        own = self._parts.overlay.own
        return schema.Offer(
            what=What.RELAY,
            peer=own.peer,
            name=own.name,
            is_own=True,
            to=[self._community_name(community) for community in offer.communities],
            amount=offer.amount,
            per_client=offer.per_client,
            places=self._parts.relaying.places(),
        )

    def _of_others(self) -> list[schema.Offer]:
        parts = self._parts
        others: dict[str, schema.Offer] = {}
        told = {offer.peer for offer in parts.offering.offers() if offer.number == 0}
        for member in parts.overlay.members():
            if member.peer in (parts.overlay.own.peer, *told) or not (member.slots or member.memory_bytes):
                continue
            lent = {"cpu": member.slots, "mem": member.memory_bytes, "disk": member.disk_bytes}
            others[member.peer] = schema.Offer(
                what=What.LEND,
                peer=member.peer,
                name=member.name,
                is_own=False,
                to=[MEMBERS],
                amount=1.0,
                lent={name: amount for name, amount in lent.items() if amount},
                is_standing=member.slots > 0,
            )
        relays = [offer for offer in parts.relaying.offers() if offer.what == What.RELAY]
        for offer in [*relays, *parts.offering.offers()]:
            if offer.peer == parts.overlay.own.peer:
                continue
            known = others.get(offer.key)
            to = ["you"] if offer.to else [self._community_name(offer.community)]
            others[offer.key] = schema.Offer(
                what=offer.what,
                number=offer.number,
                peer=offer.peer,
                name=parts.overlay.name_of(offer.peer),
                is_own=False,
                to=[*(known.to if known else ()), *to],
                amount=offer.amount,
                lent=dict(offer.lent.pairs),
                when=offer.when,
                is_standing=offer.is_standing,
                places=list(offer.places),
                expires_at=offer.expires_at,
            )
        return sorted(others.values(), key=lambda offer: (offer.what, offer.name, offer.number))

    def _recipient(self, who: str) -> str:
        """Whom a word means: members, friends, mine, a community, or a person. Raises NotFound, Usage."""
        if who in (MEMBERS, FRIENDS, MINE):
            return who
        if any(who in (one.name, one.community) for one in self._parts.overlay.communities()):
            return self._community(who)
        return find_person(self._contacts(), self._peers(), who)

    def _name_of(self, recipient: str) -> str:
        if recipient in (MEMBERS, FRIENDS, MINE):
            return recipient
        named = self._community_name(CommunityId(recipient))
        return named if named != recipient else self._person_name(TwinId(recipient))

    def _person_name(self, twin: TwinId) -> str:
        petname = self._parts.plan.contacts.get(twin).petname
        device = next((member.name for member in self._parts.overlay.members() if member.twin == twin), twin[:10])
        return petname or device

    def _community(self, name: str) -> CommunityId:
        found = [one for one in self._parts.overlay.communities() if name in (one.name, one.community)]
        if not found:
            raise NotFound(f"this peer is in no community called `{name}`", remedy="See yours: `croft status`.")
        if len(found) > 1:
            raise Usage(f"several communities are called `{name}`", remedy="Name it by its id: `croft status --json`.")
        return found[0].community

    def _community_name(self, community: CommunityId) -> str:
        return next((one.name for one in self._parts.overlay.communities() if one.community == community), community)


def check_device(name: str, place: str) -> None:
    """Raises Usage unless a device is a file that code in a box could read."""
    try:
        found = Path(place).stat()
    except OSError as error:
        raise Usage(
            f"`{name}` is not at {place}: {error.strerror}", remedy="Write the path of a device or file."
        ) from None
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISCHR(found.st_mode)):
        raise Usage(f"{place} is neither a file nor a character device", remedy="Lend what it holds, file by file.")
    if os.geteuid() == 0 and not found.st_mode & stat.S_IROTH:
        raise Usage(
            f"{place} cannot be read by everybody, and boxes run as nobody in particular",
            remedy=f"Let them: `chmod o+r {place}`.",
        )
