"""Lets others read files of this owner by links, and reads what links of others lead to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from blake3 import blake3

from croft.errors import CroftError, NotFound, PeerMisbehaved, Refused, Unreachable
from croft.model.ids import PeerId
from croft.ports import Clock, Database, Entropy, Offload
from croft.storage.contents import BytesSource, Reading
from croft.storage.formats import FORMAT, Content, Version, decode_stored
from croft.storage.head_book import Owner
from croft.storage.kept_records import KeptRecords
from croft.storage.link_book import FILES, MADE, REVOKED, TOLD, LinkBook
from croft.storage.links import (
    ID_BYTES,
    KEY_BYTES,
    Link,
    LinkedFile,
    LinkedFiles,
    LinkState,
    MadeLink,
    OwnLink,
    ToldLink,
    open_link_state,
    open_target,
    read_link,
    seal_target,
    sign_link,
)
from croft.storage.messages import Done, LinkRead, PutLink, ReadLink
from croft.storage.permits import Permit, sign_permit
from croft.storage.sealing import NONCE_BYTES
from croft.storage.service import Storage
from croft.storage.share_client import Holders
from croft.storage.stripes import Buffers
from croft.storage.transfer import Network, Receiving
from croft.wire.codec import encode

log = logging.getLogger(__name__)

ASK_S_MAX: Final = 5.0
READING_BYTES: Final = 64 << 20


class Sharing:
    """The links of one owner, and reading those of others."""

    def __init__(
        self,
        owner: Owner,
        storage: Storage,
        network: Network,
        holders: Holders,
        database: Database,
        clock: Clock,
        entropy: Entropy,
        offload: Offload,
    ) -> None:
        self._owner = owner
        self._id = bytes.fromhex(owner.twin)
        self._storage = storage
        self._network = network
        self._holders = holders
        self._book = LinkBook(storage, KeptRecords(storage, database))
        self._clock = clock
        self._entropy = entropy
        self._offload = offload
        self._telling = asyncio.Lock()

    # --- own links ---------------------------------------------------------------------------------------------------

    async def make(
        self, name: bytes, twins: Sequence[bytes], communities: Sequence[bytes], expires_at: float
    ) -> OwnLink:
        """A link to a file, or all below a name. It leads there once this returns. Raises NotFound, Unreachable."""
        await self._files(name)
        made = MadeLink(
            *(FORMAT, self._entropy.token(ID_BYTES), self._entropy.token(KEY_BYTES), name),
            *(list(twins), list(communities), self._clock.now(), expires_at),
        )
        async with self._telling:
            return await self._tell(OwnLink(made))

    async def links(self) -> list[OwnLink]:
        """Those of this owner, whatever device made them, revoked ones too. Raises CroftError."""
        return await self._book.all()

    async def revoke(self, start: str) -> OwnLink:
        """Has a link lead to nothing any more; `start`: how its id begins.

        Raises:
            NotFound: there is none. Unreachable: it is revoked, and no peer that keeps it is up to be told so yet.
        """
        async with self._telling:
            link = await self._book.find(start)
            if not link.is_revoked:
                async with await self._storage.listing() as putting:
                    await self._book.keep(link.made.id, {REVOKED: b""}, {}, putting)
            return await self._tell(replace(link, is_revoked=True))

    async def refresh(self) -> None:
        """Has every link lead to what its files are now. Raises CroftError."""
        async with self._telling:
            now, problems = self._clock.now(), list[CroftError]()
            for link in await self.links():
                try:
                    if link.made.expires_at > now:
                        await self._tell(link)
                except CroftError as problem:
                    problems.append(problem)  # the others are none the worse for it
            if problems:
                raise problems[0]

    async def _tell(self, link: OwnLink) -> OwnLink:
        """Has holders know where a link leads now, if they do not."""
        made, told = link.made, link.told
        files = [] if link.is_revoked else await self._files_now(made.name)
        plain = encode(LinkedFiles(FORMAT, files))
        digest = b"" if link.is_revoked else blake3(plain).digest()
        if told is not None and told.digest == digest:
            return link
        async with await self._storage.listing() as putting:
            sealed, listed = b"", None
            peers = list(link.peers)
            if not link.is_revoked:
                pending = await putting.add(BytesSource(plain))
                await putting.finish()
                listed = Version(0, b"", 0.0, len(plain), pending.content)
                sealed = seal_target(made.key, pending.content, self._entropy.token(NONCE_BYTES))
                peers = self._keepers(peers, [place.peer for place in putting.chosen])
            known = 0 if told is None else told.sequence
            if link.is_revoked:
                known = max(known, await self._newest_known(link))  # by whichever clock it was told last
            sequence = max(int(self._clock.now() * 1000), known + 1)
            await self._spread(self._sign(made, sequence, sealed), peers)
            told = ToldLink(FORMAT, sequence, digest, peers)
            records = {TOLD: encode(told)} | ({} if link.told else {MADE: encode(made)})
            await self._book.keep(made.id, records, {FILES: listed}, putting)
        return replace(link, told=told)

    def _keepers(self, known: Sequence[bytes], chosen: Sequence[PeerId]) -> list[bytes]:
        """Who keeps a link's state: those who did, and others only if too few of them are up."""
        alive = {bytes.fromhex(peer) for peer in self._network.alive()}
        more = [] if len(alive & set(known)) >= len(chosen) else [bytes.fromhex(peer) for peer in chosen]
        return list(dict.fromkeys([*known, *more]))

    def _sign(self, made: MadeLink, sequence: int, sealed: bytes) -> bytes:
        owner, device = self._owner, bytes.fromhex(self._owner.peer)
        permit = Permit(self._id, device, [], made.twins, made.communities, False, made.expires_at)
        signed = sign_permit(owner.device, owner.certificate, permit)
        return sign_link(
            owner.device, owner.certificate, LinkState(self._id, device, made.id, sequence, signed, sealed)
        )

    async def _newest_known(self, link: OwnLink) -> int:
        """The highest number of a state of this link that a holder has."""
        wanted = read_link(link.line(self._id))
        states = await asyncio.gather(*(self._ask(peer, wanted) for peer in _ids(link.peers)))
        return max((state.sequence for state in states if isinstance(state, LinkState)), default=0)

    async def _spread(self, record: bytes, peers: Sequence[bytes]) -> None:
        async def put(peer: PeerId) -> bool:
            try:
                async with asyncio.timeout(ASK_S_MAX):
                    await self._holders[peer].ask(PutLink(record), Done)
                return True
            except (CroftError, TimeoutError) as error:
                log.info("%s does not take a link: %s", self._network.name(peer), error)
                return False

        if not any(await asyncio.gather(*map(put, _ids(peers)))):
            raise Unreachable(
                "no peer that keeps this link is up", remedy="They are told as soon as they are: `croft peers`."
            )

    async def _files(self, name: bytes) -> list[LinkedFile]:
        below = name + b"/"
        found = [entry async for entry in self._storage.entries(name)]
        files = [
            LinkedFile(b"" if entry.name == name else entry.name[len(below) :], entry.versions[-1])
            for entry in found
            if (entry.name == name or entry.name.startswith(below)) and entry.versions[-1].content is not None
        ]
        if not files:
            shown = name.decode(errors="replace")
            raise NotFound(f"there is no file `{shown}`", remedy="See which there are: `croft ls`.")
        return files

    async def _files_now(self, name: bytes) -> list[LinkedFile]:
        try:
            return await self._files(name)
        except NotFound:
            return []  # removed meanwhile; the link leads to nothing until there is something again

    # --- links of others ---------------------------------------------------------------------------------------------

    async def open(self, link: Link) -> tuple[list[LinkedFile], Reading]:
        """What a link leads to now, and by what it is read. Raises Refused, NotFound, Unreachable, Usage."""
        state = await self._state(link)
        buffers = Buffers(READING_BYTES)
        receiving = Receiving(link.owner, self._network, self._holders, self._offload, buffers, state.permit)
        reading = Reading(receiving, self._offload)
        content: Content = open_target(link.key, state)
        return decode_stored(await reading.whole(content), LinkedFiles).files, reading

    async def _state(self, link: Link) -> LinkState:
        """The newest state of a link that some peer has."""
        found = await asyncio.gather(
            *(self._ask(peer, link) for peer in dict.fromkeys([*_ids(link.peers), *self._network.alive()]))
        )
        states = [state for state in found if isinstance(state, LinkState)]
        refusals = [refusal for refusal in found if isinstance(refusal, Refused)]
        if not states and refusals:
            raise refusals[0]
        if not states:
            raise NotFound("no peer that is up knows this link", remedy="Its holders may be off: try again later.")
        return max(states, key=lambda state: state.sequence)

    async def _ask(self, peer: PeerId, link: Link) -> LinkState | Refused | None:
        """What a peer says of a link; None: it does not know it, or says what is not to be believed."""
        try:
            async with asyncio.timeout(ASK_S_MAX):
                answer = await self._holders[peer].ask(ReadLink(link.owner, link.id), LinkRead)
            state = open_link_state(answer.record)
            return state if (state.owner, state.id) == (link.owner, link.id) else None
        except Refused as refusal:
            return refusal
        except (CroftError, PeerMisbehaved, TimeoutError) as problem:
            log.debug("%s shows no link: %s", self._network.name(peer), problem)
            return None


def _ids(peers: Sequence[bytes]) -> list[PeerId]:
    return [PeerId(peer.hex()) for peer in peers]
