"""Brings heads of the list of files to holders, and gets those of the owner's other devices from them."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from croft.errors import CroftError, Failed, PeerMisbehaved
from croft.model.ids import PeerId
from croft.storage.contents import Putting
from croft.storage.formats import Head
from croft.storage.heads import open_head
from croft.storage.messages import Done, Heads, PutHead, ReadHeads
from croft.storage.share_client import Holders
from croft.storage.transfer import Network
from croft.storage.upload import margin

log = logging.getLogger(__name__)

HEAD_S_MAX: Final = 10.0
SYNC_S_MAX: Final = 4.0


class HeadExchange:
    """Of one owner."""

    def __init__(self, owner: bytes, network: Network, holders: Holders) -> None:
        self._owner = owner
        self._network = network
        self._holders = holders

    async def newest(self) -> list[tuple[Head, bytes]]:
        """The newest head of each of the owner's devices that some peer keeps."""

        async def ask(peer: PeerId) -> list[bytes]:
            try:
                async with asyncio.timeout(SYNC_S_MAX):
                    return (await self._holders[peer].ask(ReadHeads(), Heads)).records
            except (CroftError, TimeoutError):
                return []

        newest: dict[bytes, tuple[Head, bytes]] = {}
        for records in await asyncio.gather(*map(ask, self._network.alive())):
            for record in records:
                try:
                    head = open_head(record)
                except (CroftError, PeerMisbehaved) as problem:
                    log.warning("a head of the file list is not believed: %s", problem)
                    continue
                known = newest.get(head.device)
                if head.owner == self._owner and (known is None or known[0].sequence < head.sequence):
                    newest[head.device] = head, record
        return [newest[device] for device in sorted(newest)]

    async def tell(self, record: bytes, putting: Putting) -> None:
        """Brings a head to the peers that hold something of this change.

        Raises CroftError unless so many have it that it survives the loss of as many holders as a share does.
        """
        peers = [place.peer for place in putting.chosen]

        async def tell(peer: PeerId) -> str:
            try:
                async with asyncio.timeout(HEAD_S_MAX):
                    await self._holders[peer].ask(PutHead(record), Done)
                return ""
            except TimeoutError:
                return f"{self._network.name(peer)} does not answer"
            except CroftError as error:
                return f"{self._network.name(peer)}: {error.message}"

        problems = await asyncio.gather(*map(tell, peers))
        if problems.count("") < min(len(peers), margin(putting.layout) + 1):
            raise Failed(
                f"too few peers keep the new list of files: {'; '.join(filter(None, problems))}",
                remedy="Try again when more peers are up.",
            )
