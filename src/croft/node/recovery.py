"""What an owner's words bring back besides the files: contacts and memberships, kept beside the files, sealed alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from croft.control import schema
from croft.errors import PeerMisbehaved, Refused
from croft.identity.grants import verify_chain
from croft.model.ids import CommunityId
from croft.overlay.address_book import Note
from croft.overlay.passport import Membership
from croft.wire.codec import Message, decode, encode

if TYPE_CHECKING:
    from croft.overlay.address_book import AddressBook
    from croft.overlay.service import Overlay
    from croft.ports import Clock
    from croft.storage.service import Storage

PROFILE: Final = b"profile"
STEP: Final = "own profile"


class Profile(Message, frozen=True):
    """What a twin is to itself. `memberships`: community, its name, the chain of grants."""

    memberships: list[tuple[str, str, list[bytes]]]
    contacts: list[Note]


class Recovery:
    """Has the profile kept beside the files, and takes it in again on a new machine."""

    def __init__(self, overlay: Overlay, address_book: AddressBook, storage: Storage, clock: Clock) -> None:
        self._overlay = overlay
        self._address_book = address_book
        self._storage = storage
        self._clock = clock
        storage.notes = self._notes

    def _notes(self) -> dict[bytes, bytes]:
        memberships = [(str(one.community), one.name, list(one.chain)) for one in self._overlay.communities()]
        return {PROFILE: encode(Profile(memberships, self._address_book.notes()))}

    async def recover(self) -> schema.Recovered:
        """Takes in what peers hold for this twin: its files, contacts and memberships.

        Raises:
            NotFound: no peer that is up holds anything. Refused: this device has files, or not the key to them.
        """
        files = await self._storage.recover()
        data = await self._storage.note(PROFILE)
        if data is None:
            return schema.Recovered(files=files, contacts=0, communities=0)
        profile = decode(data, Profile, step=STEP)
        contacts = await self._address_book.take_in(profile.contacts)
        known = {membership.community for membership in self._overlay.communities()}
        communities = 0
        for community, name, chain in profile.memberships:
            membership = Membership(CommunityId(community), name, tuple(chain))
            if membership.community in known:
                continue
            try:
                verify_chain(membership.community, membership.chain, self._overlay.own.twin, self._clock.now())
            except (Refused, PeerMisbehaved):
                continue  # it has run out meanwhile
            await self._overlay.enter(membership)
            communities += 1
        return schema.Recovered(files=files, contacts=contacts, communities=communities)
