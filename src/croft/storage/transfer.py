"""Brings stripes to their holders and back: the shell of `upload` and `download`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Sequence
from typing import Any, Final, Protocol, assert_never

from croft.errors import CroftError, Failed, PeerMisbehaved, Refused, Unreachable
from croft.model.ids import PeerId
from croft.ports import Offload, Stream
from croft.storage import download, merkle, upload
from croft.storage.formats import Stripe
from croft.storage.messages import Done, FindShares, Found, PutShare, ReadShare
from croft.storage.placement import Layout, Place
from croft.storage.share_client import Holders
from croft.storage.stripes import Buffers, is_share, rebuild, share_view

SLOW_S: Final = 1.5
"""A share that is not here by then gets a rival."""
LOCATE_S_MAX: Final = 5.0
LOST_S: Final = 15.0
"""A peer that was lost is asked last for so long."""
LOST_COST: Final = 50.0
FAULTS_KEPT: Final = 100
BAD_SHARE: Final = "gave a share that is not what its id says"


class Network(Protocol):
    """Who is there, as storage wants to see it."""

    def name(self, peer: PeerId) -> str:
        """What to call a peer."""
        ...

    def cost(self, peer: PeerId) -> float:
        """Of asking a peer: its round trip in seconds; more than 10 if it seems to be dead."""
        ...

    def places(self) -> Sequence[Place]:
        """Other peers that lend disk to this one, dead ones too."""
        ...

    def own_place(self) -> Place:
        """This peer, as somebody sees it whose data it looks after."""
        ...

    def has_other_devices(self) -> bool:
        """Whether the owner of this peer has others."""
        ...

    async def secret_of_own_devices(self) -> bytes | None:
        """The secret of the owner's files, from another device of the owner; None if no such device has it now."""
        ...

    def alive(self) -> Sequence[PeerId]:
        """Every other peer that may hold something and seems to live."""
        ...

    def away_s(self, peer: PeerId) -> float:
        """For how long a peer has not been heard of; 0 if it seems to live."""
        ...

    async def open_stream(self, peer: PeerId, purpose: str) -> Stream:
        """Raises Unreachable, Refused."""
        ...


class Sending:
    """One stripe on its way to holders. `run` it; `committed` is set once it counts, or will not."""

    def __init__(
        self, owner: bytes, holders: Holders, layout: Layout, ranking: Sequence[Place], shares: Sequence[bytes]
    ) -> None:
        self._owner = owner
        self._holders = holders
        self._layout = layout
        self._core = upload.Upload(layout, ranking)
        self.shares = list(shares)
        self._inbox: asyncio.Queue[upload.Event] = asyncio.Queue()
        self.committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.missing: tuple[int, ...] = ()

    def stripe(self, size: int) -> Stripe:
        """The stripe, with where its shares are as far as it is known."""
        return Stripe(self._layout.k, size, self.shares, [bytes.fromhex(peer) for peer in self._core.holders])

    async def run(self, buffer: bytearray, size: int) -> None:
        """Sends all shares; returns once nothing is under way. The outcome is in `committed`."""
        async with asyncio.TaskGroup() as tasks:
            effects = list(self._core.start())
            while True:
                for effect in effects:
                    match effect:
                        case upload.Send(index, place):
                            view = share_view(buffer, self._layout, size, index)
                            tasks.create_task(self._send(index, place, view), name="share.send")
                        case upload.Committed():
                            self.committed.set_result(None)
                        case upload.Finished(missing):
                            self.missing = missing
                            return
                        case upload.Failed(reasons):
                            self.committed.set_exception(_not_stored(reasons, self._layout))
                            self.committed.exception()  # somebody asks later, or nobody does
                            return
                        case _:
                            assert_never(effect)
                effects = list(self._core.handle(await self._inbox.get()))

    async def _send(self, index: int, place: Place, view: memoryview) -> None:
        request = PutShare(self._owner, self.shares[index], len(view))
        try:
            await self._holders[place.peer].ask(request, Done, data=view)
            event: upload.Event = upload.Stored(index)
        except CroftError as error:
            event = upload.NotStored(index, error.message)
        self._inbox.put_nowait(event)


