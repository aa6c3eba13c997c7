"""Keeps the owner's contacts on disk and alike on all devices, and makes a block felt at once: the shell of `contacts`.

A device tells the others what changed, and all it has noted whenever a link between two of them comes up. What one
missed while it was off, it hears from whichever it meets first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from croft.errors import CroftError, PeerMisbehaved
from croft.model.ids import TwinId
from croft.overlay.contacts import STEP, Contact, ContactBook, Trust
from croft.wire.codec import Message, decode, encode

if TYPE_CHECKING:
    import sqlite3

    from croft.overlay.link import Link
    from croft.overlay.service import Overlay
    from croft.ports import Clock, Database

log = logging.getLogger(__name__)

NOTICE_CONTACTS = "own.contacts"
NOTES_PER_NOTICE_MAX: Final = 256
WAITING_MAX: Final = 64
MEET_EVERY_S: Final = 3_600.0
"""In a large community, devices of one person need not be linked by chance."""


class Note(Message, frozen=True):
    """One contact, as a device of the owner's has it."""

    twin: str
    petname: str
    trust: str
    is_blocked: bool
    added_at: float
    changed_at: float
    is_forgotten: bool = False


class OwnContacts(Message, frozen=True):
    """What the sender has noted, or some of it."""

    notes: list[Note]


class AddressBook:
    """The owner's contacts. `load` before use; made before links come up."""

    def __init__(self, book: ContactBook, database: Database, clock: Clock, overlay: Overlay) -> None:
        self._book = book
        self._database = database
        self._clock = clock
        self._overlay = overlay
        self._heard: asyncio.Queue[Sequence[Contact]] = asyncio.Queue(WAITING_MAX)
        self._has_changed = asyncio.Event()
        overlay.links.on_notice(NOTICE_CONTACTS, self._hear)
        overlay.links.on_up(lambda link: self._tell(link, self._book.notes()))

    async def load(self) -> None:
        """Takes in what the last run left on disk."""

        def read(db: sqlite3.Connection) -> list[Contact]:
            columns = "twin, petname, trust, is_blocked, added_at, changed_at, is_forgotten"
            rows = db.execute(f"SELECT {columns} FROM contact").fetchall()
            return [
                Contact(TwinId(twin), petname, Trust(trust), bool(is_blocked), added_at, changed_at, bool(is_forgotten))
                for twin, petname, trust, is_blocked, added_at, changed_at, is_forgotten in rows
            ]

        self._book.load(await self._database.run(read))

    def all(self) -> list[Contact]:
        """Every contact, by petname."""
        return self._book.all()

    def notes(self) -> list[Note]:
        """All that is noted, what was forgotten too, for another device of the owner's."""
        return [_note(contact) for contact in self._book.notes()]

    async def take_in(self, notes: Sequence[Note]) -> int:
        """Takes in what a device of the owner's noted; returns how many contacts are new. Raises PeerMisbehaved."""
        return await self._merge([_contact(note) for note in notes])

    async def name(self, twin: TwinId, petname: str) -> Contact:
        """Gives a person a petname. Raises Usage, Busy."""
        return await self._changed(self._book.name(twin, petname, self._clock.now()))

    async def trust(self, twin: TwinId, trust: Trust) -> Contact:
        """Trusts a person more or less. Raises Usage, Busy."""
        return await self._changed(self._book.trust(twin, trust, self._clock.now()))

    async def block(self, twin: TwinId) -> Contact:
        """Nothing of this person from now on: links end at once, and what ran over them. Raises Usage, Busy."""
        return await self._changed(self._book.block(twin, self._clock.now()))

    async def unblock(self, twin: TwinId) -> Contact:
        """Undoes `block`. Raises NotFound."""
        return await self._changed(self._book.unblock(twin, self._clock.now()))

    async def remove(self, twin: TwinId) -> Contact:
        """Forgets a contact; returns what was noted. Raises NotFound."""
        noted = self._book.get(twin)
        await self._changed(self._book.remove(twin, self._clock.now()))
        return noted

    # --- the owner's other devices -----------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Takes in what other devices of the owner's tell, and sees to it that they meet; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_in(), name="contacts.take_in")
            tasks.create_task(self._meet(), name="contacts.meet")

    async def _meet(self) -> None:
        while True:
            own = self._overlay.own
            others = {member.peer for member in self._overlay.members() if member.twin == own.twin} - {own.peer}
            for peer in sorted(others):
                with contextlib.suppress(CroftError):
                    await self._overlay.link_to(peer)
            self._has_changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MEET_EVERY_S):
                    await self._has_changed.wait()

    async def _take_in(self) -> None:
        while True:
            await self._merge(await self._heard.get())

    async def _merge(self, notes: Sequence[Contact]) -> int:
        """Writes down what is later than what is noted here; how much that was."""
        merged = [self._book.merge(note, self._clock.now()) for note in notes]
        for contact in merged:
            if contact is not None:
                await self._save(contact)
        return sum(contact is not None for contact in merged)

    def _tell(self, link: Link, notes: Sequence[Contact]) -> None:
        if link.greeted.twin != self._overlay.own.twin:
            return
        said = [_note(contact) for contact in notes]
        for start in range(0, len(said), NOTES_PER_NOTICE_MAX):
            link.notify(NOTICE_CONTACTS, encode(OwnContacts(said[start : start + NOTES_PER_NOTICE_MAX])))

    def _hear(self, link: Link, body: bytes) -> None:
        if link.greeted.twin != self._overlay.own.twin:
            raise PeerMisbehaved("contacts of somebody else", step=STEP)
        said = decode(body, OwnContacts, step=STEP).notes
        if len(said) > NOTES_PER_NOTICE_MAX:
            raise PeerMisbehaved(f"{len(said)} contacts at once", step=STEP)
        notes = [_contact(note) for note in said]
        if self._heard.full():
            log.warning("device %s tells contacts faster than they are written down", link.greeted.name)
            return
        self._heard.put_nowait(notes)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _changed(self, contact: Contact) -> Contact:
        saved = await self._save(contact)
        for link in self._overlay.links.all():
            self._tell(link, [contact])
        self._has_changed.set()
        return saved

    async def _save(self, contact: Contact) -> Contact:
        # A block counts before it is written: the disk may be slow, and nothing may slip in meanwhile.
        self._overlay.person_changed(contact.twin)
        row = (
            contact.twin,
            contact.petname,
            contact.trust.value,
            int(contact.is_blocked),
            contact.added_at,
            contact.changed_at,
            int(contact.is_forgotten),
        )
        sql = "INSERT OR REPLACE INTO contact VALUES (?, ?, ?, ?, ?, ?, ?)"
        await self._database.run(lambda db: db.execute(sql, row).rowcount)
        return contact


def _note(c: Contact) -> Note:
    return Note(c.twin, c.petname, c.trust.value, c.is_blocked, c.added_at, c.changed_at, c.is_forgotten)


def _contact(note: Note) -> Contact:
    try:
        trust = Trust(note.trust)
    except ValueError:
        raise PeerMisbehaved("trust of no known kind", step=STEP) from None
    twin = TwinId(note.twin)
    return Contact(twin, note.petname, trust, note.is_blocked, note.added_at, note.changed_at, note.is_forgotten)
