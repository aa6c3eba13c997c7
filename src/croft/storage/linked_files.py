"""Reads what links lead to: files as their owner has them, with what others wrote that the owner has not seen yet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from croft.errors import CroftError, NotFound, PeerMisbehaved, Refused, TooLarge
from croft.model.ids import PeerId
from croft.ports import Clock, Offload
from croft.storage.contents import Reading
from croft.storage.formats import Content, Entry, Version, decode_stored
from croft.storage.links import Link, LinkedFiles, LinkState, open_link_state, open_target, unseal_target
from croft.storage.messages import LinkRead, ReadLink
from croft.storage.proposals import PROPOSALS_MAX, PURPOSE, Members, Proposal, check_writes, open_proposal, writer_of
from croft.storage.proposing import check_proposed, seen
from croft.storage.share_client import Holders
from croft.storage.stripes import Buffers
from croft.storage.transfer import Network, Receiving

log = logging.getLogger(__name__)

T = TypeVar("T")

ASK_S_MAX: Final = 5.0
LATE_S: Final = 1.0
"""Once one peer has answered, others are waited for so long after each further answer."""
READING_BYTES: Final = 64 << 20
LISTED_BYTES_MAX: Final = 256 << 20
PROPOSED_LIST_BYTES_MAX: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class LinkAnswer:
    """What one peer says of a link."""

    peer: PeerId
    state: LinkState
    proposals: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class OpenedLink:
    """What a link leads to now. `entries`: by the names below the link; `keepers`: peers that know the link;
    `readings`: by what each content is read, by its key."""

    link: Link
    state: LinkState
    is_folder: bool
    entries: Mapping[bytes, Entry]
    keepers: Sequence[PeerId]
    readings: Mapping[bytes, Reading]

    def files(self) -> dict[bytes, Version]:
        """The newest version of each file that is there."""
        newest = {name: entry.versions[-1] for name, entry in self.entries.items()}
        return {name: version for name, version in newest.items() if version.content is not None}

    def read(
        self, content: Content, offset: int = 0, size: int | None = None, *, is_bulk: bool = False
    ) -> AsyncIterator[bytes | memoryview]:
        """See `Reading.read`."""
        return self.readings[content.key].read(content, offset, size, is_bulk=is_bulk)


class LinkReader:
    """Of one peer. `members`: what is known here of who belongs to what."""

    def __init__(self, network: Network, holders: Holders, clock: Clock, offload: Offload, members: Members) -> None:
        self._network = network
        self._holders = holders
        self._clock = clock
        self._offload = offload
        self._members = members

    async def open(self, link: Link) -> OpenedLink:
        """What a link leads to now. Raises Refused, NotFound, Unreachable, Usage."""
        answers = await self.answers(link)
        state = max((answer.state for answer in answers), key=lambda state: state.sequence)
        content = open_target(link.key, state)
        reading = self.reading(link.owner, state.permit)
        listed = await _listed(reading, content, LISTED_BYTES_MAX)
        readings = {file.version.content.key: reading for file in listed.files if file.version.content is not None}
        written: list[LinkedFiles] = []
        for proposal in self.believed(state, (record for answer in answers for record in answer.proposals)):
            try:
                files, by = await self.proposed(link.key, proposal, is_folder=listed.is_folder)
            except (CroftError, PeerMisbehaved) as problem:
                log.info("what %s wrote cannot be read now: %s", self._name(proposal), problem)
                continue
            written.append(files)
            readings |= {file.version.content.key: by for file in files.files if file.version.content is not None}
        keepers = [answer.peer for answer in answers]
        return OpenedLink(link, state, listed.is_folder, seen(listed, written), keepers, readings)

    async def answers(self, link: Link) -> list[LinkAnswer]:
        """What every peer says that knows a link, one at least. Raises Refused, NotFound."""
        hints = [PeerId(peer.hex()) for peer in link.peers]
        asked = dict.fromkeys([*hints, *self._network.alive()])
        found = await in_time(
            [self.ask(peer, link.owner, link.id) for peer in asked], lambda said: isinstance(said, LinkAnswer)
        )
        answers = [answer for answer in found if isinstance(answer, LinkAnswer)]
        refusals = [refusal for refusal in found if isinstance(refusal, Refused)]
        if not answers and refusals:
            raise refusals[0]
        if not answers:
            raise NotFound("no peer that is up knows this link", remedy="Its holders may be off: try again later.")
        return answers

    async def ask(self, peer: PeerId, owner: bytes, link: bytes) -> LinkAnswer | Refused | None:
        """What a peer says of a link; None: it does not know it, or says what is not to be believed."""
        try:
            async with asyncio.timeout(ASK_S_MAX):
                answer = await self._holders[peer].ask(ReadLink(owner, link), LinkRead)
            state = open_link_state(answer.record)
            if (state.owner, state.id) == (owner, link) and len(answer.proposals) <= PROPOSALS_MAX:
                return LinkAnswer(peer, state, answer.proposals)
        except Refused as refusal:
            return refusal
        except (CroftError, PeerMisbehaved, TimeoutError) as problem:
            log.debug("%s shows no link: %s", self._network.name(peer), problem)
        return None

    def believed(self, state: LinkState, records: Iterable[bytes]) -> list[Proposal]:
        """The newest proposal of each device that may write by a link, and is not among its files yet."""
        taken, now = dict(state.taken), self._clock.now()
        newest: dict[bytes, Proposal] = {}
        for record in dict.fromkeys(records):
            try:
                proposal = open_proposal(record)
                if (proposal.link_owner, proposal.link) != (state.owner, state.id):
                    continue
                check_writes(state, writer_of(proposal, state.writing_communities, self._members), now)
            except (CroftError, PeerMisbehaved) as problem:
                log.info("what is said to be written by a link is not believed: %s", problem)
                continue
            known = newest.get(proposal.device)
            if proposal.sequence > max(taken.get(proposal.device, 0), known.sequence if known else 0):
                newest[proposal.device] = proposal
        return [newest[device] for device in sorted(newest)]

    async def proposed(self, key: bytes, proposal: Proposal, *, is_folder: bool) -> tuple[LinkedFiles, Reading]:
        """What a proposal says, and by what its contents are read. Raises CroftError, PeerMisbehaved."""
        reading = self.reading(proposal.owner, proposal.permit)
        content = unseal_target(key, proposal.sealed, PURPOSE)
        files = await _listed(reading, content, PROPOSED_LIST_BYTES_MAX)
        check_proposed(files, proposal.device, is_folder=is_folder)
        return files, reading

    def reading(self, owner: bytes, permit: bytes) -> Reading:
        """Of somebody's contents, by their permit."""
        buffers = Buffers(READING_BYTES)
        return Reading(Receiving(owner, self._network, self._holders, self._offload, buffers, permit), self._offload)

    def _name(self, proposal: Proposal) -> str:
        return self._network.name(PeerId(proposal.device.hex()))


async def in_time(asking: Sequence[Coroutine[Any, Any, T]], is_good: Callable[[T], bool], enough: int = 1) -> list[T]:
    """What peers answer, without those that take long once so many of them gave a good answer."""
    tasks = [asyncio.create_task(one, name="link.ask") for one in asking]
    waiting, found, patience_s = set(tasks), list[T](), None
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            found += [task.result() for task in done]
            if sum(map(is_good, found)) >= enough:
                patience_s = LATE_S
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return found


async def _listed(reading: Reading, content: Content, size_max: int) -> LinkedFiles:
    if content.size > size_max:
        raise TooLarge(f"a list of {content.size} bytes behind a link", remedy="Ask for a link to a part of it.")
    return decode_stored(await reading.whole(content), LinkedFiles)
