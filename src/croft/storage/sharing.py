"""Lets others read files of this owner, and write them, by links: made, renewed as the files change, revoked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from blake3 import blake3

from croft.errors import CroftError, NotFound, Unreachable
from croft.model.ids import PeerId
from croft.ports import Clock, Entropy
from croft.storage.contents import BytesSource
from croft.storage.formats import FORMAT, StripeList, Version
from croft.storage.head_book import Owner
from croft.storage.held_links import HeldLinks
from croft.storage.link_book import FILES, MADE, REVOKED, TOLD, LinkBook
from croft.storage.linked_files import LinkAnswer, LinkReader
from croft.storage.links import (
    ID_BYTES,
    KEY_BYTES,
    VERIFY,
    LinkedFile,
    LinkedFiles,
    LinkState,
    MadeLink,
    OwnLink,
    ToldLink,
    seal_target,
    sign_link,
)
from croft.storage.messages import Done, PutLink
from croft.storage.permits import Permit, sign_permit
from croft.storage.placement import BoundedStripe, rule_of
from croft.storage.proposing import led_to
from croft.storage.sealing import NONCE_BYTES
from croft.storage.service import Storage
from croft.storage.share_client import Holders
from croft.storage.transfer import Network
from croft.storage.wards import list_of
from croft.wire.codec import encode

log = logging.getLogger(__name__)

ASK_S_MAX: Final = 5.0

KEEPERS_MIN: Final = 2
GONE_S: Final = 86_400.0
"""Who has been away for so long is not counted on to keep a link's state."""

Taken = list[tuple[bytes, int]]


class Named(NamedTuple):
    """People and communities, by the bytes of their ids."""

    twins: Sequence[bytes] = ()
    communities: Sequence[bytes] = ()


