"""Letters, feeds, keys and messages on disk. Every call is one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from croft.ports import Database
from croft.twins.letters import LIFETIME_S, Box, Feed

KEY_LIFETIME_S: Final = LIFETIME_S + 2 * 86_400.0
MESSAGES_SHOWN_MAX: Final = 1_000
SETTLED: Final = 1
BEGUN: Final = 2
"""What `is_read` may say besides 0."""

_WHERE_FEED: Final = "community = ? AND recipient = ? AND room = ? AND device = ?"
_MESSAGE: Final = (
    "number, id, community, recipient, room, device, sequence, author, written_at, arrived_at, kind, text, answers,"
    " missing, is_read, delivered_at"
)


@dataclass(frozen=True, slots=True)
class Kept:
    """A letter to be kept."""

    feed: Feed
    sequence: int
    author: str
    written_at: float
    record: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody wrote, as its reader or its author sees it.

    Attributes:
        number: in the order in which they came here; 0 while it is not kept.
        missing: how many letters before it never came.
        kind: of `Body`, or SEALED where this device was given no key.
        is_read: whether its reader has seen it, or it was settled; has_begun: whether that was begun.
        delivered_at: when a device of the reader had it; of own ones alone.
    """

    id: str
    feed: Feed
    sequence: int
    author: str
    written_at: float
    arrived_at: float
    kind: str
    text: str
    answers: str = ""
    missing: int = 0
    is_read: bool = False
    delivered_at: float | None = None
    number: int = 0
    has_begun: bool = False


@dataclass(slots=True)
class Changes:
    """What one transaction writes."""

    letters: list[Kept] = field(default_factory=list)
    progress: dict[Feed, tuple[int, bytes]] = field(default_factory=dict)
    keys: list[tuple[Feed, int, bytes, float]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)


