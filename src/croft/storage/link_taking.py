"""Takes what others wrote by links into the owner's own files: read by the writer's permit, put anew, under own keys.

Every device of the owner does so. What is taken in is the owner's: it lies where the owner's rule lets it, and what the
writer, or the link, becomes later does not touch it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Final

from msgspec.structs import replace as replace_fields

from croft.errors import CroftError, Failed, PeerMisbehaved, Refused, Usage
from croft.model.ids import PeerId
from croft.ports import Clock
from croft.storage.contents import Pending, PiecesSource, Putting
from croft.storage.formats import Entry, Version
from croft.storage.head_book import Owner
from croft.storage.held_links import HeldLinks
from croft.storage.link_book import TOLD, LinkBook
from croft.storage.linked_files import LinkAnswer, LinkReader
from croft.storage.links import LinkedFile, LinkState, MadeLink, OwnLink
from croft.storage.placement import Rule, bounds_of, rule_of
from croft.storage.proposals import Proposal
from croft.storage.proposing import MODE_BITS, below, news
from croft.storage.service import Storage
from croft.storage.transfer import Network
from croft.wire.codec import encode

log = logging.getLogger(__name__)

AGAIN_S_MIN: Final = 60.0
AGAIN_S_MAX: Final = 3_600.0
ATTEMPTS_MAX: Final = 1_000
"""Of which it is remembered that they failed."""
TAKEN_KEPT: Final = 256
"""Devices of writers of which a link says what it has; the one that wrote longest ago is forgotten first."""

Attempt = tuple[bytes, bytes, int]
"""Of what was written by a link: the link, the writer's device, the number of the proposal."""


class LinkTaking:
    """Of one device of an owner."""

    def __init__(
        self,
        owner: Owner,
        storage: Storage,
        book: LinkBook,
        reader: LinkReader,
        held: HeldLinks,
        network: Network,
        clock: Clock,
    ) -> None:
        self._id = bytes.fromhex(owner.twin)
        self._storage = storage
        self._book = book
        self._reader = reader
        self._held = held
        self._network = network
        self._clock = clock
        self._again: dict[Attempt, tuple[float, float]] = {}
        """When to try again what could not be read, and how long that was put off."""

    async def round(self) -> int:
        """Takes in all that others wrote and that can be read now; returns how many versions. Raises CroftError."""
        taken = 0
        for link in await self._book.all():
            made = link.made
            if link.is_revoked or not made.is_written or made.expires_at < self._clock.now() or link.told is None:
                continue
            for proposal in await self._proposals(link):
                taken += await self._try(made, proposal)
        return taken

    async def _proposals(self, link: OwnLink) -> list[Proposal]:
        """What was written by a link that is not among the files, as this device and the holders know it."""
        made, told = link.made, link.told
        assert told is not None, "nobody writes by what nobody knows"
        alive = set(self._network.alive())
        asked = [peer for peer in (PeerId(one.hex()) for one in told.peers) if peer in alive]
        answers = await asyncio.gather(*(self._reader.ask(peer, self._id, made.id) for peer in asked))
        records = [record for one in answers if isinstance(one, LinkAnswer) for record in one.proposals]
        own = await self._held.state(self._id, made.id)
        newest = max(
            (one.state for one in answers if isinstance(one, LinkAnswer)), key=lambda state: state.sequence, default=own
        )
        if newest is None:
            return []
        state: LinkState = replace_fields(
            newest, writers=made.writers, writing_communities=made.writing_communities, taken=told.taken
        )
        return self._reader.believed(state, [*records, *await self._held.proposals(self._id, made.id)])

    async def _try(self, made: MadeLink, proposal: Proposal) -> int:
        attempt = (made.id, proposal.device, proposal.sequence)
        now, (due_at, put_off_s) = self._clock.now(), self._again.get(attempt, (0.0, 0.0))
        if now < due_at:
            return 0
        writer = self._network.name(PeerId(proposal.device.hex()))
        try:
            taken = await self._take(made, proposal)
        except (CroftError, PeerMisbehaved) as problem:
            # What does not fit will not do so later, but what cannot be had now may.
            is_final = isinstance(problem, PeerMisbehaved | Failed | Usage)
            put_off_s = AGAIN_S_MAX if is_final else min(AGAIN_S_MAX, max(AGAIN_S_MIN, 2 * put_off_s))
            if len(self._again) >= ATTEMPTS_MAX:
                del self._again[next(iter(self._again))]
            self._again[attempt] = (now + put_off_s, put_off_s)
            log.warning("what %s wrote by a link is not taken in: %s", writer, problem)
            return 0
        self._again.pop(attempt, None)
        if taken:
            log.info("%s wrote %d versions by a link", writer, taken)
        return taken

    async def _take(self, made: MadeLink, proposal: Proposal) -> int:
        files, reading = await self._reader.proposed(made.key, proposal, is_folder=made.is_folder)
        await self._storage.sync()
        link = await self._book.find(made.id.hex())
        if link.is_revoked or link.told is None:
            raise Refused("this link was revoked meanwhile")
        if dict(link.told.taken).get(proposal.device, 0) >= proposal.sequence:
            return 0  # another device of the owner was faster
        entries = {name: await self._storage.find(_whole(made, name)) for name in {file.name for file in files.files}}
        new = news(entries, files)
        otherwise = await self._rule_of_others(made)
        async with AsyncExitStack() as stack:
            puttings: dict[Rule, Putting] = {}
            pending: list[tuple[LinkedFile, Rule, Pending | None]] = []
            for file in new:
                rule = _rule(entries[file.name], otherwise)
                if file.version.content is None:
                    pending.append((file, rule, None))
                    continue
                if rule not in puttings:
                    puttings[rule] = await stack.enter_async_context(self._storage.putting(rule))
                source = PiecesSource(reading.read(file.version.content, is_bulk=len(new) > 1))
                pending.append((file, rule, await puttings[rule].add(source)))
            for putting in puttings.values():
                await putting.finish()
            written: dict[bytes, list[Version]] = {}
            for file, rule, put in pending:
                written.setdefault(_whole(made, file.name), []).append(_own(file.version, rule, put))
            told = replace_fields(link.told, taken=_with(link.told.taken, proposal))
            async with await self._storage.listing() as putting:
                await self._book.keep(made.id, {TOLD: encode(told)}, {}, putting, written)
        return len(new)

    async def _rule_of_others(self, made: MadeLink) -> Rule:
        """Where the files behind a link may be: a new one goes there, too."""
        async for entry in self._storage.entries(made.name):
            if below(made.name, entry.name) is not None:
                return rule_of(entry.versions[-1].bounds)
        return replace(await self._storage.last_rule(), layout=None)


def _whole(made: MadeLink, name: bytes) -> bytes:
    return made.name + b"/" + name if name else made.name


def _rule(entry: Entry | None, otherwise: Rule) -> Rule:
    return rule_of(entry.versions[-1].bounds) if entry is not None and entry.versions else otherwise


def _own(version: Version, rule: Rule, put: Pending | None) -> Version:
    """What a writer's version is among the owner's."""
    content = None if put is None else put.content
    if content is not None and content.size != version.size:
        raise Failed("a file is not as long as its writer says")
    return replace_fields(version, content=content, mode=version.mode & MODE_BITS, until=0, bounds=bounds_of(rule))


def _with(taken: Sequence[tuple[bytes, int]], proposal: Proposal) -> list[tuple[bytes, int]]:
    newest = {**dict(taken), proposal.device: proposal.sequence}
    kept = sorted(newest.items(), key=lambda one: one[1])[-TAKEN_KEPT:]
    return sorted(kept)
