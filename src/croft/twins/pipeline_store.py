"""Pipelines and their items on disk. Every call is one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from croft.model.kept import Held
from croft.twins.pipeline import Item
from croft.wire.codec import Message

if TYPE_CHECKING:
    from croft.ports import Database


class StageSpec(Message, frozen=True):
    """One stage.

    Attributes:
        name: of the capability. of: the peer or twin that is to run it, by id; empty: any.
        arguments: of every call, an object in the safe codec. parameter: which argument each item becomes.
        signature: digest of the signature that is meant. time_s_max: of one call; 0: as its provider says.
    """

    name: str
    of: str
    arguments: bytes
    parameter: str
    signature: bytes
    time_s_max: float = 0.0


class PipelineSpec(Message, frozen=True):
    """What is to be done with each item. `retries`: how often a stage may fail on an item by itself."""

    name: str
    stages: list[StageSpec]
    retries: int = 0


@dataclass(frozen=True, slots=True)
class KeptPipeline:
    """A pipeline as it is on disk. `state`: see `croft.twins.pipelines`."""

    id: str
    spec: PipelineSpec
    created_at: float
    ended_at: float | None
    state: str


class PipelineStore:
    """The pipelines of this peer's owner."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[KeptPipeline]:
        """Oldest first."""
        sql = "SELECT id, spec, created_at, ended_at, state FROM pipeline ORDER BY created_at, id"
        rows = await self._database.run(lambda db: db.execute(sql).fetchall())
        return [KeptPipeline(row[0], msgspec.msgpack.decode(row[1], type=PipelineSpec), *row[2:]) for row in rows]

    async def items(self, pipeline: str) -> list[Item]:
        """In the order of their numbers."""
        sql = "SELECT stage, held, error, is_over FROM pipeline_item WHERE pipeline = ? ORDER BY number"
        rows = await self._database.run(lambda db: db.execute(sql, (pipeline,)).fetchall())
        return [
            Item(stage, msgspec.msgpack.decode(held, type=list[Held | None]), error=error, is_over=bool(is_over))
            for stage, held, error, is_over in rows
        ]

    async def write(self, pipeline: KeptPipeline, items: Sequence[tuple[int, Item]] = ()) -> None:
        """A pipeline as it is now, and some of its items."""
        row = (
            pipeline.id,
            msgspec.msgpack.encode(pipeline.spec),
            pipeline.created_at,
            pipeline.ended_at,
            pipeline.state,
        )
        rows = [
            (pipeline.id, number, item.stage, msgspec.msgpack.encode(item.held), item.error, int(item.is_over))
            for number, item in items
        ]

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO pipeline VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET ended_at = excluded.ended_at, state = excluded.state",
                row,
            )
            db.executemany("INSERT OR REPLACE INTO pipeline_item VALUES (?, ?, ?, ?, ?, ?)", rows)

        await self._database.run(write)

    async def forget(self, pipeline: str) -> None:
        """Drops all that is known of a pipeline."""

        def forget(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM pipeline_item WHERE pipeline = ?", (pipeline,))
            db.execute("DELETE FROM pipeline WHERE id = ?", (pipeline,))

        await self._database.run(forget)