class LetterStore:
    """What this peer keeps of letters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, changes: Changes) -> None:
        """All of it or nothing. Raises Failed."""
        letters = [
            (*_columns(kept.feed), kept.sequence, kept.author, kept.written_at, kept.record) for kept in changes.letters
        ]
        progress = [(*_columns(feed), *reached) for feed, reached in changes.progress.items()]
        keys = [(*_columns(feed), number, key, at) for feed, number, key, at in changes.keys]
        messages = [_row(message) for message in changes.messages]

        def write(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR IGNORE INTO letter VALUES (?, ?, ?, ?, ?, ?, ?, ?)", letters)
            db.executemany("INSERT OR REPLACE INTO letter_feed VALUES (?, ?, ?, ?, ?, ?)", progress)
            db.executemany("INSERT OR REPLACE INTO letter_key VALUES (?, ?, ?, ?, ?, ?, ?)", keys)
            places = ", ".join("?" * 16)
            db.executemany(f"INSERT OR IGNORE INTO message ({_MESSAGE}) VALUES ({places})", messages)

        await self._database.run(write)

    async def progress(self) -> list[tuple[Feed, int, bytes]]:
        """How far each feed was read or written."""
        sql = "SELECT community, recipient, room, device, next, last FROM letter_feed"
        rows = await self._database.run(lambda db: db.execute(sql).fetchall())
        return [(_feed(row), row[4], row[5]) for row in rows]

    async def numbers(self) -> list[tuple[Feed, str, int, int]]:
        """Of all that is kept: feed, author, number, size in bytes; in order."""
        sql = (
            "SELECT community, recipient, room, device, author, sequence, length(record) FROM letter"
            " ORDER BY community, recipient, room, device, sequence"
        )
        rows = await self._database.run(lambda db: db.execute(sql).fetchall())
        return [(_feed(row), row[4], row[5], row[6]) for row in rows]

    async def records(self, feed: Feed, first: int, last: int, bytes_max: int) -> list[bytes]:
        """Letters of a feed by number, as many as fit."""
        sql = f"SELECT record FROM letter WHERE {_WHERE_FEED} AND sequence BETWEEN ? AND ? ORDER BY sequence"

        def read(db: sqlite3.Connection) -> list[bytes]:
            found: list[bytes] = []
            size = 0
            for (record,) in db.execute(sql, (*_columns(feed), first, last)):
                size += len(record)
                if size > bytes_max:
                    break
                found.append(record)
            return found

        return await self._database.run(read)

    async def key(self, feed: Feed, number: int) -> bytes | None:
        """A key that a letter of this feed brought."""
        sql = f"SELECT secret FROM letter_key WHERE {_WHERE_FEED} AND number = ?"
        row = await self._database.run(lambda db: db.execute(sql, (*_columns(feed), number)).fetchone())
        return row[0] if row else None

    async def messages(self, after: int, box: Box | None, count_max: int) -> list[Message]:
        """The newest messages that came after that number, oldest first."""
        where = "number > ?" + ("" if box is None else " AND community = ? AND recipient = ? AND room = ?")
        sql = f"SELECT {_MESSAGE} FROM message WHERE {where} ORDER BY number DESC LIMIT ?"
        values = (after, *(box or ()), min(count_max, MESSAGES_SHOWN_MAX))
        rows = await self._database.run(lambda db: db.execute(sql, values).fetchall())
        return [_message(row) for row in reversed(rows)]

    async def message(self, id_start: str) -> list[Message]:
        """Messages whose id begins so; two at most."""
        sql = f"SELECT {_MESSAGE} FROM message WHERE substr(id, 1, ?) = ? LIMIT 2"
        rows = await self._database.run(lambda db: db.execute(sql, (len(id_start), id_start)).fetchall())
        return [_message(row) for row in rows]

    async def unsettled(self, kind: str, but_by: str) -> list[Message]:
        """Messages of a kind that were not settled yet, by others than that author, oldest first."""
        sql = f"SELECT {_MESSAGE} FROM message WHERE kind = ? AND author != ? AND is_read != ? ORDER BY number"
        values = kind, but_by, SETTLED
        return [_message(row) for row in await self._database.run(lambda db: db.execute(sql, values).fetchall())]

    async def mark(self, id_: str, state: int) -> None:
        """How far a message is settled."""
        await self._database.run(
            lambda db: db.execute("UPDATE message SET is_read = ? WHERE id = ?", (state, id_)).rowcount
        )

    async def mark_read(self, numbers: Sequence[int]) -> None:
        """The owner has seen these."""
        rows = [(number,) for number in numbers]
        await self._database.run(
            lambda db: db.executemany("UPDATE message SET is_read = 1 WHERE number = ?", rows).rowcount
        )

    async def mark_delivered(self, feed: Feed, up_to: int, now: float) -> int:
        """A device of the reader has own letters up to that number; returns how many had not been."""
        sql = f"UPDATE message SET delivered_at = ? WHERE {_WHERE_FEED} AND sequence <= ? AND delivered_at IS NULL"
        return await self._database.run(lambda db: db.execute(sql, (now, *_columns(feed), up_to)).rowcount)

    async def forget_old(self, now: float) -> None:
        """Drops letters and keys that are past their time. Messages stay: they are the owner's."""

        def forget(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM letter WHERE written_at < ?", (now - LIFETIME_S,))
            db.execute("DELETE FROM letter_key WHERE came_at < ?", (now - KEY_LIFETIME_S,))

        await self._database.run(forget)

    async def forget_feeds(self, feeds: Sequence[Feed]) -> None:
        """Drops the letters of some feeds: their community was left."""
        rows = [_columns(feed) for feed in feeds]
        await self._database.run(lambda db: db.executemany(f"DELETE FROM letter WHERE {_WHERE_FEED}", rows).rowcount)


def _columns(feed: Feed) -> tuple[str, str, str, str]:
    return (*feed.box, feed.device)


def _feed(row: Sequence[str]) -> Feed:
    return Feed(Box(row[0], row[1], row[2]), row[3])


def _row(message: Message) -> tuple[object, ...]:
    return tuple(
        chain(
            (None, message.id, *_columns(message.feed), message.sequence, message.author, message.written_at),
            (message.arrived_at, message.kind, message.text, message.answers, message.missing),
            (int(message.is_read), message.delivered_at),
        )
    )


def _message(row: tuple[Any, ...]) -> Message:
    number, id_, community, recipient, room, device, *rest = row
    sequence, author, written_at, arrived_at, kind, text, answers, missing, is_read, delivered_at = rest
    feed = Feed(Box(str(community), str(recipient), str(room)), str(device))
    return Message(
        *(id_, feed, sequence, author, written_at, arrived_at),
        kind=kind,
        text=text,
        answers=answers,
        missing=missing,
        is_read=is_read == SETTLED,
        delivered_at=delivered_at,
        number=number,
        has_begun=is_read == BEGUN,
    )
