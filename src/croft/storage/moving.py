"""Moves shares of an owner to where they belong now: each is at its new holder, proved, before the old one drops it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec.structs import replace

from croft.errors import CroftError, PeerMisbehaved
from croft.model.ids import PeerId
from croft.ports import Database, Offload
from croft.storage.formats import Stripe
from croft.storage.messages import Done, Dropped, DropShares, PutShare, ReadShare
from croft.storage.placement import Place, allowed
from croft.storage.rebalancing import Move, Plan, Spread, Why, bounded, plan
from croft.storage.share_client import Holders
from croft.storage.stripes import Buffers, is_share
from croft.storage.tending import Key, Tending, Ward

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
MOVING_BYTES: Final = 32 << 20
MOVE_S_MAX: Final = 150.0
MOVED_MAX: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Rebalanced:
    """What was moved, and what is to be. `left`: moves that were not made, for the bounds or because they failed."""

    planned: Plan
    moved: Sequence[Move] = ()
    left: Sequence[Move] = ()
    problems: Sequence[str] = ()


@dataclass(slots=True)
class _Looked:
    """What a look at all stripes found. `wards`: the data, each with the number of its first stripe among all.
    `needless`: what lies where it may not, and where it may as well."""

    wards: list[tuple[Ward, int]] = field(default_factory=list)
    spreads: list[Spread] = field(default_factory=list)
    needless: list[Move] = field(default_factory=list)

    def find(self, number: int) -> tuple[Ward, int]:
        """The ward of a stripe, and which of its stripes it is."""
        ward, first = next((ward, first) for ward, first in reversed(self.wards) if first <= number)
        return ward, number - first


class Mover:
    """Of one owner. `found`: where shares are that are not where they were put; it is kept up to date, and on disk."""

    def __init__(
        self,
        tending: Tending,
        holders: Holders,
        database: Database,
        offload: Offload,
        found: dict[bytes, list[PeerId]],
    ) -> None:
        self._tending = tending
        self._holders = holders
        self._database = database
        self._offload = offload
        self._found = found
        self._buffers = Buffers(MOVING_BYTES)

    async def load(self) -> None:
        """Takes in where shares were moved in earlier runs. Raises Failed."""
        rows = await self._database.run(lambda db: db.execute("SELECT share, peer FROM moved_share").fetchall())
        self._found.update({share: [PeerId(peer.hex())] for share, peer in rows})

    async def rebalance(
        self, wards: Sequence[Ward], places: Sequence[Place], moves_max: int, bytes_max: int, *, is_dry: bool
    ) -> Rebalanced:
        """Moves shares to where they belong, within bounds; `is_dry`: only says what it would move.

        The caller sees to it that nothing else repairs or collects meanwhile.
        """
        looked = await self._look(wards)
        planned = await self._offload.run(plan, looked.spreads, places)
        planned.moves = [*looked.needless, *planned.moves]
        wanted = bounded(planned.moves, moves_max, bytes_max)
        if is_dry:
            return Rebalanced(planned, left=planned.moves)
        gate, problems, moved = asyncio.Semaphore(AT_ONCE), list[str](), list[Move]()

        async def move(one: Move) -> None:
            ward, number = looked.find(one.number)
            async with gate:
                try:
                    await self._move(ward, ward.stripes[number], one)
                    moved.append(one)
                except (CroftError, PeerMisbehaved, TimeoutError) as problem:
                    said = problem.message if isinstance(problem, CroftError) else str(problem) or "no answer in time"
                    names = self._holders.name(one.source), self._holders.name(one.target)
                    problems.append(f"{names[0]} to {names[1]}: {said}")

        await asyncio.gather(*map(move, wanted))
        await self._remember(looked, moved)
        left = [one for one in planned.moves if one not in moved]
        return Rebalanced(planned, moved, left, list(dict.fromkeys(problems)))

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _look(self, wards: Sequence[Ward]) -> _Looked:
        looked, first = _Looked(), 0
        for ward in wards:
            claims = await self._tending.survey(ward, self._found)
            at: dict[Key, list[PeerId]] = {}
            for peer, keys in sorted(claims.items()):
                for key in keys:
                    at.setdefault(key, []).append(peer)
            fit = {place.peer for place in allowed(self._tending.places(ward.owner), ward.rule)}
            for number, stripe in enumerate(ward.stripes):
                held, needless = _held(stripe, number, at, fit)
                looked.spreads.append(Spread(first + number, stripe.share_bytes, ward.rule, held))
                looked.needless += [
                    Move(first + number, index, peer, keeper, stripe.share_bytes, Why.RULE)
                    for index, peer, keeper in needless
                ]
            if ward.stripes:
                looked.wards.append((ward, first))
            first += len(ward.stripes)
        return looked

    async def _move(self, ward: Ward, stripe: Stripe, move: Move) -> None:
        """Raises CroftError, PeerMisbehaved, TimeoutError: then the old holder has it still."""
        share, size = stripe.shares[move.index], stripe.share_bytes
        buffer = await self._buffers.take(size)
        try:
            view = memoryview(buffer)[:size]
            async with asyncio.timeout(MOVE_S_MAX):
                await self._holders[move.source].read(ReadShare(ward.owner, share, 0, 0), view)
                if not await self._offload.run(is_share, view, share):
                    raise PeerMisbehaved("gave a share that is not what its id says", step="move")
                await self._holders[move.target].ask(PutShare(ward.owner, share, size), Done, data=view)
        finally:
            self._buffers.give(buffer)
        await self._tending.prove(ward, move.target, stripe, move.index)
        others = [one for one in self._found.get(share, ()) if one not in (move.source, move.target)]
        self._found[share] = [move.target, *(others if stripe.k == 1 else [])]
        await self._holders[move.source].ask(DropShares([share]), Dropped)

    async def _remember(self, looked: _Looked, moved: Sequence[Move]) -> None:
        rows: list[tuple[bytes, bytes]] = []
        for one in moved:
            ward, number = looked.find(one.number)
            rows.append((ward.stripes[number].shares[one.index], bytes.fromhex(one.target)))

        def write(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO moved_share VALUES (?, ?)", rows)
            if db.execute("SELECT count(*) FROM moved_share").fetchone()[0] > MOVED_MAX:
                db.execute("DELETE FROM moved_share")  # they are found by asking everybody

        if rows:
            await self._database.run(write)


def _held(
    stripe: Stripe, number: int, at: Mapping[Key, Sequence[PeerId]], fit: set[PeerId]
) -> tuple[list[tuple[int, PeerId]], list[tuple[int, PeerId, PeerId]]]:
    """One peer for each share, one that may have it if there is any; and each that may not although another one has it,
    with that one."""

    def by_right(peers: Iterable[PeerId]) -> list[PeerId]:
        return sorted(set(peers), key=lambda peer: (peer not in fit, peer))

    if stripe.k == 1:
        # Copies are all the same share.
        peers = by_right(peer for index in range(stripe.n) for peer in at.get((number, index), ()))
        return list(enumerate(peers[: stripe.n])), [
            (0, peer, peers[0]) for peer in peers[stripe.n :] if peer not in fit
        ]
    found: list[tuple[int, PeerId]] = []
    needless: list[tuple[int, PeerId, PeerId]] = []
    for index in range(stripe.n):
        peers = by_right(at.get((number, index), ()))
        found += [(index, peer) for peer in peers[:1]]
        needless += [(index, peer, peers[0]) for peer in peers[1:] if peer not in fit and peers[0] in fit]
    return found, needless


def relocated(stripe: Stripe, found: Mapping[bytes, Sequence[PeerId]]) -> Stripe:
    """The stripe, with where its shares are known to be now."""
    if stripe.k == 1 or not any(share in found for share in stripe.shares):
        return stripe
    holders = [
        bytes.fromhex(found[share][0]) if found.get(share) else holder
        for share, holder in zip(stripe.shares, stripe.holders, strict=True)
    ]
    return replace(stripe, holders=holders)
