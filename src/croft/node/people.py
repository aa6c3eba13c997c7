"""The people this machine's owner knows, as the local API shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from croft.control import schema
from croft.control.naming import find_person
from croft.errors import Usage
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

    def _shown(self, contact: Contact) -> schema.Contact:
        return schema.Contact(
            twin=contact.twin,
            petname=contact.petname,
            trust=contact.trust.value,
            is_blocked=contact.is_blocked,
            added_at=contact.added_at,
            devices=[peer.name for peer in self._peers() if peer.twin == contact.twin],
        )


def _trust(text: str) -> Trust:
    try:
        return Trust(text)
    except ValueError:
        levels = "; ".join(f"{trust}: {means}" for trust, means in TRUST_TEXT.items())
        raise Usage(f"`{text}` is not a level of trust", remedy=levels) from None
