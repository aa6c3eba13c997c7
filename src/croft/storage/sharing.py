"""Lets others read files of this owner by links, and reads what links of others lead to."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec
from blake3 import blake3

from croft.errors import CroftError, NotFound, PeerMisbehaved, Refused, Unreachable
from croft.model.ids import PeerId
from croft.ports import Clock, Database, Entropy, Offload
from croft.storage.contents import BytesSource, Reading
from croft.storage.formats import FORMAT, Content, Version, decode_stored
from croft.storage.head_book import Owner
from croft.storage.links import (
    ID_BYTES,
    KEY_BYTES,
    PEERS_MAX,
    Link,
    LinkedFile,
    LinkedFiles,
    LinkState,
    open_link_state,
    open_target,
    seal_target,
    sign_link,
    write_link,
)
from croft.storage.messages import Done, LinkRead, PutLink, ReadLink
from croft.storage.permits import Permit, sign_permit
from croft.storage.sealing import NONCE_BYTES
from croft.storage.service import HIDDEN, Storage
from croft.storage.share_client import Holders
from croft.storage.stripes import Buffers
from croft.storage.transfer import Network, Receiving
from croft.wire.codec import encode

log = logging.getLogger(__name__)

ASK_S_MAX: Final = 5.0
READING_BYTES: Final = 64 << 20
LINKS: Final = HIDDEN + b"links/"


@dataclass(frozen=True, slots=True)
class OwnLink:
    """A link that this device made. `digest`: of what it was last told to lead to; empty once it is revoked."""

    id: bytes
    key: bytes
    name: bytes
    twins: tuple[bytes, ...]
    communities: tuple[bytes, ...]
    expires_at: float
    is_revoked: bool = False
    digest: bytes = b""
    peers: tuple[bytes, ...] = ()

    def line(self, owner: bytes) -> str:
        """What is passed on."""
        return write_link(Link(FORMAT, owner, self.id, self.key, self.name, list(self.peers[:PEERS_MAX])))


class Sharing:
    """The links of one device, and reading those of others."""

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
        self._database = database
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
        link = OwnLink(
            *(self._entropy.token(ID_BYTES), self._entropy.token(KEY_BYTES), name),
            *(tuple(twins), tuple(communities), expires_at),
        )
        async with self._telling:
            return await self._tell(link)

    async def links(self) -> list[OwnLink]:
        """Those made here, revoked ones too."""
        rows = await self._database.run(lambda db: db.execute("SELECT record FROM storage_link").fetchall())
        return [msgspec.msgpack.decode(record, type=OwnLink) for (record,) in rows]

    async def revoke(self, start: str) -> OwnLink:
        """Has a link lead to nothing any more; `start`: how its id begins. Raises NotFound, Unreachable."""
        found = [link for link in await self.links() if start and link.id.hex().startswith(start)]
        if len(found) != 1:
            raise NotFound(f"there is no link `{start[:40]}`", remedy="See which there are: `croft link list`.")
        async with self._telling:
            return await self._tell(replace(found[0], is_revoked=True))

    async def refresh(self) -> None:
        """Has every link lead to what its files are now. Raises CroftError."""
        async with self._telling:
            for link in await self.links():
                if not link.is_revoked and link.expires_at > self._clock.now():
                    await self._tell(link)

    async def _tell(self, link: OwnLink) -> OwnLink:
        files = [] if link.is_revoked else await self._files_now(link.name)
        plain = encode(LinkedFiles(FORMAT, files))
        digest = b"" if link.is_revoked else blake3(plain).digest()
        if digest == link.digest and link.peers:
            return link
        sealed = b""
        if not link.is_revoked:
            async with self._storage.putting(await self._storage.last_rule()) as putting:
                pending = await putting.add(BytesSource(plain))
                await putting.finish()
                kept = Version(0, b"", 0.0, len(plain), pending.content)
                await self._storage.keep({LINKS + link.id: kept}, putting)
                peers = [bytes.fromhex(place.peer) for place in putting.chosen]
            sealed = seal_target(link.key, pending.content, self._entropy.token(NONCE_BYTES))
            link = replace(link, peers=tuple(dict.fromkeys([*peers, *link.peers])))
        owner, device = self._owner, bytes.fromhex(self._owner.peer)
        permit = Permit(self._id, device, [], list(link.twins), list(link.communities), False, link.expires_at)
        signed = sign_permit(owner.device, owner.certificate, permit)
        sequence = int(self._clock.now() * 1000)
        state = LinkState(self._id, device, link.id, sequence, signed, sealed)
        await self._spread(sign_link(owner.device, owner.certificate, state), link.peers)
        link = replace(link, digest=digest)
        row = (link.id, msgspec.msgpack.encode(link))

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO storage_link VALUES (?, ?)", row)

        await self._database.run(write)
        return link

    async def _spread(self, record: bytes, peers: Sequence[bytes]) -> None:
        async def put(peer: PeerId) -> bool:
            try:
                async with asyncio.timeout(ASK_S_MAX):
                    await self._holders[peer].ask(PutLink(record), Done)
                return True
            except (CroftError, TimeoutError) as error:
                log.info("%s does not take a link: %s", self._network.name(peer), error)
                return False

        if not any(await asyncio.gather(*(put(PeerId(peer.hex())) for peer in peers))):
            raise Unreachable("no peer that keeps this link is up", remedy="Try again when they are: `croft peers`.")

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
        refusals: list[Refused] = []

        async def ask(peer: PeerId) -> LinkState | None:
            try:
                async with asyncio.timeout(ASK_S_MAX):
                    answer = await self._holders[peer].ask(ReadLink(link.owner, link.id), LinkRead)
                state = open_link_state(answer.record)
                return state if (state.owner, state.id) == (link.owner, link.id) else None
            except Refused as refusal:
                refusals.append(refusal)
            except (CroftError, PeerMisbehaved, TimeoutError) as problem:
                log.debug("%s shows no link: %s", self._network.name(peer), problem)
            return None

        hints = [PeerId(peer.hex()) for peer in link.peers]
        found = await asyncio.gather(*map(ask, dict.fromkeys([*hints, *self._network.alive()])))
        states = [state for state in found if state is not None]
        if not states and refusals:
            raise refusals[0]
        if not states:
            raise NotFound("no peer that is up knows this link", remedy="Its holders may be off: try again later.")
        return max(states, key=lambda state: state.sequence)
