"""Numbers, signs and spreads the heads of an owner's list of files, and finds the newest that peers keep.

No number is signed twice, whatever dies when: holders keep the first head of a number that they hear of.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from croft.errors import CroftError, Failed, PeerMisbehaved
from croft.identity.keys import SecretKey
from croft.model.ids import PeerId, TwinId
from croft.ports import Clock, Database, Entropy
from croft.storage.formats import FORMAT, Child, Head, Root
from croft.storage.heads import HEAD_IS_OLD, digest, open_head, seal_root, sign_head
from croft.storage.messages import Done, Heads, PutHead, ReadHeads
from croft.storage.placement import Place, Rule, allowed, first_of_domains, ranked
from croft.storage.sealing import NONCE_BYTES
from croft.storage.share_client import Holders
from croft.storage.transfer import Network

log = logging.getLogger(__name__)

HEAD_S_MAX: Final = 10.0
ASK_S_MAX: Final = 4.0
NUMBERS_SETTING: Final = "storage.head_numbers"
NUMBERS_AT_ONCE: Final = 32
"""So many are taken from the disk at once; a start skips what is left of them."""
COPIES: Final = 8
"""Of a head that is looked after."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose files these are, and the device that speaks. `secret`: derived from the twin's entropy; None: not here."""

    twin: TwinId
    peer: PeerId
    device: SecretKey
    certificate: bytes
    secret: bytes | None


class HeadBook:
    """The heads that one device signs. `may_be_ahead`: peers may keep one whose change does not count here."""

    def __init__(
        self,
        owner: Owner,
        network: Network,
        holders: Holders,
        database: Database,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._owner = owner
        self._id = bytes.fromhex(owner.twin)
        self._device = bytes.fromhex(owner.peer)
        self._network = network
        self._holders = holders
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._last: int | None = None
        self._taken = 0
        self.may_be_ahead = False
        self.is_behind = False
        """Peers keep a newer head of this very device than it has: its disk is an old copy."""

    async def sign(
        self, top: Sequence[Child], secret: bytes, vector: Mapping[bytes, int], last: bytes
    ) -> tuple[bytes, Head]:
        """The next head, as holders keep it. `last`: the one before, if there is one."""
        sequence = await self._next(vector.get(self._device, 0))
        sealed = seal_root(secret, Root(FORMAT, list(top)), self._entropy.token(NONCE_BYTES))
        head = Head(
            *(FORMAT, self._id, self._device, sequence, digest(last) if last else b""),
            *(sorted({**vector, self._device: sequence}.items()), sealed, self._clock.now()),
        )
        return sign_head(self._owner.device, self._owner.certificate, head), head

    async def tell(self, record: bytes, peers: Sequence[PeerId], needed: int) -> None:
        """Brings a new head to peers. Raises CroftError unless `needed` of them have it."""
        self.may_be_ahead = True

        async def tell(peer: PeerId) -> str:
            try:
                async with asyncio.timeout(HEAD_S_MAX):
                    await self._holders[peer].ask(PutHead(record), Done)
                return ""
            except TimeoutError:
                return f"{self._network.name(peer)} does not answer"
            except CroftError as error:
                self.is_behind |= error.message == HEAD_IS_OLD
                return f"{self._network.name(peer)}: {error.message}"

        problems = await asyncio.gather(*map(tell, peers))
        if problems.count("") < needed:
            raise Failed(
                f"too few peers keep the new list of files: {'; '.join(filter(None, problems))}",
                remedy="Try again when more peers are up.",
            )

    async def is_ahead(self, known: int) -> bool:
        """Whether peers may keep a head of this device after number `known`, whose change does not count here."""
        if self._last is None:
            await self._load(known)
        return self.may_be_ahead

    async def newest(self) -> list[tuple[Head, bytes]]:
        """The newest head of each of the owner's devices that some peer keeps."""
        return await newest_heads(self._id, self._network.alive(), self._holders)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _next(self, known: int) -> int:
        if self._last is None:
            await self._load(known)
        assert self._last is not None, "it was just loaded"
        self._last = max(self._last, known) + 1
        if self._last > self._taken:
            self._taken = self._last + NUMBERS_AT_ONCE
            row = (NUMBERS_SETTING, json.dumps(self._taken).encode())

            def write(db: sqlite3.Connection) -> None:
                db.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", row)

            await self._database.run(write)
        return self._last

    async def _load(self, known: int) -> None:
        sql = "SELECT value FROM setting WHERE name = ?"
        row = await self._database.run(lambda db: db.execute(sql, (NUMBERS_SETTING,)).fetchone())
        self._last = self._taken = 0 if row is None else int(json.loads(row[0]))
        self.may_be_ahead |= self._last > known


async def newest_heads(
    owner: bytes,
    peers: Collection[PeerId],
    holders: Holders,
    permit: bytes = b"",
    at: dict[bytes, list[PeerId]] | None = None,
) -> list[tuple[Head, bytes]]:
    """The newest head of each of an owner's devices that one of these keeps; `at` is told who keeps which."""

    async def ask(peer: PeerId) -> tuple[PeerId, list[bytes]]:
        try:
            async with asyncio.timeout(ASK_S_MAX):
                return peer, (await holders[peer].ask(ReadHeads(owner, permit), Heads)).records
        except (CroftError, TimeoutError):
            return peer, []

    newest: dict[bytes, tuple[Head, bytes]] = {}
    for peer, records in await asyncio.gather(*map(ask, peers)):
        for record in records:
            if at is not None:
                at.setdefault(record, []).append(peer)
            try:
                head = open_head(record)
            except (CroftError, PeerMisbehaved) as problem:
                log.warning("a head of the file list is not believed: %s", problem)
                continue
            known = newest.get(head.device)
            if head.owner == owner and (known is None or known[0].sequence < head.sequence):
                newest[head.device] = head, record
    return [newest[device] for device in sorted(newest)]


async def spread_heads(
    owner: bytes,
    network: Network,
    holders: Holders,
    places: Collection[Place],
    rule: Rule,
    *,
    own: bytes = b"",
    permit: bytes = b"",
) -> None:
    """Brings the newest head of each device to more peers where few have it: those that had it may be gone.

    `own`: one that is here.
    """
    at: dict[bytes, list[PeerId]] = {}
    peers = dict.fromkeys([*network.alive(), *(place.peer for place in places if place.is_alive)])
    newest = {
        head.device: (head.sequence, record) for head, record in await newest_heads(owner, peers, holders, permit, at)
    }
    if own:
        head = open_head(own)
        newest[head.device] = max(newest.get(head.device, (0, b"")), (head.sequence, own))
    fit = [place for place in allowed(list(places), rule) if place.is_alive]
    wanted = [place.peer for place in first_of_domains(ranked(owner, fit), COPIES)]
    for _, record in newest.values():
        have = at.get(record, [])
        for peer in [peer for peer in wanted if peer not in have][: max(0, len(wanted) - len(have))]:
            try:
                async with asyncio.timeout(ASK_S_MAX):
                    await holders[peer].ask(PutHead(record, permit), Done)
            except (CroftError, TimeoutError) as error:
                log.info("%s keeps no list of files: %s", network.name(peer), error)
