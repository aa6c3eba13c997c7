"""Looks after stripes: asks holders what they have, has them prove it, and makes lost shares again elsewhere.

An owner does so for its own data, and delegates for that of an owner who is away: they know which shares belong
together, and have no key. A holder that cannot prove what it claims is believed in nothing that it claims.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from croft.errors import CroftError, Failed, NotFound, PeerMisbehaved
from croft.model.ids import PeerId
from croft.ports import Clock, Database, Entropy, Offload
from croft.storage import merkle
from croft.storage.erasure import code
from croft.storage.formats import Stripe
from croft.storage.messages import SHARES_ASKED_MAX, Done, FindShares, Found, PutShare, ReadShare
from croft.storage.placement import Place, Rule, allowed, ranked
from croft.storage.repair import Rebuild, StripeState, plan
from croft.storage.share_client import Holders
from croft.storage.stripes import Buffers, is_share
from croft.storage.transfer import Network, Receiving

log = logging.getLogger(__name__)

AUDITS: Final = 8
"""Shares of which a holder is asked for a leaf, in each round."""
AUDIT_EVERY_S: Final = 6 * 3_600.0
"""A holder is asked for proof so often in rounds that nobody asked for."""
ANSWER_S_MAX: Final = 20.0
AT_ONCE: Final = 4
TENDING_BYTES: Final = 48 << 20

Key = tuple[int, int]
"""Of a share: the number of its stripe, and which of its shares."""


@dataclass(frozen=True, slots=True)
class Ward:
    """Data that is looked after. `permit`: what lets somebody other than its owner do so."""

    owner: bytes
    stripes: Sequence[Stripe]
    rule: Rule
    permit: bytes = b""


@dataclass(slots=True)
class Standing:
    """How a peer did when it was asked for proof."""

    passed: int = 0
    failed: int = 0
    failed_at: float = 0.0

    @property
    def weight(self) -> float:
        """How much of what it offers is trusted in."""
        return (self.passed + 1) / (self.passed + 1 + 20 * self.failed)


@dataclass(frozen=True, slots=True)
class Report:
    """What a round found. `short`: stripes that lack shares, and how many they have; `caught`: what holders did."""

    at: float
    stripes: int
    short: Mapping[bytes, int] = field(default_factory=dict)
    rebuilt: int = 0
    unreadable: int = 0
    caught: Sequence[str] = ()


def together(reports: Sequence[Report]) -> Report:
    """What several rounds over different stripes found, as one."""
    return Report(
        max(report.at for report in reports),
        sum(report.stripes for report in reports),
        {stripe: left for report in reports for stripe, left in report.short.items()},
        sum(report.rebuilt for report in reports),
        sum(report.unreadable for report in reports),
        list(dict.fromkeys(what for report in reports for what in report.caught)),
    )


class Tending:
    """Rounds over wards. `places(owner)`: who may hold something, this peer too where it looks after another's."""

    def __init__(
        self,
        network: Network,
        places: Callable[[bytes], Sequence[Place]],
        holders: Holders,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        offload: Offload,
    ) -> None:
        self._network = network
        self.places = places
        self._holders = holders
        self._database = database
        self._clock = clock
        self._entropy = entropy
        self._offload = offload
        self._buffers = Buffers(TENDING_BYTES)
        self.standing: dict[PeerId, Standing] = {}
        self._moved: dict[bytes, set[PeerId]] = {}
        """Where shares were seen that were put somewhere else."""
        self._audited_at: dict[tuple[bytes, PeerId], float] = {}

    async def load(self) -> None:
        """Takes in how peers did in earlier runs. Raises Failed."""
        sql = "SELECT peer, passed, failed, failed_at FROM storage_standing"
        rows = await self._database.run(lambda db: db.execute(sql).fetchall())
        self.standing = {PeerId(peer.hex()): Standing(*rest) for peer, *rest in rows}

    async def round(
        self,
        ward: Ward,
        found: Mapping[bytes, Sequence[PeerId]] | None = None,
        *,
        is_thorough: bool = False,
        is_deep: bool = False,
        mends: bool = True,
    ) -> Report:
        """Looks at every stripe once, and mends what can be mended, if it `mends`. `found`: where else shares are known
        to be.

        `is_thorough`: all holders prove what they have, and everybody is asked for what is missing; else those that
        have not proved anything for some time, and for what would be made again. `is_deep`: every share is read.
        """
        caught: list[str] = []
        claims = await self._claims(ward, found or {})
        if is_deep:
            missing = _doubtful(self._states(ward, claims), is_thorough=True)
            await self._ask_around(ward, missing, claims, ())
            liars = await self._audit(ward, claims, caught, is_thorough=True, is_deep=True)
        else:
            liars = await self._audit(ward, claims, caught, is_thorough=is_thorough)
        states = self._states(ward, claims)
        if not is_deep and (missing := _doubtful(states, is_thorough)):
            await self._ask_around(ward, missing, claims, liars)
            states = self._states(ward, claims)
        plans = plan(states) if mends else []
        gate, rebuilt = asyncio.Semaphore(AT_ONCE), 0
        by_number = {state.number: state for state in states}

        async def rebuild(wanted: Rebuild) -> int:
            async with gate:
                try:
                    return await self._rebuild(ward, by_number[wanted.number], wanted, claims, liars)
                except CroftError as error:
                    log.info("a stripe cannot be mended now: %s", error.message)
                    return 0

        rebuilt = sum(await asyncio.gather(*map(rebuild, plans)))
        self._remember(ward, claims)
        after = self._states(ward, claims)
        short = {ward.stripes[one.number].id: len(one.at) for one in after if len(one.at) < one.n}
        unreadable = sum(one.margin < 0 for one in after)
        return Report(self._clock.now(), len(ward.stripes), short, rebuilt, unreadable, caught)

    async def survey(self, ward: Ward, found: Mapping[bytes, Sequence[PeerId]]) -> dict[PeerId, set[Key]]:
        """What each peer that is up has, as far as it is believed: all prove some of what they say that they have."""
        claims = await self._claims(ward, found)
        liars = await self._audit(ward, claims, [], is_thorough=True)
        await self._ask_around(ward, _doubtful(self._states(ward, claims), is_thorough=True), claims, liars)
        return claims

    async def prove(self, ward: Ward, peer: PeerId, stripe: Stripe, index: int) -> None:
        """Has a peer prove that it has a share. Raises CroftError, PeerMisbehaved, TimeoutError if it does not."""
        leaf = self._entropy.random().randrange(-(-stripe.share_bytes // merkle.LEAF_BYTES)) * merkle.LEAF_BYTES
        await self._prove(ward, peer, stripe, index, leaf, min(merkle.LEAF_BYTES, stripe.share_bytes - leaf))

    # --- who has what ------------------------------------------------------------------------------------------------

    async def _claims(self, ward: Ward, found: Mapping[bytes, Sequence[PeerId]]) -> dict[PeerId, set[Key]]:
        """What each peer that is up says that it holds of what it should."""
        alive = self._alive(ward)
        asked: dict[PeerId, list[Key]] = {}
        for number, stripe in enumerate(ward.stripes):
            for index, share in enumerate(stripe.shares):
                known = {PeerId(stripe.holders[index].hex()), *found.get(share, ()), *self._moved.get(share, ())}
                for peer in known & alive:
                    asked.setdefault(peer, []).append((number, index))
        return dict(zip(asked, await asyncio.gather(*(self._ask(ward, *one) for one in asked.items())), strict=True))

    async def _ask_around(
        self, ward: Ward, missing: Sequence[Key], claims: dict[PeerId, set[Key]], liars: Collection[PeerId]
    ) -> None:
        """Asks everybody who is believed for what nobody has that should."""
        others = sorted(self._alive(ward) - set(liars))
        more = await asyncio.gather(*(self._ask(ward, peer, missing) for peer in others))
        for peer, keys in zip(others, more, strict=True):
            claims.setdefault(peer, set()).update(keys)

    def _remember(self, ward: Ward, claims: Mapping[PeerId, Collection[Key]]) -> None:
        """Where shares are that are not where they were put."""
        for peer, keys in claims.items():
            for number, index in keys:
                stripe = ward.stripes[number]
                if stripe.holders[index].hex() != peer:
                    self._moved.setdefault(stripe.shares[index], set()).add(peer)

    def _away_s(self, stripe: Stripe, index: int) -> float:
        """For how long nobody has been up who had a share; 0: who is up of them has it no more."""
        known = {PeerId(stripe.holders[index].hex()), *self._moved.get(stripe.shares[index], ())}
        return min(filter(None, map(self._network.away_s, known)), default=0.0)

    def _alive(self, ward: Ward) -> set[PeerId]:
        return set(self._network.alive()) | {place.peer for place in self.places(ward.owner) if place.is_alive}

    async def _ask(self, ward: Ward, peer: PeerId, keys: Sequence[Key]) -> set[Key]:
        has: set[Key] = set()
        for at in range(0, len(keys), SHARES_ASKED_MAX):
            part = keys[at : at + SHARES_ASKED_MAX]
            shares = [ward.stripes[number].shares[index] for number, index in part]
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    answer = await self._holders[peer].ask(FindShares(ward.owner, shares, ward.permit), Found)
            except (CroftError, TimeoutError):
                return has
            has.update(key for key, size in zip(part, answer.sizes, strict=False) if size >= 0)
        return has

    def _states(self, ward: Ward, claims: Mapping[PeerId, Collection[Key]]) -> list[StripeState]:
        at: dict[Key, list[PeerId]] = {}
        for peer, keys in claims.items():
            for key in keys:
                at.setdefault(key, []).append(peer)
        states: list[StripeState] = []
        for number, stripe in enumerate(ward.stripes):
            holders = [PeerId(holder.hex()) for holder in stripe.holders]
            where = {index: at[number, index] for index in range(stripe.n) if (number, index) in at}
            if stripe.k == 1:
                # Copies are all the same share: what counts is how many peers have one.
                peers = sorted({peer for some in where.values() for peer in some})[: stripe.n]
                own = {index: [holder] for index, holder in enumerate(holders) if holder in peers}
                rest = iter(peer for peer in peers if peer not in holders)
                free = (index for index in range(stripe.n) if index not in own)
                where = {**own, **{index: [peer] for index, peer in zip(free, rest, strict=False)}}
            missing = (index for index in range(stripe.n) if index not in where)
            away = {index: away_s for index in missing if (away_s := self._away_s(stripe, index))}
            states.append(StripeState(number, stripe.k, stripe.n, where, away))
        return states

    # --- proof -------------------------------------------------------------------------------------------------------

    async def _audit(
        self,
        ward: Ward,
        claims: dict[PeerId, set[Key]],
        caught: list[str],
        *,
        is_thorough: bool,
        is_deep: bool = False,
    ) -> set[PeerId]:
        """Who could not prove what it said: nothing that it says is among the claims any more; if it `is_deep`, only
        what was read, and is whole, is among them."""
        chance, liars, now = self._entropy.random(), set[PeerId](), asyncio.get_running_loop().time()

        async def audit(peer: PeerId) -> tuple[int, list[str]]:
            keys = sorted(claims[peer])
            passed, problems = 0, list[str]()
            for number, index in chance.sample(keys, min(AUDITS, len(keys))):
                stripe = ward.stripes[number]
                leaf = chance.randrange(-(-stripe.share_bytes // merkle.LEAF_BYTES)) * merkle.LEAF_BYTES
                try:
                    await self._prove(
                        ward, peer, stripe, index, leaf, min(merkle.LEAF_BYTES, stripe.share_bytes - leaf)
                    )
                    passed += 1
                except (NotFound, PeerMisbehaved):
                    problems.append("does not have what it says that it holds")
                    claims[peer].clear()
                    liars.add(peer)
                    break
                except Failed as error:
                    # It says itself that its disk has lost this one: an honest holder.
                    problems.append(error.message)
                    claims[peer].discard((number, index))
                except (CroftError, TimeoutError):
                    claims[peer].discard((number, index))
                    break
            return passed, problems

        due = now - AUDIT_EVERY_S
        peers = [
            peer
            for peer in claims
            if claims[peer] and (is_thorough or self._audited_at.get((ward.owner, peer), due) <= due)
        ]
        self._audited_at |= {(ward.owner, peer): now for peer in peers}

        async def read_all(peer: PeerId) -> tuple[int, list[str]]:
            return await self._read_all(ward, peer, claims, liars)

        look = read_all if is_deep else audit
        for peer, (passed, problems) in zip(peers, await asyncio.gather(*map(look, peers)), strict=True):
            caught += [f"{self._network.name(peer)}: {problem}" for problem in problems]
            standing = self.standing.setdefault(peer, Standing())
            standing.passed += passed
            standing.failed += len(problems)
            standing.failed_at = self._clock.now() if problems else standing.failed_at
        rows = [
            (bytes.fromhex(peer), one.passed, one.failed, one.failed_at)
            for peer, one in self.standing.items()
            if peer in peers
        ]

        def write(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR REPLACE INTO storage_standing VALUES (?, ?, ?, ?)", rows)

        await self._database.run(write)
        return liars

    async def _read_all(
        self, ward: Ward, peer: PeerId, claims: dict[PeerId, set[Key]], liars: set[PeerId]
    ) -> tuple[int, list[str]]:
        """Reads every share that a peer says it holds; only those that are whole are among its claims then."""
        whole, problems = set[Key](), list[str]()
        for number, index in sorted(claims[peer]):
            stripe = ward.stripes[number]
            try:
                await self._prove(ward, peer, stripe, index, 0, stripe.share_bytes)
                whole.add((number, index))
            except (NotFound, PeerMisbehaved):
                problems.append("does not have what it says that it holds")
                liars.add(peer)
            except Failed as error:
                problems.append(error.message)
            except (CroftError, TimeoutError):
                break
        claims[peer] = whole
        return len(whole), list(dict.fromkeys(problems))

    async def _prove(self, ward: Ward, peer: PeerId, stripe: Stripe, index: int, leaf: int, size: int) -> None:
        data, share = bytearray(size), stripe.shares[index]
        request = ReadShare(ward.owner, share, leaf, size, ward.permit)
        async with asyncio.timeout(ANSWER_S_MAX):
            answer = await self._holders[peer].read(request, memoryview(data))
        if size == stripe.share_bytes:
            if not is_share(memoryview(data), share):
                raise PeerMisbehaved("a share that is not what its id says", step="audit")
        else:
            merkle.check(share, stripe.share_bytes, leaf, memoryview(data), answer.proof)

    # --- repair ------------------------------------------------------------------------------------------------------

    async def _rebuild(
        self, ward: Ward, state: StripeState, wanted: Rebuild, claims: dict[PeerId, set[Key]], liars: Collection[PeerId]
    ) -> int:
        stripe = ward.stripes[state.number]
        receiving = Receiving(ward.owner, self._network, self._holders, self._offload, self._buffers, ward.permit)
        receiving.found = {stripe.shares[index]: list(peers) for index, peers in state.at.items()}
        holding = [peer for peers in state.at.values() for peer in peers]
        if stripe.k == 1:
            receiving.found = {stripe.shares[0]: holding}
        targets = [place for place in self._targets(ward, stripe, holding) if place.peer not in liars]
        if not targets:
            return 0
        buffer = await receiving.stripe(stripe)
        made = 0
        try:
            await self._offload.run(_make, buffer, stripe, wanted.shares)
            for index in wanted.shares:
                if (peer := await self._place(ward, stripe, index, buffer, targets)) is not None:
                    claims.setdefault(peer, set()).add((state.number, index))
                    made += 1
        finally:
            receiving.done(buffer)
        return made

    def _targets(self, ward: Ward, stripe: Stripe, holding: Iterable[PeerId]) -> list[Place]:
        places = self.places(ward.owner)
        domains = {place.peer: place.domain for place in places}
        taken = {domains[peer] for peer in holding if peer in domains}
        fit = [place for place in allowed(places, ward.rule) if place.is_alive and place.domain not in taken]
        return ranked(stripe.id, fit)

    async def _place(
        self, ward: Ward, stripe: Stripe, index: int, buffer: bytearray, targets: list[Place]
    ) -> PeerId | None:
        """Brings a share to the first of the targets that takes it, which is none then, nor is another of its owner."""
        at = 0 if stripe.k == 1 else index * stripe.share_bytes
        view = memoryview(buffer)[at : at + stripe.share_bytes]
        request = PutShare(ward.owner, stripe.shares[index], len(view), ward.permit)
        while targets:
            place = targets.pop(0)
            try:
                await self._holders[place.peer].ask(request, Done, data=view)
            except CroftError as error:
                log.info("%s takes no share: %s", place.name, error.message)
                continue
            targets[:] = [other for other in targets if other.domain != place.domain]
            return place.peer
        return None


def _doubtful(states: Sequence[StripeState], is_thorough: bool) -> list[Key]:
    """Shares that nobody has who should, and by which something is to be done."""
    if is_thorough:
        wanted = [(state.number, tuple(range(state.n))) for state in states]
    else:
        wanted = [(state.number, tuple(range(state.n))) for state in states if state.margin < 0]
        wanted += [(one.number, one.shares) for one in plan(states)]
    by_number = {state.number: state for state in states}
    return [(number, index) for number, indices in wanted for index in indices if index not in by_number[number].at]


def _make(buffer: bytearray, stripe: Stripe, shares: Sequence[int]) -> None:
    """Makes shares out of the first k, and checks that they are what they are to be."""
    size = stripe.share_bytes
    if stripe.k > 1:
        parity = [index for index in shares if index >= stripe.k]
        code(stripe.k, stripe.n).rebuild(buffer, size, range(stripe.k), parity)
    for index in shares:
        at = 0 if stripe.k == 1 else index * size
        if not is_share(memoryview(buffer)[at : at + size], stripe.shares[index]):
            raise Failed("a stripe does not fit together: its shares were never of one piece")
