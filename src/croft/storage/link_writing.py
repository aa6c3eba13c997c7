"""Writes files behind links of others: the shares are the writer's own, until the link's owner has taken the files in.

What was written is kept beside the writer's files, so it is looked after as they are. It counts once so many peers that
know the link have the proposal that it survives the loss of as many as its shares do; others get it when they are back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from croft.errors import CroftError, PeerMisbehaved, Refused, Unreachable
from croft.model.ids import CommunityId, PeerId
from croft.ports import Clock, Entropy
from croft.storage.contents import BytesSource, Putting
from croft.storage.formats import FORMAT, Content, Version, decode_stored
from croft.storage.head_book import Owner
from croft.storage.kept_records import KeptRecords
from croft.storage.linked_files import ASK_S_MAX, LinkReader, OpenedLink, in_time
from croft.storage.links import Link, LinkedFile, LinkedFiles, LinkState, seal_target
from croft.storage.messages import Done, PutProposal
from croft.storage.permits import Permit, open_permit, sign_permit
from croft.storage.proposals import PURPOSE, Members, Proposal, Writer, check_writes, sign_proposal
from croft.storage.proposing import check_place, check_proposed, next_number
from croft.storage.sealing import NONCE_BYTES
from croft.storage.service import HIDDEN, Storage
from croft.storage.share_client import Holders
from croft.storage.transfer import Network
from croft.storage.upload import margin
from croft.wire.codec import encode

log = logging.getLogger(__name__)

WRITTEN: Final = HIDDEN + b"written/"
LINK: Final = b"link"
LISTED: Final = b"list"
MILLISECONDS: Final = 1_000


class WrittenPlace(NamedTuple):
    """Under what name a version is kept that waits for a link's owner."""

    sequence: int
    number: int
    name: bytes

    def below(self, prefix: bytes) -> bytes:
        """The name."""
        return prefix + b"%016d/%012d/" % (self.sequence, self.number) + self.name


