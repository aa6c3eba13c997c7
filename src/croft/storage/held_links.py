"""Keeps what links of others lead to, and what was written by them: for whom each link names, and nobody else."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from croft.errors import Busy, NotFound, Refused
from croft.ports import Clock, Database
from croft.storage.links import LinkState, open_link_state
from croft.storage.permits import Bearer, check_permit
from croft.storage.proposals import (
    PROPOSALS_MAX,
    PROPOSALS_OF_OWNER_MAX,
    Proposal,
    check_writes,
    open_proposal,
)

LINKS_MAX: Final = 10_000


class HeldLinks:
    """On this disk, the owner's own links among them: whoever asks this peer for one gets the newest."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.on_proposal: Callable[[bytes], None] = lambda owner: None
        """Told whose link was written by."""

    async def keep(self, consumer: Bearer, record: bytes) -> None:
        """Keeps the state of a link, if it is newer than what is here. Raises Refused, Busy, PeerMisbehaved."""
        state = open_link_state(record)
        if state.owner.hex() != consumer.twin:
            raise Refused("a link is put by a device of its owner")
        await self.keep_own(state, record)

    async def keep_own(self, state: LinkState, record: bytes) -> None:
        """The same, for what is known to be signed."""
        row = (state.owner, state.id, state.sequence, record)

        def write(db: sqlite3.Connection) -> None:
            sql = "SELECT count(*) FROM held_link WHERE owner = ? AND id <> ?"
            if db.execute(sql, row[:2]).fetchone()[0] >= LINKS_MAX:
                raise Busy(f"this peer keeps {LINKS_MAX} links of yours already", remedy="Revoke some first.")
            is_newer = db.execute(
                "INSERT INTO held_link VALUES (?, ?, ?, ?) ON CONFLICT (owner, id) DO UPDATE "
                "SET sequence = excluded.sequence, record = excluded.record WHERE excluded.sequence > sequence",
                row,
            ).rowcount
            if is_newer:
                over = state.taken if state.sealed else _every_device(db, state)
                sql = "DELETE FROM held_proposal WHERE owner = ? AND id = ? AND device = ? AND sequence <= ?"
                db.executemany(sql, [(*row[:2], device, sequence) for device, sequence in over])

        await self._database.run(write)

    async def record(self, owner: bytes, link: bytes) -> bytes | None:
        """The state of a link, as it was signed; None: it is not kept here."""
        pair = (owner, link)
        sql = "SELECT record FROM held_link WHERE owner = ? AND id = ?"
        row = await self._database.run(lambda db: db.execute(sql, pair).fetchone())
        return None if row is None else row[0]

    async def state(self, owner: bytes, link: bytes) -> LinkState | None:
        """The same, opened."""
        record = await self.record(owner, link)
        return None if record is None else open_link_state(record)

    async def read(self, consumer: Bearer, owner: bytes, link: bytes) -> tuple[bytes, list[bytes]]:
        """The state of a link, and what was written by it, as they were signed. Raises NotFound, Refused."""
        record, state = await self._state(owner, link)
        if owner.hex() != consumer.twin:
            check_permit(state.permit, owner, consumer, self._clock.now(), puts=False)
        return record, await self.proposals(owner, link)

    async def proposals(self, owner: bytes, link: bytes) -> list[bytes]:
        """What was written by a link and is not taken in yet."""
        pair = (owner, link)
        sql = "SELECT record FROM held_proposal WHERE owner = ? AND id = ? ORDER BY device"
        rows = await self._database.run(lambda db: db.execute(sql, pair).fetchall())
        return [record for (record,) in rows]

    async def propose(self, consumer: Bearer, record: bytes) -> None:
        """Keeps what somebody wrote by a link. Raises NotFound, Refused, Busy, PeerMisbehaved."""
        proposal = open_proposal(record)
        if proposal.owner.hex() != consumer.twin:
            raise Refused("a proposal is put by a device of whoever wrote it")
        _, state = await self._state(proposal.link_owner, proposal.link)
        check_writes(state, consumer, self._clock.now())
        if proposal.sequence <= dict(state.taken).get(proposal.device, 0):
            return  # its owner has it
        await self._database.run(lambda db: _insert(db, proposal, record))
        self.on_proposal(proposal.link_owner)

    async def _state(self, owner: bytes, link: bytes) -> tuple[bytes, LinkState]:
        record = await self.record(owner, link)
        if record is None:
            raise NotFound("this link is not known here")
        return record, open_link_state(record)


def _every_device(db: sqlite3.Connection, state: LinkState) -> list[tuple[bytes, int]]:
    sql = "SELECT device, sequence FROM held_proposal WHERE owner = ? AND id = ?"
    rows: list[tuple[bytes, int]] = db.execute(sql, (state.owner, state.id)).fetchall()
    return rows


def _insert(db: sqlite3.Connection, proposal: Proposal, record: bytes) -> None:
    place = (proposal.link_owner, proposal.link, proposal.device)
    sql = "SELECT count(*) FROM held_proposal WHERE owner = ? AND id = ? AND device <> ?"
    of_link = db.execute(sql, place).fetchone()[0]
    of_owner = db.execute("SELECT count(*) FROM held_proposal WHERE owner = ?", place[:1]).fetchone()[0]
    if of_link >= PROPOSALS_MAX or of_owner >= PROPOSALS_OF_OWNER_MAX:
        raise Busy(
            "too much that others wrote waits for the owner of this link", remedy="Try again when its owner was here."
        )
    db.execute(
        "INSERT INTO held_proposal VALUES (?, ?, ?, ?, ?) ON CONFLICT (owner, id, device) DO UPDATE "
        "SET sequence = excluded.sequence, record = excluded.record WHERE excluded.sequence > sequence",
        (*place, proposal.sequence, record),
    )
