"""The people this machine's owner knows, as the local API shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from croft.control import schema
from croft.control.naming import find_peer, find_person
from croft.errors import Usage
from croft.identity.revocations import Revoked
from croft.model.ids import PeerId, short
from croft.overlay.contacts import TRUST_TEXT, Contact, Trust

if TYPE_CHECKING:
    from croft.node.assemble import Parts


class PeopleDesk:
    """Fulfils `croft.control.people_app.People`."""

    def __init__(self, parts: Parts, peers: Callable[[], list[schema.Peer]]) -> None:
        self._parts = parts
        self._peers = peers

    def contacts(self) -> list[schema.Contact]:
        """Everybody noted, by petname."""
        return [self._shown(contact) for contact in self._parts.address_book.all()]

    async def note(self, wanted: schema.ContactWanted) -> schema.Contact:
        """Notes a person, or changes what is noted. Raises NotFound, Usage, Busy."""
        book, peers = self._parts.address_book, self._peers()
        twin = find_person(self.contacts(), peers, wanted.who)
        contact = self._parts.plan.contacts.get(twin)
        petname = wanted.petname
        if petname is None and not contact.petname:
            # Whoever is noted gets a name that stays, whatever they call themselves later.
            petname = next((peer.self_name for peer in peers if peer.twin == twin), None)
            if petname is not None and any(petname.casefold() == one.petname.casefold() for one in book.all()):
                petname = f"{petname} {twin[:4]}"
        if wanted.trust is not None:
            contact = await book.trust(twin, _trust(wanted.trust))
        if wanted.is_blocked is not None:
            contact = await (book.block(twin) if wanted.is_blocked else book.unblock(twin))
        if petname is not None:
            contact = await book.name(twin, petname)
        return self._shown(contact)

    async def forget(self, who: str) -> schema.Contact:
        """Forgets what is noted of a person. Raises NotFound, Usage."""
        twin = find_person(self.contacts(), self._peers(), who)
        return self._shown(await self._parts.address_book.remove(twin))

    # --- the owner's devices -----------------------------------------------------------------------------------------

    def devices(self) -> list[schema.Device]:
        """This one first, then the others, then those that are revoked."""
        own, devices = self._parts.overlay.own, self._parts.devices
        living = [
            schema.Device(
                peer=peer.peer,
                name=peer.name,
                is_self=peer.is_self,
                link=peer.link,
                seen_at=peer.seen_at,
                holds_key=devices.holds_key if peer.is_self else None,
            )
            for peer in self._peers()
            if peer.twin == own.twin
        ]
        return living + [_revoked(one) for one in devices.revoked(own.twin)]

    async def add_device(self, wanted: schema.InvitationWanted) -> schema.Invitation:
        """A line that makes a fresh machine a device of this owner. Raises Refused, Usage, Busy."""
        made = await self._parts.admissions.add_device(wanted.lifetime_s)
        row = made.invitation
        return schema.Invitation(
            invitation=row.id,
            community=row.community,
            state=row.state,
            created_at=row.created_at,
            expires_at=row.expires_at,
            guesses_left=row.guesses_left,
            line=made.line,
        )

    async def revoke_device(self, name: str) -> schema.Device:
        """Shuts a device of this owner out for ever. Raises Refused, NotFound, Usage."""
        peer = find_peer([peer for peer in self._peers() if peer.twin == self._parts.overlay.own.twin], name)
        return _revoked(await self._parts.devices.revoke(PeerId(peer.peer)))

    def _shown(self, contact: Contact) -> schema.Contact:
        return schema.Contact(
            twin=contact.twin,
            petname=contact.petname,
            trust=contact.trust.value,
            is_blocked=contact.is_blocked,
            added_at=contact.added_at,
            devices=[peer.name for peer in self._peers() if peer.twin == contact.twin],
        )


def _revoked(one: Revoked) -> schema.Device:
    return schema.Device(peer=one.peer, name=short(one.peer), is_self=False, link="revoked", revoked_at=one.revoked_at)


def _trust(text: str) -> Trust:
    try:
        return Trust(text)
    except ValueError:
        levels = "; ".join(f"{trust}: {means}" for trust, means in TRUST_TEXT.items())
        raise Usage(f"`{text}` is not a level of trust", remedy=levels) from None
