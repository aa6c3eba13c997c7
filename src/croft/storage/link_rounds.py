"""Says when to look after links: when peers come, when somebody wrote by one, and now and then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from croft.errors import CroftError
from croft.model.ids import PeerId
from croft.storage.link_taking import LinkTaking
from croft.storage.link_writing import LinkWriter
from croft.storage.service import Storage
from croft.storage.sharing import Sharing
from croft.storage.transfer import Network

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
ROUND_EVERY_S: Final = 60.0
SETTLE_S: Final = 1.0


class LinkRounds:
    """Of one peer."""

    def __init__(
        self, storage: Storage, network: Network, sharing: Sharing, taking: LinkTaking, writer: LinkWriter
    ) -> None:
        self._storage = storage
        self._network = network
        self._sharing = sharing
        self._taking = taking
        self._writer = writer
        self._due = asyncio.Event()

    def now(self) -> None:
        """There is something to do."""
        self._due.set()

    async def serve(self) -> None:
        """Goes its rounds until cancelled."""
        loop = asyncio.get_running_loop()
        seen, due_at = set[PeerId](), loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._due.wait()
                    await asyncio.sleep(SETTLE_S)
            if not await self._may_have_links():
                self._due.clear()
                continue
            alive = set(self._network.alive())
            come, seen = alive - seen, alive
            if come or self._due.is_set() or loop.time() >= due_at:
                self._due.clear()
                due_at = loop.time() + ROUND_EVERY_S
                await self._round(come)

    async def _may_have_links(self) -> bool:
        """Whoever knows no list has none, and is not to ask everybody now and then, nor to count who is up."""
        try:
            return await self._storage.knows_list()
        except CroftError:
            return False  # the key is not here yet

    async def _round(self, come: set[PeerId]) -> None:
        try:
            if come:
                await self._sharing.retell(come)
                await self._sharing.refresh()
            await self._taking.round()
            await self._writer.round()
        except CroftError as problem:
            log.info("links are not looked after now: %s", problem.message)
