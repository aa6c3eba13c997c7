"""Keeps the owner's contacts on disk, and makes a block felt at once: the shell of `contacts`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from croft.model.ids import TwinId
from croft.overlay.contacts import Contact, ContactBook, Trust

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import Clock, Database


class AddressBook:
    """The owner's contacts. `load` before use; `on_change` is told whom a change concerns."""

    def __init__(
        self, book: ContactBook, database: Database, clock: Clock, on_change: Callable[[TwinId], None]
    ) -> None:
        self._book = book
        self._database = database
        self._clock = clock
        self._on_change = on_change

    async def load(self) -> None:
        """Takes in what the last run left on disk."""

        def read(db: sqlite3.Connection) -> list[Contact]:
            rows = db.execute("SELECT twin, petname, trust, is_blocked, added_at FROM contact").fetchall()
            return [
                Contact(TwinId(twin), petname, Trust(trust), bool(is_blocked), added_at)
                for twin, petname, trust, is_blocked, added_at in rows
            ]

        self._book.load(await self._database.run(read))

    def all(self) -> list[Contact]:
        """Every contact, by petname."""
        return self._book.all()

    async def name(self, twin: TwinId, petname: str) -> Contact:
        """Gives a person a petname. Raises Usage, Busy."""
        return await self._save(self._book.name(twin, petname, self._clock.now()))

    async def trust(self, twin: TwinId, trust: Trust) -> Contact:
        """Trusts a person more or less. Raises Usage, Busy."""
        return await self._save(self._book.trust(twin, trust, self._clock.now()))

    async def block(self, twin: TwinId) -> Contact:
        """Nothing of this person from now on: links end at once, and what ran over them. Raises Usage, Busy."""
        return await self._save(self._book.block(twin, self._clock.now()))

    async def unblock(self, twin: TwinId) -> Contact:
        """Undoes `block`. Raises NotFound."""
        return await self._save(self._book.unblock(twin))

    async def remove(self, twin: TwinId) -> Contact:
        """Forgets a contact. Raises NotFound."""
        contact = self._book.remove(twin)
        self._on_change(twin)
        await self._database.run(lambda db: db.execute("DELETE FROM contact WHERE twin = ?", (twin,)).rowcount)
        return contact

    async def _save(self, contact: Contact) -> Contact:
        # A block counts before it is written: the disk may be slow, and nothing may slip in meanwhile.
        self._on_change(contact.twin)
        row = (contact.twin, contact.petname, contact.trust.value, int(contact.is_blocked), contact.added_at)
        await self._database.run(
            lambda db: db.execute("INSERT OR REPLACE INTO contact VALUES (?, ?, ?, ?, ?)", row).rowcount
        )
        return contact