class Sharing:
    """The links of one owner."""

    def __init__(
        self,
        owner: Owner,
        storage: Storage,
        network: Network,
        holders: Holders,
        reader: LinkReader,
        held: HeldLinks,
        book: LinkBook,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._owner = owner
        self._id = bytes.fromhex(owner.twin)
        self._storage = storage
        self._network = network
        self._holders = holders
        self._reader = reader
        self._held = held
        self._book = book
        self._clock = clock
        self._entropy = entropy
        self._telling = asyncio.Lock()

    # --- own links ---------------------------------------------------------------------------------------------------

    async def make(
        self,
        name: bytes,
        readers: Named,
        writers: Named,
        expires_at: float,
        *,
        verifies: bool = False,
        repairers: Sequence[bytes] = (),
    ) -> OwnLink:
        """A link to a file, or all below a name. It leads there once this returns. Raises NotFound, Unreachable.

        `verifies`: only to whether all of it is there; `repairers`: devices that may make lost shares again.
        """
        files = await self._files(name, is_written=False)
        if not files:
            shown = name.decode(errors="replace")
            raise NotFound(f"there is no file `{shown}`", remedy="See which there are: `croft ls`.")
        twins, communities = (list(dict.fromkeys([*some, *more])) for some, more in zip(readers, writers, strict=True))
        made = MadeLink(
            *(FORMAT, self._entropy.token(ID_BYTES), self._entropy.token(KEY_BYTES), name),
            *(twins, communities, self._clock.now(), expires_at),
            *(list(writers.twins), list(writers.communities)),
            is_folder=all(file.name for file in files),
            verifies=verifies,
            repairers=list(repairers),
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
        plain = b"" if link.is_revoked else encode(await self._target(made))
        taken = [] if told is None else told.taken
        digest = b"" if link.is_revoked else blake3(plain + encode(taken)).digest()
        if told is not None and told.digest == digest and not self._is_thin(told.peers):
            return link
        async with await self._storage.listing() as putting:
            sealed, listed = b"", None
            peers = list(link.peers)
            if not link.is_revoked:
                pending = await putting.add(BytesSource(plain))
                await putting.finish()
                listed = Version(0, b"", 0.0, len(plain), pending.content)
                nonce, purpose = self._entropy.token(NONCE_BYTES), VERIFY if made.verifies else "link"
                sealed = seal_target(made.key, pending.content, nonce, purpose)
                peers = self._keepers(peers, [place.peer for place in putting.chosen])
            known = 0 if told is None else told.sequence
            if link.is_revoked:
                known = max(known, await self._newest_known(link))  # by whichever clock it was told last
            sequence = max(int(self._clock.now() * 1000), known + 1)
            await self._spread(self._sign(made, sequence, sealed, taken), peers)
            told = ToldLink(FORMAT, sequence, digest, peers, taken)
            records = {TOLD: encode(told)} | ({} if link.told else {MADE: encode(made)})
            await self._book.keep(made.id, records, {FILES: listed}, putting)
        return replace(link, told=told)

    def _keepers(self, known: Sequence[bytes], chosen: Sequence[PeerId]) -> list[bytes]:
        """Who keeps a link's state: those who did, and others only if too few of them are up."""
        alive = {bytes.fromhex(peer) for peer in self._network.alive()}
        more = [] if len(alive & set(known)) >= len(chosen) else [bytes.fromhex(peer) for peer in chosen]
        return list(dict.fromkeys([*known, *more]))

    def _is_thin(self, peers: Sequence[bytes]) -> bool:
        """Whether too few of those who keep a link's state are here, or may come back."""
        left = [peer for peer in _ids(peers) if self._network.away_s(peer) < GONE_S]
        return len(left) < min(KEEPERS_MIN, len(self._network.alive()))

    def _sign(self, made: MadeLink, sequence: int, sealed: bytes, taken: Taken) -> tuple[LinkState, bytes]:
        owner, device = self._owner, bytes.fromhex(self._owner.peer)
        permit = Permit(
            *(self._id, device, made.repairers, made.twins, made.communities),
            may_put=bool(made.repairers),
            expires_at=made.expires_at,
        )
        state = LinkState(
            *(self._id, device, made.id, sequence, sign_permit(owner.device, owner.certificate, permit), sealed),
            *(made.writers, made.writing_communities, taken),
        )
        return state, sign_link(owner.device, owner.certificate, state)

    async def _newest_known(self, link: OwnLink) -> int:
        """The highest number of a state of this link that a holder has."""
        answers = await asyncio.gather(*(self._reader.ask(peer, self._id, link.made.id) for peer in _ids(link.peers)))
        return max((answer.state.sequence for answer in answers if isinstance(answer, LinkAnswer)), default=0)

    async def retell(self, peers: Collection[PeerId]) -> None:
        """Has peers that were away know the newest states of links that they keep. Raises CroftError."""
        for link in await self.links():
            wanted = [peer for peer in _ids(link.peers) if peer in peers]
            if wanted and (record := await self._held.record(self._id, link.made.id)) is not None:
                await self._put(record, wanted)

    async def _spread(self, signed: tuple[LinkState, bytes], peers: Sequence[bytes]) -> None:
        state, record = signed
        if not await self._put(record, _ids(peers)):
            raise Unreachable(
                "no peer that keeps this link is up", remedy="They are told as soon as they are: `croft peers`."
            )
        await self._held.keep_own(state, record)  # whoever asks this device has it from here

    async def _put(self, record: bytes, peers: Sequence[PeerId]) -> int:
        """How many took a link's state."""

        async def put(peer: PeerId) -> bool:
            try:
                async with asyncio.timeout(ASK_S_MAX):
                    await self._holders[peer].ask(PutLink(record), Done)
                return True
            except (CroftError, TimeoutError) as error:
                log.info("%s does not take a link: %s", self._network.name(peer), error)
                return False

        return sum(await asyncio.gather(*map(put, peers)))

    async def _target(self, made: MadeLink) -> LinkedFiles | StripeList:
        """What a link leads to, as the files are now."""
        files = await self._files(made.name, is_written=made.is_written)
        if not made.verifies:
            return LinkedFiles(FORMAT, files, made.is_folder)
        stripes: dict[bytes, BoundedStripe] = {}
        for file in files:
            if file.version.content is not None:
                rule = rule_of(file.version.bounds)
                stripes |= {one.id: (one, rule) for one in await self._storage.stripes_of(file.version.content)}
        return list_of(list(stripes.values()))

    async def _files(self, name: bytes, *, is_written: bool) -> list[LinkedFile]:
        entries = [entry async for entry in self._storage.entries(name, with_dropped=is_written)]
        return led_to(name, entries, is_written=is_written)


def _ids(peers: Sequence[bytes]) -> list[PeerId]:
    return [PeerId(peer.hex()) for peer in peers]
