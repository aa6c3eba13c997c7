"""Keeps what the owner of this peer lets others call, and the processes that run it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from croft.errors import Busy, NotFound, PeerMisbehaved, Usage
from croft.twins.capability import SLOTS_MAX, Signature, Terms, check_terms
from croft.twins.capability_host import CapabilityHost
from croft.twins.capability_source import Source
from croft.twins.consent import Verdict
from croft.wire.codec import decode, encode

if TYPE_CHECKING:
    import sqlite3

    from croft.ports import Clock, Database, OwnersPrograms

log = logging.getLogger(__name__)

CAPABILITIES_MAX: Final = 32
"""Each is one record, and a device may have so many of them in a community."""
LOOK_EVERY_S: Final = 30.0
WORKER: Final = "croft.twins.capability_worker"


@dataclass(frozen=True, slots=True)
class OwnCapability:
    """What the owner lets others call. `to`: see `Asker.is_among`. `consent`: unless a rule says otherwise."""

    source: Source
    terms: Terms
    signature: Signature
    to: tuple[str, ...]
    consent: Verdict = Verdict.AUTO
    slots: int = 1
    created_at: float = 0.0

    @property
    def name(self) -> str:
        """What it is called by."""
        return self.terms.name


class CapabilityBook:
    """The owner's capabilities, and the processes that run them."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        programs: OwnersPrograms,
        wasm_runner: str = "",
    ) -> None:
        self._database = database
        self._clock = clock
        self._programs = programs
        self._wasm_runner = wasm_runner
        self.withdrawn: Callable[[str], None] = lambda name: None
        """Told of each name that is offered no more."""
        self._rows: dict[str, OwnCapability] = {}
        self._hosts: dict[str, CapabilityHost] = {}

    # --- the owner's side --------------------------------------------------------------------------------------------

    def all(self) -> list[OwnCapability]:
        """By name."""
        return [self._rows[name] for name in sorted(self._rows)]

    def find(self, name: str) -> OwnCapability | None:
        """One of them, if there is such a one."""
        return self._rows.get(name)

    def get(self, name: str) -> OwnCapability:
        """One of them. Raises NotFound."""
        if name not in self._rows:
            raise NotFound(f"this peer offers no capability `{name}`", remedy="See what it offers: `croft offer list`.")
        return self._rows[name]

    async def load(self) -> None:
        """Takes in what the last run left on disk. Raises Failed."""

        def read(db: sqlite3.Connection) -> list[tuple[str, bytes, str, str, int, float]]:
            return db.execute(
                "SELECT source, terms, recipients, consent, slots, created_at FROM own_capability"
            ).fetchall()

        for source, terms_bytes, to, consent, slots, created_at in await self._database.run(read):
            terms = decode(terms_bytes, Terms, step="own capability")
            row = OwnCapability(
                msgspec.json.decode(source, type=Source),
                terms,
                check_terms(terms),
                tuple(json.loads(to)),
                Verdict(consent),
                slots,
                created_at,
            )
            self._rows[row.name] = row

    async def offer(
        self, source: Source, terms: Terms, to: Sequence[str], consent: Verdict, slots: int
    ) -> OwnCapability:
        """Lets others call something, in place of what had its name; on disk before it counts. Raises Usage, Busy.

        Calls under way go on with what was offered before.
        """
        try:
            signature = check_terms(terms)
        except PeerMisbehaved as fault:
            raise Usage(str(fault), remedy="See `croft offer capability --help`.") from None
        if not 1 <= slots <= SLOTS_MAX:
            raise Usage(f"{slots} calls at a time", remedy=f"Write a number from 1 to {SLOTS_MAX}.")
        if terms.name not in self._rows and len(self._rows) >= CAPABILITIES_MAX:
            raise Busy(f"this peer offers {CAPABILITIES_MAX} capabilities already", remedy="Withdraw one of them.")
        terms = msgspec.structs.replace(terms, slots=slots)
        row = OwnCapability(source, terms, signature, tuple(to), consent, slots, self._clock.now())
        values = (
            row.name,
            msgspec.json.encode(source).decode(),
            encode(terms),
            json.dumps(row.to),
            consent.value,
            slots,
            row.created_at,
        )
        await self._database.run(
            lambda db: db.execute("INSERT OR REPLACE INTO own_capability VALUES (?, ?, ?, ?, ?, ?, ?)", values).rowcount
        )
        self._rows[row.name] = row
        if former := self._hosts.pop(row.name, None):
            former.retire()
        return row

    async def withdraw(self, name: str) -> OwnCapability:
        """Lets nobody call it any more; calls under way end. Raises NotFound."""
        row = self.get(name)
        await self._database.run(lambda db: db.execute("DELETE FROM own_capability WHERE name = ?", (name,)).rowcount)
        del self._rows[name]
        self.withdrawn(name)
        self._drop_host(name)
        return row

    async def serve(self) -> None:
        """Ends processes that nobody needs; until cancelled, which ends all."""
        try:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                for host in self._hosts.values():
                    host.tend(asyncio.get_running_loop().time())
        finally:
            for name in list(self._hosts):
                self._drop_host(name)

    # --- running -----------------------------------------------------------------------------------------------------

    def host(self, row: OwnCapability) -> CapabilityHost:
        """What runs it."""
        host = self._hosts.get(row.name)
        if host is None:
            source = row.source
            told = msgspec.structs.replace(source, wasm_runner=self._wasm_runner)
            arguments = [source.python, "-m", WORKER, msgspec.json.encode(told).decode()]
            folder = source.folder or str(Path(source.file or "/").parent)
            host = self._hosts[row.name] = CapabilityHost(row.name, self._programs, arguments, folder, row.slots)
        return host

    def _drop_host(self, name: str) -> None:
        if host := self._hosts.pop(name, None):
            host.close()