def _not_stored(reasons: Sequence[str], layout: Layout) -> Refused:
    said = "; ".join(reasons) or "nobody took a share"
    return Refused(
        f"too few peers took a share of the data for {layout}: {said}",
        remedy="Free room there, name others with --on, or use fewer shares with --keep.",
    )


class Receiving:
    """Fetches stripes of one owner. `permit`: what lets somebody else do so."""

    def __init__(
        self,
        owner: bytes,
        network: Network,
        holders: Holders,
        offload: Offload,
        buffers: Buffers,
        permit: bytes = b"",
    ) -> None:
        self._owner = owner
        self._permit = permit
        self._network = network
        self._holders = holders
        self._offload = offload
        self._buffers = buffers
        self.found: dict[bytes, list[PeerId]] = {}
        """Where shares were found that were not where they had been put."""
        self._lost_at: dict[PeerId, float] = {}
        self.faults: list[str] = []
        """What holders were caught at, newest last."""

    async def stripe(self, stripe: Stripe) -> bytearray:
        """A buffer that begins with the bytes of the stripe; give it back. Raises Unreachable if it is lost."""
        buffer = await self._buffers.take(stripe.share_bytes * stripe.n)
        try:
            have = await self._fetch(stripe, buffer)
            await self._offload.run(rebuild, buffer, stripe, have)
        except BaseException:
            self._buffers.give(buffer)
            raise
        return buffer

    def done(self, buffer: bytearray) -> None:
        """Takes a buffer back."""
        self._buffers.give(buffer)

    async def part(self, stripe: Stripe, offset: int, length: int) -> bytes | None:
        """A range that lies within one data share, straight from its holder; None if that fails."""
        share_bytes = stripe.share_bytes
        index = offset // share_bytes
        if (offset + length - 1) // share_bytes != index:
            return None
        start, size = merkle.leaf_span(offset - index * share_bytes, length, share_bytes)
        share = stripe.shares[index]
        # Copies are all the same: any holder will do.
        peers = stripe.holders if stripe.k == 1 else stripe.holders[index : index + 1]
        places = {PeerId(peer.hex()) for peer in peers} | set(self.found.get(share, ()))
        for peer in sorted(places, key=lambda peer: (self._cost(peer), peer))[:2]:
            data = bytearray(size)
            request = ReadShare(self._owner, share, start, size, self._permit)
            try:
                answer = await self._holders[peer].read(request, memoryview(data))
                if (start, size) == (0, share_bytes):
                    if not is_share(memoryview(data), share):
                        raise PeerMisbehaved(BAD_SHARE, step="share")
                else:
                    merkle.check(share, share_bytes, start, memoryview(data), answer.proof)
            except PeerMisbehaved:
                self._caught(peer, BAD_SHARE)
            except CroftError as error:
                if isinstance(error, Failed):
                    self._caught(peer, error.message)
            else:
                first = offset - index * share_bytes - start
                return bytes(memoryview(data)[first : first + length])
        return None

    async def locate(self, shares: Sequence[bytes], among: Collection[PeerId] | None = None) -> dict[int, list[PeerId]]:
        """Who says that it holds which of these shares, everybody asked."""

        async def ask(peer: PeerId) -> tuple[PeerId, list[int]]:
            try:
                async with asyncio.timeout(LOCATE_S_MAX):
                    answer = await self._holders[peer].ask(FindShares(self._owner, list(shares), self._permit), Found)
                return peer, answer.sizes
            except (CroftError, TimeoutError):
                return peer, []

        peers = self._network.alive() if among is None else list(among)
        where: dict[int, list[PeerId]] = {}
        for peer, sizes in await asyncio.gather(*map(ask, peers)):
            for index, size in enumerate(sizes[: len(shares)]):
                if size >= 0:
                    where.setdefault(index, []).append(peer)
                    known = self.found.setdefault(shares[index], [])
                    known += [peer] if peer not in known else []
        return where

    async def _fetch(self, stripe: Stripe, buffer: bytearray) -> tuple[int, ...]:
        hints = [
            [PeerId(holder.hex()), *(peer for peer in self.found.get(share, ()) if peer != holder.hex())]
            for share, holder in zip(stripe.shares, stripe.holders, strict=True)
        ]
        cost = {peer: self._cost(peer) for peers in hints for peer in peers}
        core = download.Download(stripe.k, hints, cost)
        inbox: asyncio.Queue[download.Event] = asyncio.Queue()
        running: set[asyncio.Task[None]] = set()

        def start(work: Coroutine[Any, Any, None]) -> None:
            task = asyncio.create_task(work, name="share.fetch")
            running.add(task)
            task.add_done_callback(running.discard)

        loop = asyncio.get_running_loop()
        slow = loop.call_later(SLOW_S, inbox.put_nowait, download.Slow())
        try:
            effects = list(core.start())
            while True:
                for effect in effects:
                    match effect:
                        case download.Fetch(index, peer):
                            start(self._fetch_share(stripe, index, peer, buffer, inbox))
                        case download.Locate():
                            start(self._locate(stripe, inbox))
                        case download.Complete(have):
                            return have
                        case download.Lost(count, reasons):
                            raise _lost(stripe, count, reasons)
                        case _:
                            assert_never(effect)
                event = await inbox.get()
                effects = list(core.handle(event))
                if isinstance(event, download.Slow):
                    slow = loop.call_later(SLOW_S, inbox.put_nowait, download.Slow())
        finally:
            slow.cancel()
            for task in list(running):
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _fetch_share(
        self, stripe: Stripe, index: int, peer: PeerId, buffer: bytearray, inbox: asyncio.Queue[download.Event]
    ) -> None:
        view = memoryview(buffer)[index * stripe.share_bytes : (index + 1) * stripe.share_bytes]
        share = stripe.shares[index]
        try:
            await self._holders[peer].read(ReadShare(self._owner, share, 0, 0, self._permit), view)
            if not await self._offload.run(is_share, view, share):
                raise PeerMisbehaved(BAD_SHARE, step="share")
        except PeerMisbehaved:
            self._caught(peer, BAD_SHARE)
            inbox.put_nowait(download.NotArrived(index, peer, f"{self._network.name(peer)}: {BAD_SHARE}"))
        except CroftError as error:
            if isinstance(error, Failed):
                self._caught(peer, error.message)
            elif isinstance(error, Unreachable):
                self._lost_at[peer] = asyncio.get_running_loop().time()
            inbox.put_nowait(download.NotArrived(index, peer, f"{self._network.name(peer)}: {error.message}"))
        else:
            inbox.put_nowait(download.Arrived(index))

    def _cost(self, peer: PeerId) -> float:
        """Of asking a peer; one that was just lost comes last, whatever others still say of it."""
        lost_at = self._lost_at.get(peer, -LOST_S)
        is_lost = asyncio.get_running_loop().time() - lost_at < LOST_S
        return self._network.cost(peer) + LOST_COST * is_lost

    async def _locate(self, stripe: Stripe, inbox: asyncio.Queue[download.Event]) -> None:
        inbox.put_nowait(download.Located(await self.locate(stripe.shares)))

    def note(self, faults: Sequence[str]) -> None:
        """Remembers what holders were caught at."""
        self.faults = [*self.faults, *faults][-FAULTS_KEPT:]

    def _caught(self, peer: PeerId, what: str) -> None:
        self.note([f"{self._network.name(peer)}: {what}"])


def _lost(stripe: Stripe, count: int, reasons: Sequence[str]) -> Unreachable:
    said = f": {'; '.join(reasons)}" if reasons else ""
    return Unreachable(
        f"only {count} of the {stripe.k} shares that are needed can be had{said}",
        remedy="Peers that hold the others may be off: try again when they are back; see `croft peers`.",
    )