class LinkWriter:
    """Of one device."""

    def __init__(
        self,
        owner: Owner,
        storage: Storage,
        records: KeptRecords,
        reader: LinkReader,
        holders: Holders,
        network: Network,
        members: Members,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._owner = owner
        self._id = bytes.fromhex(owner.twin)
        self._device = bytes.fromhex(owner.peer)
        self._storage = storage
        self._records = records
        self._reader = reader
        self._holders = holders
        self._network = network
        self._members = members
        self._clock = clock
        self._entropy = entropy
        self._writing = asyncio.Lock()

    def check(self, opened: OpenedLink) -> None:
        """Raises Refused unless this peer's owner may write by a link."""
        named = (CommunityId(community.hex()) for community in open_permit(opened.state.permit).communities)
        within = frozenset(one for one in named if self._members.is_member(one, self._owner.twin))
        check_writes(opened.state, Writer(self._owner.peer, self._owner.twin, within), self._clock.now())

    async def write(self, link: Link, changes: Mapping[bytes, Version], putting: Putting) -> None:
        """Adds a version to each of these files, by their names below the link. All of it counts once this returns.

        Numbers, device and time are set here. Raises CroftError; then nothing has changed.
        """
        async with self._writing:
            opened = await self._reader.open(link)
            self.check(opened)
            for name in changes:
                check_place(name, is_folder=opened.is_folder)
            prefix = self._prefix(link)
            before = await self._pending(prefix)
            taken = dict(opened.state.taken).get(self._device, 0)
            waiting = {place: version for place, version in before.items() if place.sequence > taken}
            last = max([taken, *(place.sequence for place in before)])
            sequence = max(int(self._clock.now() * MILLISECONDS), last + 1)
            fresh = {
                WrittenPlace(sequence, _number(opened, waiting, name), name): version
                for name, version in changes.items()
            }
            over = [place.below(prefix) for place in before if place.sequence <= taken]
            content = await self._keep(link, opened.is_folder, waiting | fresh, fresh, over, putting)
            try:
                needed = margin(putting.layout) + 1
                await self._propose(link, opened.state, sequence, content, opened.keepers, needed)
            except CroftError:
                await self._take_back(link, opened.is_folder, waiting, fresh)
                raise

    async def round(self) -> None:
        """Goes after what waits for the owners of links: forgets what they have, and tells peers that were away."""
        async with self._writing:
            for link in await self._links():
                try:
                    await self._look_after(link)
                except (CroftError, PeerMisbehaved) as problem:
                    log.info("what was written by a link waits: %s", problem)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _prefix(self, link: Link) -> bytes:
        parts = (link.owner.hex(), link.id.hex(), self._owner.peer)
        return WRITTEN + "/".join(parts).encode() + b"/"

    async def _links(self) -> list[Link]:
        """Those by which this device wrote what waits still."""
        found: list[Link] = []
        async for name, version in self._storage.kept(WRITTEN):
            *_, device, what = name.removeprefix(WRITTEN).split(b"/", 3)
            if device == self._owner.peer.encode() and what == LINK:
                found.append(decode_stored(await self._records.read(name, version), Link))
        return found

    async def _pending(self, prefix: bytes) -> dict[WrittenPlace, Version]:
        found: dict[WrittenPlace, Version] = {}
        async for name, version in self._storage.kept(prefix):
            sequence, _, rest = name.removeprefix(prefix).partition(b"/")
            number, is_version, below = rest.partition(b"/")
            if is_version:
                found[WrittenPlace(int(sequence), int(number), below)] = version
        return found

    async def _keep(
        self,
        link: Link,
        is_folder: bool,
        waiting: Mapping[WrittenPlace, Version],
        fresh: Mapping[WrittenPlace, Version],
        over: Sequence[bytes],
        putting: Putting,
    ) -> Content:
        """Keeps new versions, and the list of all that waits, whose content is returned."""
        prefix = self._prefix(link)
        files = [LinkedFile(place.name, self._version(place, waiting[place])) for place in sorted(waiting)]
        listed = LinkedFiles(FORMAT, files, is_folder)
        try:
            check_proposed(listed, self._device, is_folder=is_folder)
        except PeerMisbehaved as problem:
            raise Refused(
                f"too much waits for the owner of this link: {problem}", remedy="Try again once its owner was here."
            ) from None
        pending = await putting.add(BytesSource(encode(listed)))
        line = await putting.add(BytesSource(encode(link)))
        await putting.finish()
        kept: dict[bytes, Version | None] = {
            **dict.fromkeys(over),
            **{place.below(prefix): version for place, version in fresh.items()},
            prefix + LISTED: Version(0, b"", 0.0, pending.size, pending.content),
            prefix + LINK: Version(0, b"", 0.0, line.size, line.content),
        }
        await self._storage.keep(kept, putting)
        return pending.content

    def _version(self, place: WrittenPlace, version: Version) -> Version:
        """As the link's owner is to have it."""
        at = place.sequence / MILLISECONDS
        return replace(version, number=place.number, device=self._device, at=at, until=0, bounds=None)

    async def _propose(
        self,
        link: Link,
        state: LinkState,
        sequence: int,
        content: Content,
        peers: Sequence[PeerId],
        needed: int = 1,
    ) -> None:
        """Tells peers what waits. Raises CroftError unless so many of them keep it, or all that are up."""
        owner, allowed = self._owner, open_permit(state.permit)
        permit = Permit(
            *(self._id, self._device, [], [state.owner, *allowed.twins], allowed.communities, False),
            allowed.expires_at,
        )
        sealed = seal_target(link.key, content, self._entropy.token(NONCE_BYTES), PURPOSE)
        signed = sign_permit(owner.device, owner.certificate, permit)
        proposal = Proposal(self._id, self._device, link.owner, link.id, sequence, signed, sealed)
        record = sign_proposal(owner.device, owner.certificate, proposal)
        refusals: list[CroftError] = []

        async def put(peer: PeerId) -> bool:
            try:
                async with asyncio.timeout(ASK_S_MAX):
                    await self._holders[peer].ask(PutProposal(record), Done)
                return True
            except TimeoutError:
                log.info("%s does not take what was written by a link in time", self._network.name(peer))
            except CroftError as error:
                refusals.append(error)
            return False

        needed = min(needed, len(peers))
        if sum(await in_time([put(peer) for peer in peers], bool, needed)) < needed:
            if refusals:
                raise refusals[0]
            raise Unreachable(
                "too few peers that know this link answer", remedy="Try again when they do: `croft peers`."
            )

    async def _look_after(self, link: Link) -> None:
        prefix = self._prefix(link)
        answers = await self._reader.answers(link)
        state = max((answer.state for answer in answers), key=lambda state: state.sequence)
        before = await self._pending(prefix)
        taken = dict(state.taken).get(self._device, 0)
        is_over = not state.sealed or open_permit(state.permit).expires_at < self._clock.now()
        waiting = {place: version for place, version in before.items() if place.sequence > taken and not is_over}
        if is_over and any(place.sequence > taken for place in before):
            log.warning("a link was revoked or ran out before its owner had what was written by it")
        if not waiting:
            await self._forget(prefix, [place.below(prefix) for place in before])
            return
        sequence = max(place.sequence for place in waiting)
        known = {
            answer.peer
            for answer in answers
            for proposal in self._reader.believed(state, answer.proposals)
            if (proposal.device, proposal.sequence) == (self._device, sequence)
        }
        behind = [answer.peer for answer in answers if answer.peer not in known]
        listed = [version async for name, version in self._storage.kept(prefix + LISTED)]
        if behind and listed and listed[0].content is not None:
            await self._propose(link, state, sequence, listed[0].content, behind)

    async def _take_back(
        self,
        link: Link,
        is_folder: bool,
        waiting: Mapping[WrittenPlace, Version],
        fresh: Mapping[WrittenPlace, Version],
    ) -> None:
        """What no peer knows of was not written."""
        gone = [place.below(self._prefix(link)) for place in fresh]
        with contextlib.suppress(CroftError):
            if not waiting:
                await self._forget(self._prefix(link), gone)
                return
            async with await self._storage.listing() as putting:
                await self._keep(link, is_folder, waiting, {}, gone, putting)

    async def _forget(self, prefix: bytes, names: Sequence[bytes]) -> None:
        """Nothing waits any more."""
        gone = [*names, prefix + LISTED, prefix + LINK]
        async with await self._storage.listing() as putting:
            await self._storage.keep(dict.fromkeys(gone), putting)


def _number(opened: OpenedLink, waiting: Mapping[WrittenPlace, Version], name: bytes) -> int:
    """Of a new version: after what is seen of the file, and what waits of it."""
    own = max((place.number + 1 for place in waiting if place.name == name), default=1)
    return max(own, next_number(opened.entries.get(name)))
