"""Keeps what an owner has stored: looks after it, tells delegates of it, and has holders drop what nothing needs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from croft.errors import CroftError, Refused
from croft.model.ids import PeerId
from croft.ports import Clock, Database
from croft.storage.contents import BytesSource
from croft.storage.formats import Content, Stripe, decode_stored
from croft.storage.head_book import Owner, spread_heads
from croft.storage.messages import (
    SHARES_ASKED_MAX,
    SHARES_LISTED_MAX,
    Done,
    Dropped,
    DropShares,
    Listed,
    ListShares,
    Watch,
)
from croft.storage.moving import Mover, Rebalanced, relocated
from croft.storage.permits import LIFETIME_S, Permit, sign_permit
from croft.storage.placement import BoundedStripe, Rule, allowed, ranked
from croft.storage.service import UNSEEN_S, Storage
from croft.storage.share_client import Holders
from croft.storage.tending import Report, Tending, Ward, together
from croft.storage.transfer import Network
from croft.storage.wards import Watchman, list_of
from croft.wire.codec import encode

log = logging.getLogger(__name__)

LIST_SETTING: Final = "storage.stripes"
DELEGATES: Final = 3
TRASH_S: Final = 30 * 86_400.0
RETIRE_EVERY_S: Final = 600.0
SETTLE_S: Final = 2.0
"""Changes in so short a time are told to delegates at once."""
TELLING_SHARE_MAX: Final = 1 / 20
"""Of the time: where much is stored the list of it is long, and a backup changes it for hours."""
TELL_AGAIN_S: Final = 86_400.0
"""Delegates are chosen anew: those of before may be gone, and what lets them act expires."""
TELLING_S_MAX: Final = 3.0
"""A telling that took longer, as where a peer does not answer, counts as this."""


class Upkeep:
    """Of one owner's storage. `delegates`: how many peers look after it while this one is away."""

    def __init__(
        self,
        owner: Owner,
        storage: Storage,
        network: Network,
        holders: Holders,
        tending: Tending,
        database: Database,
        clock: Clock,
        mover: Mover,
        delegates: int = DELEGATES,
    ) -> None:
        self._owner = owner
        self.mover = mover
        self._delegates = delegates
        self.named_delegates: Callable[[], Sequence[PeerId]] = tuple
        """Whom the owner wants for that before anybody else."""
        self._id = bytes.fromhex(owner.twin)
        self._storage = storage
        self._network = network
        self._holders = holders
        self._tending = tending
        self._database = database
        self._clock = clock
        self._kept_list: Content | None = None
        self._mending = asyncio.Lock()
        self._needless_since: dict[tuple[PeerId, bytes], float] = {}
        self.refresh_links: Callable[[], Awaitable[None]] = _nothing
        self.rules: Callable[[], Awaitable[Mapping[bytes, Rule]]] = _no_rules
        """The stripes that have a rule of their own, by their ids."""
        self.report: Report | None = None
        """What the last look at all holders found."""
        self.rebuilt = 0

    async def serve(self) -> None:
        """Looks after what is stored, and tells delegates what there is to look after; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_delegates(), name="storage.tell")
            tasks.create_task(self._tend(), name="storage.tend")
            tasks.create_task(self._retire(), name="storage.retire")

    # --- what nobody needs any more ----------------------------------------------------------------------------------

    async def collect(self) -> int:
        """Has holders drop what no file and no version needs; returns how many bytes.

        Where the owner has other devices, what they are putting is not known here: then every peer must be up, so that
        no change of theirs is unseen, and what is needless must have been so for UNSEEN_S.

        Raises CroftError: then nothing is dropped that was not known to be needless.
        """
        await self._storage.sync()
        await self._storage.settle()
        async with self._mending, self._storage.changing:
            is_shared = self._storage.has_other_writers()
            if is_shared and (away := [place.name for place in self._storage.places() if not place.is_alive]):
                raise Refused(
                    f"{away[0]} is away, and may know of files that another device of yours put",
                    remedy="It is collected by itself once all peers are here.",
                )
            await self._forget_nodes(await self._storage.node_keys())
            live = {share for stripe in (await self._storage.stripes()).values() for share in stripe.shares}
            kept = await self._known_list()
            parts = await self._storage.parts(kept) if kept is not None else []
            live.update(share for part in [*parts, *(kept.parts if kept else [])] for share in part.stripe.shares)
            grace_s, freed = UNSEEN_S if is_shared else 0.0, 0
            before, self._needless_since = self._needless_since, {}
            for peer in self._network.alive():
                try:
                    freed += await self._collect_at(peer, live, before, grace_s)
                except CroftError as error:
                    log.info("nothing is collected at %s: %s", self._network.name(peer), error.message)
            return freed

    async def _forget_nodes(self, needed: set[bytes]) -> None:
        """Nodes of the list that were superseded need not be on this disk."""

        def forget(db: sqlite3.Connection) -> None:
            old = [(key,) for (key,) in db.execute("SELECT content FROM storage_node") if key not in needed]
            db.executemany("DELETE FROM storage_node WHERE content = ?", old)

        await self._database.run(forget)

    async def _collect_at(
        self, peer: PeerId, live: set[bytes], before: Mapping[tuple[PeerId, bytes], float], grace_s: float
    ) -> int:
        client, after, freed = self._holders[peer], b"", 0
        now = asyncio.get_running_loop().time()
        while True:
            listed = await client.ask(ListShares(after), Listed)
            flying = {share for putting in self._storage.puttings for share in putting.shares()}
            needless = [share for share, _ in listed.shares if share not in live and share not in flying]
            self._needless_since |= {(peer, share): before.get((peer, share), now) for share in needless}
            due = [share for share in needless if now - self._needless_since[peer, share] >= grace_s]
            for at in range(0, len(due), SHARES_ASKED_MAX):
                dropped = await client.ask(DropShares(due[at : at + SHARES_ASKED_MAX]), Dropped)
                freed += dropped.freed_bytes
            if len(listed.shares) < SHARES_LISTED_MAX:
                return freed
            after = listed.shares[-1][0]

    async def held_at(self, peer: PeerId, timeout_s: float) -> tuple[int, int, int] | None:
        """How many shares a peer holds for this owner, the bytes they take, and the room there is; None: no answer."""
        count, after = 0, b""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    listed = await self._holders[peer].ask(ListShares(after), Listed)
                    count += len(listed.shares)
                    if len(listed.shares) < SHARES_LISTED_MAX:
                        return count, listed.held_bytes, listed.room_bytes
                    after = listed.shares[-1][0]
        except (CroftError, TimeoutError):
            return None

    async def empty_trash(self) -> int:
        """Gives up files that were removed TRASH_S ago, with all versions; returns how many. Raises CroftError."""
        until = self._clock.now() - TRASH_S
        old = [
            entry.name
            async for entry in self._storage.entries()
            if entry.versions[-1].content is None and entry.versions[-1].at < until
        ]
        if old:
            async with self._storage.putting(await self._storage.last_rule()) as putting:
                await self._storage.commit(dict.fromkeys(old), putting)
        return len(old)

    async def retire(self) -> int:
        """Gives up files that their owner wanted for some time only, once that is over; returns how many."""
        now = self._clock.now()
        over = [entry.name async for entry in self._storage.entries() if 0 < entry.versions[-1].until <= now]
        if over:
            async with self._storage.putting(await self._storage.last_rule()) as putting:
                await self._storage.commit(dict.fromkeys(over), putting)
            await self.collect()
        return len(over)

    # --- looking after it --------------------------------------------------------------------------------------------

    async def tend(self, *, is_thorough: bool = True) -> Report:
        """Looks at every stripe now, and mends what can be mended; see `Tending.round`. Raises CroftError."""
        async with self._mending:
            found, wards = self._storage.found, await self._wards()
            rounds = [await self._tending.round(ward, found, is_thorough=is_thorough) for ward in wards]
            report = together(rounds)
            self._storage.blame(report.caught)
            self.report = report
            self.rebuilt += report.rebuilt
            if own := await self._storage.head_record():
                places, rule = self._storage.places(), await self._storage.last_rule()
                await spread_heads(self._id, self._network, self._holders, places, rule, own=own)
            return report

    async def rebalance(self, moves_max: int, bytes_max: int, *, is_dry: bool) -> Rebalanced:
        """Moves shares to where the rules, and the room that peers offer, would have them now. Raises CroftError."""
        async with self._mending:
            wards, places = await self._wards(), self._storage.places()
            return await self.mover.rebalance(wards, places, moves_max, bytes_max, is_dry=is_dry)

    async def _wards(self) -> list[Ward]:
        """All stripes, by the rule that says where they may be."""
        by_rule: dict[Rule, list[Stripe]] = {Rule(): []}
        for stripe, rule in await self._stripes(await self.rules()):
            by_rule.setdefault(rule, []).append(stripe)
        return [Ward(self._id, stripes, rule) for rule, stripes in by_rule.items()]

    async def _stripes(self, elsewhere: Mapping[bytes, Rule]) -> list[BoundedStripe]:
        """All stripes, each with the rule that says where it may be: that of `elsewhere`, or its own."""
        bounded = await self._storage.bounded_stripes()
        # What a layout asked for is done: from here on it only matters who may hold something.
        return [(stripe, replace(elsewhere.get(name, rule), layout=None)) for name, (stripe, rule) in bounded.items()]

    async def _tend(self) -> None:
        watch = Watchman(self._network)
        while True:
            await watch.something_to_do()
            try:
                report = await self.tend(is_thorough=False)
                if report.stripes and not report.unreadable:
                    await self.empty_trash()
                    await self.collect()
            except CroftError as error:
                log.info("stored data is not looked after now: %s", error.message)

    async def _retire(self) -> None:
        while True:
            await asyncio.sleep(RETIRE_EVERY_S)
            try:
                await self.retire()
            except CroftError as error:
                log.info("files whose time is over do not go yet: %s", error.message)

    async def _tell_delegates(self) -> None:
        """After a change, has links lead to it, and tells peers that are to look after the data while this one is away
        what there is now; the latter less often where it takes long."""
        loop, changed = asyncio.get_running_loop(), self._storage.changed
        is_told, next_at = True, 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(loop.time() + TELL_AGAIN_S if is_told else next_at):
                    await changed.wait()
            await asyncio.sleep(SETTLE_S)
            try:
                if is_told and not changed.is_set() and not await self._storage.head_record():
                    continue  # there is nothing to look after
                if changed.is_set():
                    changed.clear()
                    is_told = False
                    await self.refresh_links()
                if loop.time() >= next_at:
                    is_told, began_at = True, loop.time()
                    await self._tell_delegates_now()
                    next_at = loop.time() + min(loop.time() - began_at, TELLING_S_MAX) / TELLING_SHARE_MAX
            except CroftError as error:
                log.info("no delegate knows of the last change yet: %s", error.message)

    async def _tell_delegates_now(self) -> None:
        rule, elsewhere = await self._storage.last_rule(), await self.rules()
        # Under the lock, so that the new list is not collected before it is known.
        async with self._mending, self._storage.putting(rule) as putting:
            async with self._storage.changing:
                stripes = await self._stripes(elsewhere)
            moved = [(relocated(stripe, self._storage.found), rule) for stripe, rule in stripes]
            pending = await putting.add(BytesSource(encode(list_of(moved))))
            await putting.finish()
            kept = pending.content
            row = (LIST_SETTING, encode(kept))
            sql = "INSERT OR REPLACE INTO setting VALUES (?, ?)"
            await self._database.run(lambda db: db.execute(sql, row).rowcount)
            self._kept_list = kept
        fit = [place for place in allowed(self._storage.places(), rule) if place.is_alive]
        named, twin = self.named_delegates(), self._owner.twin
        # Not the same ones for everybody.
        turn = {place.peer: number for number, place in enumerate(ranked(self._id, fit))}
        fit.sort(key=lambda place: (place.peer not in named, place.domain != twin, turn[place.peer]))
        delegates = [place.peer for place in fit[: self._delegates]]
        now, owner = self._clock.now(), self._owner
        device, peers = bytes.fromhex(owner.peer), [bytes.fromhex(peer) for peer in delegates]
        permit = Permit(self._id, device, peers, [], [], True, now + LIFETIME_S)
        watch = Watch(
            int(now * 1000),
            sign_permit(owner.device, owner.certificate, permit),
            kept,
            [bytes.fromhex(peer) for peer in rule.on],
            [device, *(bytes.fromhex(peer) for peer in rule.never)],
            [bytes.fromhex(twin) for twin in rule.never_twins],
        )
        for peer in delegates:
            try:
                await self._holders[peer].ask(watch, Done)
            except CroftError as error:
                log.info("%s does not look after stored data: %s", self._network.name(peer), error.message)

    async def _known_list(self) -> Content | None:
        """The list of stripes that delegates were told of last."""
        if self._kept_list is None:
            sql = "SELECT value FROM setting WHERE name = ?"
            row = await self._database.run(lambda db: db.execute(sql, (LIST_SETTING,)).fetchone())
            self._kept_list = decode_stored(row[0], Content) if row is not None else None
        return self._kept_list


async def _nothing() -> None:
    """There are no links."""


async def _no_rules() -> Mapping[bytes, Rule]:
    return {}
